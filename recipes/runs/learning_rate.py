"""The learning rate as a function of samples seen.

    constant              the full rate
    linear, cosine        falls to zero at the end
    inverse_sqrt          constant, then in proportion to 1/√samples (arXiv 2312.02696)
    warmup_stable_decay   constant, then falls to zero as 1 - √progress (arXiv 2405.18392)

The end is fixed when training starts: it is saved in checkpoints, and does not move if `training.samples` is changed
later. Then training continues at the last rate, or, with `training.decay=restart`, with a new warm-up and a new decay.
"""

import math
from dataclasses import dataclass
from typing import Literal

RateShape = Literal["constant", "linear", "cosine", "inverse_sqrt", "warmup_stable_decay"]
STABLE = {"linear": 0.0, "cosine": 0.0, "inverse_sqrt": 0.1, "warmup_stable_decay": 0.8}
"""Default fraction of training at the full rate, before it decays."""


@dataclass(frozen=True)
class Span:
    """The samples seen at which a decay starts and ends."""

    start: int
    end: int


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a training run: its maximum, its shape, and its warm-up in samples.

    `stable` is the fraction of training at the full rate before it decays; None is the shape's default.
    """

    maximum: float
    shape: RateShape = "constant"
    warmup: int = 0
    stable: float | None = None

    def __call__(self, samples: int, batch: int, span: Span) -> float:
        """Return the rate of the step that sees the samples from `samples` to `samples + batch`.

        No step has a rate of zero: progress is counted at the beginning of a step, and warm-up at its end. After the
        end of the span, the rate is that of its last step.
        """
        total = max(span.end - span.start, 1)
        seen = samples - span.start
        warm = min(1.0, (seen + batch) / self.warmup) if self.warmup > 0 else 1.0
        return self.maximum * warm * self._decayed(min(seen, max(total - batch, 0)) / total)

    def _decayed(self, progress: float) -> float:
        if self.shape == "constant":
            return 1.0
        stable = STABLE[self.shape] if self.stable is None else self.stable
        if progress <= stable:
            return 1.0
        if self.shape == "inverse_sqrt":
            return math.sqrt(stable / progress) if stable > 0 else 1.0
        decayed = (progress - stable) / (1 - stable)
        if self.shape == "cosine":
            return (1 + math.cos(math.pi * decayed)) / 2
        return 1 - (math.sqrt(decayed) if self.shape == "warmup_stable_decay" else decayed)
