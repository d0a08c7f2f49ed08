"""The metrics of a row: their names, the direction of improvement, and how two arms are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, log
from typing import Any, Literal

from benchmarks.experiments.statistics import Paired

SAMPLERS = ("sde", "ode")
"""The keys of a row with the metrics of samples, one for each sampler."""
Rows = Mapping[int, Mapping[str, float]]
"""Numbers of an arm by seed and key."""


@dataclass(frozen=True)
class Metric:
    """A number in a row, and the direction of improvement: `less`, `more`, or closer to `zero`.

    Arms are compared by the `ratio` of positive metrics, and otherwise by the difference.
    """

    key: str
    title: str
    better: Literal["less", "more", "zero"] = "less"
    ratio: bool = False

    def size(self, value: float) -> float:
        """Return the quantity by which arms are compared: the value, or its absolute value if `better` is `zero`."""
        return abs(value) if self.better == "zero" else value

    def paired(self, mine: Rows, theirs: Rows) -> Paired:
        """Return the log ratios or differences of two arms, for the seeds for which both have a number."""
        pairs = [
            (self.size(mine[seed][self.key]), self.size(theirs[seed][self.key]))
            for seed in sorted(mine)
            if self.key in mine[seed] and self.key in theirs.get(seed, {})
        ]
        return Paired(tuple(log(mine / other) if self.ratio else mine - other for mine, other in pairs))

    def improves(self, change: float) -> bool:
        """Whether a log ratio or a difference is an improvement."""
        return change > 0 if self.better == "more" else change < 0


KINDS = (
    Metric("frechet_distance", "Fréchet distance", ratio=True),
    Metric("recognised", "recognised", "more"),
    Metric("spectrum_error_db", "spectrum, dB"),
    Metric("rings_rms_db", "rings, dB"),
    Metric("rings_quietest_db", "quietest third of the rings, dB"),
    Metric("rings_worst_db", "worst ring, dB"),
    Metric("deviation_error", "deviation of values, %", "zero"),
    Metric("kurtosis_error", "kurtosis of values, %", "zero"),
    Metric("gradient_kurtosis_error", "kurtosis of gradients, %", "zero"),
    Metric("mixed_kurtosis_error", "kurtosis of ∂x∂y, %", "zero"),
    Metric("axis_errors_db.frame", "spectrum along time, dB"),
    Metric("frame_change_db", "change from frame to frame, dB", "zero"),
    Metric("watched_db", "power where the data were corrupted, dB", "zero"),
    Metric("elsewhere_db", "spectrum elsewhere, dB"),
)
"""Metrics of samples, in the order of the tables."""
BY_STEPS = ("frechet_distance", "rings_rms_db", "rings_quietest_db")
"""Keys of the metrics that are shown for every number of steps."""
MOST_BITS = 100.0
"""Bits per dimension above which a likelihood is left out: a model of any density has some bits, not thousands."""
BITS = Metric("bits_per_dimension", "bits per dimension")
METRICS = (
    *(
        Metric(f"{sampler}.{kind.key}", f"{kind.title}, {sampler.upper()}", kind.better, kind.ratio)
        for kind in KINDS
        for sampler in SAMPLERS
    ),
    BITS,
)
"""All metrics; a table contains those of its rows."""


def metric(key: str) -> Metric:
    """Return a metric by its key. Raises ValueError if there is none."""
    for each in METRICS:
        if each.key == key:
            return each
    raise ValueError(f"unknown metric {key!r}; choose among {', '.join(each.key for each in METRICS)}")


def other_sampler(key: str) -> str:
    """Return the key of the same metric of the other sampler's samples; other keys are returned unchanged."""
    sampler, _, name = key.partition(".")
    return key if sampler not in SAMPLERS else f"{SAMPLERS[1 - SAMPLERS.index(sampler)]}.{name}"


def at_steps(steps: int, key: str) -> str:
    """Return the key of a metric of samples that were drawn in one of `more_steps`."""
    return f"at_steps.{steps}.{key}"


def even_in_time(key: str) -> str:
    """Return the key of a metric of samples whose steps are even in time."""
    return f"even_in_time.{key}"


def calibrated(key: str) -> str:
    """Return the key of a metric of samples of a calibrated sampler."""
    return f"calibrated.{key}"


def flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the finite numbers of a row; numbers in nested mappings have keys such as `sde.frechet_distance`."""
    values: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            values |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            values[f"{prefix}{name}"] = float(value)
    return values
