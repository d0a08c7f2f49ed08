"""What an experiment measures beyond `benchmarks.runs`: motion of videos, and power where the data were corrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import log10, sqrt
from statistics import mean
from typing import Any

from torch import Tensor

from benchmarks.experiments.design import Experiment
from multisagd import DataStatistics, Grid, Spectrum
from recipes.engine import config as configuration
from recipes.engine.build import Builder
from recipes.profiles import neighbour_difference

RINGS = 8
LEAST = -40.0
"""Decibels below which there is as good as nothing: what is left out has none, give or take rounding."""


def extra(experiment: Experiment, config: Mapping[str, Any], x0: Tensor, clean: Tensor, grid: Grid) -> dict[str, float]:
    """Return further numbers about samples (count, channels, *grid) beside clean examples, 0 dB where they agree.

    `frame_change_db`, of videos: 20 log10 of the mean absolute difference of neighbouring frames over that of the clean
    examples. Where some arm has corrupted data, `watched_db`: 10 log10 of the power at the corrupted frequencies over
    the clean examples'; and `elsewhere_db`: the root mean square of the same over rings of all other frequencies. The
    corruption is the run's own, as its `config` says, or the only one that the experiment has.
    """
    values = {}
    if "frame" in grid.names:
        made, real = (neighbour_difference([(each, None)], grid, "frame") for each in (x0, clean))
        values["frame_change_db"] = decibels(made / real, factor=20)
    spectrum = watched(experiment, config)
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
    # In this order a ratio that is not a number stays so.
    return max(factor * log10(ratio), LEAST) if ratio != 0 else LEAST


def watched(experiment: Experiment, config: Mapping[str, Any]) -> Spectrum | None:
    """Return the spectrum of the corruption that a run's data had, or else of the only one in the experiment."""
    own = config.get("corruption") or {}
    described = own.get("spectrum")
    if described is None:
        said = [experiment.arguments(arm, 0, "cpu") for arm in experiment.arms]
        corrupted = {tuple(word for word in words if word.startswith("corruption")): words for words in said}
        found = {
            json.dumps(configuration.load("train", [*words, "run_dir=unused"])["corruption"]["spectrum"])
            for corruption, words in corrupted.items()
            if corruption
        }
        if len(found) != 1:
            return None
        described = json.loads(found.pop())
    return Builder().build(described, Spectrum, "corruption.spectrum")
