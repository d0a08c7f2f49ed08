"""Response time of the explorer to a slider, at its default sizes: `python -m benchmarks.explorer [--repeats 5]`.

Processor time of one thread, the median of the repeats, so that other load matters little; the
browser needs additional time to show the result. "steps" are designed from the spectrum, and are shown last.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.timing import machine
from recipes.explorer.configuration import CONTROLS, axes_choices, first_values
from recipes.explorer.media import MEDIA, Sizes, built_in
from recipes.explorer.page import Panel


def seconds(action: Callable[[], object], repeats: int) -> float:
    """Return the median processor time of an action, without the first run."""
    times = []
    for _ in range(repeats + 1):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return median(times[1:])


def main() -> None:
    """Print one row per medium."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="repeats of every answer")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    print(f"{'':<20}{'figures':>10}{'steps':>10}")
    for medium, written in ((each, written) for each in MEDIA.values() for written in each.representations):
        panel, name = Panel(medium, Sizes()), next(iter(medium.examples))
        grid = built_in(medium, name, written, Sizes()).grid
        axes = axes_choices(grid)[0]
        own = {each: CONTROLS[each].low for each in panel.controls} | first_values(medium.first, grid, axes)
        values = (
            None, name, written, medium.first, axes, *own.values(), 0.0, 0.0, 1.0, 0.0, "cosine", 1.0, 10, 0, 0.5
        )  # fmt: skip
        label = f"{medium.name}, {written}"
        shown, designed = (
            seconds(lambda answer=answer, values=values: answer(*values), options.repeats)  # type: ignore[misc]
            for answer in (panel.show, panel.design)
        )
        print(f"{label:<20}{shown:>8.2f} s{designed:>8.2f} s")


if __name__ == "__main__":
    main()
