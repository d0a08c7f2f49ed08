"""The mathematics of the core written out with dense matrices and full spectra, for comparison.

Nothing here uses `rfftn`, half spectra or the core's own formulas: frequencies are NumPy's, the transform is a
Kronecker product of explicit DFT matrices, and spectra are formulas on the full grid of frequencies.
"""

import itertools
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch

import multisagd as ms

GRIDS = {
    "1-D even": ms.Grid.of(x=16),
    "1-D odd": ms.Grid.of(x=15),
    "1-D pair": ms.Grid.of(x=2),
    "2-D even": ms.Grid.of(y=6, x=8),
    "2-D odd": ms.Grid.of(y=7, x=5),
    "2-D odd even": ms.Grid.of(y=5, x=6),
    "2-D even odd": ms.Grid.of(y=6, x=7),
    "2-D one row": ms.Grid.of(y=1, x=9),
    "2-D one column": ms.Grid.of(y=8, x=1),
    "3-D even": ms.Grid.of(t=4, y=2, x=6),
    "3-D odd": ms.Grid.of(t=3, y=5, x=3),
    "3-D mixed": ms.Grid.of(t=3, y=4, x=5),
}

FullSpectrum = Callable[[ms.Grid], np.ndarray]


def dft(shape: tuple[int, ...]) -> np.ndarray:
    """Unitary DFT matrix of flattened arrays of this shape, (n, n) complex."""
    factors = []
    for size in shape:
        index = np.arange(size)
        factors.append(np.exp(-2j * np.pi * np.outer(index, index) / size) / np.sqrt(size))
    return reduce(np.kron, factors)


def operator(values: np.ndarray) -> np.ndarray:
    """Matrix `F⁻¹ diag(values) F` of real even values on the full spectrum; it must come out real."""
    F = dft(values.shape)
    matrix = F.conj().T @ (values.reshape(-1, 1) * F)
    assert np.abs(matrix.imag).max() < 1e-9 * max(1.0, np.abs(values).max())
    return matrix.real


def frequencies(grid: ms.Grid) -> list[np.ndarray]:
    """Signed frequencies of each axis over the full spectrum, each of shape `grid.shape`."""
    return list(np.meshgrid(*(np.fft.fftfreq(axis.size, axis.spacing) for axis in grid.axes), indexing="ij"))


def radius(grid: ms.Grid) -> np.ndarray:
    """Distance from zero frequency over the full spectrum."""
    return np.sqrt(sum(f**2 for f in frequencies(grid)))


def half(grid: ms.Grid, values: np.ndarray) -> np.ndarray:
    """Part of the full spectrum that a real transform stores."""
    return values[..., : grid.shape[-1] // 2 + 1]


def power_law(grid: ms.Grid) -> np.ndarray:
    return np.maximum(radius(grid), 1 / 256) ** (2 * -0.4)


def ring(grid: ms.Grid, low: float, high: float) -> np.ndarray:
    return ((radius(grid) >= low) & (radius(grid) <= high)).astype(float)


def separable(grid: ms.Grid) -> np.ndarray:
    first, last = frequencies(grid)[0], frequencies(grid)[-1]
    return (1 - 0.36) / np.abs(1 - 0.6 * np.exp(-2j * np.pi * first)) ** 2 * np.exp(-2 * 1.5 * last**2)


class Oriented(ms.Spectrum):
    """Noise that drifts: a function of a signed combination of two frequencies, as a user may write it."""

    def power(self, grid: ms.Grid) -> torch.Tensor:
        first, last = grid.frequencies(grid.names[0]), grid.frequencies(grid.names[-1])
        return torch.exp(-3.0 * (first + 0.5 * last) ** 2).expand(grid.half_shape)


def oriented(grid: ms.Grid) -> np.ndarray:
    """Power of a real field: at Nyquist, which is +1/2 and -1/2 at once, the mean over both signs."""
    signs = [(1, -1) if size % 2 == 0 else (1,) for size in grid.shape]
    values = []
    for chosen in itertools.product(*signs):
        turned = [
            np.where(np.arange(n) == n // 2, sign, 1).reshape([-1 if j == i else 1 for j in range(grid.dimensions)])
            for i, (n, sign) in enumerate(zip(grid.shape, chosen, strict=True))
        ]
        f = [each * turn for each, turn in zip(frequencies(grid), turned, strict=True)]
        values.append(np.exp(-3.0 * (f[0] + 0.5 * f[-1]) ** 2))
    return np.mean(values, axis=0)


SPECTRA: dict[str, tuple[Callable[[ms.Grid], ms.Spectrum], FullSpectrum]] = {
    "white": (lambda grid: ms.Flat(3.0), lambda grid: np.ones(grid.shape)),
    "power law": (lambda grid: ms.PowerLaw(-0.4), power_law),
    "band": (lambda grid: ms.Band(0.1, 0.45), lambda grid: ring(grid, 0.1, 0.45)),
    "band left out": (
        lambda grid: ms.TwoBand((0.0, 0.2 - 1e-9), (0.3 + 1e-9, 1.0), unit="cycles"),
        lambda grid: 1 - ring(grid, 0.2, 0.3),
    ),
    "separable": (
        lambda grid: ms.Autoregressive(0.6, axis=grid.names[0]) * ms.Exponential(1.5).on(grid.names[-1]),
        separable,
    ),
    "oriented": (lambda grid: Oriented(), oriented),
    "offset": (
        lambda grid: 0.5 * ms.Flat() + ms.Offset(0.3),
        lambda grid: 0.5 + 0.3**2 * grid.numel * (radius(grid) == 0),
    ),
}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def flat(x: torch.Tensor, grid: ms.Grid) -> np.ndarray:
    """Tensors `(..., *grid)` as vectors `(..., n)`."""
    return x.detach().double().reshape(*x.shape[: x.dim() - grid.dimensions], grid.numel).numpy()


def stationary(power: np.ndarray, grid: ms.Grid, mean: np.ndarray | None = None) -> ms.DataStatistics:
    """Statistics of one channel with this power on the full spectrum."""
    mean = np.zeros(grid.shape) if mean is None else mean
    return ms.DataStatistics(tensor(mean)[None], tensor(half(grid, power))[None], grid, count=1000)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
