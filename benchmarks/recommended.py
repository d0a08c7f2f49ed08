r"""Training with noise recommended by `multisagd design noise=recommend`: `python -m benchmarks.recommended`.

For each dataset, the commands measure its spectrum, recommend noise for sampling with a number of DDIM steps, and
design steps for this noise and for white noise. Then models with the recommended noise and with white noise are trained
on the same number of samples, and sampled with the same number of steps, each with its own design. They are evaluated
as in `benchmarks.runs`; data without classes by their spectrum only, radially averaged and along every axis.

If white noise is recommended there is nothing to compare, and only one model is trained, to show that this works.
The video clips must be decoded first, and the folder given as --clips:

    multisagd encode modality=cached_video modality.modality.size=16 data=folder data.root=$MULTISAGD_DATA/video \
        data.labels=none passes=20 run_dir=latents/clips16

Rows are appended to benchmarks/results/results.jsonl; existing rows are not trained again, and an interrupted training
run continues. Afterwards, or with --show, the table of means and standard deviations over training seeds is printed.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rows import append, missing, rows
from benchmarks.runs import Run, spread, train_run
from multisagd import DDIM
from multisagd.analysis.design import DesignedSteps
from recipes.analyze import analyze
from recipes.config import compose as configuration
from recipes.design import design

EXPERIMENT = "recommended"
COUNT, REFERENCE = 500, 2000
SMALL = ["network.blocks=1", "training.batch=32", "training.ema=0.1", "every.validation=0", "every.samples=0"]
DATA: dict[str, list[str]] = {
    "MNIST": ["experiment=image_mnist", "modality.size=16", "modality.resize=crop", *SMALL, "training.samples=64000"],
    "sign digits": [
        "experiment=image_mnist", "data=folder", "data.root=${oc.env:MULTISAGD_DATA,data}/images/sign_digits",
        "modality.channels=3", "modality.resize=crop", "validation.holdout=300", *SMALL, "network.width=16",
        "training.samples=20000",
    ],
    "spoken digits": [
        "experiment=audio_spoken_digits", "network.width=16", *SMALL, "training.samples=16000", "every.checkpoint=8000",
    ],
    "video clips": [
        "experiment=video_clips_cached", "modality.modality.size=16", *SMALL, "training.batch=8",
        "training.learning_rate=1e-3", "training.samples=8000",
    ],
}  # fmt: skip


def designs(name: str, arguments: list[str], options: argparse.Namespace) -> dict[str, Path]:
    """Measure the data, and return the folders of the designs for recommended noise and for white noise."""
    work = options.work / f"{name.replace(' ', '_')}_{options.steps}"
    if not (work / "white" / "design.json").exists():
        analyze(configuration.load("analyze", [*arguments, f"run_dir={work / 'look'}"]))
        common = [f"statistics={work / 'look'}", f"steps={options.steps}", f"seed={options.seeds[0]}"]
        design(configuration.load("design", [*common, "noise=recommend", f"out={work / 'recommended'}"]))
        design(configuration.load("design", [*common, "noise=given", f"out={work / 'white'}"]))
    return {"white": work / "white", "recommended": work / "recommended"}


def measure(name: str, options: argparse.Namespace) -> None:
    """Train and evaluate all arms without a row."""
    wanted = [
        {"data": name, "steps": options.steps, "noise": noise, "seed": seed}
        for seed, noise in itertools.product(options.seeds, ("recommended", "white"))
    ]
    left = missing(EXPERIMENT, wanted)
    if not left:
        return
    arguments = [*DATA[name], f"engine.threads={options.threads}"]
    if name == "video clips":
        if options.clips is None:
            raise SystemExit("video clips: give the folder of the decoded clips as --clips (see --help)")
        arguments.append(f"data.root={options.clips}")
    folders = designs(name, arguments, options)
    report = json.loads((folders["recommended"] / "design.json").read_text())
    white = report["spectrum"]["_target_"] == "multisagd.Flat"
    for arm in left:
        noise, seed = arm["noise"], arm["seed"]
        if white and noise == "white":
            continue
        run_dir = folders[noise] / f"run_{seed}"
        spectrum = ["spectrum=designed"] if noise == "recommended" else []
        config_dir = folders[noise] / "config"
        train_run(run_dir, [*arguments, *spectrum, f"seed={seed}"], config_dir)
        run = Run.load(run_dir, REFERENCE, options.threads)
        steps = DesignedSteps.load(folders[noise] / "steps.json")
        x0 = run.draw(DDIM(), options.steps, seed, COUNT, steps.times(run.denoiser.process.schedule))
        chosen = {"spectrum": report["spectrum"], "reasons": report["reasons"]} if noise == "recommended" else {}
        values: dict[str, Any] = run.judge(x0) | run.axis_errors(x0)
        append(EXPERIMENT, arm, values | chosen | {"count": COUNT} | run.conditions())
        print(f"{arm}: {values}", flush=True)


METRICS = ("spectrum_error_db", "frechet_distance", "recognised")


def show() -> None:
    """Print the table."""
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows(EXPERIMENT):
        arm = row["arm"]
        found.setdefault((arm["data"], arm["noise"], arm["steps"]), []).append(row)
    table = Table("data", "steps", "noise", *METRICS, "along the axes (dB)", "seeds", box=box.SIMPLE)
    for (data, noise, steps), each in found.items():
        spectrum = next((row["spectrum"] for row in each if "spectrum" in row), None)
        name = noise if spectrum is None else f"{noise}: {spectrum.get('exponent', 'white')}"
        cells = [spread(tuple(row[key] for row in each)) if key in each[0] else "" for key in METRICS]
        axes = ", ".join(
            f"{axis} {spread(tuple(row['axis_errors_db'][axis] for row in each))}" for axis in each[0]["axis_errors_db"]
        )
        table.add_row(data, str(steps), name, *cells, axes, str(len(each)))
    Console(width=200).print(table)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--clips", type=Path, help="folder written by `multisagd encode`")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/recommended"))
    parser.add_argument("--show", action="store_true", help="only print existing results")
    options = parser.parse_args()
    for name in () if options.show else options.data:
        measure(name, options)
    show()


if __name__ == "__main__":
    main()
