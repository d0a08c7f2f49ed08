"""Take the axes and variables of a field from a file, where a configuration does not give them.

Names, sizes, spacing and units come from the file's dimensions, coordinates and attributes. The offset and scale of a
variable are measured: its mean, and three standard deviations, so that almost all encoded values are in [-1, 1]. They
are rounded to six digits, so that they do not depend on the machine.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modalities.array_files import array_paths, open_arrays
from modalities.base import UnusableFileError
from modalities.endings import ending_of
from modalities.field_layout import FieldAxis, axis_positions, listed_arrays, place
from modalities.field_saving import check_format
from modalities.generated_fields import GENERATED
from modalities.labels import compiled
from modalities.named_arrays import SECONDS, ArrayFile, Coordinate, NamedArray, named
from modalities.variables import Variable
from multisagd.libraries import failed_import

VALUES = 1 << 20
"""Approximate number of values that are measured per variable."""
BLOCKS = 64
"""Number of parts of a long axis, evenly spaced, that are measured."""
FILES = 16
"""Maximum number of files of the data that are measured, evenly spaced."""
DEVIATIONS = 3.0
"""Number of standard deviations that are encoded as 1."""
EXAMPLE_DIMENSIONS = {
    "sample", "samples", "example", "examples", "member", "members", "ensemble", "realization", "realisation", "number",
    "batch", "case", "run", "record", "subject", "patient", "n",
}  # fmt: skip
"""Names of dimensions, in lower case, that number examples."""
UNNAMED = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
"""Names for the axes of arrays that do not name their dimensions, by their number."""
FORMATS = {".nc": "nc", ".zarr": "nc", ".nii": "nii.gz", ".nii.gz": "nii.gz", ".csv": "csv", ".npy": "npz"}
"""Format of saved files, by the ending of the file that settings are taken from."""
CIRCLE = 360.0
log = logging.getLogger("multisagd")

Settings = Mapping[str, Any]


def complete(settings: Settings, data: Settings) -> dict[str, Any]:
    """Return the settings of a field with all axes and variables in full, and `like` null.

    `axes` and `variables` are each null, a list of names, or a list or mapping with further keys; keys that are not
    given are taken from the file `like`, or else from files of the `data`, or from data that are generated. What is
    given takes precedence.

    Raises:
        ValueError: If something is missing and there is no file, the file does not have it, or it is ambiguous.
    """
    axes, variables = _entries(settings, "axes", "size"), _entries(settings, "variables", "unit")
    found = {**settings, "like": None}
    generated = GENERATED.get(str(data.get("_target_"))) if settings.get("like") is None else None
    if generated is not None:
        axes, variables = generated.axes(axes), generated.variables(variables)
    complete = not (_lack(axes, "size", "spacing") or _lack(variables, "scale", "offset"))
    paths = [] if complete and settings.get("format") else _paths(settings, data)
    if complete or not paths:
        if axes is None or variables is None or _lack(axes, "size"):
            raise ValueError(
                "the axes and variables are not known: set modality.like to one of the files, from which they are taken"
            )
    else:
        axes, variables = _taken(paths, axes, variables, data)
    found |= {"axes": [_filled_axis(each) for each in axes or ()], "variables": _filled_variables(variables or ())}
    return found | {"format": settings.get("format") or _format(paths, found)}


def complete_series(settings: Settings, data: Settings) -> dict[str, Any]:
    """Return the settings of a series with all variables in full, a `rate`, and `like` null, as `complete` does."""
    length, rate = settings.get("length"), settings.get("rate")
    if type(length) is not int or length < 1:
        raise ValueError(f"length: expected a positive whole number, got {length!r:.80}")
    if rate is None:
        paths = _paths(settings, data)
        if not paths:
            raise ValueError("the rate is not known: set modality.rate, in hertz, or modality.like to one of the files")
        rate = _stated_rate(paths[0])
    axis = {"name": "time", "size": length, "spacing": 1 / rate if rate else 1.0, "unit": "s"}
    found = complete({**settings, "axes": [axis]}, data)
    return {key: value for key, value in found.items() if key != "axes"} | {"rate": rate}


def _stated_rate(path: Path) -> float:
    with _taking(path, "the rate"), open_arrays(path) as file:
        coordinate = file.coordinate("time")
        if coordinate is None:
            listed = listed_arrays(file)
            raise UnusableFileError(f"it has no numbers named time; it has {listed}: set modality.rate, in hertz")
        if coordinate.spacing is None or coordinate.unit not in SECONDS:
            problem = "are not evenly spaced" if coordinate.spacing is None else f"are in {coordinate.unit}"
            raise UnusableFileError(f"its times {problem}: set modality.rate, in hertz")
        return _rounded(1 / (coordinate.spacing * SECONDS[coordinate.unit]))


@contextmanager
def _taking(path: Path, what: str) -> Iterator[None]:
    """Name the file, and what is taken from it, in errors of the `with` block."""
    try:
        yield
    except Exception as error:  # each library raises errors of its own
        if (failure := failed_import(error)) is not None:
            raise failure from error
        raise ValueError(
            f"{what} cannot be taken from {path}: {error}. Or set modality.like to another file"
        ) from error


def _entries(settings: Settings, key: str, short: str) -> list[dict[str, Any]] | None:
    """Return the given axes or variables as mappings with a name; a plain value in a mapping is that of key `short`."""
    given = settings.get(key)
    if given is None:
        return None
    if isinstance(given, Mapping):
        given = [
            {**(value if isinstance(value, Mapping) else {short: value}), "name": str(name)}
            for name, value in given.items()
        ]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ValueError(f"{key}: expected a list of names, or a mapping from names to settings, got {given!r:.80}")
    entries = [dict(each) if isinstance(each, Mapping) else {"name": each} for each in given]
    for entry in entries:
        if not isinstance(entry.get("name"), str):
            raise ValueError(f"{key}: expected names, got {entry.get('name')!r:.80}")
    return entries


def _lack(entries: Sequence[Settings] | None, *keys: str) -> bool:
    return entries is None or any(entry.get(key) is None for entry in entries for key in keys)


def _paths(settings: Settings, data: Settings) -> list[Path]:
    """Return the files to take settings from: the one that is named, or else some of the data, or none."""
    if (like := settings.get("like")) is not None:
        return [Path(str(like))]
    root, match = data.get("root"), data.get("match")
    if not isinstance(root, str):
        return []
    try:
        found = array_paths(root)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.root={root}: {error}") from error
    paths = [path for path in found if path.name != Path(str(data.get("manifest"))).name]
    if isinstance(match, str):
        pattern = compiled("data.match", match)
        paths = [path for path in paths if pattern.search(path.relative_to(root).as_posix())]
    return [paths[number * len(paths) // min(FILES, len(paths))] for number in range(min(FILES, len(paths)))]


def _taken(
    paths: Sequence[Path], axes: list[dict[str, Any]] | None, variables: list[dict[str, Any]] | None, data: Settings
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return axes and variables with what the files state, and what was measured of the variables."""
    what = "the axes and variables"
    with _taking(paths[0], what), open_arrays(paths[0]) as file:
        wanted = None if variables is None else [entry["name"] for entry in variables]
        reference = _reference(file, wanted)
        names = _axis_names(reference, data) if axes is None else [entry["name"] for entry in axes]
        where, channels = _positions(reference, names, data)
        sizes = [reference.shape[each] for each in where]
        if variables is None:
            variables = [{"name": name} for name in _variable_names(file, reference, names, channels)]
            _note_others(file, [entry["name"] for entry in variables], reference)
        if axes is None and not any(reference.dimensions) and {*names} & {entry["name"] for entry in variables}:
            names = [f"axis_{1 + number}" for number in range(len(names))]
        given = axes or [{"name": name} for name in names]
        axes = [{**_stated_axis(file, size, entry), **_set(entry)} for entry, size in zip(given, sizes, strict=True)]
        units = {name: array.unit for name, array in file.arrays.items()}
        if len(variables) == 1:
            units.setdefault(variables[0]["name"], reference.unit)
    variables = [{"unit": units.get(entry["name"], ""), **_set(entry)} for entry in variables]
    if _lack(variables, "scale", "offset"):
        bare = [FieldAxis(entry["name"], 1) for entry in axes]
        values = []
        for path in paths:
            with _taking(path, what):
                values.append(_values(path, bare, variables, len(paths)))
        measured = [np.concatenate(parts) for parts in zip(*values, strict=True)]
        with _taking(paths[0], what):
            variables = [_measured(entry, each) for entry, each in zip(variables, measured, strict=True)]
    return axes, variables


