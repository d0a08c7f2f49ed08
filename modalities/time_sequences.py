"""The order of the examples of array files in time, which forecasts need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from modalities.base import UnusableFileError
from modalities.field_layout import Placement
from modalities.named_arrays import ArrayFile

TIME = "time"
"""Name of the dimension of time, in lower case."""
DIFFERENT = 0.05
"""Maximum relative difference of two steps in time that count as equal."""


@dataclass(frozen=True)
class Times:
    """The examples of one file in order of time: `sequences` of their positions in the file.

    `start` is the time of the first one, and `spacing` the step to the next, in `unit`; both are None if unknown.
    """

    sequences: tuple[range, ...]
    start: float | None = None
    spacing: float | None = None
    unit: str = ""


def times_of(file: ArrayFile, placement: Placement) -> Times:
    """Return the order of a file's examples in time.

    Of several dimensions that number examples, time is the one with this name, or, if they have no names, the last.

    Raises:
        UnusableFileError: If it is not known which dimension is time, or times descend or are not evenly spaced.
    """
    source = next((each for each in placement.sources if each.examples), placement.sources[0])
    sizes, names = placement.examples, [source.array.dimensions[where] for where in source.examples]
    named = [number for number, name in enumerate(names) if name is not None and name.lower() == TIME]
    long = [number for number, size in enumerate(sizes) if size != 1]
    if not named and len(long) > 1 and any(names):
        raise UnusableFileError(
            f"of the dimensions of its array {source.array.shown}, it is not known which is time: rename it to {TIME}"
        )
    chosen = (named or long or [*range(len(sizes))])[-1:]
    name = names[chosen[0]] if chosen else None
    coordinate = file.coordinate(name or TIME)
    positions = np.arange(math.prod(sizes)).reshape(sizes or (1,))
    rows = np.moveaxis(positions, chosen[0] if chosen else 0, -1).reshape(-1, sizes[chosen[0]] if chosen else 1)
    stride = math.prod(sizes[chosen[0] + 1 :]) if chosen else 1
    sequences = tuple(range(int(row[0]), int(row[-1]) + 1, stride) for row in rows)
    if coordinate is None:
        return Times(sequences)
    if rows.shape[1] > 1 and (coordinate.spacing is None or coordinate.descending):
        problem = "descend" if coordinate.descending else "are not evenly spaced"
        raise UnusableFileError(
            f"the values of its coordinate {name or TIME} {problem}, so that forecasts would be of different times: "
            "sort or resample it, or divide it where steps are missing"
        )
    return Times(sequences, coordinate.start, coordinate.spacing, coordinate.unit)


def step_of(times: Sequence[Times]) -> tuple[float, str]:
    """Return the step in time of several files and its unit; without coordinates, the step is 1 and has no unit.

    Raises:
        ValueError: If the steps or units of two files differ.
    """
    stated = [each for each in times if each.spacing is not None and len(each.sequences[0]) > 1]
    if not stated:
        return 1.0, ""
    step, unit = stated[0].spacing or 1.0, stated[0].unit
    for each in stated:
        if each.unit != unit or not math.isclose(each.spacing or 0.0, step, rel_tol=DIFFERENT):
            raise ValueError(
                f"the times of the files are {step:g} {unit} and {each.spacing:g} {each.unit} apart: resample them, or "
                "use only files with one step"
            )
    return step, unit


def joined(
    folders: Sequence[str], starts: Sequence[int], parts: Sequence[int], times: Sequence[Times]
) -> tuple[list[range], float, str]:
    """Join files with one field each, in the order of their names, to one sequence for each folder and part of a field.

    `folders` are those of the files, `starts` the positions of their first examples, and `parts` the numbers of parts
    into which each field is divided. The other results are the step in time and its unit, as for `step_of`.

    Raises:
        ValueError: If the files of a folder are not in order of time, evenly spaced, or of one size, or only some of
            them state times, or in different units.
    """
    sequences: list[range] = []
    steps: list[Times] = []
    for folder, group in groupby(range(len(folders)), key=lambda number: folders[number]):
        numbers = list(group)
        count = parts[numbers[0]]
        if any(parts[number] != count for number in numbers):
            raise ValueError(f"the fields in {folder or 'the folder'} differ in size: use fields of one size")
        end = starts[numbers[-1]] + count
        sequences += [range(starts[numbers[0]] + part, end, count) for part in range(count)]
        steps += _steps_between([times[number] for number in numbers], folder or "the folder")
    return sequences, *step_of(steps)


def _steps_between(files: Sequence[Times], folder: str) -> list[Times]:
    """Return the step from one file with one field to the next, if they state times. Raises ValueError as `joined`."""
    starts = [file.start for file in files if file.start is not None]
    if not starts or len(files) < 2:
        return []
    if len(starts) < len(files) or len({file.unit for file in files}) > 1:
        raise ValueError(
            f"only some of the files in {folder} state their time, or in different units: add the coordinate {TIME} to "
            "all, in one unit, or remove it from all"
        )
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    if not any(gaps):
        raise ValueError(
            f"all files in {folder} have the time {starts[0]:g}, perhaps since another date in each: write times since "
            f"one date, or remove the coordinate {TIME} if the files are evenly spaced in the order of their names"
        )
    if min(gaps) <= 0 or max(gaps) - min(gaps) > DIFFERENT * max(gaps):
        raise ValueError(
            f"the files in {folder} are not evenly spaced in time in the order of their names: rename them so that "
            "they are, or put what follows a gap into another folder"
        )
    return [Times((range(2),), starts[0], gaps[0], files[0].unit)]
