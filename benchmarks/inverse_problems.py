"""Inverse problems and U-turns with a trained image run: `python -m benchmarks.inverse_problems --run RUN`.

Held-out images are blurred, masked in the middle, or downsampled 2 or 4 times, with noise added, and are estimated
without their class: by the mean and by samples of the Gaussian posterior, which use the spectrum of the data and no
network, and by the run's network with guidance (`multisagd.inverse`). Reported are the peak signal-to-noise ratio, the
fraction that a classifier recognises, and the difference between the measurement of the estimate and the measurement,
as a multiple of its noise: 1 for the truth, less if the noise is fitted.

Then U-turns (`multisagd.u_turn`) of held-out images: the fraction that keeps its class, and the distance.

Rows are appended to benchmarks/results/results.jsonl and not measured again; `--show` prints existing rows, and
`--picture` plots some of the estimates.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.rows import RESULTS, append, missing, rows
from benchmarks.runs import Run, spread
from multisagd import (
    DDIM,
    DPS,
    DataStatistics,
    Filtered,
    GaussianPosterior,
    Grid,
    Masked,
    Measurement,
    PiGDM,
    Pooled,
    sample,
    u_turn,
)
from multisagd.metrics.feature_network import read_samples
from multisagd.sampling import AnyDenoiser
from multisagd.seeds import derive_many
from recipes.evaluation.sets import fixed_order

PROBLEMS_EXPERIMENT, TURNS_EXPERIMENT = "inverse problems", "u-turns"
PROBLEMS = ("deblurring", "inpainting", "super-resolution 2x", "super-resolution 4x")
METHODS = (
    "Gaussian mean",
    "Gaussian sample",
    "DPS",
    "PiGDM, one variance",
    "PiGDM, per frequency",
    "PiGDM, per frequency, no gradient",
)
TURNS = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
NOISE = 0.05
"""Standard deviation of the noise of a measurement; images lie between -1 and 1."""
METRICS = ("psnr", "recognised", "consistency")


def problem(name: str, grid: Grid) -> Measurement:
    """Return a measurement of images: blur over a tenth of them, block averages, or a masked middle quarter."""
    if name == "deblurring":
        return Filtered.gaussian(grid.axes[-1].spacing * grid.shape[-1] / 10, grid)
    if name == "inpainting":
        mask = torch.ones(grid.shape, dtype=torch.bool)
        mask[tuple(slice(size // 4, size - size // 4) for size in grid.shape)] = False
        return Masked(mask, grid)
    return Pooled(dict.fromkeys(grid.names, int(name[-2])), grid)


def guided(method: str, denoiser: AnyDenoiser, known: DataStatistics, measured: Measurement, y: Tensor) -> AnyDenoiser:
    """Return the denoiser guided by the measurement y with a method."""
    if method == "DPS":
        return DPS(denoiser, measured, y, NOISE)
    if method == "PiGDM, one variance":
        return PiGDM(denoiser, measured, y, NOISE, known.sigma_data)
    if method == "PiGDM, per frequency":
        return PiGDM(denoiser, measured, y, NOISE, known)
    return PiGDM(denoiser, measured, y, NOISE, known, gradient=None)


def solve(run: Run, x0: Tensor, arm: dict[str, Any]) -> tuple[Tensor, Tensor, Measurement]:
    """Return the estimates of an arm, the measurements of x0, and the measurement operator."""
    measured, seed, items = problem(arm["problem"], run.statistics.grid), arm["seed"], range(len(x0))
    y = measured.observe(x0, NOISE, derive_many(seed, "measurement", 0, items))
    posterior, seeds = GaussianPosterior(run.statistics, measured, NOISE), derive_many(seed, "sample", 0, items)
    if arm["method"] == "Gaussian mean":
        return posterior.mean(y), y, measured
    if arm["method"] == "Gaussian sample":
        return posterior.sample(y, seeds), y, measured
    denoiser = guided(arm["method"], run.denoiser, run.statistics, measured, y)
    return sample(denoiser, DDIM(eta=arm["eta"]), x0.shape, arm["steps"], seeds), y, measured


def judge(estimate: Tensor, x0: Tensor, y: Tensor, measured: Measurement) -> dict[str, float]:
    """Return PSNR in dB and the consistency, means over the items, and the consistency of the worst item."""
    error = (estimate - x0).square().flatten(1).mean(1)
    miss = (y - measured.apply(estimate)).square().flatten(1).sum(1)
    numbers = measured.restrict(torch.ones_like(y)).flatten(1).sum(1)
    consistency = (miss / numbers).sqrt() / NOISE
    return {
        "psnr": float((10 * (4 / error).log10()).mean()),
        "consistency": float(consistency.mean()),
        "worst_consistency": float(consistency.max()),
    }


def images(run: Run, count: int) -> tuple[Tensor, Tensor]:
    """Return held-out images, on the run's device, and their classes."""
    x0, labels = run.held_out.batch(fixed_order(run.held_out, count))[:2]
    if labels is None or run.network is None:
        raise SystemExit("recognition needs a run on data with classes")
    return run.runtime.put(x0), labels