def _note_others(file: ArrayFile, variables: Sequence[str], reference: NamedArray) -> None:
    """Say which arrays of numbers, and which arrays that cannot be read, are not among the variables."""
    left = [each.shown for each in file.data() if each.name not in variables and each is not reference]
    if left or file.others:
        read = [f"{name} ({reason})" for name, reason in file.others.items()]
        log.warning(
            "not used as variables: %s. Set modality.variables to choose others", named([*left, *read], longest=200)
        )


def _reference(file: ArrayFile, wanted: Sequence[str] | None) -> NamedArray:
    """Return the array from which the axes are taken: the one with most dimensions."""
    arrays = file.data()
    if wanted is not None and any(name in file.arrays for name in wanted):
        arrays = [file.array(name) for name in wanted]
    if not arrays:
        raise UnusableFileError(f"it has no array of numbers; it has {listed_arrays(file)}")
    return max(arrays, key=lambda each: len(each.shape))


def _axis_names(array: NamedArray, data: Settings) -> list[str]:
    """Return the names of those dimensions of an array that are the axes of a field."""
    by_name = [name for name in array.dimensions if name is not None]
    examples, in_arrays = data.get("example_axis"), "example_axis" in data
    if not by_name:
        count = len(array.shape) - (in_arrays and examples is not None and len(array.shape) > 1)
        if not 1 <= count <= 3:
            raise UnusableFileError(
                f"its array {array.shown} does not name its dimensions: set modality.axes to the names of the last "
                "ones, one to three, for example modality.axes=[y,x]"
            )
        return list(UNNAMED[count])
    sizes = dict(zip(array.dimensions, array.shape, strict=True))
    names = [
        name for name in by_name if name != examples and name.lower() not in EXAMPLE_DIMENSIONS and sizes[name] != 1
    ]
    numbered = len(names) > 2 or (len(names) > 1 and data.get("lead") is not None)
    if in_arrays and examples is not None and numbered and names[0].lower() == "time":
        names = names[1:]
    if not 1 <= len(names) <= 3:
        raise UnusableFileError(
            f"of the dimensions of its array {array.shown}, one to three must be chosen as axes: set modality.axes, "
            f"for example modality.axes=[{','.join(by_name[-2:])}]"
        )
    return names


