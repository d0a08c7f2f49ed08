"""Arrays of NumPy's files: .npy, which is read in parts, and .npz, whose arrays are read as a whole."""

from __future__ import annotations

import threading
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.named_arrays import (
    MAX_ARRAYS,
    ArrayFile,
    Index,
    NamedArray,
    Part,
    check_size,
    is_number,
)

HEADERS: dict[tuple[int, int], Callable[[IO[bytes]], tuple[Any, bool, Any]]] = {
    (1, 0): npy.read_array_header_1_0,
    (2, 0): npy.read_array_header_2_0,
}
"""Readers of the versions of the header; later ones are only needed for structures."""


def open_npy(path: Path) -> ArrayFile:
    """Open a .npy file; its array has no name.

    Raises:
        UnusableFileError: If its values are Python objects, which would be unpickled, or are not real numbers.
        ValueError: If it is damaged.
    """
    with path.open("rb") as file:
        shape, dtype = _header(file, path.name)
        start = file.tell()
    if start + int(np.prod(shape, dtype=object)) * dtype.itemsize > path.stat().st_size:
        raise UnusableFileError(f"it is shorter than its shape {shape} requires: copy it again")
    if not (is_number(dtype) or dtype.kind in "US"):
        raise UnusableFileError(f"its values have the type {dtype}, and not real numbers")
    mapped = npy.open_memmap(path, mode="r")
    return ArrayFile([NamedArray("", tuple(shape), dtype, lambda index: np.array(mapped[index]))])


def open_npz(path: Path) -> ArrayFile:
    """Open a .npz file, whose arrays have names, but no names of dimensions.

    Raises:
        UnusableFileError: If values are Python objects, which would be unpickled, or an array is larger than it states
            or than the limit.
        zipfile.BadZipFile: If it is damaged.
    """
    archive = zipfile.ZipFile(path)
    members = archive.infolist()
    if len(members) > MAX_ARRAYS:
        raise UnusableFileError(f"it has {len(members):,} members, more than the limit of {MAX_ARRAYS:,}")
    arrays, others = [], {}
    turn = threading.Lock()
    for member in members:
        name = member.filename.removesuffix(".npy")
        if name == member.filename:
            others[name] = "it is not an .npy array"
            continue
        with archive.open(member) as file:
            shape, dtype = _header(file, name)
            check_size(name, shape, dtype)
            if file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize != member.file_size:
                raise UnusableFileError(f"its array {name} does not have the size that its shape {shape} requires")
        if not (is_number(dtype) or dtype.kind in "US"):
            others[name] = f"its values have the type {dtype}, and not real numbers"
            continue
        arrays.append(NamedArray(name, shape, dtype, _member(archive, member, turn), whole=True))
    return ArrayFile(arrays, others, close=archive.close)


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, turn: threading.Lock) -> Part:
    """Return a function that reads parts of an array, which stays in memory once it was read."""

    @cache
    def whole() -> NDArray[Any]:
        with archive.open(member) as file:
            return npy.read_array(file, allow_pickle=False)

    def part(index: Index) -> NDArray[Any]:
        with turn:  # threads share the position in the archive
            values = whole()
        return values[index].copy()

    return part


def _header(file: IO[bytes], name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return the shape and type that a header states, after which the file is at the first value."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise UnusableFileError(f"{name} has version {version} of the format, but only 1.0 and 2.0 are read")
    shape, _, dtype = HEADERS[version](file)
    if dtype.hasobject:
        raise UnusableFileError(
            f"{name} contains Python objects, which could run code when they are read: save numbers only "
            "(np.asarray(values, dtype=float))"
        )
    if any(size < 0 for size in shape):
        raise UnusableFileError(f"{name} has the invalid shape {shape}")
    return tuple(shape), dtype
