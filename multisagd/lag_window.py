"""Estimate the power of gapped data that are too large for EM (see `masked_power`), from pairs of valid samples.

The autocovariance at a lag is the mean product of all pairs of valid samples at that lag: the autocovariance of the
data divided by the autocovariance of their masks. It is unbiased, but noisy at lags with few pairs. Hann's lag window
damps large lags, which limits the resolution to two frequency bins (Blackman and Tukey, The Measurement of Power
Spectra, 1958), and a floor keeps the power positive. Zero frequency, which differs most from its neighbours, is
computed without the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

FLOOR = 0.01
"""Smallest power as a fraction of the periodogram, which is too large at weak frequencies because of leakage."""


class PairAverages:
    """Accumulate sums over items, and compute the power of each block, `(blocks, *shape)`.

    `names` are the names of the axes, for error messages.
    """

    def __init__(self, shape: Sequence[int], names: Sequence[str], blocks: int) -> None:
        self.shape, self.names = tuple(shape), tuple(names)
        self._energy = torch.zeros(blocks, *self.shape, dtype=torch.float64, device="cpu")
        self._periodogram = torch.zeros_like(self._energy)
        self._pairs = torch.zeros(self.shape, dtype=torch.float64, device="cpu")
        self._items = 0

    def add(self, x: Tensor, mask: Tensor) -> None:
        """Add items `(items, blocks, positions)` in any units, zero outside a shared mask `(positions,)`."""
        dims = tuple(range(-len(self.shape), 0))
        energy = torch.fft.fftn(x.view(*x.shape[:2], *self.shape), dim=dims).abs().square().sum(0)
        self._energy += energy
        self._periodogram += energy / float(mask.sum())
        self._pairs += len(x) * pair_counts(mask.view(1, *self.shape))
        self._items += len(x)

    def power(self) -> Tensor:
        """Return the power `(blocks, *shape)`.

        Raises:
            ValueError: If at some lag, named in the message, no item has a pair of valid samples.
        """
        if self._items == 0:
            return self._periodogram
        dims = tuple(range(-len(self.shape), 0))
        if bool((self._pairs == 0).any()):
            lag = (self._pairs == 0).nonzero()[0].tolist()
            axes = zip(lag, self.shape, self.names, strict=True)
            apart = ", ".join(f"{min(samples, size - samples):,} along {name}" for samples, size, name in axes)
            raise ValueError(
                f"no item has two valid samples that are {apart} apart, so the power spectrum cannot be measured: "
                "choose a smaller grid (shorter items), or remove items with few valid samples"
            )
        covariance = torch.fft.ifftn(self._energy, dim=dims) / self._pairs
        # Zero frequency, a constant in the covariance, would leak through the window: subtract it, and add it
        # afterwards.
        level = covariance.mean(dims, keepdim=True)
        power = torch.fft.fftn((covariance - level) * _window(self.shape), dim=dims).real
        power.flatten(1)[:, 0] = level.flatten().real * power[0].numel()
        return power.maximum(FLOOR * self._periodogram / self._items)


def pair_counts(masks: Tensor) -> Tensor:
    """Count the pairs of valid samples that masks `(masks, *shape)` have at each periodic lag, `(*shape)`."""
    dims = tuple(range(1, masks.dim()))
    energy = torch.fft.fftn(masks.double(), dim=dims).abs().square().sum(0)
    return torch.fft.ifftn(energy).real.round()


def _window(shape: Sequence[int]) -> Tensor:
    """Return Hann's window over the lags of every axis, `(*shape)`, zero at half the grid."""
    window = torch.ones((), dtype=torch.float64, device="cpu")
    for axis, size in enumerate(shape):
        lag = torch.arange(size, dtype=torch.float64, device="cpu")
        along = (math.pi * lag / size).cos().square()
        window = window * along.view(-1, *(1,) * (len(shape) - 1 - axis))
    return window
