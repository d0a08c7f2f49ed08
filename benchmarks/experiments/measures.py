"""Judge a run: its samples by two samplers, at several points of its training, and the likelihood of held-out data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log10, sqrt
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments.design import CALIBRATION, CPU, REAL, Experiment
from benchmarks.experiments.fields import field_errors
from benchmarks.experiments.metrics import SAMPLERS
from benchmarks.runs import Run
from multisagd import Band, DataStatistics, Grid, Outside, SpectralCovariance, Spectrum
from multisagd.calibration import calibrate
from multisagd.metrics.axes import mean_difference, neighbour_differences
from multisagd.samplers import Sampler
from multisagd.sampling import Spacing
from multisagd.seeds import derive_many
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.likelihood import BitsPerDimension
from recipes.evaluation.sets import fixed_order
from recipes.runs.checkpoint import Checkpoints, samples_of
from recipes.sampling.generate import SamplingRequest, step_times

CHOICES = {"ode": "dpm_solver", "sde": "dpm_solver_sde"}
"""The choices of `sampler=` by their keys in a row; steps are at the times that `multisagd sample` chooses."""
AT_POINTS = SAMPLERS[0]
"""The sampler by which a run is judged during training."""
LIKELIHOOD_STEPS = 20
"""Number of steps of the likelihood's ODE, which has four evaluations per step."""
RINGS = 8
LEAST = -40.0
"""Smallest value in decibels: omitted frequencies have no power, up to rounding."""


@dataclass(frozen=True)
class Judge:
    """Compares samples with the clean examples of an experiment; `watched` is the spectrum of the corruption."""

    experiment: Experiment
    run: Run
    clean: Tensor
    watched: Spectrum | None

    @classmethod
    def of(cls, experiment: Experiment, run: Run, arguments: list[str]) -> Judge:
        """Return the judge of a run trained with these arguments."""
        clean = run.examples.batch(fixed_order(run.examples, experiment.reference)).x0
        statistics = DataStatistics.measure([clean], run.statistics.grid)
        return cls(experiment, replace(run, statistics=statistics), clean, watched(experiment, arguments))

    def __call__(self, x0: Tensor, labels: Tensor | None) -> dict[str, Any]:
        """Return the metrics of samples x0 `(count, channels, *grid)` of these classes."""
        values = self.run.judge(x0, labels) | self.run.axis_errors(x0)
        rings = ring_errors(x0, self.run.statistics)
        if self.run.examples.modality.variables:
            values |= field_errors(x0, self.clean, self.run.statistics.grid)
        return values | {"rings_db": rings} | compare(x0, self.clean, self.run.statistics.grid, self.watched)


def judge(experiment: Experiment, run: Run, arguments: list[str], seed: int) -> tuple[dict[str, Any], Tensor]:
    """Return the values of the row of a run trained with these arguments, and its samples."""
    judged, labels = Judge.of(experiment, run, arguments), run.labels(experiment.count)
    count, steps = experiment.count, experiment.steps
    x0 = {name: drawn(run, name, steps, seed, count) for name in CHOICES}
    values: dict[str, Any] = {name: judged(each, labels) for name, each in x0.items()}
    values["at_steps"] = {
        str(number): {name: judged(drawn(run, name, number, seed, count), labels) for name in CHOICES}
        for number in experiment.more_steps
    }
    if experiment.even_in_time:
        even = {name: drawn(run, name, steps, seed, count, "time") for name in CHOICES}
        values["even_in_time"] = {name: judged(each, labels) for name, each in even.items()}
    if experiment.calibrated:
        drawn_so = {name: drawn_calibrated(run, name, steps, seed, count) for name in CHOICES}
        values["calibrated"] = {name: judged(each, labels) for name, each in drawn_so.items()}
    values["points"] = {}
    for samples in points(run.folder, run.samples_seen, experiment.points):
        early = drawn(run.at(samples), AT_POINTS, steps, seed, count)
        values["points"][str(samples)] = {AT_POINTS: judged(early, labels)}
    values["bits_per_dimension"] = likelihood(run, experiment.likelihood)
    return values | conditions(experiment, run), x0[AT_POINTS]


def judge_real(experiment: Experiment, run: Run, arguments: list[str], arm: str, seed: int) -> dict[str, Any]:
    """Return the values of the row of real examples, which are the same for all samplers."""
    judged = Judge.of(experiment, run, arguments)(*real(experiment, run, arm, seed))
    return dict.fromkeys(CHOICES, judged) | conditions(experiment, run)


def conditions(experiment: Experiment, run: Run) -> dict[str, Any]:
    """Return the conditions under which a row was measured."""
    return {"count": experiment.count, "steps": experiment.steps} | run.conditions()


def drawn(run: Run, name: str, steps: int, seed: int, count: int, spacing: Spacing | None = None) -> Tensor:
    """Draw samples from a run by one of the samplers, by default at the times that `multisagd sample` chooses."""
    return run.draw(_sampler(run, name), steps, seed, count, None, spacing=spacing)


