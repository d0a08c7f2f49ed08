"""Arrays of NetCDF files, which xarray reads: NetCDF-4 with h5netcdf, NetCDF-3 with scipy.

A NetCDF-4 file is an HDF5 file, and is checked like one before xarray opens it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.hdf5_chunks import ChunkCheck
from modalities.hdf5_files import SIGNATURE, checked_datasets
from modalities.named_arrays import ArrayFile, Index, NamedArray, Part, is_number, unit_of
from multisagd.libraries import check

if TYPE_CHECKING:
    import xarray

CLASSIC = (b"CDF\x01", b"CDF\x02")
"""First bytes of NetCDF-3 files."""
PHONY = "phony_dim_"
"""Beginning of the names that h5netcdf gives to dimensions without a name."""
HIDDEN = "_nc4_non_coord_"
"""Beginning of the names of datasets whose variable has the name of a dimension, but does not describe it."""
LAZY = {"decode_times": False, "decode_timedelta": False, "chunks": None, "cache": False}
"""Options of xarray: values are read in parts, on demand, and times are numbers."""


def open_netcdf(path: Path) -> ArrayFile:
    """Open a NetCDF file; missing values are NaN, and packed numbers are unpacked.

    Raises:
        UnusableFileError: If it is not a NetCDF file, or is refused by `modalities.hdf5_files`.
        BrokenLibraryError: If a library cannot be imported.
        Exception: If it is damaged; xarray raises errors of many kinds.
    """
    with path.open("rb") as file:
        start = file.read(8)
    if start == SIGNATURE:
        return _open_netcdf4(path)
    if start[:4] in CLASSIC:
        # Through a memory map, sizes in the header that exceed the file allocate nothing.
        return of_dataset(_dataset(path, engine="scipy", mmap=True))
    raise UnusableFileError("its content is neither NetCDF-4 (HDF5) nor NetCDF-3 (classic or 64-bit offset)")


def _open_netcdf4(path: Path) -> ArrayFile:
    check("h5py", "NetCDF files")
    check("h5netcdf", "NetCDF-4 files")
    import h5py

    file = h5py.File(path, "r")
    # A variable may be a link to a dataset of another name.
    checks: dict[int, ChunkCheck] = {}
    for _, dataset, check_chunks in checked_datasets(file):
        checks[h5py.h5o.get_info(dataset.id).addr] = check_chunks
        # xarray reads the positions along dimensions when it opens the file.
        if dataset.ndim == 1:
            check_chunks((slice(None),))

    def check_part(name: str, index: Index) -> None:
        for each in (file.get(name), file.get(HIDDEN + name)):
            if isinstance(each, h5py.Dataset):
                # Characters of texts are a dimension of the dataset only.
                whole = (slice(None),) * each.ndim
                checks[h5py.h5o.get_info(each.id).addr](index if len(index) == each.ndim else whole)

    return of_dataset(_dataset(path, engine="h5netcdf", phony_dims="access"), check_part, file.close)


def _dataset(path: Path, **options: Any) -> xarray.Dataset:
    check("xarray", "NetCDF files")
    import xarray

    return xarray.open_dataset(path.absolute(), **options, **LAZY)  # type: ignore[arg-type]


def of_dataset(
    dataset: xarray.Dataset,
    check_part: Callable[[str, Index], None] = lambda name, index: None,
    close: Callable[[], None] = lambda: None,
) -> ArrayFile:
    """Return the arrays of a dataset that xarray has opened.

    `check_part` is called before a part of the array with a name is read, `close` after the dataset is closed.
    """
    arrays, others = [], {}
    # Source: CF Metadata Conventions 1.11, sections 7.1 and 7.4.
    bounds = {str(each.attrs.get(key)) for each in dataset.variables.values() for key in ("bounds", "climatology")}
    for name, variable in dataset.variables.items():
        text = variable.dtype.kind in "USTO"
        if not (is_number(variable.dtype) or text):
            others[str(name)] = f"its values have the type {variable.dtype}, and not real numbers"
            continue
        dimensions = tuple(None if str(each).startswith(PHONY) else str(each) for each in variable.dims)
        arrays.append(
            NamedArray(
                str(name), variable.shape, np.dtype("U") if text else variable.dtype,
                _part(variable, partial(check_part, str(name))), dimensions,
                unit_of(variable.attrs.get("units", "")), _chunk(variable.encoding),
                auxiliary=name in dataset.coords or str(name) in bounds,
            )
        )  # fmt: skip

    def close_all() -> None:
        dataset.close()
        close()

    return ArrayFile(arrays, others, close=close_all)


def _part(variable: Any, check_chunks: ChunkCheck) -> Part:
    def part(index: Index) -> NDArray[Any]:
        check_chunks(index)
        return np.asarray(variable[index].values)

    return part


def _chunk(encoding: Mapping[str, Any]) -> int:
    """Return the number of consecutive indices of the first dimension that are stored together."""
    sizes = encoding.get("chunksizes") or encoding.get("chunks") or (1,)
    return int(sizes[0])