def measure(run_dir: Path, options: argparse.Namespace) -> None:
    """Measure all inverse problems and U-turns without a row."""
    common = {"run": run_dir.name, "count": options.count, "steps": options.steps, "eta": options.eta}
    wanted = [
        common | {"problem": name, "method": method, "seed": seed}
        for seed, name, method in itertools.product(options.seeds, PROBLEMS, METHODS)
    ]
    turns = [common | {"time": time, "seed": seed} for seed, time in itertools.product(options.seeds, TURNS)]
    left = missing(PROBLEMS_EXPERIMENT, wanted, options.results)
    left_turns = missing(TURNS_EXPERIMENT, turns, options.results)
    if not (left or left_turns):
        return
    run = Run.load(run_dir, options.count, options.threads)
    x0, labels = images(run, options.count)
    assert run.network is not None
    for arm in left:
        estimate, y, measured = solve(run, x0, arm)
        values = judge(estimate, x0, y, measured)
        values["recognised"] = read_samples(run.network, estimate.float().cpu(), labels).accuracy()
        append(PROBLEMS_EXPERIMENT, arm, values | run.conditions(), options.results)
        print(f"{arm}: {values}", flush=True)
    for arm in left_turns:
        seeds = derive_many(arm["seed"], "turn", 0, range(len(x0)))
        turned = u_turn(run.denoiser, DDIM(eta=arm["eta"]), x0, arm["time"], arm["steps"], seeds)
        values = turn(run, turned, x0) | {"log_snr": log_snr(run, arm["time"])}
        values["kept"] = read_samples(run.network, turned.float().cpu(), labels).accuracy()
        append(TURNS_EXPERIMENT, arm, values | run.conditions(), options.results)
        print(f"{arm}: {values}", flush=True)


def log_snr(run: Run, time: float) -> float:
    """Return the log-SNR at a time of the run's schedule."""
    return float(run.denoiser.process.schedule.log_snr(torch.tensor([time], dtype=torch.float64)))


def turn(run: Run, turned: Tensor, x0: Tensor) -> dict[str, float]:
    """Return the root mean square distance of a turn, relative to the distance of two random images."""
    apart = run.statistics.sigma_data * 2**0.5
    return {"distance": float((turned - x0).square().mean().sqrt()) / apart}


def tables(path: Path = RESULTS) -> list[Table]:
    """Return two tables for each run in the results: the inverse problems, and its U-turns."""
    found: dict[str, dict[tuple[str, str], list[dict[str, Any]]]] = {}
    for row in rows(PROBLEMS_EXPERIMENT, path):
        arm = row["arm"]
        found.setdefault(arm["run"], {}).setdefault((arm["problem"], arm["method"]), []).append(row)
    made = []
    for run, cells in found.items():
        table = Table("method", *PROBLEMS, box=box.SIMPLE, title=f"{run}: PSNR (dB) / recognised (%) / consistency")
        for method in METHODS:
            table.add_row(method, *(_cell(cells.get((name, method), [])) for name in PROBLEMS))
        made.append(table)
    turned: dict[str, dict[float, list[dict[str, Any]]]] = {}
    for row in rows(TURNS_EXPERIMENT, path):
        turned.setdefault(row["arm"]["run"], {}).setdefault(row["arm"]["time"], []).append(row)
    for run, times in turned.items():
        table = Table("T_u", "log-SNR", "class kept (%)", "distance", box=box.SIMPLE, title=f"{run}: U-turns")
        for time, each in sorted(times.items()):
            kept, distance = (tuple(row[key] for row in each) for key in ("kept", "distance"))
            shown = spread(tuple(100 * value for value in kept), 0), spread(distance)
            table.add_row(f"{time:g}", f"{mean(row['log_snr'] for row in each):.1f}", *shown)
        made.append(table)
    return made


def _cell(each: list[dict[str, Any]]) -> str:
    if not each:
        return ""
    psnr, recognised, consistency = (tuple(row[metric] for row in each) for metric in METRICS)
    return f"{spread(psnr, 1)} / {spread(tuple(100 * value for value in recognised), 0)} / {mean(consistency):.2f}"


def show(path: Path = RESULTS) -> None:
    """Print the tables."""
    for table in tables(path):
        Console(width=200).print(table)


def picture(run_dir: Path, options: argparse.Namespace, digits: int = 2) -> None:
    """Plot some images, their measurements and estimates, with a block of rows for each problem."""
    run = Run.load(run_dir, options.count, options.threads)
    x0 = images(run, options.count)[0][:digits]
    columns = ("truth", "measured", *METHODS)
    figure = Figure(figsize=(1.25 * len(columns), 1.22 * digits * len(PROBLEMS)), layout="constrained")
    plots = figure.subplots(digits * len(PROBLEMS), len(columns), squeeze=False)
    for place, name in enumerate(PROBLEMS):
        arm = {"problem": name, "seed": options.seeds[0], "steps": options.steps, "eta": options.eta}
        solved = {method: solve(run, x0, arm | {"method": method}) for method in METHODS}
        y = next(iter(solved.values()))[1]
        shown = [x0, y, *(estimate for estimate, _, _ in solved.values())]
        for digit in range(digits):
            row = plots[place * digits + digit]
            for plot, column, batch in zip(row, columns, shown, strict=True):
                plot.imshow(batch[digit, 0].cpu().numpy(), cmap="gray", vmin=-1, vmax=1)
                plot.set(xticks=[], yticks=[])
                if place == digit == 0:
                    plot.set_title(column.replace(", ", ",\n"), fontsize=8)
            row[0].set_ylabel(name.replace(" ", "\n"), fontsize=8)
    options.picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.picture, dpi=100)


def main() -> None:
    """Measure, plot and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a run on images with classes")
    parser.add_argument("--count", type=int, default=50, help="held-out images")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--eta", type=float, default=1.0, help="noise of DDIM: 1 is ancestral sampling")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--picture", type=Path, help="where to plot some estimates, for example a .png under docs/images"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of rows")
    parser.add_argument("--show", action="store_true", help="only print existing results")
    options = parser.parse_args()
    if not options.show:
        if options.run is None:
            parser.error("give the folder of a run as --run, or --show")
        measure(options.run, options)
        if options.picture is not None:
            picture(options.run, options)
    show(options.results)


if __name__ == "__main__":
    main()
