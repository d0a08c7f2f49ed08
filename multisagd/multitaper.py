"""Estimate the power spectrum of a single example, without a dataset to average over.

The standard deviation of a single periodogram is as large as its value, and leakage from the edges of a non-periodic
example hides steep spectra. Averaging periodograms over orthogonal tapers reduces both (D. J. Thomson, Proc. IEEE 70,
1982). Here the tapers are products of a few tapers along every axis. A periodic axis has no edges and is not tapered.
"""

from __future__ import annotations

import itertools
import math

import scipy
import torch
from torch import Tensor

from multisagd.grid import Axis, Grid
from multisagd.statistics import DataStatistics

BANDWIDTH = 2.5
"""Half the width over which a frequency is spread, in bins."""
TAPERS = 3
"""Number of tapers along each axis. The first 2 · bandwidth tapers or so have little leakage."""


def statistics_of_one(x0: Tensor, grid: Grid, mask: Tensor | None = None) -> DataStatistics:
    """Return the mean and power of one example `(channels, *grid)`, treated as a window of a stationary signal.

    The mean is constant, one number per channel, and the mean power is the variance about it; a `mask`
    `(1 or channels, *grid)` is true where the example is valid.

    Raises:
        ValueError: If the example is constant.
    """
    dims = tuple(range(-grid.dimensions, 0))
    valid = torch.ones_like(x0, dtype=torch.bool) if mask is None else mask.expand_as(x0)
    x0 = torch.where(valid, x0, 0.0).to(torch.float64)
    counts = valid.sum(dim=dims, keepdim=True).clamp(min=1)
    mean = (x0.sum(dim=dims, keepdim=True) / counts).expand_as(x0)
    rest = torch.where(valid, x0 - mean, 0.0)
    if not bool(rest.abs().max() > 1e-6):
        raise ValueError("the example is constant (a single colour, or silence), so it has no spectrum")
    combinations = list(itertools.product(*(_tapers(axis) for axis in grid.axes)))
    power = torch.zeros(len(x0), *grid.half_shape, dtype=torch.float64)
    for tapers in combinations:
        tapered = rest
        for dim, taper in zip(dims, tapers, strict=True):
            tapered = tapered * taper.reshape(-1, *(1,) * (-dim - 1))
        power += torch.fft.rfftn(tapered, dim=dims, norm="ortho").abs().square()
    # Tapers weight the middle more than the edges, and masked points count as zero, so the power of each channel is
    # scaled to the variance of its valid points.
    variance = rest.square().sum(dim=dims, keepdim=True) / counts
    power *= variance / grid.mean(power).clamp(min=1e-300).reshape(variance.shape)
    return DataStatistics(mean.contiguous(), power, grid, 1)


def _tapers(axis: Axis) -> list[Tensor]:
    """Return the tapers along an axis, with mean square one; periodic and short axes get a constant taper."""
    if axis.periodic or axis.size < 4 * BANDWIDTH:
        return [torch.ones(axis.size, dtype=torch.float64)]
    return list(torch.from_numpy(scipy.signal.windows.dpss(axis.size, BANDWIDTH, TAPERS).copy()) * math.sqrt(axis.size))
