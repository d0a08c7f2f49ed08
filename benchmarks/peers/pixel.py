"""Noise with the standard deviation of the data at every pixel: the diagonal covariance of PriorGrad (2106.06406)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modalities.base import Dataset
from multisagd import Flat, Grid, Process, Schedule, SpectralCovariance
from multisagd.covariance import Gain
from multisagd.process import Modulation
from recipes.evaluation.sets import fixed_order

EXPONENTS: dict[Gain, int] = {"color": 1, "whiten": -1, "apply": 2, "solve": -2, "project": 0}


class PixelCovariance(SpectralCovariance):
    """Covariance of independent noise at every point of a grid; `deviation` is its standard deviation, `(*grid)`.

    It is scaled to unit mean variance, every channel alike. `power` is the expectation of the noise's periodogram,
    which is flat; the covariance itself is not diagonal in frequency, so code that assumes this (spectral
    preconditioning, `GaussianDenoiser`) is wrong for it. Sampling noise, adding noise, the Mahalanobis loss, the
    training of a network and every sampler are exact.

    Raises:
        ValueError: If the standard deviations do not have the shape of the grid, or are not positive and finite; in
            use, if tensors are on a different grid.
    """

    def __init__(self, deviation: Tensor, grid: Grid) -> None:
        if tuple(deviation.shape) != grid.shape:
            raise ValueError(
                f"expected a standard deviation for each point of {grid.shape}, got {tuple(deviation.shape)}"
            )
        if not bool((torch.isfinite(deviation) & (deviation > 0)).all()):
            raise ValueError("standard deviations must be positive and finite: set a floor")
        super().__init__(Flat(), grid)
        deviation = deviation.detach().to("cpu", torch.float64)
        self.deviation = deviation / deviation.square().mean().sqrt()

    def logdet(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the log-determinant of Σ for one channel, float64 scalar."""
        self._check(self.grid.shape if shape is None else tuple(shape))
        return 2 * self.deviation.log().sum()

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        self._check(tuple(x.shape[-self.grid.dimensions :]))
        wide = torch.promote_types(x.dtype, torch.float32)
        return (x * (self.deviation ** EXPONENTS[gain]).to(x.device, wide)).to(x.dtype)

    def _check(self, shape: tuple[int, ...]) -> None:
        if shape != self.grid.shape:
            raise ValueError(f"this noise has a grid of shape {self.grid.shape}, got {shape}")


class PixelProcess(Process):
    """Forward process whose noise has the standard deviation of the training data at every pixel.

    PriorGrad takes the prior's mean and diagonal covariance from the data. `Denoiser` subtracts this mean from
    the data anyway. Its covariance comes from the condition (the energy of a frame); MNIST has no such condition, so
    here it is measured once, on `count` examples of `data`, averaged over channels, and is the same for all. No
    standard deviation is below `floor` times the largest, because the loss divides by them.

    Raises:
        ValueError: If the covariance, which the measured one replaces, is not white, or the floor is outside (0, 1].
    """

    def __init__(
        self,
        schedule: Schedule,
        covariance: SpectralCovariance,
        data: Dataset,
        modulation: Modulation | None = None,
        floor: float = 0.1,
        count: int = 10_000,
    ) -> None:
        if not bool((covariance.power() == 1).all()):
            raise ValueError("the noise per pixel replaces the spectrum: use spectrum=white")
        deviation = pixel_deviation(data, floor, count)
        super().__init__(schedule, PixelCovariance(deviation, covariance.grid), modulation)


def pixel_deviation(data: Dataset, floor: float, count: int) -> Tensor:
    """Return the standard deviation over examples at every point of the grid, float64, not less than its floor.

    Raises:
        ValueError: If the floor is outside (0, 1].
    """
    if not 0 < floor <= 1:
        raise ValueError(
            f"floor must be a fraction of the largest standard deviation, above 0 and at most 1, got {floor}"
        )
    deviation = data.batch(fixed_order(data, count)).x0.double().var(0).mean(0).sqrt()
    return deviation.clamp(min=floor * float(deviation.max()))
