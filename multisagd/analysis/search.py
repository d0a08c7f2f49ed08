"""Search for a design: map free parameters to increasing log-SNRs, and find the best minimum from several starts.

The steps in log-SNR are fractions of the whole range, given by a softmax of free parameters: every proposal of an
optimiser is a valid schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy
import torch
from torch import Tensor

from multisagd.process import Process

Method = Literal["L-BFGS-B", "SLSQP"]

SMALLEST = 1e-4
"""The minimum length of a step, as a fraction of the whole range."""


@dataclass(frozen=True)
class Search:
    """Search space for a sampling schedule: `steps + 1` increasing log-SNRs.

    The ends are `low` and `high`, or any values in between if `free_ends` is true.
    """

    low: float
    high: float
    steps: int
    free_ends: bool
    restarts: int
    seed: int

    @classmethod
    def over(
        cls, process: Process, steps: int, ends: tuple[float, float], free_ends: bool, restarts: int, seed: int
    ) -> Search:
        """Return the search space within the ends and the range of the process's schedule.

        Raises:
            ValueError: If `steps` or `restarts` is less than 1, or the ends are not increasing.
        """
        if steps < 1 or restarts < 1:
            raise ValueError(f"a design requires at least one step and one restart, got {steps} and {restarts}")
        limits = process.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")).tolist()
        low, high = max(ends[0], limits[0]), min(ends[1], limits[1])
        if not low < high:
            raise ValueError(
                f"the ends of a design must increase and lie within the schedule's range {tuple(limits)}, got {ends}"
            )
        return cls(low, high, steps, free_ends, restarts, seed)

    def log_snrs(self, free: Tensor) -> Tensor:
        """Convert free parameters to increasing log-SNRs `(steps + 1,)`.

        `free` has shape `(steps,)`, or `(steps + 2,)` with free ends.
        """
        # No step vanishes, for any proposal of the optimiser.
        fraction = torch.softmax(free, 0) * (1 - SMALLEST * len(free)) + SMALLEST
        fractions = torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), fraction.cumsum(0)])
        return self.low + (self.high - self.low) * (fractions[1:-1] if self.free_ends else fractions)

    def starts(self) -> list[Tensor]:
        """Return dimensionless free parameters, each of the shape that `log_snrs` takes, to start the search from.

        The first few represent plausible schedules; the others are random variations of these.
        """
        even = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64, device="cpu")
        span = torch.tensor([self.low, self.high], dtype=torch.float64, device="cpu")
        measures: list[tuple[Tensor, Callable[[Tensor], Tensor]]] = [
            (span, lambda each: each),
            ((-span / 2).exp().atan(), lambda angle: -2 * angle.tan().log()),
            ((-span / 14).exp(), lambda sigma: -14 * sigma.log()),
        ]
        increasing = [back(torch.lerp(ends[0], ends[1], even)) for ends, back in measures]
        fractions = [(each.diff() / (self.high - self.low)).clamp(min=1e-6).log() for each in increasing]
        if self.free_ends:
            little = torch.full((1,), math.log(0.02), dtype=torch.float64, device="cpu")
            fractions = [torch.cat([little, each, little]) for each in fractions]
        further = max(0, self.restarts - len(fractions))
        spread = scipy.stats.norm.ppf(scipy.stats.qmc.Halton(len(fractions[0]), rng=self.seed).random(further))
        fractions += [fractions[number % 3] + 0.7 * torch.from_numpy(each) for number, each in enumerate(spread)]
        return fractions[: self.restarts]


def minimise(value: Callable[[Tensor], Tensor], starts: Sequence[Tensor], method: Method = "L-BFGS-B") -> Tensor:
    """Return the vector `(n,)` that minimises a positive function, the best result from several starts.

    Vectors are dimensionless and float64. The logarithm is minimised, because its gradient does not vanish with the
    error.

    Raises:
        ValueError: If the function is not finite at any start.
    """

    def function(point: np.ndarray) -> tuple[float, np.ndarray]:
        free = torch.tensor(point, dtype=torch.float64, requires_grad=True, device="cpu")
        result = value(free).log()
        (gradient,) = torch.autograd.grad(result, free)
        if not bool(torch.isfinite(result) and torch.isfinite(gradient).all()):
            return 1e30, np.zeros_like(point)
        return float(result.detach()), gradient.numpy()

    options: Any = {"maxiter": 1000, "ftol": 1e-13}
    if method == "L-BFGS-B":
        options |= {"maxfun": 4000, "gtol": 1e-9}
    minima = [
        scipy.optimize.minimize(function, start.numpy(), jac=True, method=method, options=options) for start in starts
    ]
    best = min(minima, key=lambda each: float(each.fun))
    if not best.fun < 1e30:
        raise ValueError(
            "the objective is not finite at any starting point: check whether the noise has power where the data "
            "have none"
        )
    return torch.from_numpy(np.asarray(best.x, dtype=np.float64))
