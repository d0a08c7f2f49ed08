"""Model measurements `y = H x0 + s n` with a linear operator H and white noise n.

Each operator provides its transpose, and solves `(H R Hᵀ + s²) z = y` for a covariance `R = F⁻¹ diag(P) F` that is
diagonal in frequency, as Gaussian posteriors and guidance require:

- `Filtered`: H is diagonal in frequency like R, so one division suffices;
- `Pooled`: means over blocks are a subsampled circulant blur. A subsampled circulant matrix is circulant on the coarse
  grid, with the subsampled first column, so one transform and one division suffice;
- `Masked`: there is no closed form, so conjugate gradients are used, with two transforms per iteration.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multisagd.covariance import SpectralCovariance, filter_grid, from_half_spectrum, to_half_spectrum
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.seeds import checked_seeds
from multisagd.spectrum import Flat, Spectrum, even_power


class Measurement:
    """Base class of linear operators on tensors `(batch, channels, *grid)`, the same in all channels by default.

    Measurements have the units of the data.
    """

    grid: Grid

    def apply(self, x: Tensor) -> Tensor:
        """Return `H x`, `(batch, channels, *measured)`, in the units of x."""
        raise NotImplementedError

    def adjoint(self, y: Tensor) -> Tensor:
        """Return `Hᵀ y`, `(batch, channels, *grid)`, in the units of y."""
        raise NotImplementedError

    def solve(self, y: Tensor, power: Tensor, variance: float) -> Tensor:
        """Return `(H R Hᵀ + variance)⁻¹ y`, shaped like y; R has `power` `(batch or 1, channels or 1, *half_shape)`."""
        raise NotImplementedError

    def restrict(self, y: Tensor) -> Tensor:
        """Return y, with zeros wherever nothing was measured, in the shape and units of y."""
        return y

    def observe(self, x0: Tensor, noise: float, seeds: Sequence[int]) -> Tensor:
        """Return `y = H x0 + noise · n`, shaped like `H x0`, with white noise of unit variance, one seed per item.

        Raises:
            ValueError: If the noise is negative, or there is not one seed per item.
        """
        if noise < 0:
            raise ValueError(f"the noise of a measurement must be at least 0, got {noise}")
        y = self.apply(x0)
        white = SpectralCovariance(Flat(), self.grid).to(y.device, torch.promote_types(y.dtype, torch.float32))
        drawn = white.sample(checked_seeds(seeds, len(x0)), channels=y.shape[1], grid_shape=y.shape[2:])
        return y + noise * self.restrict(drawn).to(y.dtype)


@dataclass(frozen=True, eq=False)
class Filtered(Measurement):
    """Measure through a filter such as a blur: `H = F⁻¹ diag(h) F`, with a transfer function h `(*half_shape)`.

    Raises:
        ValueError: If the transfer function does not have the shape of the half spectrum.
    """

    transfer: Tensor
    grid: Grid

    def __post_init__(self) -> None:
        if tuple(self.transfer.shape) != self.grid.half_shape:
            raise ValueError(
                f"expected a transfer function of shape {self.grid.half_shape}, got {tuple(self.transfer.shape)}"
            )

    @classmethod
    def gaussian(cls, length: float, grid: Grid, axes: tuple[str, ...] | None = None) -> Filtered:
        """Return a Gaussian blur of standard deviation `length`, in units of the axes (all axes by default)."""
        return cls(torch.exp(-2 * (torch.pi * length * grid.radius(axes)) ** 2), grid)

    @classmethod
    def of_spectrum(cls, spectrum: Spectrum, grid: Grid) -> Filtered:
        """Return a filter with the amplitude of a spectrum, scaled to 1 at its strongest frequency."""
        power = even_power(spectrum, grid)
        return cls((power / power.max()).sqrt(), grid)

    @classmethod
    def of_kernel(cls, kernel: Tensor, grid: Grid) -> Filtered:
        """Return the periodic convolution with a dimensionless kernel `(*sizes)`, centred at `size // 2` of each axis.

        Raises:
            ValueError: If the kernel is larger than the grid, or has a different number of axes.
        """
        sizes = tuple(kernel.shape)
        if len(sizes) != grid.dimensions or any(k > size for k, size in zip(sizes, grid.shape, strict=True)):
            raise ValueError(f"a kernel of shape {sizes} does not fit a grid of shape {grid.shape}")
        placed = torch.zeros(grid.shape, dtype=torch.float64, device="cpu")
        placed[tuple(slice(0, size) for size in sizes)] = kernel.to(placed)
        placed = placed.roll([-(size // 2) for size in sizes], tuple(range(grid.dimensions)))
        return cls(to_half_spectrum(placed, grid.dimensions), grid)

    def apply(self, x: Tensor) -> Tensor:
        """Return `H x`, `(batch, channels, *measured)`, in the units of x."""
        return self._filter(x, self.transfer)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return `Hᵀ y`: the conjugate filter, shaped like y."""
        return self._filter(y, self.transfer.conj())

    def solve(self, y: Tensor, power: Tensor, variance: float) -> Tensor:
        """Divide y by `|h|² P + variance` at each frequency; the result is shaped like y.

        It is zero where the divisor is zero.
        """
        total = self.transfer.abs().square().to(power) * power + variance
        return self._filter(y, _inverse(total))

    def _filter(self, x: Tensor, gain: Tensor) -> Tensor:
        x = as_data(x)
        halves = to_half_spectrum(x, self.grid.dimensions)
        dtype = halves.dtype if gain.is_complex() else halves.real.dtype
        return from_half_spectrum(halves * gain.to(halves.device, dtype), x.shape[2:]).to(x.dtype)


