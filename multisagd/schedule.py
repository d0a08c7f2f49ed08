"""Define schedules: signal and noise as functions of time, `x_t = α x0 + σ ε` for t from 0 (data) to 1 (noise).

A schedule consists of a decreasing log-SNR `λ(t) = log(α²/σ²)` and a *path*, the curve of (α, σ):

- `preserving`: α² + σ² = 1, so α = √sigmoid(λ);
- `exploding`: α = 1, so σ = e^{-λ/2};
- `flow`: α + σ = 1, so σ = sigmoid(-λ/2).

The log-SNR is clamped to `log_snr_range`, because the cosine schedule and flow matching reach α = 0 at t = 1, where no
network output could be converted to an estimate of the data. `shift` moves every log-SNR by -2·log(shift): more noise
at each time for larger grids (arXiv 2301.11093, and 2403.03206 for flow matching, where it is σ → sσ/(1+(s-1)σ)).
"""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from multisagd.inputs import as_times

Path = Literal["preserving", "exploding", "flow"]


@dataclass(frozen=True)
class Schedule:
    """Base class of schedules; a subclass defines `raw_log_snr`, its inverse `raw_time` and a default path.

    Raises:
        ValueError: If the shift is not positive, the range is empty or outside [-80, 80], the path is unknown, or the
            log-SNR does not decrease.
    """

    _: KW_ONLY
    shift: float = 1.0
    log_snr_range: tuple[float, float] = (-20.0, 20.0)
    path: Path = "preserving"

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"a schedule's shift must be positive, got {self.shift}")
        if not -80 <= self.log_snr_range[0] < self.log_snr_range[1] <= 80:  # so that α² and σ² are float32 numbers
            raise ValueError(f"log_snr_range must increase and lie between -80 and 80, got {self.log_snr_range}")
        if self.path not in get_args(Path):
            raise ValueError(f"unknown path {self.path!r}; choose one of {', '.join(get_args(Path))}")
        # On the CPU, even if a network that contains a schedule is built on the meta device.
        log_snr = self.log_snr(torch.linspace(0, 1, 33, dtype=torch.float64, device="cpu"))
        if not bool((log_snr.diff() <= 0).all() and log_snr[-1] < log_snr[0]):
            raise ValueError(f"the log-SNR of a schedule must decrease over time; check the parameters of {self}")

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return the log-SNR λ(t) before shift and clamp, shaped like t."""
        raise NotImplementedError

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return the time of a log-SNR, in the shape of `log_snr`: the inverse of `raw_log_snr`."""
        raise NotImplementedError

    def log_snr(self, t: Tensor | float) -> Tensor:
        """Return the log-SNR λ(t), shifted and clamped, with the shape and dtype of t (see `as_times` for valid t)."""
        return (self.raw_log_snr(as_times(t)) - 2 * math.log(self.shift)).clamp(*self.log_snr_range)

    def time(self, log_snr: Tensor) -> Tensor:
        """Return the time in [0, 1] of a log-SNR, in the shape of `log_snr`."""
        return self.raw_time(log_snr.clamp(*self.log_snr_range) + 2 * math.log(self.shift)).clamp(0, 1)

    def alpha_sigma(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """Return the factors (α, σ) of signal and noise at t, each shaped like t."""
        return self.from_log_snr(self.log_snr(t))

    def from_log_snr(self, log_snr: Tensor) -> tuple[Tensor, Tensor]:
        """Return the point (α, σ) of the path with this log-SNR, each in the shape of `log_snr`."""
        if self.path == "preserving":
            return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        if self.path == "exploding":
            return torch.ones_like(log_snr), (-log_snr / 2).exp()
        return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)

    def path_parameter(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the path's dimensionless parameter at (α, σ), in the shape of `sigma`.

        It is the angle if the path is preserving, and σ otherwise.
        """
        return torch.atan2(sigma, alpha) if self.path == "preserving" else sigma

    def tangent(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Return the dimensionless derivative (α̇, σ̇) of the path with respect to its parameter, shaped like α.

        It satisfies `α σ̇ - σ α̇ = 1`. In flow matching it gives `ε - x0`. Unlike a derivative by t, it does not depend
        on the shift and never vanishes.
        """
        if self.path == "preserving":
            return -sigma, alpha
        if self.path == "exploding":
            return torch.zeros_like(sigma), torch.ones_like(sigma)
        return -torch.ones_like(sigma), torch.ones_like(sigma)


@dataclass(frozen=True)
class CosineSchedule(Schedule):
    """The cosine schedule `α = cos(πt/2)` (arXiv 2102.09672), with an optional offset `s` (0.008 in the paper)."""

    offset: float = 0.0

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return λ(t) from `ᾱ(t) = f(t)/f(0)`, `f(t) = cos²(π/2 · (t+s)/(1+s))`."""
        s, dtype = self.offset, t.dtype
        scale = math.cos(math.pi / 2 * s / (1 + s)) ** 2
        angle = (math.pi / 2) * (t.double() + s) / (1 + s)
        # 1 - ᾱ as a product of sines: subtracting from 1 would lose all digits at small t.
        start = math.pi / 2 * s / (1 + s)
        noise = torch.sin(angle - start) * torch.sin(angle + start) / scale
        return ((torch.cos(angle) ** 2 / scale) / noise).log().to(dtype)

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return t from `cos² = ᾱ·f(0)`."""
        s, dtype = self.offset, log_snr.dtype
        scale = math.cos(math.pi / 2 * s / (1 + s)) ** 2
        level = log_snr.double()
        # sin² of the angle, written so that it keeps its digits when ᾱ is near one.
        sine = (torch.sigmoid(-level) * scale + (1 - scale)).sqrt()
        cosine = (torch.sigmoid(level) * scale).sqrt()
        return (torch.atan2(sine, cosine) * (2 / math.pi) * (1 + s) - s).to(dtype)


@dataclass(frozen=True)
class LinearSchedule(Schedule):
    """DDPM's linear β in continuous time (arXiv 2006.11239, 2011.13456): `log ᾱ = -t²(β1-β0)/2 - tβ0`.

    `beta_min` and `beta_max` are the discrete 1e-4 and 2e-2, multiplied by the 1,000 steps.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return λ = -log(e^B - 1) with B = -log ᾱ."""
        decay = (0.5 * t * (self.beta_max - self.beta_min) + self.beta_min) * t
        return -torch.expm1(decay).log()

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return t, the solution of a quadratic equation, in a numerically stable form."""
        decay = F.softplus(-log_snr)
        change = self.beta_max - self.beta_min
        return 2 * decay / (self.beta_min + (self.beta_min**2 + 2 * change * decay).sqrt())


@dataclass(frozen=True)
class SigmoidSchedule(Schedule):
    """A sigmoid ᾱ between `start` and `end`, scaled to run from 1 to 0 (arXiv 2212.11972, 2301.10972)."""

    start: float = -3.0
    end: float = 3.0
    temperature: float = 1.0

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return logit ᾱ(t)."""
        low, high = self._ends()
        value = torch.sigmoid((t.double() * (self.end - self.start) + self.start) / self.temperature)
        # At the ends, rounding may give a negative difference.
        return ((high - value).clamp(min=0) / (value - low).clamp(min=0)).log().to(t.dtype)

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return t from the inverse of the sigmoid."""
        low, high = self._ends()
        value = high - torch.sigmoid(log_snr.double()) * (high - low)
        return ((torch.logit(value) * self.temperature - self.start) / (self.end - self.start)).to(log_snr.dtype)

    def _ends(self) -> tuple[float, float]:
        low, high = (1 / (1 + math.exp(-end / self.temperature)) for end in (self.start, self.end))
        return low, high


@dataclass(frozen=True)
class KarrasSchedule(Schedule):
    """A variance-exploding schedule with `σ^(1/ρ)` linear in time, from `sigma_min` to `sigma_max` (2206.00364, Eq. 5).

    Raises:
        ValueError: If 0 < sigma_min < sigma_max does not hold.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    path: Path = field(default="exploding", kw_only=True)

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(
                f"a Karras schedule needs 0 < sigma_min < sigma_max, got {self.sigma_min} and {self.sigma_max}"
            )
        super().__post_init__()

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return -2 log σ(t)."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return -2 * self.rho * (low + t * (high - low)).log()

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return the position of `σ^(1/ρ)` between its ends."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return ((-log_snr / (2 * self.rho)).exp() - low) / (high - low)


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """Flow matching on the straight path, `α = 1 - t`, `σ = t` (arXiv 2210.02747)."""

    path: Path = field(default="flow", kw_only=True)

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return 2 log((1-t)/t)."""
        return -2 * torch.logit(t)

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return σ, which equals the time."""
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class TabulatedSchedule(Schedule):
    """Interpolate the log-SNR linearly between equally spaced knots, the first at t = 0: a designed schedule.

    Raises:
        ValueError: If there are not at least two finite, strictly decreasing knots.
    """

    log_snrs: tuple[float, ...]

    def __post_init__(self) -> None:
        knots = tuple(float(knot) for knot in self.log_snrs)
        falling = all(math.isfinite(a) and math.isfinite(b) and a > b for a, b in pairwise(knots))
        if len(knots) < 2 or not falling:
            raise ValueError("a tabulated schedule requires at least two log-SNRs, in decreasing order")
        object.__setattr__(self, "log_snrs", knots)
        super().__post_init__()

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return λ(t), interpolated linearly between the knots."""
        knots = torch.tensor(self.log_snrs, device=t.device, dtype=t.dtype)
        position = t.clamp(0, 1) * (len(knots) - 1)
        left = position.floor().long().clamp(max=len(knots) - 2)
        return torch.lerp(knots[left], knots[left + 1], position - left)

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return the time of a log-SNR, interpolated linearly between the knots."""
        knots = torch.tensor(self.log_snrs, device=log_snr.device, dtype=log_snr.dtype)
        left = (torch.searchsorted(-knots, -log_snr.contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        return (left + (knots[left] - log_snr) / (knots[left] - knots[left + 1])) / (len(knots) - 1)
