"""Volumes of NIfTI files (.nii, .nii.gz), turned to the orientation RAS+, with the spacing in their header.

The axes are `x` (from left to right), `y` (from back to front) and `z` (from foot to head), and `time` if there is a
fourth. A volume that is stored obliquely is turned by the nearest multiples of 90 degrees. Only as many bytes as the
header states are decompressed.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.named_arrays import MAX_BYTES, ArrayFile, Coordinate, NamedArray, check_size, is_number
from multisagd.libraries import check

AXES = ("x", "y", "z", "time")
UNITS = {"meter": "m", "mm": "mm", "micron": "µm", "unknown": "mm"}
"""Units of length by their names in nibabel; files that do not state one are in millimetres in practice."""
TIMES = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}
"""Units of time by their names in nibabel, in seconds."""
HEADERS = {348: "Nifti1", 540: "Nifti2"}
"""Size of a header, which is its first number, and the begin of the names of its classes in nibabel."""
LARGEST_OFFSET = 16 << 20
"""Maximum position of the first value in a file, in bytes; extensions of the header are before it."""


def open_nifti(path: Path) -> ArrayFile:
    """Open a NIfTI file; its array has no name.

    Raises:
        UnusableFileError: If it is not NIfTI-1 or NIfTI-2 in a single file, has values that are not real numbers, or
            is larger than the limit or smaller than its header states.
        BrokenLibraryError: If nibabel cannot be imported.
        Exception: If the header is damaged; nibabel raises errors of its own.
    """
    check("nibabel", "NIfTI files")
    import nibabel

    content = _content(path)
    kind = getattr(nibabel, f"{HEADERS[_header_size(content)]}Image")
    image = nibabel.as_closest_canonical(kind.from_bytes(content))
    values = np.asarray(image.dataobj)
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    names: tuple[str | None, ...] = AXES[: values.ndim]
    if values.ndim == 5 and values.shape[3] == 1:  # several values at each point
        values, names = np.moveaxis(values[..., 0, :], -1, 0), (None, *AXES[:3])
    if values.ndim != len(names):
        raise UnusableFileError(f"its values have the shape {values.shape}, but only volumes and their series are read")
    array = NamedArray("", values.shape, values.dtype, lambda index: np.array(values[index]), names, whole=True)
    return ArrayFile([array], coordinates=_coordinates(image))


def _coordinates(image: Any) -> dict[str, Coordinate]:
    """Return the positions along the axes of an image in the orientation RAS+."""
    from nibabel.affines import apply_affine

    length, time = image.header.get_xyzt_units()
    origin = [*apply_affine(image.affine, np.zeros(3)), 0.0]
    units = [UNITS.get(length, length)] * 3 + ["s"]
    sizes = [1.0] * 3 + [TIMES.get(time, 1.0)]
    return {
        name: Coordinate(float(start), float(zoom) * size if 0 < zoom < math.inf else None, unit)
        for name, start, zoom, size, unit in zip(AXES, origin, image.header.get_zooms(), sizes, units, strict=False)
    }


def write_nifti(
    values: NDArray[np.float32], spacing: Sequence[float], start: Sequence[float], unit: str, path: Path
) -> None:
    """Write a volume (x, y, z) in the orientation RAS+; `start` is the position of its first value."""
    check("nibabel", "NIfTI files")
    import nibabel

    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = start
    image = nibabel.Nifti1Image(values, affine)
    names = {ours: theirs for theirs, ours in UNITS.items() if theirs != "unknown"}
    image.header.set_xyzt_units(names.get(unit, "unknown"))
    nibabel.save(image, path)


def _content(path: Path) -> bytes:
    """Return the part of a file that its header describes, decompressed."""
    zipped = path.name.lower().endswith(".gz")
    with gzip.open(path) if zipped else path.open("rb") as file:
        start = file.read(max(HEADERS))
        size = _size(start, path)
        return start + file.read(max(0, size - len(start)))


def _size(start: bytes, path: Path) -> int:
    """Return the number of bytes that a header describes, including itself, after checking it."""
    import nibabel

    name = HEADERS.get(_header_size(start))
    if name is None or len(start) < _header_size(start):
        raise UnusableFileError("its content is neither NIfTI-1 nor NIfTI-2")
    header = getattr(nibabel, f"{name}Header")(start[: _header_size(start)], check=True)
    if bytes(header["magic"].item()).rstrip(b"\0")[:2] != b"n+":
        raise UnusableFileError("it is a header only, whose values are in another file: convert the pair to one .nii")
    dtype, shape, offset = header.get_data_dtype(), header.get_data_shape(), float(header["vox_offset"])
    if not is_number(dtype):
        raise UnusableFileError(f"its values have the type {dtype}, and not real numbers")
    check_size("", shape, np.dtype(np.float64), MAX_BYTES)
    if not 0 <= offset <= LARGEST_OFFSET:
        raise UnusableFileError(f"its header states that its values begin at byte {offset:g}")
    return int(offset) + int(np.prod(shape, dtype=object)) * dtype.itemsize


def _header_size(start: bytes) -> int:
    little, big = int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")
    return little if little in HEADERS else big
