"""The power spectrum of a single datum, where there is no dataset to average over.

One periodogram scatters by as much as its own value, and what leaks from the edges of a datum that is not periodic
hides steep spectra. Averaging periodograms over orthogonal tapers mends both (D. J. Thomson, Proc. IEEE 70, 1982);
here over the products of a few tapers along every axis.
"""

from __future__ import annotations

import itertools
import math

import scipy
import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.statistics import DataStatistics

BANDWIDTH = 2.5
"""Half the width over which a frequency is smeared, in bins."""
TAPERS = 3
"""Tapers along each axis; up to about twice the bandwidth have little leakage, the first of them the least."""


def statistics_of_one(x0: Tensor, grid: Grid, mask: Tensor | None = None) -> DataStatistics:
    """Return mean and power of one datum `(channels, *grid)`, as if it were a stationary signal seen through windows.

    The mean is the same everywhere, one number for each channel, and the mean power is the variance about it; a `mask`
    `(1 or channels, *grid)` says where the datum is valid.

    Raises:
        ValueError: if the datum is the same everywhere.
    """
    dims = tuple(range(-grid.dimensions, 0))
    valid = torch.ones_like(x0, dtype=torch.bool) if mask is None else mask.expand_as(x0)
    x0 = torch.where(valid, x0, 0.0).to(torch.float64)
    counts = valid.sum(dim=dims, keepdim=True).clamp(min=1)
    mean = (x0.sum(dim=dims, keepdim=True) / counts).expand_as(x0)
    rest = torch.where(valid, x0 - mean, 0.0)
    if not bool(rest.abs().max() > 1e-6):
        raise ValueError("it is the same everywhere (of one colour, or silent), so that it has no spectrum")
    combinations = list(itertools.product(*(_tapers(size) for size in grid.shape)))
    power = torch.zeros(len(x0), *grid.half_shape, dtype=torch.float64)
    for tapers in combinations:
        tapered = rest
        for place, taper in zip(dims, tapers, strict=True):
            tapered = tapered * taper.reshape(-1, *(1,) * (-place - 1))
        power += torch.fft.rfftn(tapered, dim=dims, norm="ortho").abs().square()
    # Tapers weigh the middle more than the edges: the variance is that of the whole datum.
    power *= float(rest.square().sum() / valid.sum() / grid.mean(power).mean().clamp(min=1e-300))
    return DataStatistics(mean.contiguous(), power, grid, 1)


def _tapers(size: int) -> list[Tensor]:
    """Return the tapers along an axis of so many samples, each of mean square one; a flat one if there are few."""
    if size < 4 * BANDWIDTH:
        return [torch.ones(size, dtype=torch.float64)]
    return list(torch.from_numpy(scipy.signal.windows.dpss(size, BANDWIDTH, TAPERS).copy()) * math.sqrt(size))
