"""Arrays of HDF5 files, and the check that a file reads nothing outside itself and runs no plugin.

Refused are external links, external storage, virtual datasets, links of unknown kinds, references as values, and all
filters except those that are part of HDF5 and h5py. The names of dimensions and their coordinates are read from
dimension scales (HDF5 High Level Library, H5DS), units from the attribute `units`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.hdf5_chunks import ChunkCheck, chunk_check
from modalities.named_arrays import MAX_ARRAYS, ArrayFile, Index, NamedArray, decoded, is_number, unit_of
from multisagd.libraries import check

SIGNATURE = b"\x89HDF\r\n\x1a\n"
DECODING = ("_FillValue", "missing_value", "scale_factor", "add_offset")
MISSING = 64
"""Maximum number of values that stand for missing ones."""


def open_hdf5(path: Path) -> ArrayFile:
    """Open an HDF5 file; the name of an array is its path, such as `group/temperature`.

    Raises:
        UnusableFileError: If the file refers to other files, uses filters that are not accepted, or has references.
        BrokenLibraryError: If h5py cannot be imported.
        OSError: If it is damaged.
    """
    check("h5py", "HDF5 files")
    import h5py

    file = h5py.File(path, "r")
    arrays, others = [], {}
    for name, dataset, check_chunks in checked_datasets(file):
        text = h5py.check_string_dtype(dataset.dtype)
        if dataset.shape is None or not (is_number(dataset.dtype) or text):
            kind = f"its values have the type {dataset.dtype}, and not real numbers"
            others[name] = "it has no values" if dataset.shape is None else kind
            continue
        attributes = _attributes(dataset)
        unit = str(attributes.get("units", attributes.get("unit", "")))
        dimensions = _dimensions(dataset)
        chunk = dataset.chunks[0] if dataset.chunks else 1
        if text:
            arrays.append(
                NamedArray(name, dataset.shape, np.dtype("U"), _texts(dataset, check_chunks), dimensions, unit)
            )
        else:
            part = _numbers(dataset, check_chunks, attributes)
            arrays.append(NamedArray(name, dataset.shape, dataset.dtype, part, dimensions, unit_of(unit), chunk))
    return ArrayFile(arrays, others, close=file.close)


def checked_datasets(file: Any) -> Iterator[tuple[str, Any, ChunkCheck]]:
    """Yield the path and the dataset of every array of an open file, after it was checked, and the check of its chunks.

    Reading these datasets, with any library, opens no other file. Soft links are other names of arrays and are not
    followed.
    """
    import h5py

    visited, count = set(), 0
    pending: list[tuple[str, Any]] = [("", file)]
    while pending:
        prefix, group = pending.pop()
        if (address := h5py.h5o.get_info(group.id).addr) in visited:  # a group may contain itself
            continue
        visited.add(address)
        for key in group:
            name = f"{prefix}{key}"
            if (count := count + 1) > MAX_ARRAYS:
                raise UnusableFileError(f"it has more than {MAX_ARRAYS:,} arrays and groups")
            try:
                link = group.get(key, getlink=True)
            except TypeError as error:
                raise UnusableFileError(f"its member {name} is a link of an unknown kind") from error
            if isinstance(link, h5py.ExternalLink):
                raise UnusableFileError(
                    f"its member {name} is a link to another file, {link.filename!r:.100}: copy the values into it"
                )
            if isinstance(link, h5py.SoftLink):
                continue
            child = group[key]
            if isinstance(child, h5py.Group):
                pending.append((f"{name}/", child))
            elif isinstance(child, h5py.Dataset):
                _check_dataset(name, child)
                yield name, child, chunk_check(name, child)


def _check_dataset(name: str, dataset: Any) -> None:
    import h5py

    layout = dataset.id.get_create_plist()
    if layout.get_external_count() or layout.get_layout() == h5py.h5d.VIRTUAL:
        raise UnusableFileError(f"its array {name} has its values in other files: copy them into it")
    if _has_reference(dataset.dtype):
        raise UnusableFileError(f"the values of its array {name} are references to objects, which are not read")


def _has_reference(dtype: np.dtype[Any]) -> bool:
    import h5py

    if dtype.names:
        return any(_has_reference(dtype[name]) for name in dtype.names)
    if (inner := h5py.check_vlen_dtype(dtype)) is not None and isinstance(inner, np.dtype):
        return _has_reference(inner)
    return h5py.check_ref_dtype(dtype) is not None


def _attributes(dataset: Any) -> dict[str, Any]:
    """Return those attributes of a dataset that are used: single numbers or texts, or a few missing values."""
    found: dict[str, Any] = {}
    for key in ("units", "unit", *DECODING):
        if key not in dataset.attrs:
            continue
        stored = dataset.attrs.get_id(key)
        size, most = math.prod(stored.shape or ()), MISSING if key == "missing_value" else 1
        if not 1 <= size <= most or _has_reference(stored.dtype):
            continue
        if size > 1 and is_number(stored.dtype):
            found[key] = np.asarray(dataset.attrs[key]).ravel()
            continue
        value = np.asarray(dataset.attrs[key]).ravel()[0]
        value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if (key in DECODING) == isinstance(value, np.number | int | float):
            found[key] = value
    return found


def _dimensions(dataset: Any) -> tuple[str | None, ...]:
    """Return the names of the dimensions: the labels, or the names of the scales that are attached to them."""
    import h5py

    if dataset.is_scale and dataset.ndim == 1:
        return (dataset.name.rsplit("/", 1)[-1],)
    attached = "DIMENSION_LIST" in dataset.attrs
    if attached:
        kind = dataset.attrs.get_id("DIMENSION_LIST").get_type()
        # References of the new kind may refer to other files.
        attached = isinstance(kind, h5py.h5t.TypeVlenID) and kind.get_super().equal(h5py.h5t.STD_REF_OBJ)
    names: list[str | None] = []
    for dimension in dataset.dims:
        scale = dimension[0].name if attached and len(dimension) else None
        names.append(dimension.label or (scale.rsplit("/", 1)[-1] if scale else None) or None)
    return tuple(names)


def _numbers(dataset: Any, check_chunks: ChunkCheck, attributes: Mapping[str, Any]) -> Any:
    def part(index: Index) -> NDArray[Any]:
        check_chunks(index)
        return decoded(np.asarray(dataset[index]), attributes)

    return part


def _texts(dataset: Any, check_chunks: ChunkCheck) -> Any:
    def part(index: Index) -> NDArray[Any]:
        check_chunks(index)
        return np.asarray(dataset.asstr(errors="strict")[index], dtype=object)

    return part
