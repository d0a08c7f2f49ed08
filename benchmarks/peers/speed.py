"""Time of our training step and of diffusers': `python -m benchmarks.peers.speed`, on an idle machine.

Both train the same network on the same data, in interleaved, paired repeats. A row is appended to
benchmarks/results/results.jsonl, and an existing row is not measured again; afterwards, or with --show, the rows are
printed.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from benchmarks.experiments.design import CPU, experiments
from benchmarks.experiments.others import CONTROLS, SPEED
from benchmarks.peers.diffusers_loop import DiffusersLoop, Peer
from benchmarks.peers.setting import Setting
from benchmarks.rows import RESULTS, append, missing, rows
from benchmarks.timing import interleave, machine, milliseconds, ratio

EXPERIMENT = "peers_speed"
BATCHES = 50
"""Number of batches prepared beforehand and used in turn, so that no step waits for data."""


def compare_speed(setting: Setting, coloured: Setting, plain: Setting, repeats: int) -> dict[str, Any]:
    """Time whole steps (loss, gradient, clipping, optimiser, average of weights) of our training and of diffusers.

    `coloured` is one of our settings with different noise, and `plain` one whose network has a single output for each
    channel, as diffusers' loss needs. Returns medians in milliseconds, and quartiles of the ratio of paired times:
    above 1, ours is faster.
    """
    made = list(itertools.islice(setting.batches(), BATCHES))
    white, shaped = (itertools.cycle(made) for _ in range(2))
    theirs = itertools.cycle(made)
    ours, ours_coloured = setting.learner(), coloured.learner()
    loop = DiffusersLoop.of(plain, Peer())
    times = interleave(
        {
            "ours, white": lambda: ours.step([next(white)]),
            "ours, coloured": lambda: ours_coloured.step([next(shaped)]),
            "diffusers": lambda: loop.step(next(theirs)),
        },
        repeats,
    )
    return {
        "milliseconds": {name: round(milliseconds(times, name), 3) for name in times},
        "diffusers_over_ours": ratio(times, "diffusers", "ours, white")._asdict(),
        "diffusers_over_ours_coloured": ratio(times, "diffusers", "ours, coloured")._asdict(),
        "coloured_over_white": ratio(times, "ours, coloured", "ours, white")._asdict(),
        "repeats": repeats,
        "machine": machine(),
    }


def measure(threads: int, repeats: int, path: Path = RESULTS) -> None:
    """Time the steps on the data and network of the first experiment, unless there is a row."""
    for arm in missing(EXPERIMENT, [{"size": "cpu", "threads": threads}], path):
        arguments = experiments()[CONTROLS].arguments("white", 0, CPU)
        coloured = Setting.of([*arguments, "spectrum=power_law"], threads)
        plain = Setting.of([*arguments, "denoiser=velocity"], threads)
        append(EXPERIMENT, arm, compare_speed(Setting.of(arguments, threads), coloured, plain, repeats), path)


def show(path: Path = RESULTS) -> None:
    """Print the ratios of step times."""
    for row in rows(EXPERIMENT, path):
        threads, repeats = row["arm"]["threads"], row["repeats"]
        print(f"a step on {threads} threads, medians of {repeats} paired repeats: {row['milliseconds']} ms")
        for key, title in SPEED.items():
            found = row[key]
            print(f"  {title}: {found['median']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
        print(f"  {row['machine']}")


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=100, help="paired repeats of the timing")
    parser.add_argument("--show", action="store_true", help="only print existing rows")
    options = parser.parse_args()
    if not options.show:
        measure(options.threads, options.repeats)
    show()


if __name__ == "__main__":
    main()
