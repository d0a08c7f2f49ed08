"""Arrays of NetCDF files, which xarray reads: NetCDF-4 with h5netcdf, NetCDF-3 with scipy.

A NetCDF-4 file is an HDF5 file, and is checked like one before xarray opens it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.hdf5_files import SIGNATURE, check_hdf5
from modalities.named_arrays import ArrayFile, Index, NamedArray, Part, is_number, unit_of
from multisagd.libraries import check

if TYPE_CHECKING:
    import xarray

CLASSIC = (b"CDF\x01", b"CDF\x02")
"""First bytes of NetCDF-3 files."""
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
        check_hdf5(path)
        check("h5netcdf", "NetCDF-4 files")
        engine: dict[str, Any] = {"engine": "h5netcdf", "phony_dims": "access"}
    elif start[:4] in CLASSIC:
        # Through a memory map, sizes in the header that exceed the file allocate nothing.
        engine = {"engine": "scipy", "mmap": True}
    else:
        raise UnusableFileError("its content is neither NetCDF-4 (HDF5) nor NetCDF-3 (classic or 64-bit offset)")
    check("xarray", "NetCDF files")
    import xarray

    return of_dataset(xarray.open_dataset(path.absolute(), **engine, **LAZY))  # type: ignore[arg-type]


def of_dataset(dataset: xarray.Dataset) -> ArrayFile:
    """Return the arrays of a dataset that xarray has opened."""
    arrays, others = [], {}
    # Source: CF Metadata Conventions 1.11, sections 7.1 and 7.4.
    bounds = {str(each.attrs.get(key)) for each in dataset.variables.values() for key in ("bounds", "climatology")}
    for name, variable in dataset.variables.items():
        text = variable.dtype.kind in "USTO"
        if not (is_number(variable.dtype) or text):
            others[str(name)] = f"its values have the type {variable.dtype}, and not real numbers"
            continue
        dimensions = tuple(None if str(each).startswith("phony_dim_") else str(each) for each in variable.dims)
        arrays.append(
            NamedArray(
                str(name), variable.shape, np.dtype("U") if text else variable.dtype, _part(variable), dimensions,
                unit_of(variable.attrs.get("units", "")), _chunk(variable.encoding),
                auxiliary=name in dataset.coords or str(name) in bounds,
            )
        )  # fmt: skip
    return ArrayFile(arrays, others, close=dataset.close)


def _part(variable: Any) -> Part:
    def part(index: Index) -> NDArray[Any]:
        return np.asarray(variable[index].values)

    return part


def _chunk(encoding: Mapping[str, Any]) -> int:
    """Return the number of consecutive indices of the first dimension that are stored together."""
    sizes = encoding.get("chunksizes") or encoding.get("chunks") or (1,)
    return int(sizes[0])
