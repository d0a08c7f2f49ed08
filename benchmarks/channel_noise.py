"""Noise that follows the channels of the data, and noise that does not: `python -m benchmarks.channel_noise`.

On colour photographs (a folder of images, `--root`) and on vorticity with a passive tracer, the same network is trained
with white noise, with the mean power of the data in every channel, with the power of each channel, with one basis of
the channels, and with the matrix of channels at every frequency. For each run, samples are compared with held-out
examples: the error of the power in rings of frequency (root mean square over rings and channels, in dB), the error of
the cross power of different channels relative to that of the data, and the Fréchet distance of principal components.
The likelihood of held-out examples is in bits per dimension. All arms of a seed differ in nothing but the noise.

Each run appends a row to the results, and is not trained again; an interrupted run continues. `--show` only prints the
table, and `--write` writes it to docs/tutorials/your-own-spectrum.md. `--shrink 100` tries everything in short runs,
with another file of results.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.experiments.statistics import Paired
from benchmarks.rows import RESULTS, between, measure_missing, parsed, rows, tutorial_parser
from benchmarks.runs import Run, configured_data, spread, train_run
from multisagd import DataStatistics
from multisagd.analysis.profiles import radial_profile
from multisagd.cross_spectra import cross_spectrum
from multisagd.metrics import frechet_distance
from multisagd.metrics.components import components
from multisagd.samplers import Sampler
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.likelihood import BitsPerDimension
from recipes.evaluation.sets import as_files, fixed_order

EXPERIMENT = "noise of channels"
PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "your-own-spectrum.md"
BEGIN, END = "<!-- written by python -m benchmarks.channel_noise --write -->", "<!-- end of the noise of channels -->"
FOLLOWING = ("spectrum=data_channels", "spectrum.floor=60")
NOISES: dict[str, tuple[str, ...]] = {
    "white": ("spectrum=white",),
    "shared": ("spectrum=data_power", "spectrum.floor=60"),
    "each": (*FOLLOWING, "spectrum.channels=each"),
    "basis": (*FOLLOWING, "spectrum.channels=basis"),
    "full": (*FOLLOWING, "spectrum.channels=full"),
}
"""Arguments of `multisagd train` by noise."""
BASELINE = "shared"
PHOTOS, FIELDS = "colour photographs", "vorticity and tracer"
DATA: dict[str, tuple[str, ...]] = {
    PHOTOS: (
        "experiment=image_folder", "modality.size=32", "modality.flip=false", "data.labels=none", "network.width=32",
        "network.multipliers=[1,2,2]", "validation.holdout=500",
    ),
    FIELDS: ("experiment=field_generate", "data=vorticity_tracer", "data.validation=0.12"),
}  # fmt: skip
COUNT, LIKELIHOOD_ITEMS, LIKELIHOOD_STEPS = 400, 64, 30
"""Numbers of samples of a run, of held-out examples with a likelihood, and of steps for it."""
SMALL = ("network.width=8", "network.heads=1", "network.multipliers=[1,1]", "training.warmup=1")
SMALL_DATA = {
    PHOTOS: ("modality.size=8", "validation.holdout=16"),
    FIELDS: ("modality.axes={y:{size:16},x:{size:16}}", "data.trajectories=20", "data.snapshots=4",
             "data.spin_up=0.5", "data.interval=0.5", "validation.holdout=16"),
}  # fmt: skip
COLUMNS = {
    "rings_db": ("rings, dB", 2),
    "cross_error": ("error of the cross power", 3),
    "frechet_distance": ("Fréchet distance", 2),
    "bits_per_dimension": ("bits per dimension", 3),
}
"""Values of a row, with their columns of the table and their digits."""


def words(arm: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the arguments of `multisagd train` for one run."""
    found = [*DATA[arm["data"]], *NOISES[arm["noise"]], f"seed={arm['seed']}", f"training.samples={arm['samples']}"]
    found += ["every.samples=0", "every.validation=0", "report=false", f"engine.threads={options.threads}"]
    found += [f"data.root={options.root}"] if arm["data"] == PHOTOS else []
    if options.shrink == 1:
        return found
    return [*found, *SMALL, *SMALL_DATA[arm["data"]], "training.statistics=32"]


@dataclass(frozen=True, eq=False)
class Reference:
    """Held-out examples `(count, channels, *grid)` and their statistics, with which samples are compared."""

    x0: Tensor
    statistics: DataStatistics
    cross: Tensor

    @classmethod
    def of(cls, x0: Tensor, like: DataStatistics) -> Reference:
        """Measure examples on the grid of other statistics."""
        statistics = DataStatistics.measure([x0], like.grid)
        return cls(x0, statistics, cross_spectrum([x0], statistics))

    def compare(self, other: Reference) -> dict[str, float]:
        """Return the errors of samples."""
        grid, channels = self.statistics.grid, len(self.cross)
        ours, theirs = (radial_profile(each.statistics.power, grid).power for each in (other, self))
        floor = 1e-12 * float(theirs.max())
        decibels = 10 * (ours.clamp(min=floor) / theirs.clamp(min=floor)).log10()
        off = 1 - torch.eye(channels, dtype=torch.float64)
        wrong, whole = (
            float((grid.mean(each.abs().square()) * off).sum()) for each in (other.cross - self.cross, self.cross)
        )
        features = components(self.x0)
        return {
            "rings_db": float(decibels.square().mean().sqrt()),
            "cross_error": (wrong / whole) ** 0.5,
            "frechet_distance": frechet_distance(features(other.x0), features(self.x0)),
        }


