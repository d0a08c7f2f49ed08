"""Fill in unknown values with a model that was trained without a condition, and keep the known ones.

The known values are a measurement: `Masked` selects them, and ΠGDM guides the denoiser with them (see `inverse`). The
network is not differentiated: for Gaussian data both forms are exact, but for a network trained on digits the guidance
with its Jacobian diverged unless the noise of the measurement was 0.2 standard deviations of the data or more, and
without it the known values were followed at every noise tried. That noise, which conjugate gradients need, leaves
small errors, so that the known values are put back at the end.

A covariance that is diagonal in frequency makes the two ends of an axis neighbours. If the beginning of a sound is
known, its end would then continue the beginning backwards: for an AR(1) process with a correlation length of a quarter
of the axis, the correlation of both ends was 0.74 instead of 0.02. So the covariance of what x_t leaves unknown is
that of a grid on which axes that are not periodic are longer by half, of which nothing is known: 0.03 remained.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from multisagd.condition import AnyCondition
from multisagd.covariance import filter_grid
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.inverse import PiGDM
from multisagd.measurement import Masked
from multisagd.sampling import AnyDenoiser
from multisagd.statistics import DataStatistics

NOISE = 0.01
"""Standard deviation of the noise of known values, as a fraction of that of the data: below what is seen or heard."""
TOLERANCE = 1e-3
"""Relative residual of conjugate gradients: an error far below that of R, a model of the network's uncertainty."""


class InpaintingDenoiser(PiGDM):
    """A denoiser whose samples agree with the known values of data x0 `(batch, channels, *grid)`.

    `known` is bool `(batch, 1 or channels, *grid)`; other values of x0 may be anything, also NaN. `statistics` are
    those of the training data. On grids of periodic axes only, samples of Gaussian data are exact, up to measurement
    noise of `NOISE`.

    Raises:
        ValueError: If the noise of the process is not diagonal in frequency, or the shapes differ.
    """

    def __init__(self, denoiser: AnyDenoiser, x0: Tensor, known: Tensor, statistics: DataStatistics) -> None:
        x0 = as_data(x0)
        check_known(x0, known)
        grid = _longer(denoiser.process.grid.resize(x0.shape[2:]))
        mask = Masked(_extended(known, grid), grid, tolerance=TOLERANCE)
        noise = NOISE * statistics.sigma_data
        super().__init__(denoiser, mask, x0.masked_fill(~known, 0.0), noise, statistics, gradient=None)
        self.known = known

    def corrected(self, x_t: Tensor, t: Tensor, condition: AnyCondition) -> tuple[Tensor, Tensor]:
        """Return the estimate without the known values, and the correction, each in the shape and units of x_t."""
        x0, grid = self.denoiser(x_t, t, condition), self.measurement.grid
        residual = _extended((self.y.to(x0) - x0).masked_fill(~self.known.to(x0.device), 0.0), grid)
        at = self.process.coefficients(t, residual)
        moved = self.measurement.adjoint(self.solved(residual, at))
        correction = filter_grid(moved, self.power(at).to(moved), grid.dimensions)
        for axis, size in enumerate(x0.shape[2:], start=2):
            correction = correction.narrow(axis, 0, size)
        return x0, correction


def put_back(sample: Tensor, x0: Tensor, known: Tensor) -> Tensor:
    """Return a sample with the known values of x0, `(batch, channels, *grid)` in the units of both.

    `known` is bool `(batch, 1 or channels, *grid)`; other values of x0 may be anything.

    Raises:
        ValueError: If the shapes differ.
    """
    check_known(x0, known)
    if sample.shape != x0.shape:
        raise ValueError(f"the sample has shape {tuple(sample.shape)}, but the known data have {tuple(x0.shape)}")
    return torch.where(known, x0.to(sample), sample)


def check_known(x0: Tensor, known: Tensor) -> None:
    """Check that `known`, bool `(batch, 1 or channels, *grid)`, selects values of x0 `(batch, channels, *grid)`.

    Raises:
        ValueError: If it is not boolean, or its shape is another.
    """
    shapes = ((len(x0), channels, *x0.shape[2:]) for channels in (1, x0.shape[1]))
    if known.dtype != torch.bool or tuple(known.shape) not in shapes:
        raise ValueError(
            f"known must be bool of shape (batch, 1 or channels, *grid) for data of shape {tuple(x0.shape)}, got "
            f"{known.dtype} of shape {tuple(known.shape)}"
        )


def _longer(grid: Grid) -> Grid:
    """Return a grid on which the two ends of axes that are not periodic are half an axis apart."""
    return grid.resize([axis.size if axis.periodic else axis.size + -(-axis.size // 2) for axis in grid.axes])


def _extended(x: Tensor, grid: Grid) -> Tensor:
    """Return x (..., *sizes) with zeros (or False) after its end along every axis, up to the size of a grid."""
    added = [total - size for total, size in zip(grid.shape, x.shape[-grid.dimensions :], strict=True)]
    return F.pad(x, [each for length in reversed(added) for each in (0, length)])
