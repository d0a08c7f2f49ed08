"""Define parts of the training loss as pure functions: error metrics and training times."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from multisagd.covariance import Covariance
from multisagd.schedule import Schedule
from multisagd.seeds import derive

Metric = Literal["euclidean", "mahalanobis", "whitened"]


def squared_error(
    error: Tensor, covariance: Covariance, metric: Metric = "euclidean", mask: Tensor | None = None
) -> Tensor:
    """Return the mean square of an error `(batch, channels, *grid)` over each item, `(batch,)`, in squared units.

    `euclidean` is the loss of arXiv 2510.09660; `mahalanobis` measures `Σ^{-1/2} error` (arXiv 2106.06406), which gives
    every frequency of the noise the same weight. A mask, true where data are valid, excludes padding from the mean. In
    the Mahalanobis metric the masked error is whitened as a whole, so edges of the padding still affect its valid part.

    Raises:
        ValueError: If the metric is unknown, or items are empty, so that they have no mean.
    """
    if error.dim() == 0 or error.shape[1:].numel() == 0:
        raise ValueError(
            f"expected errors of shape (batch, channels, *grid), got empty items of shape {tuple(error.shape)}"
        )
    error = error.to(torch.promote_types(error.dtype, torch.float32))
    valid = None if mask is None else mask.to(error.dtype).expand_as(error)
    if valid is not None:
        error = error * valid
    if metric == "mahalanobis":
        error = covariance.whiten(error)
    elif metric != "euclidean":
        raise ValueError(f"unknown metric {metric!r}; choose euclidean or mahalanobis, or whitened in a denoiser")
    square = error.square().flatten(1)
    if valid is None:
        return square.mean(1)
    return square.sum(1) / valid.flatten(1).sum(1).clamp(min=1)


def stratified_uniform(seed: int, step: int, batch: int, start: int = 0, count: int | None = None) -> Tensor:
    """Draw uniform numbers `(count,)` for the slots from `start` on in a global batch, one in each of `batch` strata.

    The numbers depend on (seed, step, slot) only, so ranks that share a batch draw the same numbers as a single rank.
    Strata are shuffled at each step, so that no part of the batch, such as a rank's, stays in one range of noise
    levels.
    """
    shuffle = torch.Generator().manual_seed(derive(seed, "strata", step))
    strata = torch.randperm(batch, generator=shuffle, device="cpu")
    slots = range(start, start + (batch - start if count is None else count))
    within = torch.tensor([derive(seed, "time", step, slot) for slot in slots], dtype=torch.float64, device="cpu")
    return (strata[slots.start : slots.stop] + (within + 0.5) / 2**32) / batch


TimeDistribution = Callable[[Tensor, Schedule], Tensor]
"""Maps uniform numbers in (0, 1) to training times under a schedule."""


@dataclass(frozen=True)
class UniformTimes:
    """Draw times uniformly from 0 to 1."""

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Return the uniform numbers unchanged, as times."""
        return uniform


@dataclass(frozen=True)
class LogitNormalTimes:
    """Draw times whose logit is normally distributed, for flow matching (arXiv 2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map uniform numbers to times, in the same shape."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(uniform))


@dataclass(frozen=True)
class LogNormalTimes:
    """Draw times with log-normal noise-to-signal ratios σ/α, for any schedule (2206.00364: mean -1.2, std 1.2)."""

    mean: float = -1.2
    std: float = 1.2

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map uniform numbers to times, in the same shape, within the schedule's range."""
        return schedule.time(-2 * (self.mean + self.std * torch.special.ndtri(uniform)))


@dataclass(frozen=True)
class OctaveTimes:
    """Draw log-SNRs at which a random frequency of the data emerges from the noise, every octave equally often.

    `log_snrs` are those at which equally likely frequencies have as much power as the noise (`octave_log_snrs`); one of
    them is drawn, with a logistic deviation of this `scale`. So each octave of the data has the same number of training
    examples, however quiet it is. If `log_snrs` is None, `of` gives them; training takes those of its data.

    Raises:
        ValueError: If there are no log-SNRs, or the scale is not positive.
    """

    log_snrs: tuple[float, ...] | None = None
    scale: float = 1.5

    def __post_init__(self) -> None:
        if self.log_snrs is not None and not self.log_snrs:
            raise ValueError("log_snrs must have at least one number; None stands for those of the data")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def of(self, log_snrs: Sequence[float]) -> OctaveTimes:
        """Return these times for the log-SNRs of some data, unless they have some already."""
        return self if self.log_snrs is not None else replace(self, log_snrs=tuple(log_snrs))

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map uniform numbers to times, in the same shape, within the schedule's range.

        Raises:
            ValueError: If there are no log-SNRs.
        """
        if self.log_snrs is None:
            raise ValueError("these times need the log-SNRs of the data: pass log_snrs, or call of(...)")
        centres = uniform.new_tensor(self.log_snrs)
        place = uniform * len(centres)
        drawn = place.long().clamp(0, len(centres) - 1)
        return schedule.time(centres[drawn] + self.scale * torch.logit(place - drawn, eps=1e-9))


@dataclass(frozen=True)
class LaplaceLogSnrTimes:
    """Draw log-SNRs from a Laplace density about `mean`, to train mainly where structure forms (arXiv 2407.03297)."""

    mean: float = 0.0
    scale: float = 1.5

    def __call__(self, uniform: Tensor, schedule: Schedule) -> Tensor:
        """Map uniform numbers to times, in the same shape, within the schedule's range."""
        centered = uniform - 0.5
        return schedule.time(self.mean + self.scale * centered.sign() * -torch.log1p(-2 * centered.abs()))
