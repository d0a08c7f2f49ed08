"""Arrays with names, dimensions and units: the common form of all files of arrays, and the limits of reading."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from multisagd.addresses import is_address

MAX_BYTES = 1 << 32
"""Maximum size, in bytes, of an array that can only be read as a whole, such as one in a compressed file."""
MAX_CHUNK = 1 << 28
"""Maximum size, in bytes, of a chunk that is decompressed as a whole."""
GROWTH = 1 << 16
"""Number of bytes by which a stored chunk may be larger than its values, or than twice their size in zarr stores."""
MAX_ARRAYS = 10_000
"""Maximum number of arrays and groups in a file."""
MAX_DIMENSIONS = 32
MAX_TEXT = 1 << 28
"""Maximum number of characters of all texts in an array."""
TEXTS = 256
"""Number of texts that are read at a time."""
NAMED = 12
"""Number of names that a message lists."""
ANNOTATIONS = {
    "labels": ("label", "labels"), "captions": ("caption", "captions", "text", "texts"), "split": ("split", "splits"),
    "group": ("group", "groups"),
}  # fmt: skip
"""Names of arrays that annotate examples, and are no variables unless they are named, by their meaning."""
IRREGULAR = 0.05
"""Maximum relative difference of steps between the values of a coordinate that counts as regular."""

Index = tuple[slice, ...]
Part = Callable[[Index], NDArray[Any]]
"""Reads a part of an array, given a slice for each dimension."""
UNITS = {
    "degrees_north": "degree", "degree_north": "degree", "degrees_n": "degree", "degrees_east": "degree",
    "degree_east": "degree", "degrees_e": "degree", "degrees": "degree", "meter": "m", "metre": "m", "meters": "m",
    "metres": "m", "seconds": "s", "second": "s", "sec": "s", "minutes": "minute", "hours": "hour", "days": "day",
}  # fmt: skip
"""One spelling for units that are written in several ways: spectra combine axes of equal units only."""
DEGREES = {"lat", "latitude", "lon", "longitude"}
"""Names of dimensions, in lower case, whose positions are in degrees if the file does not state a unit."""
SECONDS = {"s": 1.0, "ms": 1e-3, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "": 1.0}
"""Units of time in seconds; times without a unit are in seconds."""


@dataclass(frozen=True)
class NamedArray:
    """One array of a file: real numbers, or texts.

    `dimensions` are the names of its dimensions, each None if the file does not state it. `part` reads a part of it;
    missing numbers are NaN. `chunk` is the number of consecutive indices of the first dimension that are stored, and
    so read, together. `whole` says that the array stays in memory once a part of it was read. `auxiliary` says that the
    file declares it as positions or their bounds, so that it is a variable only if it is named as one.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    part: Part = field(repr=False)
    dimensions: tuple[str | None, ...] = ()
    unit: str = ""
    chunk: int = 1
    whole: bool = False
    auxiliary: bool = False

    def __post_init__(self) -> None:
        names = self.dimensions or (None,) * len(self.shape)
        object.__setattr__(self, "name", printable(self.name))
        object.__setattr__(self, "dimensions", tuple(None if name is None else printable(name) for name in names))

    @property
    def is_text(self) -> bool:
        """Whether its values are texts."""
        return self.dtype.kind in "UST"

    @property
    def shown(self) -> str:
        """The array for messages: its name, and the sizes of its dimensions with their names."""
        pairs = zip(self.dimensions, self.shape, strict=True)
        return f"{self.name or 'array'} ({', '.join(f'{name} {size}' if name else str(size) for name, size in pairs)})"

    def read(self, index: Index | None = None) -> NDArray[Any]:
        """Return a part of the array, or all of it, in the file's type, with a dimension for each of the array's.

        Raises:
            UnusableFileError: If the part has more than `MAX_BYTES` bytes.
            Exception: If the file is damaged; each library raises its own errors.
        """
        index = tuple(slice(0, size) for size in self.shape) if index is None else index
        shape = [len(range(*each.indices(size))) for each, size in zip(index, self.shape, strict=True)]
        check_size(self.name, shape, self.dtype)
        return self.part(index)

    def texts(self) -> list[str]:
        """Return its texts as a flat list. Raises UnusableFileError if one is not UTF-8, or they are too long."""
        texts: list[str] = []
        rest = tuple(slice(0, size) for size in self.shape[1:])
        total = 0
        for start in range(0, self.shape[0], TEXTS) if self.shape else (0,):
            try:
                part = self.read((slice(start, start + TEXTS), *rest)) if self.shape else self.read(())
                texts += [each.decode() if isinstance(each, bytes) else str(each) for each in part.ravel().tolist()]
            except UnicodeDecodeError as error:
                raise UnusableFileError(f"a text in its array {self.name} is not UTF-8") from error
            # In some formats, a file may refer to one long text many times.
            total += sum(map(len, texts[len(texts) - part.size :]))
            if total > MAX_TEXT:
                raise UnusableFileError(f"the texts in its array {self.name} have more than {MAX_TEXT:,} characters")
        return texts


@dataclass(frozen=True)
class Coordinate:
    """The positions along a dimension: the lowest one, their distance and its unit.

    `spacing` is None if the distances differ. If `descending` is true, the first position in the file is the highest.
    """

    start: float
    spacing: float | None
    unit: str
    descending: bool = False

    @classmethod
    def of(cls, values: NDArray[Any], unit: str) -> Self | None:
        """Return the coordinate of positions (size,), or None if they do not describe a coordinate."""
        if values.ndim != 1 or values.dtype.kind not in "iuf" or not len(values):
            return None
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            return None
        steps = np.diff(values)
        mean = float(steps.mean()) if len(steps) else 0.0
        regular = mean != 0 and bool((np.abs(steps - mean) <= IRREGULAR * abs(mean)).all())
        descending = len(steps) > 0 and bool((steps < 0).all())
        return cls(float(values.min()), abs(mean) if regular else None, unit_of(unit), descending)


