"""Designed steps beside the usual ones on a trained run: `python -m benchmarks.schedules_on_runs RUN …`.

For every number of steps, schedule and sampling seed: samples of the run by DDIM on those log-SNRs (the last row by the
Gaussian integrator on the steps designed for DDIM), then

- the spectrum error: root mean square over rings of frequency (`radial_profile`) of 10 log10 of generated over real
  power about the mean, in dB;
- the Fréchet distance of classifier features to real examples, as `multisagd fidelity` measures it, but of tensors, not
  of files; at these counts it is larger than at more, and to be compared in this table only.

Designs are made from the run's own statistics between the log-SNRs `multisagd design` takes. Rows are appended to
benchmarks/results/results.jsonl; what is there already is not measured again. Afterwards, or with --show, the table of
means and standard deviations over seeds is printed.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import append, missing, rows
from modalities.base import Modality
from multisagd import DDIM, DataStatistics, Denoiser, GaussianIntegrator, Process
from multisagd.analysis.baselines import baselines, trajectory_regular
from multisagd.analysis.design import design_schedule, spectral_ends
from multisagd.analysis.profiles import radial_profile
from multisagd.samplers import Sampler
from multisagd.seeds import derive_many
from recipes.engine import config as configuration
from recipes.engine import record
from recipes.engine.assemble import Assembly
from recipes.engine.build import Builder
from recipes.engine.checkpoint import Checkpoints
from recipes.engine.data import load_statistics
from recipes.engine.generate import generate
from recipes.engine.runtime import EngineSettings, Runtime
from recipes.features import cached_network, read_dataset, read_samples
from recipes.fidelity import chosen, real_data
from recipes.metrics import frechet_distance
from recipes.sample import trained

EXPERIMENT = "schedules on runs"
SCHEDULES = (
    "designed W2", "designed KL", "cosine", "linear", "sigmoid", "karras", "flow", "flow, shift 3", "log-SNR",
    "trajectory-regular", "gaussian integrator",
)  # fmt: skip


def log_snrs(schedule: str, steps: int, statistics: DataStatistics, process: Process) -> Tensor:
    """Return the rising log-SNRs of a schedule by its name."""
    ends = spectral_ends(statistics, process)
    if schedule in ("designed W2", "designed KL", "gaussian integrator"):
        objective: Any = "kl" if schedule.endswith("KL") else "w2"
        designed = design_schedule(statistics, process, steps, objective, ends=ends, restarts=3)
        return torch.tensor(designed.log_snrs, dtype=torch.float64)
    if schedule == "trajectory-regular":
        return trajectory_regular(statistics, process, steps, ends)
    return baselines(steps, ends)[schedule]


def spectrum_error(x0: Tensor, statistics: DataStatistics) -> float:
    """Return the error of the samples' radial power, in dB."""
    made = DataStatistics.measure([x0], statistics.grid)
    ours, theirs = (radial_profile(each.power.mean(0), statistics.grid).power for each in (made, statistics))
    return float((10 * (ours / theirs).log10()).square().mean().sqrt())


def measure(run_dir: Path, options: argparse.Namespace) -> None:
    """Measure all arms of a run that have no row yet."""
    name = run_dir.name
    arms = [
        {"run": name, "steps": steps, "schedule": schedule, "seed": seed, "count": options.count}
        for steps, schedule, seed in itertools.product(options.steps, options.schedules, options.seeds)
    ]
    left = missing(EXPERIMENT, arms)
    if not left:
        return
    builder, runtime = Builder(()), Runtime.start(EngineSettings(threads=options.threads))
    run_config, facts = configuration.read(run_dir / "config.yaml"), record.read_facts(run_dir)
    modality = builder.build(run_config["modality"], Modality, "modality")  # type: ignore[type-abstract]
    classes = None if facts["classes"] is None else tuple(facts["classes"])
    statistics = load_statistics(run_dir)
    state = Checkpoints(run_dir / "checkpoints").latest()
    if state is None:
        raise SystemExit(f"{run_dir} has no checkpoint")
    denoiser = trained(Assembly(run_config, builder, modality, statistics, classes), state, "ema", runtime)
    train, test = real_data(run_config, builder)
    network, _ = cached_network(train, test)
    real = read_dataset(network, train, chosen(train, options.reference)).features
    labels = None if classes is None else torch.arange(options.count) % len(classes)
    for arm in left:
        x0 = draw(denoiser, arm, statistics, labels, runtime)
        values = {
            "spectrum_error_db": spectrum_error(x0, statistics),
            "frechet_distance": frechet_distance(read_samples(network, x0, labels).features, real),
            "samples_seen": state.samples,
            "reference": options.reference,
            "versions": record.versions(),
            "threads": torch.get_num_threads(),
        }
        append(EXPERIMENT, arm, values)
        print(f"{arm}: {values['spectrum_error_db']:.2f} dB, {values['frechet_distance']:.2f}", flush=True)


def draw(
    denoiser: Denoiser, arm: dict[str, Any], statistics: DataStatistics, labels: Tensor | None, runtime: Runtime
) -> Tensor:
    """Draw the samples of one arm."""
    process = denoiser.process
    times = process.schedule.time(log_snrs(arm["schedule"], arm["steps"], statistics, process))
    sampler: Sampler = GaussianIntegrator(statistics) if arm["schedule"] == "gaussian integrator" else DDIM()
    seeds = derive_many(arm["seed"], "sample", 0, range(arm["count"]))
    shape = (statistics.mean.shape[0], *statistics.grid.shape)
    return generate(denoiser, sampler, shape, arm["steps"], seeds, labels, runtime, times=times)


def show(run: str) -> None:
    """Print the table of a run."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for row in rows(EXPERIMENT):
        if row["arm"]["run"] == run:
            key = (row["arm"]["schedule"], row["arm"]["steps"])
            found.setdefault(key, []).append((row["spectrum_error_db"], row["frechet_distance"]))
    steps = sorted({key[1] for key in found})
    table = Table("schedule", *(f"{count} steps" for count in steps), box=box.SIMPLE, title=f"{run}: dB / Fréchet")
    for schedule in SCHEDULES:
        cells = [found.get((schedule, count), []) for count in steps]
        table.add_row(schedule, *(" / ".join(_spread(values) for values in zip(*cell, strict=True)) for cell in cells))
    Console(width=140).print(table)


def _spread(values: tuple[float, ...]) -> str:
    return f"{mean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{mean(values):.2f}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--schedules", nargs="+", choices=SCHEDULES, default=list(SCHEDULES))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--reference", type=int, default=2000)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--show", action="store_true", help="only print what was measured")
    options = parser.parse_args()
    for run in options.run:
        if not options.show:
            measure(run, options)
        show(run.name)


if __name__ == "__main__":
    main()
