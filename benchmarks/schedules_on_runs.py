"""Compare designed steps with the usual ones on a trained run: `python -m benchmarks.schedules_on_runs RUN …`.

For every number of steps, schedule and sampling seed, samples are drawn by DDIM at these log-SNRs (in the last row by
the Gaussian integrator at the steps designed for DDIM) and evaluated as in `benchmarks.runs`: spectrum error, Fréchet
distance of classifier features, fraction recognised. The distance is larger than with more samples, and is comparable
only within this table.

Designs use the run's own statistics, between the default log-SNRs of `multisagd design`. Rows are appended to
benchmarks/results/results.jsonl; existing rows are not measured again. Afterwards, or with --show, the table of
means and standard deviations over seeds is printed.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import append, missing
from benchmarks.runs import Run, by_steps
from multisagd import DDIM, DataStatistics, GaussianIntegrator, Process
from multisagd.analysis.baselines import baselines, trajectory_regular
from multisagd.analysis.design import design_schedule, spectral_ends
from multisagd.samplers import Sampler

EXPERIMENT = "schedules on runs"
REFERENCE = 2000
SCHEDULES = (
    "designed W2", "designed KL", "cosine", "linear", "sigmoid", "karras", "flow", "flow, shift 3", "log-SNR",
    "trajectory-regular", "gaussian integrator",
)  # fmt: skip


def log_snrs(schedule: str, steps: int, statistics: DataStatistics, process: Process) -> Tensor:
    """Return the increasing log-SNRs of a schedule by its name."""
    ends = spectral_ends(statistics, process)
    if schedule in ("designed W2", "designed KL", "gaussian integrator"):
        objective: Any = "kl" if schedule.endswith("KL") else "w2"
        designed = design_schedule(statistics, process, steps, objective, ends=ends, restarts=3)
        return torch.tensor(designed.log_snrs, dtype=torch.float64)
    if schedule == "trajectory-regular":
        return trajectory_regular(statistics, process, steps, ends)
    return baselines(steps, ends)[schedule]


def measure(run_dir: Path, options: argparse.Namespace) -> None:
    """Measure all arms of a run without a row."""
    arms = [
        {"run": run_dir.name, "steps": steps, "schedule": schedule, "seed": seed, "count": options.count}
        for steps, schedule, seed in itertools.product(options.steps, options.schedules, options.seeds)
    ]
    left = missing(EXPERIMENT, arms)
    if not left:
        return
    run = Run.load(run_dir, REFERENCE, options.threads)
    for arm in left:
        process = run.denoiser.process
        times = process.schedule.time(log_snrs(arm["schedule"], arm["steps"], run.statistics, process))
        integrator = arm["schedule"] == "gaussian integrator"
        sampler: Sampler = GaussianIntegrator(run.statistics) if integrator else DDIM()
        values = run.judge(run.draw(sampler, arm["steps"], arm["seed"], arm["count"], times))
        append(EXPERIMENT, arm, values | run.conditions())
        print(f"{arm}: {values}", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--show", action="store_true", help="only print existing results")
    options = parser.parse_args()
    for run in options.run:
        if not options.show:
            measure(run, options)
        by_steps(EXPERIMENT, run.name, "schedule", SCHEDULES, ("spectrum_error_db", "frechet_distance"))


if __name__ == "__main__":
    main()
