"""Train and evaluate the arms of experiments that have no row yet."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.experiments.design import Experiment, run_folder
from benchmarks.experiments.measures import extra
from benchmarks.rows import RESULTS, append, missing
from benchmarks.runs import Run, train_run
from multisagd import Band, DataStatistics, Outside, SpectralCovariance
from multisagd.samplers import Sampler
from multisagd.sampling import time_steps
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.sets import fixed_order

ALLOW = ("benchmarks",)
PERMISSION = ("allow_targets=[benchmarks]",)


def measure(experiment: Experiment, options: argparse.Namespace, arms: list[str], path: Path = RESULTS) -> None:
    """Train and evaluate all arms without a row, one seed after another; or print the commands."""
    wanted = [
        {"arm": arm, "size": options.size, "seed": seed}
        for seed in options.seeds for arm in (*arms, *experiment.untrained)
    ]  # fmt: skip
    for row in missing(experiment.name, wanted, path):
        name, seed = row["arm"], row["seed"]
        untrained = name in experiment.untrained
        # Real examples are evaluated with the classifier and reference of the first arm's run.
        arguments = experiment.arguments(next(iter(experiment.arms)) if untrained else name, seed, options.size)
        run_dir = options.work / run_folder(arguments)
        if options.commands:
            if not untrained:
                print(f"multisagd train {shlex.join([*arguments, *PERMISSION, f'run_dir={run_dir}'])}")
            continue
        train_run(run_dir, [*arguments, *PERMISSION, f"engine.threads={options.threads}"])
        run = Run.load(run_dir, experiment.reference, options.threads, allow=ALLOW)
        x0, labels = real(experiment, run, name, seed) if untrained else drawn(experiment, run, seed)
        if not untrained:
            save_file({"x0": x0[:200].contiguous()}, run_dir / "judged.safetensors")
        values = judge(experiment, run, x0, labels) | extra(experiment, arguments, run, x0)
        append(experiment.name, row, values, path)
        shown = {key: round(values[key], 3) for key in METRICS if key in values}
        print(f"{experiment.name}: {name}, seed {seed}: {shown}", flush=True)


def drawn(experiment: Experiment, run: Run, seed: int) -> tuple[Tensor, Tensor | None]:
    """Draw samples from a run, and return them with their classes."""
    config = configuration.load("sample", [f"sampler={experiment.sampler}", "run_dir=none"])["sampler"]
    sampler = Builder().build(config, Sampler, "sampler", statistics=run.statistics)  # type: ignore[type-abstract]
    times = time_steps(run.denoiser.process.schedule, experiment.steps)
    return run.draw(sampler, experiment.steps, seed, experiment.count, times), run.labels(experiment.count)


def real(experiment: Experiment, run: Run, arm: str, seed: int) -> tuple[Tensor, Tensor | None]:
    """Return clean examples outside the reference, with a band removed if the arm is in `without`."""
    needed = experiment.reference + experiment.count * (seed + 1)
    if needed > len(run.examples):
        raise SystemExit(
            f"{experiment.name}: seed {seed} needs {needed:,} real examples, but there are only {len(run.examples):,}"
        )
    places = fixed_order(run.examples, needed)
    batch = run.examples.batch(places[-experiment.count :])
    if arm not in experiment.without:
        return batch.x0, batch.labels
    low, high = experiment.without[arm]
    outside = SpectralCovariance(Outside(Band(low, high, unit="diagonal")), run.statistics.grid)
    # A projected model that omits the band also has the mean of the data there.
    mean = run.statistics.mean.to(batch.x0)
    return mean + outside.project(batch.x0 - mean), batch.labels


def judge(experiment: Experiment, run: Run, x0: Tensor, labels: Tensor | None) -> dict[str, Any]:
    """Compare samples with clean examples."""
    clean = run.examples.batch(fixed_order(run.examples, experiment.reference)).x0
    statistics = DataStatistics.measure([clean], run.statistics.grid)
    judged = replace(run, statistics=statistics)
    values = judged.judge(x0, labels) | judged.axis_errors(x0) | {"rings_db": ring_errors(x0, statistics)}
    return values | {"count": experiment.count, "steps": experiment.steps} | run.conditions()


def ring_errors(x0: Tensor, statistics: DataStatistics, rings: int = 8) -> list[float]:
    """Return 10 log10 of generated over real power, at zero frequency and in rings of equal width up to the corner."""
    power = DataStatistics.measure([x0], statistics.grid).power.mean(0)
    real = statistics.power.mean(0)
    ratios = [float((power * weight).sum() / (real * weight).sum()) for _, _, weight in statistics.grid.bands(rings)]
    return [round(float(10 * torch.tensor(ratio).log10()), 4) for ratio in ratios]


METRICS = ("frechet_distance", "spectrum_error_db", "recognised")