class ArrayFile:
    """An open file of arrays. `others` are those that cannot be read, by name, each with the reason.

    `coordinates` are positions along dimensions that are not arrays of the file themselves, such as those in a header.
    The file is closed at the end of a `with` block, or when nothing refers to it.
    """

    def __init__(
        self,
        arrays: Sequence[NamedArray],
        others: Mapping[str, str] | None = None,
        coordinates: Mapping[str, Coordinate] | None = None,
        close: Callable[[], object] | None = None,
    ) -> None:
        self.arrays = {array.name: array for array in arrays}
        self.others = {printable(name): reason for name, reason in (others or {}).items()}
        self._coordinates = dict(coordinates or {})
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._close is not None:
            self._close()

    def array(self, name: str) -> NamedArray:
        """Return the array with this name. Raises UnusableFileError if there is none, or it cannot be read."""
        if name in self.arrays:
            return self.arrays[name]
        if name in self.others:
            raise UnusableFileError(f"its array {name} cannot be read: {self.others[name]}")
        raise UnusableFileError(f"it has no array {name!r}; it has {named(self.arrays)}")

    def coordinate(self, dimension: str) -> Coordinate | None:
        """Return the positions along a dimension, from the array of one dimension that has its name, or None."""
        if dimension in self._coordinates:
            return self._coordinates[dimension]
        for name, array in self.arrays.items():
            if last_part(name) == dimension and len(array.shape) == 1 and is_number(array.dtype):
                # Many files do not state what every reader of such names assumes.
                unit = array.unit or ("degree" if dimension.lower() in DEGREES else "")
                return Coordinate.of(array.read(), unit)
        return None

    def data(self, axes: Collection[str] = ()) -> list[NamedArray]:
        """Return the arrays that can be variables: of numbers, which are no annotations and no positions.

        With `axes`, these are the arrays with at least as many dimensions.
        """
        dimensions = {*axes, *(name for each in self.arrays.values() for name in each.dimensions)}
        annotations = {name for names in ANNOTATIONS.values() for name in names}
        return [
            each
            for each in self.arrays.values()
            if is_number(each.dtype)
            and not each.auxiliary
            and len(each.shape) >= max(1, len(axes))
            and last_part(each.name) not in annotations
            and not (len(each.shape) == 1 and last_part(each.name) in dimensions)
        ]


def printable(text: str) -> str:
    """Return a text of a file with � for characters that cannot be saved as UTF-8, or that control a terminal."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def last_part(name: str) -> str:
    """Return the name of an array without the groups that contain it."""
    return name.rsplit("/", 1)[-1]


def named(names: Mapping[str, Any] | Sequence[str], longest: int = 80) -> str:
    """Return the first names as text for messages, each with at most `longest` characters."""
    listed = [name[:longest] or "an array without a name" for name in names]
    rest = len(listed) - NAMED
    return f"{', '.join(listed[:NAMED]) or 'no arrays'}{f' and {rest} more' if rest > 0 else ''}"


def check_size(name: str, shape: Sequence[int], dtype: np.dtype[Any], largest: int = MAX_BYTES) -> None:
    """Check the size that a file states before memory is allocated for it.

    Raises:
        UnusableFileError: If the shape is invalid, or the array has more than `largest` bytes.
    """
    if len(shape) > MAX_DIMENSIONS or any(isinstance(size, bool) or int(size) != size or size < 0 for size in shape):
        raise UnusableFileError(f"its array {name} has the invalid shape {tuple(shape)!s:.200}")
    size = math.prod(int(each) for each in shape) * max(1, dtype.itemsize)
    if size > largest:
        raise UnusableFileError(
            f"its array {name} of shape {tuple(shape)} would take {size:,} bytes in memory, more than the limit of "
            f"{largest:,}: divide it, or store it as .npy, HDF5 or zarr in smaller chunks, which are read in parts"
        )


def is_number(dtype: np.dtype[Any]) -> bool:
    """Whether values of this type are real numbers."""
    return dtype.kind in "biuf" and dtype.itemsize <= 8


def unit_of(text: Any) -> str:
    """Return a unit in one spelling; times `since` a date are in the unit before this word."""
    word = printable(re.sub(r"\s+since\s.*", "", str(text).strip())[:40])
    # A run must not contain anything that could be an address.
    return UNITS.get(word.lower(), "" if is_address(word) else word)


def decoded(values: NDArray[Any], attributes: Mapping[str, Any]) -> NDArray[Any]:
    """Return numbers unpacked as the CF conventions say: missing values are NaN, the others scaled and shifted.

    Source: CF Metadata Conventions 1.11, sections 2.5.1 and 8.1.
    """
    missing = [each for key in ("_FillValue", "missing_value") for each in np.ravel(attributes.get(key, ()))]
    scale, offset = attributes.get("scale_factor"), attributes.get("add_offset")
    if not missing and scale is None and offset is None:
        return values
    result = values.astype(np.float64)
    for number in missing:
        # Files of float32 often state it as float64.
        rounded = values.dtype.kind == "f" and not isinstance(number, str)
        result[values == (values.dtype.type(number) if rounded else number)] = np.nan
    return result * (1.0 if scale is None else scale) + (0.0 if offset is None else offset)