@dataclass(frozen=True, eq=False)
class Pooled(Measurement):
    """Average over blocks of `factors` samples per axis (1 for axes not named), as for super-resolution.

    Raises:
        ValueError: If an axis is unknown, or a factor does not divide its size.
    """

    factors: Mapping[str, int]
    grid: Grid

    def __post_init__(self) -> None:
        for name, factor in self.factors.items():
            if factor < 1 or self.grid.axis(name).size % factor:
                raise ValueError(
                    f"the factor {factor} does not divide the size {self.grid.axis(name).size} of the axis {name!r}"
                )

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of samples of a block along every axis."""
        return tuple(self.factors.get(name, 1) for name in self.grid.names)

    def apply(self, x: Tensor) -> Tensor:
        """Return the mean of every block, `(batch, channels, *coarse)`."""
        x = as_data(x)
        for axis, block in enumerate(self.blocks, start=2):
            x = x.unflatten(axis, (-1, block)).mean(axis + 1)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        """Spread every value over its block, divided by the size of the block: `(batch, channels, *grid)`."""
        for axis, block in enumerate(self.blocks, start=2):
            y = y.repeat_interleave(block, axis) / block
        return y

    def solve(self, y: Tensor, power: Tensor, variance: float) -> Tensor:
        """Divide y by the power on the coarse grid, aliases included, plus `variance`; the result is shaped like y."""
        block = torch.zeros(self.grid.shape, dtype=power.dtype, device=power.device)
        block[tuple(slice(0, size) for size in self.blocks)] = 1 / math.prod(self.blocks)
        window = to_half_spectrum(block, self.grid.dimensions).abs().square()
        column = from_half_spectrum((window * power).to(torch.complex128), self.grid.shape)
        firsts: tuple[Any, ...] = (..., *(slice(None, None, size) for size in self.blocks))
        coarse = to_half_spectrum(column[firsts], self.grid.dimensions).real.clamp(min=0)
        return filter_grid(y, _inverse(coarse + variance), self.grid.dimensions).to(y.dtype)


@dataclass(frozen=True, eq=False)
class Masked(Measurement):
    """Measure a subset of samples (inpainting): `mask` is true where x0 was measured, and broadcasts against x0.

    Measurements have the shape of the data, and are zero where nothing was measured.
    """

    mask: Tensor
    grid: Grid
    tolerance: float = 1e-6
    iterations: int = 500

    def apply(self, x: Tensor) -> Tensor:
        """Return x with zeros where nothing was measured."""
        x = as_data(x)
        return x * self.mask.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return the same as `apply`: a projection is its own transpose."""
        return self.apply(y)

    def restrict(self, y: Tensor) -> Tensor:
        """Return y with zeros where nothing was measured."""
        return self.apply(y)

    def solve(self, y: Tensor, power: Tensor, variance: float) -> Tensor:
        """Solve for z, shaped like y, by conjugate gradients in float64; see `conjugate_gradients`."""
        mask, gain = self.mask.to(y.device, torch.float64), power.double()

        def matrix(z: Tensor) -> Tensor:
            return mask * filter_grid(z, gain, self.grid.dimensions) + variance * z

        return conjugate_gradients(matrix, mask * y.double(), self.tolerance, self.iterations).to(y.dtype)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], y: Tensor, tolerance: float, iterations: int) -> Tensor:
    """Solve `matrix(z) = y` for z, shaped like y `(batch, ...)`; the matrix is symmetric and positive.

    The method is from Hestenes and Stiefel, Journal of Research of the National Bureau of Standards 49, 1952. It stops
    when the residual of every item is below `tolerance` times the norm of the item's y.

    Warns:
        RuntimeWarning: If it has not converged after `iterations`; z is then the last iterate.
    """

    def dot(left: Tensor, right: Tensor) -> Tensor:
        return (left * right).flatten(1).sum(1).reshape(-1, *(1,) * (y.dim() - 1))

    z, residual = torch.zeros_like(y), y
    direction, size = residual, dot(residual, residual)
    goal = tolerance**2 * size
    for _ in range(iterations):
        if bool((size <= goal).all()):
            break
        moved = matrix(direction)
        # A converged item no longer changes.
        rate = torch.where(size > goal, size / dot(direction, moved).clamp(min=torch.finfo(y.dtype).tiny), 0.0)
        z, residual = z + rate * direction, residual - rate * moved
        before, size = size, dot(residual, residual)
        direction = residual + size / before.clamp(min=torch.finfo(y.dtype).tiny) * direction
    if not bool((size <= goal).all()):
        worst = float((size / y.square().flatten(1).sum(1).reshape(size.shape)).nan_to_num(math.inf).max()) ** 0.5
        warnings.warn(
            f"conjugate gradients have not converged in {iterations} iterations: the largest residual is {worst:.1e} "
            f"times the norm of y, but {tolerance:.1e} was requested. Increase the noise, iterations or tolerance",
            RuntimeWarning,
            stacklevel=3,
        )
    return z


def _inverse(total: Tensor) -> Tensor:
    return torch.where(total > 0, 1 / torch.where(total > 0, total, 1.0), 0.0)
