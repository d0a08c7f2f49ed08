"""Statistics of paired comparisons: one value per seed, the log ratio or the difference of two arms' metrics."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, log, nan, sqrt
from statistics import mean, stdev

from scipy.optimize import brentq
from scipy.stats import nct
from scipy.stats import t as student

ENOUGH = 6
"""Number of paired seeds that a verdict needs: the p-value of a sign-flip test of n pairs is at least 2/2^n."""
LEVEL = 0.05
"""Probability of finding a difference between equal arms."""
POWER = 0.8
"""Probability of finding the least detectable difference."""


@dataclass(frozen=True)
class Paired:
    """Paired values, one per seed; without a difference between the arms their mean is zero.

    Numbers that need more values are NaN: all but the mean for a single value.
    """

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """Number of pairs."""
        return len(self.values)

    @property
    def enough(self) -> bool:
        """Whether there are enough seeds for a verdict."""
        return self.count >= ENOUGH

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return mean(self.values)

    @property
    def error(self) -> float:
        """The standard error of the mean."""
        return stdev(self.values) / sqrt(self.count) if self.count > 1 else nan

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean (Student's t)."""
        half = float(student.ppf(1 - LEVEL / 2, self.count - 1)) * self.error if self.count > 1 else nan
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """The two-sided p-value of Student's t-test of paired values."""
        if self.count < 2:
            return nan
        if self.error == 0:
            return 1.0 if self.mean == 0 else 0.0
        return 2 * float(student.sf(abs(self.mean) / self.error, self.count - 1))

    @cached_property
    def sign_flip_p(self) -> float:
        """The exact two-sided p-value of the mean, over all 2^n choices of signs: it assumes no distribution."""
        if self.count < 2:
            return nan
        observed = abs(sum(self.values)) * (1 - 1e-12)
        signs = itertools.product((1, -1), repeat=self.count)
        extreme = sum(
            abs(sum(sign * each for sign, each in zip(each_signs, self.values, strict=True))) >= observed
            for each_signs in signs
        )
        return extreme / 2**self.count

    def detectable(self, level: float = LEVEL) -> float:
        """Return the least true mean that the t-test at `level` detects with 80 % power, given the spread."""
        return noncentrality(self.count, level) * self.error if self.count > 1 else nan


def noncentrality(count: int, level: float = LEVEL) -> float:
    """Return the true mean, in standard errors, that a two-sided t-test of `count` values detects with `POWER`."""
    freedom = count - 1
    critical = float(student.ppf(1 - level / 2, freedom))

    def lacking(center: float) -> float:
        # The other side, below -critical, has a probability of less than 1e-4 at this power.
        return float(nct.sf(critical, freedom, center)) - POWER

    return float(brentq(lacking, 0.0, 1.5 * critical + 3))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number by Holm's method; NaN counts as a comparison without a result."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place] if isfinite(p_values[place]) else inf)
    corrected, largest = [nan] * len(p_values), 0.0
    for rank, place in enumerate(order):
        if isfinite(p_values[place]):
            largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
            corrected[place] = largest
    return corrected


def closed(start: Sequence[float], reached: Sequence[float], goal: Sequence[float]) -> tuple[float, float]:
    """Return the fraction of the gap from `start` to `goal` that `reached` closes, and its 95 % half-width.

    The values are paired by seed. The fraction is a ratio of means, with its error to first order (the delta method);
    both numbers are NaN if there is no gap, and the half-width also if there is one seed.
    """
    wholes = [begin - end for begin, end in zip(start, goal, strict=True)]
    parts = [begin - now for begin, now in zip(start, reached, strict=True)]
    if not wholes or mean(wholes) == 0:
        return nan, nan
    fraction = mean(parts) / mean(wholes)
    left = Paired(tuple(part - fraction * whole for part, whole in zip(parts, wholes, strict=True)))
    low, high = left.interval
    return fraction, (high - low) / 2 / abs(mean(wholes))


@dataclass(frozen=True)
class Needed:
    """Number of training samples at which a metric reaches a value: exactly, or at most (`<`), or more (`>`)."""

    samples: float
    relation: str = "="


def samples_needed(points: Mapping[int, float], target: float) -> Needed:
    """Return the number of samples at which a falling metric reaches `target`, interpolated in logarithms.

    `points` contains the positive metric after numbers of training samples. Outside them nothing is extrapolated: the
    relation says on which side the number lies.
    """
    measured = sorted(points.items())
    if measured[0][1] <= target:
        return Needed(measured[0][0], "<")
    for (before, above), (after, below) in itertools.pairwise(measured):
        if below <= target:
            fraction = log(above / target) / log(above / below)
            return Needed(before * (after / before) ** fraction)
    return Needed(measured[-1][0], ">")
