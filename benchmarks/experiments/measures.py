"""Further metrics of experiments, besides `benchmarks.runs`: motion of videos, and power in the corrupted band."""

from __future__ import annotations

import json
from math import log10, sqrt
from statistics import mean
from typing import Any

from torch import Tensor

from benchmarks.experiments.design import Experiment
from benchmarks.runs import Run
from multisagd import DataStatistics, Grid, Spectrum
from multisagd.metrics.axes import mean_difference, neighbour_differences
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.sets import fixed_order

RINGS = 8
LEAST = -40.0
"""Smallest value in decibels: omitted frequencies have no power, up to rounding."""


def extra(experiment: Experiment, arguments: list[str], run: Run, x0: Tensor) -> dict[str, float]:
    """Return further metrics of samples from a run trained with these arguments, compared with clean examples."""
    spectrum = watched(experiment, arguments)
    grid = run.statistics.grid
    if spectrum is None and "frame" not in grid.names:
        return {}
    clean = run.examples.batch(fixed_order(run.examples, experiment.reference)).x0
    return compare(x0, clean, grid, spectrum)


def compare(x0: Tensor, clean: Tensor, grid: Grid, spectrum: Spectrum | None) -> dict[str, float]:
    """Return metrics of samples `(count, channels, *grid)` compared with clean examples, in dB; 0 dB if they agree.

    `frame_change_db`, for videos, is 20 log10 of the mean absolute difference between neighbouring frames, divided by
    the same for clean examples. With the spectrum of a corruption, `watched_db` is 10 log10 of the power at the
    corrupted frequencies divided by the power of clean examples there, and `elsewhere_db` is the root mean square of
    this ratio over rings of all other frequencies.
    """
    values = {}
    if "frame" in grid.names:
        differences = (neighbour_differences([(each, None)], grid, "frame") for each in (x0, clean))
        made, real = (float(mean_difference(each)) for each in differences)
        values["frame_change_db"] = decibels(made / real, factor=20)
    if spectrum is not None:
        inside = spectrum.power(grid) > 0
        power, expected = (DataStatistics.measure([each], grid).power.mean(0) for each in (x0, clean))
        rings = [weight * ~inside for *_, weight in grid.bands(RINGS)]
        ratios = [float((power * ring).sum() / (expected * ring).sum()) for ring in rings if bool(ring.any())]
        there = inside * grid.multiplicity
        values["watched_db"] = decibels(float((power * there).sum() / (expected * there).sum()))
        values["elsewhere_db"] = sqrt(mean(decibels(ratio) ** 2 for ratio in ratios))
    return values


def decibels(ratio: float, factor: int = 10) -> float:
    """Return a ratio in decibels, at least `LEAST`."""
    # With this order of the arguments, NaN is returned unchanged.
    return max(factor * log10(ratio), LEAST) if ratio != 0 else LEAST


def watched(experiment: Experiment, arguments: list[str]) -> Spectrum | None:
    """Return the spectrum of the corruption in these arguments, or else of the only corruption in the experiment."""
    described = _corruption(arguments)
    if described is None:
        # Arms also differ in other arguments, and composing a configuration takes time.
        each = {_named(words): words for words in (experiment.arguments(arm, 0, "cpu") for arm in experiment.arms)}
        found = {json.dumps(_corruption(words)) for named, words in each.items() if named}
        if len(found) != 1:
            return None
        described = json.loads(found.pop())
    return Builder().build(described, Spectrum, "corruption.spectrum")


def _named(arguments: list[str]) -> tuple[str, ...]:
    return tuple(word for word in arguments if word.startswith("corruption"))


def _corruption(arguments: list[str]) -> dict[str, Any] | None:
    if not _named(arguments):
        return None
    config = configuration.load("train", [*arguments, "run_dir=unused"])
    spectrum: dict[str, Any] | None = config["corruption"].get("spectrum")
    return spectrum
