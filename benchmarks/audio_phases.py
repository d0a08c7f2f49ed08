"""Which phase of a complex spectrogram is easier to learn: `python -m benchmarks.audio_phases`.

The two choices of `modality.representation.phase` turn the phase of every value by a fixed angle, and white noise has
the same distribution whatever its phases. So the best possible denoiser has the same error with both, and the errors of
two networks that were trained alike show which one is easier to learn. They are measured on held-out recordings of
spoken digits at several noise levels, as fractions of the power of the data.

Each run appends a row to the results, and is not trained again; an interrupted run continues. `--write` writes the
table to docs/tutorials/audio.md, and `--shrink 100` tries everything in short runs, with another file of results.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from math import exp, log
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks.audio_representations import PAGE, Setting
from benchmarks.experiments.statistics import Paired
from benchmarks.rows import RESULTS, append, between, missing, parsed, rows, tutorial_parser
from benchmarks.runs import Run, configured_data, spread, train_run
from recipes.config.build import Builder

EXPERIMENT = "audio phases"
PHASES = ("stationary", "centred")
LEVELS = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
"""Log-SNRs at which errors are measured."""
BEGIN, END = "<!-- written by python -m benchmarks.audio_phases --write -->", "<!-- end of the table of phases -->"


def arms(samples: int, seeds: list[int]) -> list[dict[str, Any]]:
    """Return the conditions of all rows, seed by seed."""
    return [{"phase": phase, "seed": seed, "samples": samples} for seed in seeds for phase in PHASES]


def measure(arm: Mapping[str, Any], setting: Setting, folder: Path) -> dict[str, Any]:
    """Train a run, and return the error of its averaged weights by log-SNR, and its mean over these log-SNRs."""
    words = [*setting.words("complex", arm["seed"]), f"modality.representation.phase={arm['phase']}"]
    train_run(folder, words)
    # Without classes no classifier is trained, which these numbers do not need.
    run = Run.load(folder, 0, setting.threads, data=[*words, "data.labels=none", "data.pattern=null"])
    held_out = configured_data(words, Builder())[1]
    assert held_out is not None
    power = float(run.statistics.sigma_data**2 + run.statistics.mean.square().mean())
    errors = {level: error / power for level, error in replace(run, held_out=held_out).squared_errors(LEVELS).items()}
    shutil.rmtree(folder)
    return {"errors": errors, "error": mean(errors.values()), "held_out": len(held_out)} | run.conditions()


def table(path: Path) -> str:
    """Return the table of the results in Markdown, of the longest runs."""
    found = list(rows(EXPERIMENT, path))
    if not found:
        return "Not measured yet: `python -m benchmarks.audio_phases` trains for an hour."
    samples = max(row["arm"]["samples"] for row in found)
    longest = [row for row in found if row["arm"]["samples"] == samples]
    by_phase = {phase: {row["arm"]["seed"]: row for row in longest if row["arm"]["phase"] == phase} for phase in PHASES}
    shown = [f"{level:g}" for level in LEVELS]
    lines = [
        f"Squared error of x0 on held-out recordings after {samples:,} training samples, in % of the data's power:",
        "",
        f"| `phase` | mean | {' | '.join(f'log-SNR {level}' for level in shown)} | seeds |",
        f"|---|---|{'---|' * len(shown)}---|",
    ]
    for phase, runs in by_phase.items():
        each = [100 * row["error"] for row in runs.values()]
        levels = [f"{100 * mean(row['errors'][level] for row in runs.values()):.1f}" for level in shown]
        lines.append(f"| `{phase}` | {spread(tuple(each), 1)} | {' | '.join(levels)} | {len(runs)} |")
    first, second = (by_phase[phase] for phase in PHASES)
    pairs = Paired(tuple(log(second[seed]["error"] / first[seed]["error"]) for seed in first.keys() & second.keys()))
    if pairs.count > 1:
        low, high = pairs.interval
        lines += [
            "",
            f"The mean error of `{PHASES[1]}` is {exp(pairs.mean):.3f} times that of `{PHASES[0]}` (95 % interval "
            f"[{exp(low):.3f}, {exp(high):.3f}], {pairs.count} paired seeds).",
        ]
    return "\n".join(lines)


def page(text: str, path: Path = RESULTS) -> str:
    """Return the text of the tutorial with the table of these results."""
    return between(text, BEGIN, END, table(path))


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = tutorial_parser(__doc__, 4000, [0, 1, 2], Path("runs/audio_phases"))
    options = parsed(parser)
    if options.write:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), options.results), encoding="utf-8")
        return
    samples = max(32, options.samples // options.shrink)
    setting = Setting(samples, 0, options.shrink, options.root, options.threads)
    left = [] if options.show else missing(EXPERIMENT, arms(samples, options.seeds), options.results)
    for arm in left:
        values = measure(arm, setting, options.work / f"{arm['phase']}_{arm['seed']}_{samples}")
        append(EXPERIMENT, arm, values, options.results)
        print(f"{arm}: {values['error']:.4f}", flush=True)
    print(table(options.results))


if __name__ == "__main__":
    main()
