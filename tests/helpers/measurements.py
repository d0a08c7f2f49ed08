"""Measurements of every kind next to their matrices, written out entry by entry, and a power spectrum of data."""

import itertools

import numpy as np
import torch

import multisagd as ms
from tests.helpers import dense


def power(grid: ms.Grid) -> np.ndarray:
    return 0.02 + 1 / (1 + 40 * dense.radius(grid) ** 2)


def places(grid: ms.Grid) -> list[tuple[int, ...]]:
    return list(itertools.product(*(range(size) for size in grid.shape)))


def blur(grid: ms.Grid, kernel: torch.Tensor) -> np.ndarray:
    """`(H x)(p) = Σ_q k(q) x(p - q + middle)`, periodic."""
    H, index = np.zeros((grid.numel, grid.numel)), {place: i for i, place in enumerate(places(grid))}
    for place in places(grid):
        for offset in itertools.product(*(range(size) for size in kernel.shape)):
            shifted = (p - o + size // 2 for p, o, size in zip(place, offset, kernel.shape, strict=True))
            source = tuple(s % size for s, size in zip(shifted, grid.shape, strict=True))
            H[index[place], index[source]] += float(kernel[offset])
    return H


def pool(grid: ms.Grid, blocks: tuple[int, ...]) -> np.ndarray:
    coarse = list(itertools.product(*(range(size // b) for size, b in zip(grid.shape, blocks, strict=True))))
    H = np.zeros((len(coarse), grid.numel))
    for column, place in enumerate(places(grid)):
        row = coarse.index(tuple(p // b for p, b in zip(place, blocks, strict=True)))
        H[row, column] = 1 / np.prod(blocks)
    return H


def factors(grid: ms.Grid) -> dict[str, int]:
    """The least divisor above one of every axis but the first of several."""
    return {
        axis.name: next(d for d in range(2, axis.size + 1) if axis.size % d == 0)
        for axis in grid.axes[1 if grid.dimensions > 1 else 0 :]
    }


def cases(grid: ms.Grid) -> dict[str, tuple[ms.Measurement, np.ndarray]]:
    kernel = dense.random(*(min(3, size) for size in grid.shape))
    mask = dense.random(1, *grid.shape, seed=3) > 0
    pooled = ms.Pooled(factors(grid), grid)
    smooth = np.exp(-2 * np.pi**2 * 1.3**2 * dense.radius(grid) ** 2)
    return {
        "kernel": (ms.Filtered.of_kernel(kernel, grid), blur(grid, kernel)),
        "gaussian": (ms.Filtered.gaussian(1.3, grid), dense.operator(smooth)),
        "spectrum": (ms.Filtered.of_spectrum(4 * ms.Gaussian(1.3), grid), np.zeros(0)),
        "pooled": (pooled, pool(grid, pooled.blocks)),
        "masked": (ms.Masked(mask, grid), np.diag(mask.double().flatten().numpy())),
    }
