"""Build a schedule whose range of log-SNRs, if the configuration leaves it open, follows from the data's spectrum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multisagd import CosineSchedule, DataStatistics, Process, Schedule
from multisagd.analysis.design import wanted_ends
from multisagd.covariance import Covariance
from recipes.config.build import Builder

LEAST_RANGE = (-20.0, 20.0)
"""The range of log-SNRs that suffices for images and sounds, and is never narrowed."""
LARGEST = 80.0
"""Absolute log-SNR that no schedule exceeds."""


def build_schedule(
    group: Mapping[str, Any], builder: Builder, statistics: DataStatistics, covariance: Covariance
) -> Schedule:
    """Return the schedule of a configuration group for data with these statistics and noise of this covariance.

    `log_snr_range: null` stands for `spectral_range`. Raises RecipeError if the group is invalid.
    """
    found = spectral_range(statistics, covariance)
    return builder.build(group, Schedule, "schedule", log_snr_range=found)


def spectral_range(statistics: DataStatistics, covariance: Covariance) -> tuple[float, float]:
    """Return the range of log-SNRs that the data need: at least -20 to 20, and more if their spectrum spans more.

    It is wider if 1 % of the strongest frequency is visible at -20, or noise is more than 1 % of the weakest frequency
    at 20. Noise that is not diagonal in frequency, and data without power where there is noise, leave it as it is.
    """
    low, high = LEAST_RANGE
    if not covariance.diagonal:
        return low, high
    try:
        first, last = wanted_ends(statistics, Process(CosineSchedule(), covariance))
    except ValueError:  # no power where there is noise, or a degenerate spectrum, which is reported where it is used
        return low, high
    return max(min(low, first), -LARGEST), min(max(high, last), LARGEST)
