"""Where the variables and axes of a field are in a file of arrays, and how a window of them is read.

Dimensions are matched by their names. If a file does not name them, the axes are its last dimensions, in order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.named_arrays import SECONDS, ArrayFile, NamedArray, named
from modalities.variables import Variable
from multisagd.grid import Axis


@dataclass(frozen=True)
class FieldAxis(Axis):
    """An axis of a field; `start` is the position of its first sample, in its unit, which saved files state."""

    start: float = 0.0


@dataclass(frozen=True)
class Source:
    """The values of one variable: an array, the positions of the grid's axes among its dimensions, and other ones.

    `examples` are the positions of dimensions that number examples. `channel` is the position of a dimension of
    variables and the index of this one in it, or None.
    """

    array: NamedArray
    axes: tuple[int, ...]
    examples: tuple[int, ...]
    channel: tuple[int, int] | None = None


@dataclass(frozen=True)
class Placement:
    """The variables of a field in a file: a source for each, and the numbers of values along axes and of examples.

    `sizes` are those of the file along the axes, and `examples` those of the dimensions that number examples.
    `descending` says of which axes the file has the last sample first.
    """

    sources: tuple[Source, ...]
    sizes: tuple[int, ...]
    examples: tuple[int, ...]
    descending: tuple[bool, ...]

    @property
    def count(self) -> int:
        """Number of examples."""
        return math.prod(self.examples)

    @property
    def held(self) -> int:
        """Number of bytes of memory that the open file takes, because its arrays are read as a whole."""
        arrays = {source.array.name: source.array for source in self.sources if source.array.whole}
        return sum(math.prod(each.shape) * each.dtype.itemsize for each in arrays.values())

    def read(self, example: int, starts: Sequence[int], sizes: Sequence[int]) -> NDArray[np.float64]:
        """Return the window of one example that begins at `starts`, float64 (variables, *sizes), NaN where missing."""
        position = np.unravel_index(example, self.examples) if self.examples else ()
        window = [
            slice(total - start - size, total - start) if down else slice(start, start + size)
            for start, size, total, down in zip(starts, sizes, self.sizes, self.descending, strict=True)
        ]
        flipped = tuple(number for number, down in enumerate(self.descending) if down)
        values = np.empty((len(self.sources), *sizes), np.float64)
        for number, source in enumerate(self.sources):
            index = [slice(None)] * len(source.array.shape)
            for where, along in zip(source.axes, window, strict=True):
                index[where] = along
            for where, at in zip(source.examples, position, strict=False):
                index[where] = slice(int(at), int(at) + 1)
            if source.channel is not None:
                index[source.channel[0]] = slice(source.channel[1], source.channel[1] + 1)
            part = source.array.read(tuple(index))
            others = [where for where in range(part.ndim) if where not in source.axes]
            ordered = part.transpose([*others, *source.axes]).reshape(tuple(sizes))
            values[number] = np.flip(ordered, flipped)
        return values


def place(file: ArrayFile, axes: Sequence[Axis], variables: Sequence[Variable]) -> Placement:
    """Find the variables and axes of a field in a file.

    If the file has a single array and no variable has its name, this array has all variables; several ones are along a
    dimension of their number: the one before the axes, or the last one.

    Raises:
        UnusableFileError: If a variable or an axis is missing, or the variables do not have the same dimensions; the
            message lists what the file contains.
    """
    names = tuple(axis.name for axis in axes)
    data = file.data(names)
    if len(data) == 1 and data[0].name not in [variable.name for variable in variables]:
        sources = _shared(data[0], names, len(variables))
    else:
        sources = tuple(_own(file.array(variable.name), names) for variable in variables)
    sizes = {tuple(source.array.shape[where] for where in source.axes) for source in sources}
    examples = {tuple(source.array.shape[where] for where in source.examples) for source in sources} - {()}
    numbered = {
        tuple(source.array.dimensions[where] for where in source.examples if source.array.shape[where] != 1)
        for source in sources
    } - {()}
    if len(sizes) > 1 or len(examples) > 1 or len(numbered) > 1:
        shown = named(list(dict.fromkeys(source.array.shown for source in sources)))
        raise UnusableFileError(
            f"its variables do not have the same dimensions: {shown}: set modality.variables to some that have"
        )
    coordinates = [file.coordinate(name) for name in names]
    descending = tuple(each is not None and each.descending for each in coordinates)
    placement = Placement(sources, sizes.pop(), examples.pop() if examples else (), descending)
    for axis, size in zip(axes, placement.sizes, strict=True):
        _check_axis(axis, size)
    return placement


def axis_positions(array: NamedArray, names: Sequence[str]) -> tuple[int, ...]:
    """Return the positions of the named axes among an array's dimensions.

    If the array does not name its dimensions, or has as many as there are axes and none of their names, the axes are
    its last dimensions, in order.

    Raises:
        UnusableFileError: If it has only some of the names, or too few dimensions.
    """
    if set(names) <= set(array.dimensions):
        return tuple(array.dimensions.index(name) for name in names)
    renamed = len(array.shape) == len(names) and not set(names) & set(array.dimensions)
    if (any(array.dimensions) and not renamed) or len(array.shape) < len(names):
        raise UnusableFileError(
            f"its array {array.shown} does not have the axes {', '.join(names)}: set modality.axes to those that it has"
        )
    return tuple(range(len(array.shape) - len(names), len(array.shape)))


def _own(array: NamedArray, names: Sequence[str]) -> Source:
    if array.is_text:
        raise UnusableFileError(f"its array {array.name} contains texts, and not numbers")
    axes = axis_positions(array, names)
    return Source(array, axes, tuple(where for where in range(len(array.shape)) if where not in axes))


def _shared(array: NamedArray, names: Sequence[str], count: int) -> tuple[Source, ...]:
    """Return the sources of `count` variables in one array."""
    if count == 1:
        return (_own(array, names),)
    axes = axis_positions(array, names)
    others = [where for where in range(len(array.shape)) if where not in axes and array.shape[where] == count]
    if not others and not any(array.dimensions) and len(array.shape) > len(axes) and array.shape[-1] == count:
        axes = tuple(where - 1 for where in axes)
        others = [len(array.shape) - 1]
    if not others:
        raise UnusableFileError(
            f"its only array {array.shown} has no dimension of the {count} variables of the modality: set "
            "modality.variables to the names of its variables"
        )
    channel = others[-1]
    examples = tuple(where for where in range(len(array.shape)) if where not in (*axes, channel))
    return tuple(Source(array, axes, examples, (channel, number)) for number in range(count))


def _check_axis(axis: Axis, size: int) -> None:
    """Raise UnusableFileError if a file has too few values along an axis, or not a whole circle."""
    if size < axis.size:
        raise UnusableFileError(
            f"it has {size} values along the axis {axis.name}, fewer than the {axis.size} of the modality: exclude the "
            f"file, or reduce the size of this axis"
        )
    if axis.periodic and size != axis.size:
        raise UnusableFileError(
            f"it has {size} values along the axis {axis.name}, but the whole circle of the modality has {axis.size}: "
            "a part of it is not periodic"
        )


def check_spacing(file: ArrayFile, axes: Sequence[Axis], tolerance: float | None) -> None:
    """Check that the spacing that a file states for the axes is that of the grid, where the units can be compared.

    Raises:
        UnusableFileError: If it differs by more than the fraction `tolerance`; None accepts all.
    """
    for axis in axes if tolerance is not None else ():
        coordinate = file.coordinate(axis.name)
        if coordinate is None or coordinate.spacing is None or axis.size == 1:
            continue
        times = axis.unit != "" and {axis.unit, coordinate.unit} <= SECONDS.keys()
        if coordinate.unit != axis.unit and not times:
            continue
        spacing = coordinate.spacing * (SECONDS[coordinate.unit] / SECONDS[axis.unit] if times else 1.0)
        if tolerance is not None and abs(spacing - axis.spacing) > tolerance * axis.spacing:
            raise UnusableFileError(
                f"its values along the axis {axis.name} are {spacing:.6g} {axis.unit} apart, but those of the modality "
                f"{axis.spacing:.6g}: resample the file, or set modality.spacing_tolerance (null accepts all)"
            )


def listed_arrays(file: ArrayFile) -> str:
    """Return the arrays of a file with their dimensions, and why others are not read, as text for messages."""
    unread = f"; not read are {listed_others(file)}" if file.others else ""
    return f"{named([array.shown for array in file.arrays.values()])}{unread}"


def listed_others(file: ArrayFile) -> str:
    """Return the arrays of a file that cannot be read, each with the reason, as text for messages."""
    return named([f"{name} ({reason})" for name, reason in file.others.items()], longest=200)
