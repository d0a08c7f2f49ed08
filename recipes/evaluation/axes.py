"""Samples compared with data along each axis of their grid: how much neighbours differ, and power in bands.

It needs no network and no labels, serves every modality, and is in the units of the axes: for a video, the temporal
spectrum in hertz and the mean difference of frames. Every number is a ratio of samples to data.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multisagd.metrics.axes import bands_along, mean_difference, neighbour_differences
from recipes.evaluation.distances import spread
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import Task


def axes(task: Task) -> Result:
    """Compare neighbours, and power in bands of equal width, along every axis of the grid."""
    sets, grid = task.sets, task.modality.grid()
    made, real = task.curves
    rows: list[Row] = []
    for axis in grid.axes:
        ours, theirs = (neighbour_differences(sets.batches(real=each), grid, axis.name) for each in (False, True))
        rows.append(_ratio(f"{axis.name}: difference of neighbours", ours, theirs, mean_difference, task))
        for name, members in bands_along(axis, made[axis.name].frequency, task.settings.bands):
            ours, theirs = (each[axis.name].values[:, members].mean(1) for each in (made, real))
            rows.append(_ratio(f"{axis.name}: power at {name}", ours, theirs, torch.mean, task))
    return Result(tuple(rows))


def _ratio(name: str, ours: Tensor, theirs: Tensor, mean: Callable[[Tensor], Tensor], task: Task) -> Row:
    """Return the row of samples over data, from the values of every sample and of every real example."""

    def ratio(above: Tensor, below: Tensor) -> float:
        return float(mean(above) / mean(below))

    reference = theirs[: task.sets.reference_count]
    floors = [ratio(theirs[other], theirs[one]) for one, other in task.halves]
    error = task.bootstrap(lambda a, b: ratio(ours[a], reference[b]))
    return Row(name, ratio(ours, reference), error, *spread(floors), ideal=1.0)
