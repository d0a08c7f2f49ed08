"""Stationary Gaussian data: statistics with random spectra, data that follow statistics, and their spectra."""

import torch
from torch import Tensor

import multisagd as ms
from tests.helpers import dense


def half_spectrum(x: Tensor, grid: ms.Grid) -> Tensor:
    """Orthonormal transform of `(..., *grid.shape)`, `(..., *grid.half_shape)`."""
    return torch.fft.rfftn(x, dim=tuple(range(-grid.dimensions, 0)), norm="ortho")


def random_statistics(grid: ms.Grid, seed: int = 1, channels: int = 2, spread: float = 1.0) -> ms.DataStatistics:
    """Statistics with a random mean and log-normal power: a spread of 3 covers about five decades."""
    power = torch.exp(spread * dense.random(channels, *grid.half_shape, seed=seed))
    power = torch.stack([grid.even(each) for each in power])
    return ms.DataStatistics(dense.random(channels, *grid.shape, seed=seed + 1), power, grid, 10)


def draw_data(statistics: ms.DataStatistics, count: int, seed: int = 0) -> Tensor:
    """Gaussian data with this mean and power, `(count, channels, *grid)`."""
    grid = statistics.grid
    white = half_spectrum(dense.random(count, *statistics.mean.shape, seed=seed), grid)
    dims = tuple(range(-grid.dimensions, 0))
    return statistics.mean + torch.fft.irfftn(white * statistics.power.sqrt(), s=grid.shape, dim=dims, norm="ortho")
