"""Samples compared with data along each axis of their grid: how much neighbours differ, and power in bands.

It needs no network and no labels, serves every modality, and is in the units of the axes: for a video, the temporal
spectrum in hertz and the mean difference of frames. Every number is a ratio of samples to data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from multisagd import Axis, Grid
from recipes.evaluation.distances import spread
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import Task

Batches = Iterable[tuple[Tensor, Tensor | None]]


def axes(task: Task) -> Result:
    """Compare neighbours, and power in bands of equal width, along every axis of the grid."""
    sets, grid = task.sets, task.modality.grid()
    made, real = task.curves
    rows: list[Row] = []
    for axis in grid.axes:
        ours, theirs = (neighbour_differences(sets.batches(real=each), grid, axis.name) for each in (False, True))
        rows.append(_ratio(f"{axis.name}: difference of neighbours", ours, theirs, _mean_difference, task))
        for name, members in bands_along(axis, made[axis.name].frequency, task.settings.bands):
            ours, theirs = (each[axis.name].values[:, members].mean(1) for each in (made, real))
            rows.append(_ratio(f"{axis.name}: power at {name}", ours, theirs, torch.mean, task))
    return Result(tuple(rows))


def _ratio(name: str, ours: Tensor, theirs: Tensor, mean: Callable[[Tensor], Tensor], task: Task) -> Row:
    """Return the row of samples over data, from the values of every sample and of every real example."""

    def ratio(above: Tensor, below: Tensor) -> float:
        return float(mean(above) / mean(below))

    reference = theirs[: task.sets.reference_count]
    floors = [ratio(theirs[other], theirs[one]) for one, other in task.halves()]
    error = task.bootstrap(lambda a, b: ratio(ours[a], reference[b]))
    return Row(name, ratio(ours, reference), error, *spread(floors), ideal=1.0)


def bands_along(axis: Axis, frequency: Tensor, bands: int) -> list[tuple[str, Tensor]]:
    """Return zero frequency and bands of equal width up to the highest, by name, each with the places of its points.

    `frequency` `(points,)` rises from zero, in cycles per unit of the axis. Bands without a point are left out.
    """
    top = float(frequency[-1])
    found = [("0", torch.tensor([0]))]
    for number in range(bands):
        low, high = top * number / bands, top * (number + 1) / bands
        # Rounding must not decide where a frequency on an edge belongs: it is in the band below.
        inside = (frequency > low + 1e-9 * top) & (frequency <= high + 1e-9 * top)
        if bool(inside.any()):
            found.append((f"{low:.3g}-{high:.3g} / {axis.unit}", inside.nonzero()[:, 0]))
    return found


def neighbour_differences(batches: Batches, grid: Grid, name: str) -> Tensor:
    """Return of every item the sum of absolute differences of neighbours along an axis, and how many pairs there are.

    Batches are `(count, channels, *grid)`, each with its mask `(count, 1 or channels, *grid)` or None; the result is
    float64 `(items, 2)`. Pairs with padding do not count.
    """
    found = []
    for x0, mask in batches:
        place = x0.ndim - grid.dimensions + grid.names.index(name)
        size = x0.shape[place]
        difference = (x0.narrow(place, 1, size - 1) - x0.narrow(place, 0, size - 1)).abs().double()
        both = torch.ones_like(difference)
        if mask is not None:
            both = (mask.narrow(place, 1, size - 1) & mask.narrow(place, 0, size - 1)).expand_as(difference).double()
        found.append(torch.stack([(difference * both).flatten(1).sum(1), both.flatten(1).sum(1)], dim=1))
    return torch.cat(found)


def _mean_difference(items: Tensor) -> Tensor:
    """Return the mean absolute difference over all pairs of some items."""
    total, pairs = items.sum(0)
    return total / pairs.clamp(min=1)
