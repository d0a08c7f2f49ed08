"""The measured results of an experiment, as numbers, and the metrics on which the page focuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from benchmarks.experiments.design import Experiment
from benchmarks.experiments.tables import found
from benchmarks.experiments.verdicts import METRICS, Measured, Metric

FOCUS: Mapping[str, tuple[str, ...]] = {
    "temporal_noise_video": ("frame_change_db", "axis_errors_db.frame"),
    "flicker_video": ("watched_db", "elsewhere_db", "frame_change_db"),
    "hum_audio": ("watched_db", "elsewhere_db"),
}
"""Metrics from which conclusions are drawn; the first one is plotted. Other experiments use `USUAL`."""
USUAL = ("frechet_distance", "spectrum_error_db")


@dataclass(frozen=True)
class Results:
    """The rows of an experiment at one size: as numbers by arm, seed and metric, and unchanged (`raw`)."""

    experiment: Experiment
    size: str
    raw: Mapping[str, Mapping[int, Mapping[str, Any]]]
    numbers: Measured

    @classmethod
    def read(cls, experiment: Experiment, size: str, path: Path) -> Results:
        """Read the rows of an experiment from the results file."""
        raw = found(experiment, size, path)
        return cls(
            experiment, size, raw, {arm: {s: flat(row) for s, row in seeds.items()} for arm, seeds in raw.items()}
        )

    @property
    def metrics(self) -> list[Metric]:
        """Return the metrics that occur in at least one row."""
        rows = [row for seeds in self.numbers.values() for row in seeds.values()]
        return [metric for metric in METRICS if any(metric.key in row for row in rows)]

    @property
    def focus(self) -> list[Metric]:
        """Return the measured metrics from which conclusions are drawn."""
        names = FOCUS.get(self.experiment.name, USUAL)
        return sorted((m for m in self.metrics if m.key in names), key=lambda metric: names.index(metric.key))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return each measured arm with the arm that it is compared with, if both were measured."""
        each = [(arm, self.experiment.other(arm)) for arm in self.numbers if arm not in self.experiment.untrained]
        return [(arm, other) for arm, other in each if other in self.numbers and other is not None]


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a row; numbers in a nested mapping have the key `name.key`."""
    values: dict[str, float] = {}
    for name, value in row.items():
        inside = value if isinstance(value, Mapping) else {}
        for key, each in ({name: value} | {f"{name}.{part}": one for part, one in inside.items()}).items():
            if isinstance(each, int | float) and not isinstance(each, bool) and isfinite(each):
                values[key] = float(each)
    return values
