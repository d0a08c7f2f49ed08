"""The exact optimal denoiser of Gaussian data, used to test processes and samplers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from multisagd.covariance import filter_grid
from multisagd.inputs import as_data
from multisagd.padding import PaddedCovariance
from multisagd.process import Process
from multisagd.statistics import DataStatistics


class GaussianDenoiser(nn.Module):
    """The exact `E[x0 | x_t]` of stationary Gaussian data, an oracle for tests of processes and samplers.

    Per frequency `μ + aC/(a²C + V)·(x - aμ)` with the data's power C and the noise's `V = b²W`: the Wiener filter.

    Raises:
        ValueError: for noise drawn on a padded grid, for which this formula does not hold.
    """

    def __init__(self, process: Process, statistics: DataStatistics) -> None:
        super().__init__()
        if isinstance(process.covariance, PaddedCovariance):
            raise ValueError("noise drawn on a padded grid is not diagonal in frequency, as the Wiener filter needs it")
        self.process = process
        self.statistics = statistics

    def forward(self, x_t: Tensor, t: Tensor | float, condition: Tensor | None = None) -> Tensor:
        """Return `E[x0 | x_t]`, `(batch, channels, *grid)`, in the units of x_t; the condition is ignored."""
        x_t = as_data(x_t)
        shape, dimensions = tuple(x_t.shape[2:]), self.process.grid.dimensions
        at = self.process.coefficients(t, x_t)
        power = self.statistics.power_on(shape).to(x_t)
        mean = self.statistics.mean_on(shape).to(x_t)
        total = at.a**2 * power + at.b**2 * self.process.covariance.power(shape).to(x_t)
        # A bin with neither signal nor noise has the mean.
        gain = torch.where(total > 0, at.a * power / total.clamp(min=torch.finfo(total.dtype).tiny), 0.0)
        return mean + filter_grid(x_t - self.process.scale(mean.expand_as(x_t), at.a), gain, dimensions)
