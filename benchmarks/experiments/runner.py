"""Train and judge the arms of experiments, whatever of them has no row yet."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.experiments.design import REAL, Experiment, run_folder
from benchmarks.rows import append, missing
from benchmarks.runs import Run, train_run
from multisagd import DataStatistics
from multisagd.samplers import Sampler
from multisagd.sampling import time_steps
from recipes.engine import config as configuration
from recipes.engine.build import Builder
from recipes.fidelity import chosen

ALLOW = ("benchmarks",)


def measure(experiment: Experiment, options: argparse.Namespace, arms: list[str]) -> None:
    """Train and judge what has no row yet, all arms of one seed before the next; or print the commands."""
    wanted = [
        {"arm": arm, "size": options.size, "seed": seed} for seed in options.seeds for arm in (*arms, REAL)
    ]  # fmt: skip
    for row in missing(experiment.name, wanted):
        name, seed = row["arm"], row["seed"]
        # Real examples are judged as the run of the first arm would be, whose classifier and reference they share.
        arguments = experiment.arguments(arms[0] if name == REAL else name, seed, options.size)
        run_dir = options.work / run_folder(arguments)
        if options.commands:
            if name != REAL:
                print(f"multisagd train {shlex.join([*arguments, f'run_dir={run_dir}'])}")
            continue
        train_run(run_dir, [*arguments, f"engine.threads={options.threads}", "allow_targets=[benchmarks]"])
        values = judge(experiment, run_dir, name == REAL, seed, options.threads)
        append(experiment.name, row, values)
        shown = {key: round(values[key], 3) for key in METRICS if key in values}
        print(f"{experiment.name}: {name}, seed {seed}: {shown}", flush=True)


def judge(experiment: Experiment, run_dir: Path, real: bool, seed: int, threads: int) -> dict[str, Any]:
    """Draw samples of a run, or take real examples in their place, and compare them with clean examples."""
    run = Run.load(run_dir, experiment.reference, threads, allow=ALLOW)
    clean = run.examples.batch(chosen(run.examples, experiment.reference)).x0
    statistics = DataStatistics.measure([clean], run.statistics.grid)
    if real:
        places = chosen(run.examples, experiment.reference + experiment.count * (seed + 1))
        batch = run.examples.batch(places[-experiment.count :])
        x0, labels = batch.x0, batch.labels
    else:
        schedule = run.denoiser.process.schedule
        sampler = Builder().build(
            configuration.load("sample", [f"sampler={experiment.sampler}", "run_dir=none"])["sampler"],
            Sampler, "sampler", statistics=run.statistics,  # type: ignore[type-abstract]
        )  # fmt: skip
        times = time_steps(schedule, experiment.steps)
        x0, labels = run.draw(sampler, experiment.steps, seed, experiment.count, times), run.labels(experiment.count)
        save_file({"x0": x0[:200].contiguous()}, run_dir / "judged.safetensors")
    judged = replace(run, statistics=statistics)
    values = judged.judge(x0, labels) | judged.axis_errors(x0) | {"rings_db": ring_errors(x0, statistics)}
    return values | {"count": experiment.count, "steps": experiment.steps} | run.conditions()


def ring_errors(x0: torch.Tensor, statistics: DataStatistics, rings: int = 8) -> list[float]:
    """Return 10 log10 of generated over real power, in zero frequency and rings of equal width up to the corner."""
    power = DataStatistics.measure([x0], statistics.grid).power.mean(0)
    real = statistics.power.mean(0)
    ratios = [float((power * weight).sum() / (real * weight).sum()) for _, _, weight in statistics.grid.bands(rings)]
    return [round(float(10 * torch.tensor(ratio).log10()), 4) for ratio in ratios]


METRICS = ("frechet_distance", "spectrum_error_db", "recognised")
