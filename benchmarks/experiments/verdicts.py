"""The rules for the conclusions on the results page, from paired differences over seeds; nothing is judged by eye."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan, sqrt
from statistics import mean, stdev
from typing import Literal

from scipy.stats import t as student

from benchmarks.experiments.tables import with_error

Measured = Mapping[str, Mapping[int, Mapping[str, float]]]
"""Numbers by arm, seed and metric."""


@dataclass(frozen=True)
class Metric:
    """A number in a row, and the direction of improvement: `less`, `more`, or closer to `zero`."""

    key: str
    title: str
    better: Literal["less", "more", "zero"] = "less"

    @property
    def decibels(self) -> bool:
        """Whether the metric is in decibels, so that a relative change is meaningless."""
        return "_db" in self.key

    @property
    def compared(self) -> str:
        """The name of the quantity by which arms are compared."""
        return f"{self.title} from 0" if self.better == "zero" else self.title

    def size(self, value: float) -> float:
        """Return the quantity by which arms are compared: the value, or its absolute value if `better` is `zero`."""
        return abs(value) if self.better == "zero" else value


FRECHET = Metric("frechet_distance", "Fréchet distance")
SPECTRUM = Metric("spectrum_error_db", "spectrum, dB")
METRICS = (
    FRECHET,
    Metric("recognised", "recognised", "more"),
    SPECTRUM,
    Metric("axis_errors_db.frame", "spectrum along time, dB"),
    Metric("frame_change_db", "change from frame to frame, dB", "zero"),
    Metric("watched_db", "power where the data were corrupted, dB", "zero"),
    Metric("elsewhere_db", "spectrum elsewhere, dB"),
)
"""The metrics in the order of the tables; a table contains the metrics of its rows."""


ENOUGH = 3
"""Number of seeds that a verdict needs."""


@dataclass(frozen=True)
class Estimate:
    """Mean and standard error of paired differences, one per seed; for a single seed the standard error is NaN."""

    mean: float
    error: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Estimate from the values of all seeds; None if there are no values."""
        if not values:
            return None
        return cls(mean(values), stdev(values) / sqrt(len(values)) if len(values) > 1 else nan, len(values))

    @classmethod
    def ratio(cls, parts: Sequence[float], wholes: Sequence[float]) -> Estimate | None:
        """Estimate the ratio of two means of paired values, with its error to first order (the delta method).

        None if there are no values, or if the mean of `wholes` is zero.
        """
        if not parts or mean(wholes) == 0:
            return None
        whole, found = mean(wholes), mean(parts) / mean(wholes)
        left = cls.of([part - found * each for part, each in zip(parts, wholes, strict=True)])
        return cls(found, left.error / abs(whole), left.count) if left is not None else None

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds for a verdict."""
        return self.count >= ENOUGH

    @property
    def detected(self) -> bool:
        """Whether there are enough seeds, and the mean is more than two standard errors from zero."""
        return self.enough and abs(self.mean) > 2 * self.error

    @property
    def positive(self) -> bool:
        """Whether a difference is detected and positive."""
        return self.detected and self.mean > 0

    @property
    def clear(self) -> bool:
        """Whether there are enough seeds, and the 95 % confidence interval (Student's t) excludes zero."""
        return self.enough and abs(self.mean) > float(student.ppf(0.975, self.count - 1)) * self.error

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}" if self.count > 1 else f"{self.mean:.3f}"

    def percent(self, digits: int = 0, sign: str = "") -> str:
        """Format the mean and its standard error in per cent."""
        error = f" ± {100 * self.error:.{digits}f}" if self.count > 1 else ""
        return f"{100 * self.mean:{sign}.{digits}f}{error} %"


def gain(measured: Measured, arm: str, other: str, metric: Metric = FRECHET) -> Estimate | None:
    """Return how much better an arm is than another, paired by seed; None if no seed has both."""
    if arm not in measured or other not in measured:
        return None
    moved = changes(measured, arm, other, metric)
    return Estimate.of([value if metric.better == "more" else -value for value in moved])


def changes(measured: Measured, arm: str, other: str, metric: Metric) -> list[float]:
    """Return an arm's metric minus another's, seed by seed; if `better` is `zero`, of their absolute values."""
    mine, theirs = (
        {seed: metric.size(row[metric.key]) for seed, row in measured[name].items() if metric.key in row}
        for name in (arm, other)
    )
    return [mine[seed] - theirs[seed] for seed in sorted(mine) if seed in theirs]


def relative(measured: Measured, arm: str, other: str, metric: Metric = FRECHET) -> list[float]:
    """Return the relative changes of a metric, seed by seed.

    Raises:
        ValueError: If the metric is in decibels.
    """
    if metric.decibels:
        raise ValueError(f"{metric.title}: a relative change of decibels is meaningless; use the difference")
    mine, theirs = measured[arm], measured[other]
    return [
        mine[seed][metric.key] / theirs[seed][metric.key] - 1
        for seed in sorted(mine)
        if seed in theirs and metric.key in mine[seed] and theirs[seed].get(metric.key)
    ]


def verdict(better_by: Estimate | None) -> str:
    """Return the verdict on a gain, in words."""
    if better_by is None or not better_by.enough:
        return no_verdict(0 if better_by is None else better_by.count)
    if not better_by.detected:
        return "no difference detected"
    word = "better" if better_by.mean > 0 else "worse"
    return f"**clearly {word}**" if better_by.clear else f"**{word}**"


def no_verdict(count: int) -> str:
    """Return the statement that this number of seeds is too small for a verdict."""
    return f"{count} seed{'' if count == 1 else 's'}: no verdict"


def sorted_out(measured: Measured, pairs: Sequence[tuple[str, str]], metric: Metric) -> list[str]:
    """Report which arms are better than the arm they are compared with, which are worse, and which do not differ."""
    groups: dict[tuple[str, str], list[str]] = {}
    for arm, other in pairs:
        better_by = gain(measured, arm, other, metric)
        if better_by is not None:
            moved = f" ({with_error(changes(measured, arm, other, metric), sign='+')})" if better_by.detected else ""
            groups.setdefault((other, verdict(better_by)), []).append(f"`{arm}`{moved}")
    title = metric.compared[0].upper() + metric.compared[1:]
    return [
        f"{title} compared with `{other}`, {said}{' on' if 'no verdict' in said else ':'} {', '.join(arms)}."
        for (other, said), arms in groups.items()
    ]


def detected_worse(measured: Measured, pairs: Sequence[tuple[str, str]], metric: Metric) -> list[str]:
    """Report the arms that are worse than the arm they are compared with, and the arms with too few seeds."""
    found = {(arm, other): gain(measured, arm, other, metric) for arm, other in pairs}
    said = [
        f"`{arm}` is {verdict(better_by).strip('*')} than `{other}` in {metric.compared}."
        for (arm, other), better_by in found.items()
        if better_by is not None and better_by.detected and better_by.mean < 0
    ]
    open_: dict[str, list[str]] = {}
    for (arm, _), better_by in found.items():
        if better_by is None or not better_by.enough:
            open_.setdefault(verdict(better_by), []).append(f"`{arm}`")
    return said + [f"{few} on {', '.join(arms)} in {metric.compared}." for few, arms in open_.items()]
