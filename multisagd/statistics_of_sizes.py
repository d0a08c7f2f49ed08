"""Measure the statistics of data of several sizes: grids with the same axes and spacing, but other numbers of samples.

There is no mean at a grid point of which some sizes have none, so the mean is constant along every axis whose size
differs. The power at a frequency does not depend on the size of a grid, except near zero frequency, because transforms
are unitary: the power of each size is interpolated in physical frequency to one grid, and averaged over all items.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.masked_power import MaskCount, masked_power
from multisagd.statistics import DataStatistics, masks_of, measure_mean, transforms_about

Batches = Iterable[Tensor | tuple[Tensor, Tensor | None]]
"""Batches `(batch, channels, *grid)`, or pairs of a batch and its mask of valid samples."""


def measure_sizes(parts: Sequence[tuple[Batches, Grid]], grid: Grid, grids: Sequence[Grid]) -> DataStatistics:
    """Return the statistics on `grid` of data of several sizes, `parts`, each given with its own grid.

    `grids` are those of all sizes, also of sizes without data: the mean is constant along the axes in which they
    differ. Batches are read twice and must be the same each time, as in `DataStatistics.measure`.

    Raises:
        ValueError: If there are no data; if they change between the passes, do not match their grids, are not finite or
            are completely masked; if too few samples are valid to determine the power; or if all are constant.
    """
    differing = [axis for axis in range(grid.dimensions) if len({each.shape[axis] for each in grids}) > 1]
    dims = tuple(axis + 1 for axis in differing)
    total, weight = torch.zeros((), device="cpu"), torch.zeros((), device="cpu")
    measured = []
    for batches, own in parts:
        mean, valid, count, masks = measure_mean(batches, own)
        total = total + (mean * valid).sum(dims, keepdim=True)
        weight = weight + valid.sum(dims, keepdim=True)
        measured.append((valid, count, masks))
    if not measured:
        raise ValueError("there are no data to measure")
    common, items = total / weight.clamp(min=1), sum(count for _, count, _ in measured)
    power = torch.zeros((), device="cpu")
    for (batches, own), (valid, count, masks) in zip(parts, measured, strict=True):
        mean = common.expand(-1, *own.shape)
        # The mean at a point was determined by all the values that it averages.
        determined = torch.where(valid > 0, weight.expand_as(valid), 0.0)
        part = DataStatistics(mean, _power_about(mean, batches, own, determined, masks, count), own, count)
        power = power + part.power_on(grid.shape) * (count / items)
    statistics = DataStatistics(common.expand(-1, *grid.shape).contiguous(), power, grid, items)
    if not statistics.sigma_data > 0:
        raise ValueError("all examples are constant and equal: check what the data contain")
    return statistics


def _power_about(
    mean: Tensor, batches: Batches, grid: Grid, determined: Tensor, masks: MaskCount, count: int
) -> Tensor:  # fmt: skip
    """Return the power `(channels, *half_shape)` of the items of one size about a mean `(channels, *grid)`."""
    if masks.partial:
        power, again = masked_power(masks_of(batches), mean, determined, masks, count)
    else:
        power, again = torch.zeros((), device="cpu"), 0
        for transform in transforms_about(mean, batches, grid):
            power = power + transform.abs().square().sum(0) / count
            again += len(transform)
    if again != count:
        raise ValueError(f"the data must be the same in both passes, but had {count} items, then {again}")
    return power
