"""Define the forward process, given by a schedule and a covariance, and conversions between its quantities.

`x_t = a_t x0 + b_t ε` with `ε ~ N(0, Σ)`. By default `a_t = α_t` and `b_t = σ_t` are scalars, and only drawing the
noise needs a Fourier transform. If there is a `modulation`, the coefficients are functions of frequency, relative to
the schedule: `a_t(k) = α_t·m(k)`, `b_t(k) = σ_t·s(k)`; examples are blurring, time-varying colour and noise floors.

Sources: arXiv 2510.09660 (forward process, posterior, score and Tweedie's formula under a covariance that is diagonal
in frequency); 2209.05557 and 2402.04930 for coefficients per frequency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from multisagd.condition import AnyCondition
from multisagd.covariance import Covariance, from_half_spectrum, to_half_spectrum
from multisagd.grid import Grid
from multisagd.inputs import as_times
from multisagd.schedule import Schedule
from multisagd.seeds import checked_seeds

Quantity = Literal["x0", "noise", "v", "flow", "score"]

Modulation = Callable[[Tensor, Grid], tuple[Tensor, Tensor]]
"""`(t, grid) -> (m, s)`: factors of signal and noise per frequency, each `(batch, *grid.half_shape)`, s positive."""


@dataclass(frozen=True)
class Coefficients:
    """The factors of signal and noise at given times, shaped to multiply the result of `Process.to_basis`."""

    a: Tensor
    b: Tensor


class Process(nn.Module):
    """The forward process of tensors `(batch, channels, *grid)`, from the data at time 0 to the noise at time 1.

    Times t are `(batch,)` in [0, 1], or one time for all items, which may be a number; see `multisagd.inputs.as_times`.

    Raises:
        ValueError: If there is a modulation, but the noise follows the condition of each item.
    """

    def __init__(self, schedule: Schedule, covariance: Covariance, modulation: Modulation | None = None) -> None:
        super().__init__()
        if modulation is not None and covariance.item_wise:
            covariance.require_diagonal("a process with coefficients per frequency")
        self.schedule = schedule
        self.covariance = covariance
        self.modulation = modulation

    @property
    def grid(self) -> Grid:
        """The grid of the covariance."""
        return self.covariance.grid

    def bound(self, condition: AnyCondition, shape: Sequence[int]) -> Process:
        """Return the process of a batch of this shape, `(batch, channels, *grid)`, under its condition.

        It is this process itself, unless its covariance follows the condition of each item (`ConditionedCovariance`).

        Raises:
            ValueError: If the covariance follows the condition, but cannot be computed from this one.
        """
        covariance = self.covariance.bound(condition, shape)
        return self if covariance is self.covariance else Process(self.schedule, covariance)

    def coefficients(self, t: Tensor | float, like: Tensor) -> Coefficients:
        """Return the coefficients at times t for tensors shaped like `like`, in at least float32, computed in float64.

        Their shape is `(batch or 1, 1, ..., 1)`, or `(batch or 1, 1, *half_shape)` if there is a modulation.

        Raises:
            ValueError: If the number of times is neither 1 nor the batch size, or a time is outside [0, 1].
        """
        t = as_times(t)
        if t.numel() not in (1, like.shape[0]):
            raise ValueError(
                f"expected 1 or {like.shape[0]} time values for a batch of {like.shape[0]}, got {t.numel()}"
            )
        device, dtype = like.device, torch.promote_types(like.dtype, torch.float32)
        t = t.to(device, torch.float64).reshape(-1)
        alpha, sigma = (value.reshape(-1, *(1,) * (like.dim() - 1)) for value in self.schedule.alpha_sigma(t))
        if self.modulation is not None:
            grid = self.grid.resize(like.shape[-self.grid.dimensions :])
            signal, noise = (factor.to(device, torch.float64)[:, None] for factor in self.modulation(t, grid))
            alpha, sigma = alpha * signal, sigma * noise
        return Coefficients(alpha.to(dtype), sigma.to(dtype))

    def to_basis(self, x: Tensor) -> Tensor:
        """Return x `(batch, channels, *grid)` in the basis where coefficients act by multiplication, in the units of x.

        The result is x itself, or its half spectrum if coefficients depend on frequency.
        """
        return x if self.modulation is None else to_half_spectrum(x, self.grid.dimensions)

    def from_basis(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo `to_basis` for a tensor of this shape, `(batch, channels, *grid)`, in the same units."""
        return x if self.modulation is None else from_half_spectrum(x, shape[-self.grid.dimensions :])

    def scale(self, x: Tensor, factor: Tensor) -> Tensor:
        """Multiply x `(batch, channels, *grid)` by a dimensionless coefficient, which may depend on frequency."""
        return self.from_basis(self.to_basis(x) * factor, x.shape)

    def noise(self, shape: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """Draw noise with the process's covariance, of shape `(batch, channels, *grid)`, one seed per item.

        Raises:
            ValueError: If there is not one seed per item, or the shape has too few dimensions.
        """
        if len(shape) < self.grid.dimensions + 2:
            raise ValueError(f"expected shape (batch, channels, {', '.join(self.grid.names)}), got {tuple(shape)}")
        split = len(shape) - self.grid.dimensions
        seeds = checked_seeds(seeds, shape[0])
        return self.covariance.sample(seeds, channels=tuple(shape[1:split]), grid_shape=tuple(shape[split:]))

    def add_noise(self, x0: Tensor, t: Tensor | float, noise: Tensor) -> Tensor:
        """Return `x_t = a_t x0 + b_t noise`, shaped like x0 and noise `(batch, channels, *grid)`, in their units."""
        at = self.coefficients(t, x0)
        return self.from_basis(at.a * self.to_basis(x0) + at.b * self.to_basis(noise), x0.shape)

    def in_range(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Return `x_t / √(α_t² + σ_t²)`, shaped like x0, to display variance-exploding paths; t is `(1,)`."""
        alpha, sigma = self.schedule.alpha_sigma(t)
        return self.add_noise(x0, t, noise) / float((alpha**2 + sigma**2).sqrt())

    def prior(
        self, shape: Sequence[int], seeds: Sequence[int], mean: Tensor | None = None, start: float = 1.0
    ) -> Tensor:
        """Draw `x ~ N(a mean, b² Σ)` of shape `shape` at the time `start`; the mean is zero by default."""
        noise = self.noise(shape, seeds)
        x0 = torch.zeros_like(noise) if mean is None else mean.to(noise).expand_as(noise)
        return self.add_noise(x0, start, noise)

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor | float, s: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the mean, shaped like x0, and the noise factor of `q(x_s | x_t, x0) = N(mean, factor² Σ)` for s < t.

        The scalars are the same as in DDPM, with covariance `β̃ Σ` (arXiv 2510.09660). Use `scale` to multiply by the
        factor.
        """
        now, then = self.coefficients(t, x0), self.coefficients(s, x0)
        of_x0, of_x_t, factor = posterior_step(now, then)
        return self.from_basis(of_x0 * self.to_basis(x0) + of_x_t * self.to_basis(x_t), x0.shape), factor

    def to_x0(self, value: Tensor, x_t: Tensor, t: Tensor | float, quantity: Quantity) -> Tensor:
        """Convert a value of `quantity` at x_t to the clean sample x0, in the shape and units of x_t.

        This is the inverse of `from_x0`.

        Raises:
            ValueError: If the quantity is unknown.
        """
        if quantity == "score":
            # ε = -b Σ s needs no inverse of Σ.
            noise = -self.scale(self.covariance.apply(value), self.coefficients(t, x_t).b)
            return self.to_x0(noise, x_t, t, "noise")
        at = self.coefficients(t, x_t)
        skip, out = x0_weights(at, self.schedule, quantity)
        return self.from_basis(skip * self.to_basis(x_t) + out * self.to_basis(value), x_t.shape)

    def from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor | float, quantity: Quantity) -> Tensor:
        """Convert x0 to the noise, v, flow or score that it implies at x_t, in the same shape.

        The score has the inverse units of the data, and the other quantities have the units of the data.

        `v = a ε - b x0`. The flow is the tangent of the schedule's path, `ε - x0` in flow matching. The score is
        `-Σ⁺ ε/b`, with the pseudo-inverse, because the spectrum may have no power at some frequencies.

        Raises:
            ValueError: If the quantity is unknown.
        """
        at = self.coefficients(t, x_t)
        if quantity == "score":
            noise = self.from_x0(x0, x_t, t, "noise")
            return -self.covariance.solve(self.scale(noise, 1 / at.b))
        skip, out = x0_weights(at, self.schedule, quantity)
        return self.from_basis((self.to_basis(x0) - skip * self.to_basis(x_t)) / out, x_t.shape)


def x0_weights(at: Coefficients, schedule: Schedule, quantity: Quantity) -> tuple[Tensor, Tensor]:
    """Return the factors (skip, out) in `x0 = skip · x_t + out · value` for a `quantity`, shaped like `at.a`.

    Raises:
        ValueError: If the quantity is unknown.
    """
    a, b = at.a, at.b
    if quantity == "x0":
        return torch.zeros_like(a), torch.ones_like(a)
    if quantity == "noise":
        return 1 / a, -b / a
    if quantity == "v":
        return a / (a**2 + b**2), -b / (a**2 + b**2)
    if quantity == "flow":
        signal, noise = schedule.tangent(a, b)
        determinant = a * noise - b * signal
        return noise / determinant, -b / determinant
    raise ValueError(f"unknown quantity {quantity!r}; choose x0, noise, v, flow or score")


def target_weights(at: Coefficients, schedule: Schedule, quantity: Quantity) -> tuple[Tensor, Tensor]:
    """Return the factors (signal, noise) in the training target `signal · x0 + noise · ε`, shaped like `at.a`.

    Raises:
        ValueError: If the quantity is unknown.
    """
    zero, one = torch.zeros_like(at.a), torch.ones_like(at.a)
    if quantity == "x0":
        return one, zero
    if quantity == "noise":
        return zero, one
    if quantity == "v":
        return -at.b, at.a
    if quantity == "flow":
        return schedule.tangent(at.a, at.b)
    raise ValueError(f"unknown quantity {quantity!r}; choose x0, noise, v or flow")


def posterior_step(now: Coefficients, then: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weights of x0 and x_t in the mean of `q(x_s | x_t, x0)`, and the noise factor, shaped like `now.a`.

    With `r = b_s/b_t` and `ρ = a_t/a_s`: `mean = a_s x0 + r²ρ (x_t - a_t x0)`, `factor² = b_s² (1 - r²ρ²)`.
    """
    ratio = (then.b / now.b) * (now.a / then.a)
    weight = (then.b / now.b) * ratio
    return then.a - weight * now.a, weight, then.b * (1 - ratio**2).clamp(min=0).sqrt()
