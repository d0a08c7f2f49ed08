"""Define the schedule of models that were trained at discrete noise levels, as most published models were.

Such a model has timesteps 0 to N - 1, and timestep i has `ᾱ_i = Π_{j≤i} (1 - β_j)` (arXiv 2006.11239). Here timestep
i lies at `t = (i + 1)/N`, its log-SNR is `log(ᾱ_i/(1 - ᾱ_i))`, and between timesteps the log-SNR is linear; t = 0 is
the clean sample. The curves of β are named as in the diffusers schedulers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from multisagd.schedule import Schedule, TabulatedSchedule

MAX_STEPS = 100_000
BetaCurve = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


@dataclass(frozen=True)
class DiscreteSchedule(Schedule):
    """Interpolate `steps` noise levels, given by a named curve of β from `beta_start` to `beta_end` or by a list of β.

    "linear" is the curve of DDPM (arXiv 2006.11239), "scaled_linear" is linear in √β (latent diffusion, 2112.10752),
    "squaredcos_cap_v2" is the cosine with offset 0.008 and β at most 0.999 (2102.09672), and "sigmoid" is the curve of
    GeoDiff (2203.02923). If `zero_terminal_snr` is True, √ᾱ is shifted and scaled so that the last level is pure noise
    (2305.08891, Algorithm 1), as far as `log_snr_range` allows.

    Raises:
        ValueError: If there are fewer than two or more than 100,000 levels, a β is outside (0, 1), the number of β is
            not `steps`, or several levels lie beyond the same end of `log_snr_range`, which makes them equal.
    """

    betas: BetaCurve | tuple[float, ...] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    steps: int = 1000
    zero_terminal_snr: bool = False
    _table: TabulatedSchedule = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        log_snr = self._levels().clamp(*self.log_snr_range)
        if not bool((log_snr.diff() < 0).all() and log_snr[0] < self.log_snr_range[1]):
            raise ValueError(
                f"levels of this discrete schedule lie outside log_snr_range={list(self.log_snr_range)}, where they "
                "are indistinguishable: use fewer steps, different betas, or a wider range"
            )
        knots = (self.log_snr_range[1], *log_snr.tolist())
        object.__setattr__(self, "_table", TabulatedSchedule(knots, log_snr_range=self.log_snr_range))
        super().__post_init__()

    def raw_log_snr(self, t: Tensor) -> Tensor:
        """Return λ(t), interpolated linearly between the levels, in the shape of t."""
        return self._table.raw_log_snr(t)

    def raw_time(self, log_snr: Tensor) -> Tensor:
        """Return the time of a log-SNR, interpolated linearly between the levels, in the shape of `log_snr`."""
        return self._table.raw_time(log_snr)

    def _levels(self) -> Tensor:
        """Return the log-SNR of each timestep, float64."""
        if self.steps > MAX_STEPS:
            raise ValueError(f"a discrete schedule has at most {MAX_STEPS:,} steps, got {self.steps:,}")
        betas = self._betas()
        if len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(f"a discrete schedule needs at least two betas between 0 and 1, got {len(betas)}")
        if len(betas) != self.steps:
            raise ValueError(
                f"expected {self.steps} betas for a discrete schedule of {self.steps} steps, got {len(betas)}"
            )
        kept = (1 - betas).cumprod(0)
        if self.zero_terminal_snr:
            root = kept.sqrt()
            kept = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
        return kept.log() - torch.log1p(-kept)

    def _betas(self) -> Tensor:
        if not isinstance(self.betas, str):
            return torch.tensor(self.betas, dtype=torch.float64, device="cpu")
        if self.steps < 2:
            return torch.zeros(max(self.steps, 0), dtype=torch.float64, device="cpu")
        start, end = self.beta_start, self.beta_end
        even = torch.linspace(0, 1, self.steps, dtype=torch.float64, device="cpu")
        if self.betas == "linear":
            return start + (end - start) * even
        if self.betas == "scaled_linear":
            return (math.sqrt(start) + (math.sqrt(end) - math.sqrt(start)) * even) ** 2
        if self.betas == "sigmoid":
            return start + (end - start) * torch.sigmoid(12 * even - 6)
        if self.betas != "squaredcos_cap_v2":
            raise ValueError(
                f"unknown betas {self.betas!r}; choose {', '.join(BetaCurve.__args__)}, or specify a list of betas"
            )
        edges = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64, device="cpu")
        kept = torch.cos((edges + 0.008) / 1.008 * (math.pi / 2)) ** 2
        return (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
