"""Vocoders of spoken digits, trained with different noise: `python -m benchmarks.vocoder`.

The arms differ in the noise of the process, and in the log-SNRs between which steps are taken: those at which noise and
sound matter, for white noise from their spectra, and for the others as `multisagd inspect` prints them. Runs of one
seed see the same examples in the same order. Each is judged on held-out recordings: by the log-spectral distance of
samples from the recordings whose mel spectrograms they were drawn with, next to the Griffin-Lim algorithm with 32
iterations from the same spectrograms, and by the likelihood of the recordings.

Each run appends a row to the results, and is not trained again; an interrupted run continues. `--show` only prints the
table, and `--write` writes it to docs/tutorials/vocoder.md. `--shrink 100` tries everything in short runs, with another
file of results.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.experiments.statistics import Paired
from benchmarks.rows import RESULTS, between, measure_missing, parsed, rows, tutorial_parser
from benchmarks.runs import spread, train_run
from recipes.config import compose as configuration
from recipes.evaluate import evaluate
from recipes.runs.run import versions

EXPERIMENT = "vocoder"
PAGE = Path(__file__).parents[1] / "docs" / "tutorials" / "vocoder.md"
BEGIN, END = "<!-- written by python -m benchmarks.vocoder --write -->", "<!-- end of what is written -->"
CONTROL = "white"
ARMS: dict[str, tuple[str, ...]] = {
    CONTROL: (),
    "envelope": ("covariance=mel", "covariance.spectrum=false", "sampling.ends=[-8,6]"),
    "spectrum": ("covariance=mel", "covariance.envelope=false", "sampling.ends=[-9,6]"),
    "both": ("covariance=mel", "sampling.ends=[-11,4]"),
}
"""Arguments of `multisagd train` by the name of the noise, in addition to the experiment."""
RECORDINGS, MEMBERS, ITEMS = 128, 2, 64
"""Number of held-out recordings, of samples for each, and of recordings whose likelihood is computed."""
COLUMNS = {
    "distance": "log-spectral distance of samples, dB",
    "griffin_lim": "of Griffin-Lim, dB",
    "bits": "bits per dimension",
}
"""Values of a row, and their column of the table."""
SMALL = ("network.width=8", "network.heads=1", "network.multipliers=[1,1]", "training.warmup=1")


def words(arm: Mapping[str, Any], options: argparse.Namespace) -> list[str]:
    """Return the arguments of `multisagd train` for one run."""
    found = ["experiment=audio_vocoder", *ARMS[arm["noise"]], f"seed={arm['seed']}", "every.samples=0", "report=false"]
    found += [f"training.samples={arm['samples']}", "every.validation=0", f"engine.threads={options.threads}"]
    found += [] if options.root is None else [f"data.root={options.root}"]
    return [*found, *SMALL, "training.statistics=16", "validation.holdout=16"] if options.shrink > 1 else found


def judging(folder: Path, options: argparse.Namespace) -> list[str]:
    """Return the arguments of `multisagd evaluate` for a run."""
    small = options.shrink > 1
    return [
        f"run_dir={folder}", "metrics=[log_spectral_distance,likelihood]", "samples=8", "splits=1", "bootstrap=2",
        f"conditions={4 if small else RECORDINGS}", f"members={MEMBERS}", f"steps={2 if small else 20}",
        f"likelihood.items={2 if small else ITEMS}", f"likelihood.steps={2 if small else 50}",
        f"engine.threads={options.threads}",
    ]  # fmt: skip


def measure(arm: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one run; its folder remains until it is measured, and is continued if interrupted."""
    folder = options.work / f"{arm['noise']}_{arm['seed']}_{arm['samples']}"
    train_run(folder, words(arm, options))
    results = evaluate(configuration.load("evaluate", judging(folder, options)))["results"]
    distances = [row["value"] for row in results["log_spectral_distance"]["rows"]]
    (bits,) = (row["value"] for row in results["likelihood"]["rows"])
    shutil.rmtree(folder)
    values = dict(zip(COLUMNS, [*distances, bits], strict=True))
    return values | {"versions": versions(), "threads": options.threads}


def table(path: Path) -> str:
    """Return the table of the results in Markdown, of runs of one length: the longest."""
    found = list(rows(EXPERIMENT, path))
    if not found:
        return "Not measured yet: `python -m benchmarks.vocoder` trains for some three hours on two cores."
    samples = max(row["arm"]["samples"] for row in found)
    longest = [row for row in found if row["arm"]["samples"] == samples]
    by_arm = {name: {row["arm"]["seed"]: row for row in longest if row["arm"]["noise"] == name} for name in ARMS}
    lines = [f"| noise | seeds | {' | '.join(COLUMNS.values())} |", f"|---|---|{'---|' * len(COLUMNS)}"]
    for name, runs in by_arm.items():
        cells = [spread(tuple(row[key] for row in runs.values())) for key in COLUMNS] if runs else []
        lines += [f"| {name} | {len(runs)} | {' | '.join(cells)} |"] if runs else []
    text = f"{samples:,} training samples; mean ± standard deviation over seeds; CPU (`python -m benchmarks.vocoder`)."
    compared = [compared_with_control(name, by_arm) for name in ARMS if name != CONTROL]
    return "\n".join([*lines, "", text, *filter(None, compared)])


def compared_with_control(name: str, by_arm: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Return how an arm differs from the control in pairs of runs of one seed, or nothing if there are no two."""
    seeds: Sequence[int] = sorted(by_arm[name].keys() & by_arm[CONTROL].keys())
    if len(seeds) < 2:
        return ""
    shown = []
    for key in ("distance", "bits"):
        pairs = Paired(tuple(by_arm[name][seed][key] - by_arm[CONTROL][seed][key] for seed in seeds))
        low, high = pairs.interval
        shown.append(f"{COLUMNS[key]}: {pairs.mean:+.2f} (95 % interval [{low:+.2f}, {high:+.2f}])")
    return f"\n{name} minus {CONTROL}, {len(seeds)} paired seeds: {'; '.join(shown)}."


def page(text: str, path: Path = RESULTS) -> str:
    """Return the text of the tutorial with the table of these results."""
    return between(text, BEGIN, END, table(path))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = tutorial_parser(__doc__, 40_000, [0, 1, 2], Path("runs/vocoders"))
    parser.add_argument("--noise", nargs="+", choices=ARMS, default=list(ARMS))
    options = parsed(parser)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")
        return
    samples = max(32, options.samples // options.shrink)
    arms = [{"noise": name, "seed": seed, "samples": samples} for seed in options.seeds for name in options.noise]
    measure_missing(EXPERIMENT, arms, options, lambda arm: measure(arm, options))
    print(table(options.results))


if __name__ == "__main__":
    main()
