"""Noise and data with given components of channels at every frequency, and their dense matrices."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

import multisagd as ms
from multisagd.channel_covariance import ChannelCovariance, ChannelPower, ChannelSpectrum
from multisagd.statistics import hermitian
from tests.helpers import dense

FORMS = ("each", "basis", "full")


@dataclass(frozen=True, eq=False)
class Given(ChannelSpectrum):
    """Noise with these components on one grid."""

    components: ChannelPower

    def channel_power(self, grid: ms.Grid) -> ChannelPower:
        return self.components


def random_basis(form: str, channels: int, grid: ms.Grid, seed: int = 0) -> Tensor | None:
    """Orthonormal vectors of channels: none, the same at all frequencies, or complex ones at each of them."""
    if form == "each":
        return None
    if form == "basis":
        return torch.linalg.qr(dense.random(channels, channels, seed=seed))[0]
    parts = (dense.random(channels, channels, *grid.half_shape, seed=seed + each) for each in (1, 2))
    root = torch.complex(*parts)
    return ChannelPower.of_matrix(hermitian(torch.einsum("ij...,kj...->ik...", root, root.conj()), grid)).basis


def random_power(channels: int, grid: ms.Grid, seed: int = 0) -> Tensor:
    """Positive powers of components over two decades, increasing with the component."""
    power = torch.exp(dense.random(channels, *grid.half_shape, seed=seed + 3))
    return torch.stack([grid.even(each) * 4**component for component, each in enumerate(power)])


def random_covariance(form: str, channels: int, grid: ms.Grid, seed: int = 0) -> ChannelCovariance:
    given = ChannelPower(random_power(channels, grid, seed), random_basis(form, channels, grid, seed))
    return ChannelCovariance(Given(given), grid).double()


def statistics_of(found: ChannelPower, grid: ms.Grid, mean: Tensor | None = None) -> ms.DataStatistics:
    """Statistics of data with these components."""
    cross = hermitian(found.matrix().to(torch.complex128), grid)
    power = cross.diagonal().real.movedim(-1, 0).contiguous()
    mean = torch.zeros(len(power), *grid.shape, dtype=torch.float64) if mean is None else mean
    return ms.DataStatistics(mean, power, grid, 1000, cross)


def dense_matrix(matrix: Tensor, grid: ms.Grid) -> Tensor:
    """Real covariance `(channels · n, …)` of matrices `(channels, channels, *half_shape)`, by explicit transforms."""
    channels, n = len(matrix), grid.numel
    full = torch.zeros(channels, channels, *grid.shape, dtype=torch.complex128)
    for k in np.ndindex(*grid.shape):
        stored = k[-1] < grid.half_shape[-1]
        opposite = tuple(-i % size for i, size in zip(k, grid.shape, strict=True))
        full[(..., *k)] = matrix[(..., *k)] if stored else matrix[(..., *opposite)].conj()
    F = torch.from_numpy(dense.dft(grid.shape))
    result = torch.einsum("ka,ijk,kb->iajb", F.conj(), full.flatten(2), F).reshape(channels * n, channels * n)
    assert float(result.imag.abs().max()) < 1e-10 * float(result.real.abs().max())
    return result.real


def draw(statistics: ms.DataStatistics, count: int, seed: int = 0) -> Tensor:
    """Gaussian data with this mean and cross power, by a dense root, `(count, channels, *grid)`."""
    root = torch.linalg.cholesky(dense_matrix(statistics.cross, statistics.grid))
    white = dense.random(count, len(root), seed=seed)
    return statistics.mean + (white @ root.T).reshape(count, *statistics.mean.shape)
