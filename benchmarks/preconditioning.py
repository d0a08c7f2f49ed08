"""Which part of spectral preconditioning helps: `python -m benchmarks.preconditioning --data mnist sign_digits`.

Arms change one part of Karras' preconditioning with centred data (`denoiser=karras`), all parts (`spectral`), or all
parts and the metric; arms named cosine do this with the default schedule and training times. Network, examples, noise
levels and sampling steps are the same for all, and so is the noise if its spectrum is the same. The noise levels are
those of Karras et al., scaled to the σ of the data about their mean, so the baseline is adapted to the data like the
spectral form; they are not adapted to shaped noise. `benchmarks.partly_spectral` describes each part.

Each training run is evaluated with averaged weights: samples by Heun's method on Karras' steps (spectrum error, Fréchet
distance, fraction recognised; see `benchmarks.runs`), and the denoising error on held-out data relative to the Wiener
filter at nine log-SNRs. Rows are appended to benchmarks/results/results.jsonl; existing rows are not trained again, and
an interrupted training run continues. Afterwards, or with --show, the table of means and standard deviations over
training seeds is printed, and the paired differences from the baseline.

`--size gpu --matrix` trains every sensible combination of the parts, the metrics and four spectra at a size for a GPU
(not run here); `--commands` prints the training commands instead.
"""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rows import append, missing, rows
from benchmarks.runs import Run, spread, train_run
from multisagd import Heun, KarrasSchedule

EXPERIMENT = "preconditioning"
ALLOW = "allow_targets=[benchmarks]"
BASELINE = "scalar, centred (Karras)"

PARTS: dict[str, dict[str, str]] = {
    BASELINE: {},
    "scalar, not centred": {"centred": "false"},
    "scalar, as v-prediction (sigma_data 1)": {"sigma_data": "1"},
    "spectral skip": {"skip": "spectral"},
    "spectral output scale": {"out": "spectral"},
    "spectral": {"into": "spectral", "skip": "spectral", "out": "spectral"},
}
COSINE = [
    "schedule=cosine", "loss.times._target_=multisagd.UniformTimes", "~loss.times.mean", "~loss.times.std",
]  # fmt: skip
"""The default schedule and its times, with which the default preconditioning is used."""
AGAINST = {
    "spectral, whitened metric": "spectral",
    "cosine schedule, as v-prediction": "cosine schedule, scalar",
    "cosine schedule, spectral": "cosine schedule, scalar",
    "cosine schedule, not centred": "cosine schedule, scalar",
}
"""The arm with which an arm is compared seed by seed, if not with the baseline."""
STEPS, COUNT, REFERENCE = (5, 18), 1000, 5000
ARMS: dict[str, list[str]] = {name: [] for name in PARTS} | {
    "spectral, whitened metric": ["loss.metric=whitened"],
    "cosine schedule, scalar": COSINE,
    "cosine schedule, as v-prediction": COSINE,
    "cosine schedule, spectral": COSINE,
    "cosine schedule, not centred": COSINE,
    "scalar, noise of data power^.5": ["spectrum=data_power", "spectrum.exponent=0.5", "spectrum.floor=40"],
}
SIZES: dict[str, dict[str, list[str]]] = {
    "cpu": {"mnist": [], "sign_digits": []},
    "gpu": {
        name: [
            "engine=gpu", f"modality.size={size}", "network.width=88", "network.multipliers=[1,2,4]",
            "network.blocks=2", "training.batch=256", "training.samples=12000000", "every.checkpoint=1000000",
        ]
        for name, size in (("mnist", 32), ("sign_digits", 64))
    },
}  # fmt: skip


def denoiser(parts: dict[str, str]) -> list[str]:
    """Return the arguments that select these parts."""
    target = "benchmarks.partly_spectral.PartlySpectral"
    return [
        f"denoiser._target_={target}", "~denoiser.preconditioning", ALLOW,
        *(f"+denoiser.{name}={value}" for name, value in parts.items()),
    ]  # fmt: skip


def one_at_a_time() -> dict[str, list[str]]:
    """Return the arguments of each arm of the table."""
    whole = PARTS["spectral"]
    parts = PARTS | {
        "spectral, whitened metric": whole,
        "cosine schedule, as v-prediction": PARTS["scalar, as v-prediction (sigma_data 1)"],
        "cosine schedule, spectral": whole,
        "cosine schedule, not centred": PARTS["scalar, not centred"],
    }
    return {name: denoiser(parts.get(name, {})) + rest for name, rest in ARMS.items()}


def matrix() -> dict[str, list[str]]:
    """Return every meaningful combination of centring, the three factors, metric and noise."""
    found = {}
    spectra: dict[str, list[str]] = {"white": []} | {
        f"data power^{exponent}": ["spectrum=data_power", f"spectrum.exponent={exponent}", "spectrum.floor=40"]
        for exponent in (0.25, 0.5, 1.0)
    }  # fmt: skip
    for centred, into, skip, out in itertools.product(("true", "false"), *3 * [("scalar", "spectral")]):
        parts = {"centred": centred, "into": into, "skip": skip, "out": out}
        # With one factor for all frequencies the two metrics are the same.
        for metric in ("euclidean",) if out == "scalar" else ("euclidean", "whitened"):
            for noise, arguments in spectra.items():
                name = f"{'' if centred == 'true' else 'not '}centred, {into}/{skip}/{out}, {metric}, {noise}"
                if name == "centred, scalar/scalar/scalar, euclidean, white":
                    name = BASELINE
                found[name] = [*denoiser(parts), f"loss.metric={metric}", *arguments]
    return found


