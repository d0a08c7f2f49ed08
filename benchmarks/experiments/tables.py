"""Tables of an experiment's rows: means and standard errors over seeds, and differences seed by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.experiments.design import Experiment
from benchmarks.rows import RESULTS, rows

METRICS = {"frechet_distance": "Fréchet distance", "spectrum_error_db": "spectrum, dB", "recognised": "recognised"}


def found(experiment: Experiment, size: str, path: Path = RESULTS) -> dict[str, dict[int, dict[str, Any]]]:
    """Return the rows of an experiment by arm and seed, arms in the order of its file."""
    measured: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows(experiment.name, path):
        if row["arm"]["size"] == size:
            measured.setdefault(row["arm"]["arm"], {})[row["arm"]["seed"]] = row
    return {arm: measured[arm] for arm in (*experiment.arms, *experiment.untrained) if arm in measured}


def with_error(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Format the mean of some values, and its standard error if there are several; empty if there are no values."""
    if not values:
        return ""
    shown = f"{mean(values):{sign}.{digits}f}"
    return f"{shown} ± {stdev(values) / sqrt(len(values)):.{digits}f}" if len(values) > 1 else shown


def finite(seeds: Mapping[int, Any], metric: str) -> dict[int, float]:
    """Return an arm's finite values of a metric by seed; a diverged run has no finite value."""
    each = {seed: seeds[seed].get(metric) for seed in sorted(seeds)}
    return {seed: value for seed, value in each.items() if value is not None and isfinite(value)}


def differences(mine: Mapping[int, Any], theirs: Mapping[int, Any], metric: str) -> list[float]:
    """Return the differences between two arms in a metric, for the seeds for which both have a value."""
    own, others = finite(mine, metric), finite(theirs, metric)
    return [value - others[seed] for seed, value in own.items() if seed in others]


def show(experiment: Experiment, size: str, path: Path = RESULTS) -> None:
    """Print the table of means and standard errors, and the table of differences."""
    measured = found(experiment, size, path)
    if not measured:
        print(f"{experiment.name}: nothing has been measured at size {size}")
        return
    table = Table("arm", *METRICS.values(), "seeds", box=box.SIMPLE, title=f"{experiment.title} ({size})")
    paired = Table("arm", "difference from", *METRICS.values(), box=box.SIMPLE, title="differences seed by seed")
    for arm, seeds in measured.items():
        cells = [with_error(list(finite(seeds, metric).values())) for metric in METRICS]
        table.add_row(arm, *cells, str(len(seeds)))
        other = experiment.other(arm)
        if other in measured:
            each = [differences(seeds, measured[other], metric) for metric in METRICS]
            paired.add_row(arm, other, *(with_error(values, sign="+") for values in each))
    Console(width=160).print(table, paired)