def _stated_axis(file: ArrayFile, size: int, entry: Settings) -> dict[str, Any]:
    """Return what a file states about an axis of `size` values; positions are those of a whole axis only."""
    coordinate = file.coordinate(entry["name"])
    whole = entry.get("size") in (None, size)
    if coordinate is None:
        return {"size": size}
    if coordinate.spacing is None:
        if size > 1 and "spacing" not in entry:
            log.warning(
                "the values of the axis %s are not evenly spaced, so that frequencies along it are per sample: set its "
                "spacing and unit if they nearly are", entry["name"],
            )  # fmt: skip
        return {"size": size}
    stated = {"size": size, "spacing": _rounded(coordinate.spacing), "unit": coordinate.unit or "sample"}
    if whole:
        stated |= {"start": _rounded(coordinate.start), "periodic": _is_circle(coordinate, size)}
    return stated


def _is_circle(coordinate: Coordinate, size: int) -> bool:
    """Whether positions in degrees go once around a circle."""
    spacing = coordinate.spacing or 0.0
    return coordinate.unit == "degree" and abs(spacing * size - CIRCLE) < spacing / 2


def _positions(array: NamedArray, axes: Sequence[str], data: Settings) -> tuple[tuple[int, ...], int]:
    """Return the positions of the axes among an array's dimensions, and the number of variables along another one.

    If dimensions have no names, the variables may be along the last dimension, if it is shorter than the one before the
    axes.
    """
    where = axis_positions(array, axes)
    others = [each for each in range(len(array.shape)) if each not in where]
    if others and data.get("example_axis") is not None:
        others = others[1:]
    others = [each for each in others if array.shape[each] != 1]
    if len(others) > 1:
        raise UnusableFileError(f"its array {array.shown} has too many dimensions: set modality.axes")
    if not others:
        return where, 1
    first, last = array.shape[others[0]], array.shape[-1]
    if not any(array.dimensions) and others[0] == where[0] - 1 and last < first:
        return tuple(each - 1 for each in where), last
    return where, first


def _variable_names(file: ArrayFile, reference: NamedArray, axes: Sequence[str], channels: int) -> list[str]:
    """Return the names of the variables of a file that have the axes; `channels` is their number in a single array."""
    arrays = file.data(axes)
    if len(arrays) > 1:
        return [each.name for each in arrays if len(each.shape) == len(reference.shape) and _has(each, reference, axes)]
    name = reference.name or "value"
    return [f"{name}_{1 + number}" for number in range(channels)] if channels > 1 else [name]