def measure(options: argparse.Namespace, arms: dict[str, list[str]]) -> None:
    """Train and evaluate all arms without a row."""
    wanted = [
        {"data": data, "size": options.size, "arm": name, "seed": seed}
        for seed, data, name in itertools.product(options.seeds, options.data, arms)
    ]
    for arm in missing(EXPERIMENT, wanted):
        data, name, seed = arm["data"], arm["arm"], arm["seed"]
        arguments = [*common(data, options.size, seed), *arms[name], f"engine.threads={options.threads}"]
        folder = re.sub(r"[^A-Za-z0-9]", "_", name)
        run_dir = options.work / f"{data}_{options.size}_{folder}_{seed}"
        if options.commands:
            print(f"multisagd train run_dir={run_dir} {shlex.join(arguments)}")
            continue
        train_run(run_dir, arguments)
        run = Run.load(run_dir, REFERENCE, options.threads, allow=("benchmarks",))
        values: dict[str, Any] = {"denoising_error": run.denoising_error()}
        for steps in STEPS:
            log_snrs = KarrasSchedule().log_snr(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
            times = run.denoiser.process.schedule.time(log_snrs)
            values[f"heun_{steps}"] = run.judge(run.draw(Heun(), steps, seed, COUNT, times))
        append(EXPERIMENT, arm, values | {"count": COUNT} | run.conditions())
        print(f"{arm}: {values}", flush=True)


def common(data: str, size: str, seed: int) -> list[str]:
    """Return the arguments that all arms share."""
    return [f"experiment=ablation_{data}", *SIZES[size][data], f"seed={seed}"]


def show(data: str, size: str) -> None:
    """Print the table of one dataset, and the effect of each arm, seed by seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows(EXPERIMENT):
        arm = row["arm"]
        if arm["data"] == data and arm["size"] == size:
            found.setdefault(arm["arm"], {})[arm["seed"]] = [value(row, group, key) for _, group, key in COLUMNS]
    titles = [title for title, *_ in COLUMNS]
    table = Table("arm", *titles, "seeds", box=box.SIMPLE, title=f"{data}, {size}")
    paired = Table(
        "arm", "difference from", *titles, box=box.SIMPLE, title="differences seed by seed, ± standard error"
    )
    shaped = {name for name, words in (one_at_a_time() | matrix()).items() if any("spectrum=" in w for w in words)}
    for name, seeds in found.items():
        shown = slice(0, -1 if name in shaped else None)  # denoising errors depend on the noise
        cells = [spread(each, 3) for each in zip(*seeds.values(), strict=True)][shown]
        table.add_row(name, *cells, *[""] * (name in shaped), str(len(seeds)))
        other = AGAINST.get(name, BASELINE)
        both = [seed for seed in seeds if seed in found.get(other, {}) and name != other]
        if len(both) > 1:
            mine, theirs = (zip(*(found[arm][seed] for seed in both), strict=True) for arm in (name, other))
            cells = [paired_difference(*pair) for pair in zip(mine, theirs, strict=True)]
            paired.add_row(name, other, *cells[shown])
    Console(width=200).print(table, paired)


def paired_difference(mine: tuple[float, ...], theirs: tuple[float, ...]) -> str:
    """Format the mean difference between two arms over seeds, and its standard error."""
    each = [a - b for a, b in zip(mine, theirs, strict=True)]
    return f"{mean(each):+.3f} ± {stdev(each) / sqrt(len(each)):.3f}"


METRICS = {"Fréchet": "frechet_distance", "dB": "spectrum_error_db", "recognised": "recognised"}
COLUMNS: list[tuple[str, str, str | None]] = [
    *((f"{metric}, {steps} steps", f"heun_{steps}", key) for steps in STEPS for metric, key in METRICS.items()),
    ("denoising / Wiener", "denoising_error", None),
]


def value(row: dict[str, Any], group: str, key: str | None) -> float:
    """Return one number of a row; denoising errors are averaged over log-SNRs."""
    return float(mean(row[group].values()) if key is None else row[group][key])


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(SIZES["cpu"]), default=list(SIZES["cpu"]))
    parser.add_argument("--size", choices=list(SIZES), default="cpu")
    parser.add_argument("--matrix", action="store_true", help="every combination, not one change at a time")
    parser.add_argument("--arms", nargs="+", help="some arms, by their names in the table (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/preconditioning"))
    parser.add_argument("--commands", action="store_true", help="print the commands instead of training")
    parser.add_argument("--show", action="store_true", help="only print existing results")
    options = parser.parse_args()
    if not options.show:
        arms = matrix() if options.matrix else one_at_a_time()
        if unknown := set(options.arms or ()) - set(arms):
            parser.error(f"there are no arms {sorted(unknown)}; choose among {sorted(arms)}")
        measure(options, {name: arms[name] for name in options.arms or arms})
    if not options.commands:
        for data in options.data:
            show(data, options.size)


if __name__ == "__main__":
    main()