def measure(arm: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one run; its folder remains until it is measured, and is continued if interrupted."""
    arguments = words(arm, options)
    folder = options.work / f"{arm['data']} {arm['noise']} {arm['seed']} {arm['samples']}".replace(" ", "_")
    train_run(folder, arguments)
    run = Run.load(folder, 0, options.threads, data=arguments)
    held_out = configured_data(arguments, Builder())[1]
    assert held_out is not None
    node = configuration.load("sample", [f"run_dir={folder}"])
    kind: type[Sampler] = Sampler  # type: ignore[type-abstract]
    sampler = Builder().build(node["sampler"], kind, "sampler", statistics=run.statistics)
    count = min(max(8, COUNT // options.shrink), len(held_out))
    made = as_files(run.examples.modality, run.draw(sampler, node["steps"], arm["seed"], count, None).cpu())
    real = held_out.batch(fixed_order(held_out, count)).x0
    reference, samples = (Reference.of(each.double(), run.statistics) for each in (real, made))
    items, steps = max(4, LIKELIHOOD_ITEMS // options.shrink), max(4, LIKELIHOOD_STEPS // options.shrink)
    compute = BitsPerDimension(run.denoiser, run.statistics, run.examples.modality, False, run.runtime, steps)
    bits = compute(held_out.batch(fixed_order(held_out, items)), range(items))
    shutil.rmtree(folder)
    return reference.compare(samples) | {"bits_per_dimension": float(bits.mean()), "count": count} | run.conditions()


def table(path: Path) -> str:
    """Return the tables of the results in Markdown, of the longest runs for each kind of data."""
    found = list(rows(EXPERIMENT, path))
    if not found:
        return "Not measured yet: `python -m benchmarks.channel_noise --root photos` trains for several hours."
    parts = [_table_of(name, [row for row in found if row["arm"]["data"] == name]) for name in DATA]
    return "\n\n".join(part for part in parts if part)


def _table_of(name: str, found: list[dict[str, Any]]) -> str:
    if not found:
        return ""
    samples = max(row["arm"]["samples"] for row in found)
    by_noise = {
        noise: {row["arm"]["seed"]: row for row in found
                if row["arm"]["noise"] == noise and row["arm"]["samples"] == samples}
        for noise in NOISES
    }  # fmt: skip
    titles = " | ".join(title for title, _ in COLUMNS.values())
    threads = max(row["threads"] for row in found)
    machine = f"CPU, {threads} thread{'s' * (threads > 1)}"
    lines = [
        f"{name[0].upper()}{name[1:]}, {samples:,} training samples; mean ± standard deviation over seeds, {machine}:",
        "", f"| noise | seeds | {titles} |", f"|---|---|{'---|' * len(COLUMNS)}",
    ]  # fmt: skip
    for noise, runs in by_noise.items():
        if runs:
            cells = [spread(tuple(row[key] for row in runs.values()), digits) for key, (_, digits) in COLUMNS.items()]
            lines.append(f"| {noise} | {len(runs)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_conclusions(by_noise)])


def _conclusions(by_noise: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """Return a sentence for each noise, comparing it with the noise that all channels share, paired by seed."""
    lines, base = [], by_noise[BASELINE]
    for noise in ("each", "basis", "full"):
        runs = by_noise[noise]
        seeds = sorted(runs.keys() & base.keys())
        if len(seeds) < 2:
            continue
        distance = Paired(tuple(log(runs[s]["frechet_distance"] / base[s]["frechet_distance"]) for s in seeds))
        bits = Paired(tuple(runs[s]["bits_per_dimension"] - base[s]["bits_per_dimension"] for s in seeds))
        low, high = distance.interval
        verdict = "is better than" if high < 0 else "is worse than" if low > 0 else "cannot be told from"
        lines.append(
            f"- By the Fréchet distance, `{noise}` {verdict} `{BASELINE}`: {exp(distance.mean):.2f} times as large "
            f"(95 % interval [{exp(low):.2f}, {exp(high):.2f}], {len(seeds)} paired seeds); bits per dimension differ "
            f"by {bits.mean:+.3f} [{bits.interval[0]:+.3f}, {bits.interval[1]:+.3f}]."
        )
    return lines


def page(text: str, path: Path = RESULTS) -> str:
    """Return the text of the tutorial with the tables of these results."""
    return between(text, BEGIN, END, table(path))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = tutorial_parser(__doc__, 48_000, [0, 1, 2], Path("runs/channel_noise"), recordings=False)
    parser.add_argument("--root", type=Path, help="folder of colour photographs")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--noises", nargs="+", choices=NOISES, default=list(NOISES))
    options = parsed(parser)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")
        return
    if PHOTOS in options.data and options.root is None and not options.show:
        parser.error(f"{PHOTOS} are read from a folder: give --root FOLDER, or only --data {FIELDS!r}")
    samples = max(64, options.samples // options.shrink)
    arms = [
        {"data": data, "noise": noise, "seed": seed, "samples": samples}
        for seed in options.seeds for data in options.data for noise in options.noises
    ]  # fmt: skip
    measure_missing(EXPERIMENT, arms, options, lambda arm: measure(arm, options), COLUMNS)
    print(table(options.results))


if __name__ == "__main__":
    main()
