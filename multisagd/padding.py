"""Draw noise on a longer grid and crop it, so that the two ends of an axis are not neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from multisagd.covariance import Gain, SpectralCovariance
from multisagd.grid import Grid
from multisagd.spectrum import Spectrum


class PaddedCovariance(SpectralCovariance):
    """The covariance of noise drawn on a grid that is longer by `padding` samples per axis, and cropped.

    The noise is stationary with unit mean power, and the two ends of a padded axis are correlated like samples
    `padding + 1` apart, not like neighbours. But cropped noise is not diagonal in frequency, so `color`, `whiten`,
    `apply`, `solve`, `project`, `logdet` and `mahalanobis` (and with them scores, the Mahalanobis loss and
    `GaussianDenoiser`) raise ValueError, and `power` is the expected periodogram of the cropped noise. Drawing and
    adding noise, training a network and all samplers do not need these operations and are exact.

    Raises:
        ValueError: If an axis is unknown or periodic, or padding is not a non-negative integer.
    """

    def __init__(self, spectrum: Spectrum, grid: Grid, padding: Mapping[str, int]) -> None:
        for name, samples in padding.items():
            periodic = grid.axis(name).periodic
            if not isinstance(samples, int) or samples < 0:
                raise ValueError(f"padding of {name} must be a non-negative integer, got {samples!r}")
            if periodic and samples:
                raise ValueError(
                    f"the two ends of {name} are neighbours, because this axis is periodic, and padding would separate "
                    f"them: remove the padding of {name}"
                )
        self.padding = {name: int(padding.get(name, 0)) for name in grid.names}
        super().__init__(spectrum, grid)
        self.drawn = SpectralCovariance(spectrum, self._extend(grid))

    def sample(
        self, seeds: Sequence[int], channels: int | Sequence[int] = 1, grid_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Draw noise on the longer grid and crop it to shape `(len(seeds), channels, *grid)`; see the base class."""
        shape = self.grid.shape if grid_shape is None else tuple(grid_shape)
        noise = self.drawn.sample(seeds, channels, self._extend(self.grid.resize(shape)).shape)
        for dim, size in enumerate(shape, start=-len(shape)):
            noise = noise.narrow(dim, 0, size)
        return noise.contiguous()

    @property
    def diagonal(self) -> bool:
        """Whether Σ is diagonal in frequency: it is not, because noise is cropped."""
        return False

    def require_diagonal(self, purpose: str) -> None:
        """Raise an error, because cropped noise is not diagonal in frequency.

        Raises:
            ValueError: Always.
        """
        raise ValueError(f"{purpose} needs noise that is diagonal in frequency: remove the padding")

    def logdet(self, shape: Sequence[int] | None = None, channels: int = 1) -> Tensor:
        """Raise an error: this scalar, in nats, has no closed form.

        Raises:
            ValueError: Always.
        """
        raise ValueError(self._refusal("logdet"))

    def _extend(self, grid: Grid) -> Grid:
        return grid.resize([axis.size + self.padding[axis.name] for axis in grid.axes])

    def _normalised_power(self, grid: Grid) -> Tensor:
        """Return the crop's expected periodogram: the transform of its autocovariance times the count of each lag."""
        extended = self._extend(grid)
        dims = tuple(range(-grid.dimensions, 0))
        lags = torch.fft.irfftn(super()._normalised_power(extended), s=extended.shape, dim=dims)
        for dim, (axis, longer) in enumerate(zip(grid.axes, extended.axes, strict=True)):
            positive = torch.arange(axis.size, device="cpu")
            fraction = (positive / axis.size).to(lags.dtype).reshape(-1, *(1,) * (grid.dimensions - 1 - dim))
            # Lag m fits N - m times; the other m pairs of the periodic grid have lag m - N.
            negative = (positive - axis.size) % longer.size
            lags = lags.index_select(dim, positive) * (1 - fraction) + lags.index_select(dim, negative) * fraction
        return torch.fft.rfftn(lags, dim=dims).real.clamp(min=0)

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        raise ValueError(self._refusal(gain))

    def _refusal(self, operation: str) -> str:
        padded = {name: samples for name, samples in self.padding.items() if samples}
        return (
            f"noise drawn on a padded grid ({padded}) is not diagonal in frequency, so it has no exact {operation}: "
            "remove the padding for scores, whitening, likelihoods and the Mahalanobis loss"
        )
