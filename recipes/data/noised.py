"""Data as a process noises them, to be looked at."""

from __future__ import annotations

from torch import Tensor

from multisagd import Process


def in_range(process: Process, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Return x_t over the root of `α² + σ²`, so that variance-exploding paths can be seen too; t is of one time."""
    alpha, sigma = process.schedule.alpha_sigma(t)
    return process.add_noise(x0, t, noise) / float((alpha**2 + sigma**2).sqrt())