def _has(array: NamedArray, reference: NamedArray, axes: Sequence[str]) -> bool:
    """Whether an array has the axes, of the same sizes as the reference."""
    try:
        ours, theirs = axis_positions(array, axes), axis_positions(reference, axes)
    except UnusableFileError:
        return False
    return [array.shape[where] for where in ours] == [reference.shape[where] for where in theirs]


def _values(
    path: Path, axes: Sequence[FieldAxis], variables: Sequence[Settings], files: int
) -> list[NDArray[np.float64]]:
    """Return some values of every variable in a file, evenly spaced, without the missing ones."""
    named = [Variable(entry["name"]) for entry in variables]
    with open_arrays(path) as file:
        placement = place(file, axes, named)
        rows = math.prod(placement.sizes)
        if not rows or not placement.count:
            raise UnusableFileError(f"it has no values: {placement.sources[0].array.shown}")
        examples = min(placement.count, max(1, VALUES // (files * rows)), 4 * BLOCKS)
        parts = []
        for number in range(examples):
            for start, stop in _blocks(placement.sizes[0], VALUES // (files * examples * (rows // placement.sizes[0]))):
                starts = (start, *([0] * (len(axes) - 1)))
                window = (stop - start, *placement.sizes[1:])
                part = placement.read(number * placement.count // examples, starts, window)
                parts.append(part.reshape(len(named), -1))
    values = np.concatenate(parts, axis=1)
    return [each[~np.isnan(each)] for each in values]


def _blocks(size: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield the bounds of evenly spaced parts of an axis with about `count` positions in total, or all of it."""
    if size <= max(1, count):
        yield 0, size
        return
    number = min(BLOCKS, max(1, count))
    length = max(1, count // number)
    for block in range(number):
        start = block * (size - length) // max(1, number - 1)
        yield start, start + length


def _measured(entry: dict[str, Any], values: NDArray[np.float64]) -> dict[str, Any]:
    """Return the settings of a variable with its threshold, offset and scale, if they are not given, from values."""
    name: str = entry["name"]
    transform: Any = entry.get("transform") or "linear"
    if not len(values):
        raise UnusableFileError(
            f"its variable {name} has only missing values: set modality.variables to others, or set its offset and "
            "scale"
        )
    if not np.isfinite(values).all():
        raise UnusableFileError(f"its variable {name} has infinite values: correct them, or set its offset and scale")
    if transform == "log" and values.min() <= 0:
        raise UnusableFileError(
            f"its variable {name} has values that are not positive, such as {values.min():g}: set its transform to "
            "asinh"
        )
    threshold = entry.get("threshold")
    if threshold is None and transform == "asinh":
        sizes = np.abs(values[values != 0])
        threshold = _rounded(float(np.median(sizes))) if len(sizes) else 1.0
    variable = Variable(name, transform=transform, threshold=threshold or 1.0)
    changed = variable.transformed(torch.from_numpy(values)).numpy()
    offset, deviation = _rounded(float(changed.mean())), _rounded(DEVIATIONS * float(changed.std()))
    # Rounding leaves a little deviation of a constant.
    constant = deviation <= 1e-9 * abs(offset)
    found = {"offset": offset, "scale": 1.0 if constant else deviation, "transform": transform}
    return {**found, "threshold": variable.threshold, **_set(entry)}


def _set(entry: Settings) -> dict[str, Any]:
    """Return the settings that are not null."""
    return {key: value for key, value in entry.items() if value is not None}


def _filled_axis(entry: Settings) -> dict[str, Any]:
    defaults = {"size": None, "spacing": 1.0, "unit": "sample", "corner": None, "periodic": False, "start": 0.0}
    return {"name": entry["name"], **defaults, **_set(entry)}


def _filled_variables(entries: Sequence[Settings]) -> list[dict[str, Any]]:
    defaults = {"unit": "", "scale": 1.0, "offset": 0.0, "transform": "linear", "threshold": 1.0}
    return [{"name": entry["name"], **defaults, **_set(entry)} for entry in entries]


def _format(paths: Sequence[Path], found: Settings) -> str:
    """Return the format of saved files: that of the file, if it can hold such fields."""
    format = FORMATS.get(ending_of(paths[0].name, tuple(FORMATS)), "npz") if paths else "npz"
    axes = [FieldAxis(entry["name"], 1) for entry in found["axes"]]
    try:
        check_format(format, axes, [Variable(entry["name"]) for entry in found["variables"]])
    except ValueError:
        return "npz"
    return format


def _rounded(number: float) -> float:
    return float(f"{number:.6g}")
