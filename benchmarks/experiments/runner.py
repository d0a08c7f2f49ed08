"""Train and judge the arms of experiments that have no row yet."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.experiments import measures
from benchmarks.experiments.design import FEW, Experiment, run_folder
from benchmarks.experiments.plain_loop import train_plain
from benchmarks.pool import completed, processes
from benchmarks.rows import RESULTS, append, missing
from benchmarks.runs import Run, train_run
from recipes.base.errors import RecipeError
from recipes.training.learner import DivergedError

ALLOW = ("benchmarks",)
PERMISSION = ("allow_targets=[benchmarks]",)
SHOWN = 200
"""Number of samples kept in the folder of a run."""
Row = tuple[Experiment, dict[str, Any]]
"""An experiment, and what identifies one of its rows: arm, size and seed."""


@dataclass(frozen=True)
class Job:
    """A training run, and the rows that are measured on it, possibly of several experiments."""

    folder: str
    arguments: tuple[str, ...]
    plain: bool
    rows: list[Row] = field(default_factory=list)

    def command(self, work: Path) -> str:
        """Return the command that trains the run; a plain loop has none."""
        words = shlex.join([*self.arguments, *PERMISSION, f"run_dir={work / self.folder}"])
        return f"{'# a plain loop, not a command: ' if self.plain else ''}multisagd train {words}"


@dataclass(frozen=True)
class Options:
    """What to run, and where."""

    size: str = "cpu"
    seeds: tuple[int, ...] = (0,)
    arms: tuple[str, ...] | None = None
    work: Path = Path("runs/experiments")
    workers: int = 1
    threads: int = 1


def jobs(chosen: Iterable[Experiment], options: Options, results: Path = RESULTS) -> list[Job]:
    """Return the training runs with missing rows: all of the first seed, then all of the next.

    Real examples are judged by the run of the first arm.
    """
    found: dict[str, Job] = {}
    experiments = list(chosen)
    for seed in options.seeds:
        for experiment in experiments:
            names = [*experiment.arms, *experiment.untrained]
            wanted = [
                {"arm": arm, "size": options.size, "seed": seed}
                for arm in names
                if (arm not in experiment.few or seed < FEW) and (options.arms is None or arm in options.arms)
            ]  # fmt: skip
            for row in missing(experiment.name, wanted, results):
                trained = row["arm"] if row["arm"] in experiment.arms else next(iter(experiment.arms))
                plain = trained in experiment.plain
                arguments = tuple(experiment.arguments(trained, seed, options.size))
                folder = f"{'plain_' if plain else ''}{run_folder(list(arguments))}"
                found.setdefault(folder, Job(folder, arguments, plain)).rows.append((experiment, row))
    return list(found.values())


def measure(job: Job, work: Path, threads: int) -> list[dict[str, Any]]:
    """Train a run unless it is trained already, and return the values of its rows. A diverged run is a result."""
    folder = work / job.folder
    try:
        if job.plain:
            train_plain(folder, list(job.arguments), threads)
        else:
            train_run(folder, [*job.arguments, *PERMISSION, f"engine.threads={threads}"])
    except RecipeError as error:
        if not isinstance(error.__cause__ or error, DivergedError):
            raise
        return [{"error": str(error)} for _ in job.rows]
    torch.set_num_threads(threads)
    read, known = dict[str, Run](), dict[str, dict[str, Any]]()
    return [_judged(each, job, folder, threads, read, known) for each in job.rows]


def _judged(
    each: Row, job: Job, folder: Path, threads: int, read: dict[str, Run], known: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return the values of a row; runs that were read, and values of rows judged equally, are kept for later rows."""
    (whole, row), arguments = each, list(job.arguments)
    arm, seed = row["arm"], row["seed"]
    experiment, reference = whole.judged(arm, seed), whole.reference
    # All arms of an experiment are judged by the same data, also one that is trained on others.
    data = [*whole.arguments(next(iter(whole.arms)), seed, row["size"]), *PERMISSION]
    judges = repr((data, reference))
    if judges not in read:
        read[judges] = Run.load(folder, reference, threads, ALLOW, data)
    run = read[judges]
    if arm in experiment.untrained:
        return measures.judge_real(experiment, run, arguments, arm, seed)
    how = (experiment.steps, experiment.more_steps, experiment.count, experiment.points, experiment.likelihood,
           experiment.even_in_time, experiment.calibrated)  # fmt: skip
    same = repr((judges, how, measures.watched(experiment, arguments)))
    if same not in known:
        known[same], x0 = measures.judge(experiment, run, arguments, seed)
        save_file({"x0": x0[:SHOWN].contiguous()}, folder / "judged.safetensors")
    return known[same]


def run_all(chosen: Iterable[Experiment], options: Options, results: Path = RESULTS) -> list[str]:
    """Measure what is missing, and return messages about the runs that failed; the others go on."""
    planned, failed = jobs(chosen, options, results), list[str]()
    done: list[Job] = []
    with processes(options.workers) as pool:
        # The first run is alone: it trains and caches the classifier that the others use.
        calls = [(job, options.work, options.threads) for job in planned]
        for place, values in completed(pool, measure, calls, lambda: options.workers if done else 1):
            job = planned[place]
            done.append(job)
            if isinstance(values, BaseException):
                failed.append(f"{job.folder}: {type(values).__name__}: {values}")
                print(failed[-1], flush=True)
                continue
            for (experiment, row), each in zip(job.rows, values, strict=True):
                append(experiment.name, row, each, results)
                print(
                    f"[{len(done)}/{len(planned)}] {experiment.name}: {row['arm']}, seed {row['seed']}: {_short(each)}",
                    flush=True,
                )
    return failed


def _short(values: Mapping[str, Any]) -> str:
    shown = {
        f"{sampler} {key}": round(values[sampler][key], 3)
        for sampler in measures.CHOICES if sampler in values
        for key in ("frechet_distance", "spectrum_error_db") if key in values[sampler]
    }  # fmt: skip
    return ", ".join(f"{key} {value}" for key, value in shown.items()) or str(values.get("error", ""))
