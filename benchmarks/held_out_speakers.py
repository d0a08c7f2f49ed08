"""Spoken digits with random recordings or a speaker held out: `python -m benchmarks.held_out_speakers`.

With recordings held out at random, every held-out recording has a twin in the training data: the same speaker and the
same digit. Holding out a speaker (`validation.group`) asks whether the model has learned the digit. Both runs of a seed
hold out equally many recordings, and differ in nothing else. For each, the loss on held-out recordings is measured, and
as a control that on equally many recordings of the training data; the fraction of held-out recordings that a classifier
recognises, trained on the training data; and the fraction of the model's samples that it recognises.

Each run appends a row to the results, and is not trained again. `--show` only prints the table, and `--write` writes it
to docs/tutorials/validation.md. `--shrink 100` tries everything in short runs, with another file of results.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rows import RESULTS, between, measure_missing, parsed, rows, tutorial_parser
from benchmarks.runs import Run, configured_data, spread, train_run
from modalities.base import Dataset
from multisagd.metrics.feature_network import read_samples
from multisagd.samplers import Sampler
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.classifier import Training, cached_network, read_dataset
from recipes.evaluation.sets import as_files, fixed_order
from recipes.runs.settings import TrainSettings
from recipes.training.validation import validate

EXPERIMENT = "held-out speakers"
PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "validation.md"
BEGIN, END = "<!-- written by python -m benchmarks.held_out_speakers --write -->", "<!-- end of what is written -->"
HELD_OUT = 500
"""Number of recordings held out: those of one speaker."""
CLASSIFIER_SAMPLES = 40_000
"""Training samples of the classifier: 16 times each of 2,500 recordings."""
SPLITS: dict[str, tuple[str, ...]] = {
    "random recordings": (),
    "one speaker": ("validation.group='_(?P<group>[a-z]+)_'",),
}
"""Arguments of `multisagd train` by kind of split."""
COLUMNS = {
    "loss": "loss on training recordings",
    "held_out_loss": "loss on held-out recordings",
    "held_out_recognised": "held-out recordings recognised",
    "recognised": "samples recognised",
}
"""Values of a row, and their column of the table."""
SMALL = ("network.width=8", "network.heads=1", "network.multipliers=[1,1]", "training.warmup=1")


def words(arm: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the arguments of `multisagd train` for one run."""
    held_out = max(20, HELD_OUT // options.shrink)
    found = ["experiment=audio_spoken_digits", *SPLITS[arm["split"]], f"seed={arm['seed']}"]
    found += [f"training.samples={arm['samples']}", "every.samples=0", "every.validation=0", "report=false"]
    found += [f"validation.holdout={held_out}", f"validation.items={held_out}", f"engine.threads={options.threads}"]
    found += [] if options.root is None else [f"data.root={options.root}"]
    return [*found, *SMALL, "training.statistics=16"] if options.shrink > 1 else found


def measure(arm: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one run; its folder remains until it is measured, and is continued if interrupted."""
    arguments, name = words(arm, options), f"{arm['split']} {arm['seed']} {arm['samples']}".replace(" ", "_")
    folder = options.work / name
    train_run(folder, arguments)
    examples, held_out = configured_data(arguments, Builder())
    assert held_out is not None
    training = Training(samples=max(128, CLASSIFIER_SAMPLES // options.shrink))
    network, record = cached_network(examples, held_out, options.work / "features", training)
    run = Run.load(folder, 0, options.threads, data=[*arguments, "data.labels=none", "data.pattern=null"])
    settings = Builder().settings(TrainSettings, configuration.load("train", [*arguments, "run_dir=none"]), "")

    def loss(dataset: Dataset) -> float:
        part = dataset.subset(fixed_order(dataset, len(held_out)))
        return float(validate(run.denoiser, part, run.statistics, settings, run.runtime, conditional=True)["loss"])

    node = configuration.load("sample", [f"run_dir={folder}"])
    kind: type[Sampler] = Sampler  # type: ignore[type-abstract]
    sampler = Builder().build(node["sampler"], kind, "sampler", statistics=run.statistics)
    run = replace(run, classes=examples.classes)
    x0, labels = run.draw(sampler, node["steps"], arm["seed"], len(held_out), None).cpu(), run.labels(len(held_out))
    values = {
        "loss": loss(examples),
        "held_out_loss": loss(held_out),
        "held_out_recognised": record["accuracy"],
        "training_recognised": read_dataset(network, examples, fixed_order(examples, len(held_out))).accuracy(),
        "recognised": read_samples(network, as_files(examples.modality, x0), labels).accuracy(),
        "held_out": len(held_out),
    }
    shutil.rmtree(folder)
    return values | run.conditions()


def table(path: Path) -> str:
    """Return the table of the results in Markdown, of runs of one length: the longest."""
    found = list(rows(EXPERIMENT, path))
    if not found:
        return "Not measured yet: `python -m benchmarks.held_out_speakers` trains for half an hour on two cores."
    samples = max(row["arm"]["samples"] for row in found)
    lines = [f"| held out | seeds | {' | '.join(COLUMNS.values())} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for name in SPLITS:
        runs = [row for row in found if row["arm"]["split"] == name and row["arm"]["samples"] == samples]
        cells = [spread(tuple(row[key] for row in runs), 4 if "loss" in key else 2) for key in COLUMNS] if runs else []
        lines += [f"| {name} | {len(runs)} | {' | '.join(cells)} |"] if runs else []
    threads = {row["threads"] for row in found}
    text = f"{samples:,} training samples; mean ± standard deviation over seeds; CPU, {max(threads)} thread"
    return "\n".join([*lines, "", f"{text}{'s' * (max(threads) > 1)} (`python -m benchmarks.held_out_speakers`)."])


def page(text: str, path: Path = RESULTS) -> str:
    """Return the text of the tutorial with the table of these results."""
    return between(text, BEGIN, END, table(path))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = tutorial_parser(__doc__, 24_000, [0, 1, 2], Path("runs/held_out_speakers"))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    options = parsed(parser)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")
        return
    samples = max(64, options.samples // options.shrink)
    arms = [{"split": name, "seed": seed, "samples": samples} for seed in options.seeds for name in options.splits]
    measure_missing(EXPERIMENT, arms, options, lambda arm: measure(arm, options))
    print(table(options.results))


if __name__ == "__main__":
    main()
