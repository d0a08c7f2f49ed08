"""Implement the covariance of the noise: a spectrum on a grid, diagonal in frequency.

`Σ = F⁻¹ diag(W) F`, where `F` is the unitary discrete Fourier transform over the grid and `W = w²` is the power, scaled
by one number so that its mean over the full spectrum is one. `Σ^{1/2} ξ = F⁻¹(w · Fξ)` turns white noise into coloured
noise (arXiv 2510.09660). Such a Σ is circulant: the first and last samples of every axis are neighbours, as in the data
along a periodic axis. Along other axes, `multisagd.padding` can separate them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multisagd.condition import AnyCondition
from multisagd.grid import Axis, Grid
from multisagd.inputs import as_data
from multisagd.recent import Recent
from multisagd.seeds import checked_seeds, generator_seed
from multisagd.spectrum import SUPPORT_THRESHOLD, Spectrum, even_power
from multisagd.uncompiled import uncompiled

Gain = Literal["color", "whiten", "apply", "solve", "project"]
EXPONENTS: dict[Gain, float] = {"color": 0.5, "whiten": -0.5, "apply": 1.0, "solve": -1.0, "project": 0.0}


class Covariance(nn.Module):
    """The covariance `Σ = R Rᵀ` of noise on `grid`, as processes, losses and likelihoods use it.

    Tensors are `(batch, channels, *grid)`. R maps white noise to noise of this covariance (`color`). It need not be
    symmetric, so `whiten`, its inverse, differs from `whiten_transposed`, the inverse of its transpose. Subclasses
    define `_filter`, `power` and `logdet`. Computations run in float32 or wider, outside autocast; results have the
    dtype of the input (float32 for integers).
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("_like", torch.empty(0), persistent=False)  # follows .to(), .double() and .cuda()
        self._like: Tensor

    @property
    def diagonal(self) -> bool:
        """Whether Σ is diagonal in frequency, with the same `power` for all items."""
        return True

    @property
    def item_wise(self) -> bool:
        """Whether Σ differs from item to item, because it follows their condition."""
        return False

    def require_diagonal(self, purpose: str) -> None:
        """Check that Σ is diagonal in frequency, with the same power for all items; `purpose` names what needs it.

        Raises:
            ValueError: If it is not; the message gives the remedy.
        """

    def bound(self, condition: AnyCondition, shape: Sequence[int]) -> Covariance:
        """Return the covariance of a batch of this shape, `(batch, channels, *grid)`, under its condition.

        It is this covariance itself, unless Σ follows the condition of each item (`ConditionedCovariance`).
        """
        return self

    def power(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the power at each frequency of a grid shape (by default `grid.shape`), float64."""
        raise NotImplementedError

    def support(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return which bins of the half spectrum carry noise, boolean, shaped like `power`."""
        return self.power(shape) > 0

    @uncompiled  # a graph cannot hold generators
    def sample(
        self, seeds: Sequence[int], channels: int | Sequence[int] = 1, grid_shape: Sequence[int] | None = None
    ) -> Tensor:
        """Draw noise `R ξ`, shape `(len(seeds), channels, *grid)`.

        Each item depends on its own seed only. If the spectrum is flat, the item is identical, bit for bit, to
        `torch.randn` with the item's shape and a generator of that seed, on the same type of device. Seeds go up to
        2^64 - 1; seeds of 2^32 and above are hashed to the 32 bits that generators keep.

        Raises:
            ValueError: If there are no seeds, or a seed is not an integer in that range.
        """
        seeds = [generator_seed(seed) for seed in checked_seeds(seeds)]
        if not seeds:
            raise ValueError("`sample` requires at least one seed: one for each item of the batch")
        leading = (channels,) if isinstance(channels, int) else tuple(channels)
        shape = self.grid.shape if grid_shape is None else tuple(grid_shape)
        device, dtype = self._like.device, torch.promote_types(self._like.dtype, torch.float32)
        noise = torch.empty((len(seeds), *leading, *shape), device=device, dtype=dtype)
        generator = torch.Generator(device)
        for item, seed in zip(noise.unbind(), seeds, strict=True):
            item.normal_(generator=generator.manual_seed(seed))
        return self.color(noise)

    def color(self, x: Tensor) -> Tensor:
        """Return `R x` for x `(..., *grid)`, shaped like x: noise in the units of the data if x is white."""
        return self._filter(x, "color")

    def whiten(self, x: Tensor) -> Tensor:
        """Return `R⁻¹ x` for x `(..., *grid)`, dimensionless and shaped like x.

        The result is zero at frequencies without noise power.
        """
        return self._filter(x, "whiten")

    def whiten_transposed(self, x: Tensor) -> Tensor:
        """Return `R⁻ᵀ x` for x `(..., *grid)`, dimensionless and shaped like x; `whiten` if R is symmetric."""
        return self._filter(x, "whiten")

    def apply(self, x: Any) -> Any:
        """Return `Σ x` for x `(..., *grid)`, shaped like x.

        If x is a function instead of a tensor, `nn.Module.apply` is called.
        """
        return self._filter(x, "apply") if isinstance(x, Tensor) else super().apply(x)

    def solve(self, x: Tensor) -> Tensor:
        """Return `Σ⁺ x` (pseudo-inverse) for x `(..., *grid)`, shaped like x, in inverse units of x."""
        return self._filter(x, "solve")

    def project(self, x: Tensor) -> Tensor:
        """Project x `(..., *grid)` onto the frequencies that carry noise (the range of Σ), in the units of x."""
        return self._filter(x, "project")

    def logdet(self, shape: Sequence[int] | None = None, channels: int = 1) -> Tensor:
        """Return the log-determinant of Σ (over its range if singular) in nats, for all `channels` together.

        It is a scalar, or `(batch,)` if the items of a batch differ.
        """
        raise NotImplementedError

    def mahalanobis(self, x: Tensor) -> Tensor:
        """Return the squared Mahalanobis norm `xᵀ Σ⁺ x` of items `(batch, ..., *grid)`, dimensionless `(batch,)`."""
        return self.whiten(x.to(torch.promote_types(x.dtype, torch.float32))).square().flatten(1).sum(1)

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        raise NotImplementedError


class SpectralCovariance(Covariance):
    """The covariance of noise with power `spectrum` on `grid`, for tensors `(..., *grid)`, equal in all channels.

    Its root R = Σ^{1/2} is symmetric. Tensors with other grid sizes are accepted: the spectrum is evaluated for their
    size and cached for the last few sizes.

    Raises:
        ValueError: If the spectrum has no power on the grid, or power that is negative or not finite.
    """

    def __init__(self, spectrum: Spectrum, grid: Grid) -> None:
        super().__init__(grid)
        self.spectrum = spectrum
        self._powers: Recent[Tensor] = Recent()
        self._gains: Recent[Tensor | None] = Recent()
        self.power()  # refuses an invalid spectrum here, not at the first draw

    def power(self, shape: Sequence[int] | None = None) -> Tensor:
        """Return the normalised power W on the half spectrum of a grid shape (by default `grid.shape`), in float64."""
        key = self.grid.shape if shape is None else tuple(int(size) for size in shape)
        return self._powers.get(key, lambda: self._normalised_power(self.grid.resize(key)))

    def _normalised_power(self, grid: Grid) -> Tensor:
        power = even_power(self.spectrum, grid)
        if not bool(torch.isfinite(power).all() and (power >= 0).all()):
            raise ValueError(f"{self.spectrum} has negative or non-finite power on a grid of shape {grid.shape}")
        if not bool((power > 0).any()):
            raise ValueError(f"{self.spectrum} has no power at any frequency of a grid of shape {grid.shape}")
        if bool((power == power.flatten()[0]).all()):
            return torch.ones_like(power)
        power = torch.where(power > SUPPORT_THRESHOLD * power.max(), power, 0.0)
        return power / grid.mean(power)

    def logdet(self, shape: Sequence[int] | None = None, channels: int = 1) -> Tensor:
        """Return the log-determinant of Σ (over its range if singular) in nats, for all channels, a float64 scalar."""
        power = self.power(shape)
        grid = self.grid if shape is None else self.grid.resize(shape)
        return channels * log_determinant(power, grid)

    def _filter(self, x: Tensor, gain: Gain) -> Tensor:
        x = checked_on(self.grid, x)
        wide = torch.promote_types(x.dtype, torch.float32)
        factor = self._gain(gain, tuple(x.shape[-self.grid.dimensions :]), x.device, wide)
        return x if factor is None else filter_grid(x, factor, self.grid.dimensions).to(x.dtype)

    def _gain(self, gain: Gain, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """Return the factor per frequency, or None for white noise, for which all five operations are the identity."""

        def make() -> Tensor | None:
            power = self.power(shape)
            return None if bool((power == 1).all()) else raised(power, gain).to(device, dtype)

        return self._gains.get((gain, shape, device, dtype), make)

    def extra_repr(self) -> str:
        """Return the spectrum and the grid, for `print`."""
        return f"{self.spectrum}, grid={'×'.join(map(_size, self.grid.axes))}"


def checked_on(grid: Grid, x: Tensor) -> Tensor:
    """Return data x `(..., *grid)`, of any sizes, as floating-point numbers in the same units.

    Raises:
        ValueError: If x has fewer dimensions than the grid.
    """
    if x.dim() < grid.dimensions:
        raise ValueError(f"expected shape (..., {', '.join(grid.names)}), got {tuple(x.shape)}")
    return as_data(x)


def raised(power: Tensor, gain: Gain) -> Tensor:
    """Return the factor of an operation at each frequency, shaped like the power W; it is 0 where W is 0."""
    root = power.clamp(min=torch.finfo(power.dtype).tiny) ** EXPONENTS[gain]
    return torch.where(power > 0, root, 0.0)


def log_determinant(power: Tensor, grid: Grid) -> Tensor:
    """Return the log-determinant of `F⁻¹ diag(W) F` over its range, in nats, for W `(..., *half_shape)`: `(...)`."""
    logs = torch.where(power > 0, power.clamp(min=torch.finfo(power.dtype).tiny).log(), 0.0)
    return grid.mean(logs) * grid.numel


def _size(axis: Axis) -> str:
    return f"{axis.name} {axis.size}{' (periodic)' if axis.periodic else ''}"


@uncompiled
def to_half_spectrum(x: Tensor, dimensions: int) -> Tensor:
    """Return `rfftn` over the last `dimensions` axes of a real tensor: complex amplitudes `(..., *half_shape)`.

    All filtering in training and sampling uses this function and `from_half_spectrum`. Both run outside compiled graphs
    and autocast: half-precision transforms do not exist on the CPU, and on CUDA only for powers of two.
    """
    with torch.autocast(x.device.type, enabled=False):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if wide.numel() == 0:  # an empty batch, which the FFT libraries refuse
            wide = wide.reshape(*x.shape[:-1], x.shape[-1] // 2 + 1)
            return torch.complex(wide, wide)
        return torch.fft.rfftn(wide, dim=tuple(range(-dimensions, 0)))


@uncompiled
def from_half_spectrum(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    """Invert `to_half_spectrum` on a grid of this shape: amplitudes `(..., *half_shape)` to real `(..., *shape)`."""
    dims = tuple(range(-len(shape), 0))
    with torch.autocast(spectrum.device.type, enabled=False):
        if spectrum.numel() == 0:
            return spectrum.real.reshape(*spectrum.shape[: -len(shape)], *shape)
        if spectrum.device.type == "cpu" and len(dims) > 1:
            # In two steps: the CPU library's real inverse over several axes takes 1.5 times as long.
            spectrum, dims = torch.fft.ifftn(spectrum, dim=dims[:-1]), dims[-1:]
        return torch.fft.irfftn(spectrum, s=tuple(shape[-len(dims) :]), dim=dims)


def filter_grid(x: Tensor, gain: Tensor, dimensions: int) -> Tensor:
    """Multiply the amplitudes of a real tensor `(..., *grid)` by `gain`, which broadcasts over the half spectrum."""
    return from_half_spectrum(to_half_spectrum(x, dimensions).mul_(gain), x.shape[-dimensions:])