def drawn_calibrated(run: Run, name: str, steps: int, seed: int, count: int) -> Tensor:
    """Draw samples as `drawn` does, from a run without classes, by a sampler that is calibrated with other samples."""
    sampler = _sampler(run, name)
    times = step_times(run.denoiser, SamplingRequest(sampler, steps))
    seeds = derive_many(0, "calibration", 0, range(CALIBRATION))
    with torch.no_grad():
        sampler = calibrate(sampler, run.denoiser, run.statistics, times, seeds, run.labels(CALIBRATION))
    return run.draw(sampler, steps, seed, count, times)


def _sampler(run: Run, name: str) -> Sampler:
    config = configuration.load("sample", [f"sampler={CHOICES[name]}", "run_dir=none"])["sampler"]
    return Builder().build(config, Sampler, "sampler", statistics=run.statistics)  # type: ignore[type-abstract]


def points(folder: Path, end: int, fractions: Sequence[float]) -> list[int]:
    """Return the samples seen at the first checkpoints at or after these fractions of training, which has ended.

    Raises:
        SystemExit: If the checkpoint of a point is missing.
    """
    kept = [samples_of(each) for each in Checkpoints(folder / "checkpoints").folders()]
    found = []
    for fraction in fractions:
        place = next((samples for samples in kept if fraction * end <= samples < end), None)
        if place is None or place in found:
            raise SystemExit(
                f"{folder}: there is no checkpoint at {fraction:.0%} of training: remove it to train again"
            )
        found.append(place)
    return found


def likelihood(run: Run, items: int, batch: int = 64) -> float | None:
    """Return the mean bits per dimension of fixed held-out items, with the same probes for every run.

    None if no items are requested, or the noise of the run has no likelihood.
    """
    if not items:
        return None
    process = run.denoiser.process
    if process.modulation is not None or not bool(process.covariance.support().all()):
        return None
    modality, conditional = run.examples.modality, run.classes is not None
    compute = BitsPerDimension(run.denoiser, run.statistics, modality, conditional, run.runtime, LIKELIHOOD_STEPS)
    chosen = fixed_order(run.held_out, items)
    bits = [
        compute(run.held_out.batch(chosen[start : start + batch]), range(start, min(start + batch, len(chosen))))
        for start in range(0, len(chosen), batch)
    ]
    return float(torch.cat(bits).mean())


def real(experiment: Experiment, run: Run, arm: str, seed: int) -> tuple[Tensor, Tensor | None]:
    """Return clean examples outside the reference, with a band removed if the arm is in `without`."""
    needed = experiment.reference + experiment.count * (seed + 1)
    if needed > len(run.examples):
        raise SystemExit(
            f"{experiment.name}: seed {seed} needs {needed:,} real examples, but there are only {len(run.examples):,}"
        )
    batch = run.examples.batch(fixed_order(run.examples, needed)[-experiment.count :])
    if arm == REAL:
        return batch.x0, batch.labels
    low, high = experiment.without[arm]
    outside = SpectralCovariance(Outside(Band(low, high, unit="diagonal")), run.statistics.grid)
    # A projected model that omits the band also has the mean of the data there.
    center = run.statistics.mean.to(batch.x0)
    return center + outside.project(batch.x0 - center), batch.labels


def ring_errors(x0: Tensor, statistics: DataStatistics) -> list[float]:
    """Return 10 log10 of generated over real power, at zero frequency and in rings of equal width up to the corner."""
    power = DataStatistics.measure([x0], statistics.grid).power.mean(0)
    expected = statistics.power.mean(0)
    weights = [weight for *_, weight in statistics.grid.bands(RINGS)]
    return [round(decibels(float((power * each).sum() / (expected * each).sum())), 4) for each in weights]


def compare(x0: Tensor, clean: Tensor, grid: Grid, spectrum: Spectrum | None) -> dict[str, float]:
    """Return further metrics of samples `(count, channels, *grid)` compared with clean examples, in dB.

    They are 0 if the two agree. `frame_change_db`, for videos, is 20 log10 of the mean absolute difference between
    neighbouring frames, divided by the same for clean examples. With the spectrum of a corruption, `watched_db` is 10
    log10 of the power at the corrupted frequencies divided by the power of clean examples there, and `elsewhere_db` is
    the root mean square of this ratio over rings of all other frequencies.
    """
    values = {}
    if "frame" in grid.names:
        differences = (neighbour_differences([(each, None)], grid, "frame") for each in (x0, clean))
        made, expected = (float(mean_difference(each)) for each in differences)
        values["frame_change_db"] = decibels(made / expected, factor=20)
    if spectrum is not None:
        inside = spectrum.power(grid) > 0
        power, wanted = (DataStatistics.measure([each], grid).power.mean(0) for each in (x0, clean))
        rings = [weight * ~inside for *_, weight in grid.bands(RINGS)]
        ratios = [float((power * ring).sum() / (wanted * ring).sum()) for ring in rings if bool(ring.any())]
        there = inside * grid.multiplicity
        values["watched_db"] = decibels(float((power * there).sum() / (wanted * there).sum()))
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
        each = {_named(words): words for words in (experiment.arguments(arm, 0, CPU) for arm in experiment.arms)}
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
