"""Compare our default recipe with diffusers' UNet2DModel: `python -m benchmarks.peers.compare_recipes [RESULTS …]`.

The rows come from three searches of `benchmarks.search` for each data set: default_DATA (ours), unet2d_DATA (the
recipe of the diffusers example and the best tuned one, with several samplers) and unet2d_DATA_tuning (the search for a
better recipe). For each recipe, the table has the sampler with the smallest mean Fréchet distance; for the tuned one,
it has the best recipe of those with the most seeds. Both are selected with the same seeds that the table shows, which
favours diffusers; our default recipe was selected in searches of its own. Guidance doubles the calls of the network, so
the table also has the best of the samplers with as many calls as our default.
"""

from __future__ import annotations

import argparse
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.rows import rows
from benchmarks.runs import spread
from benchmarks.search import RESULTS, Search

DATA = {"mnist16": "MNIST at 16×16", "fashion16": "Fashion-MNIST at 16×16"}
SEARCHES = Path(__file__).parents[1] / "searches"
SAMPLES = 24_000
EXAMPLE = "example"
METRICS = ("frechet_distance", "recognised", "spectrum_error_db")

Arms = dict[str, dict[int, dict[str, Any]]]
"""The row of every seed of every arm."""


@dataclass(frozen=True)
class Choice:
    """An arm with one of its samplers: the row of every seed that has samples of it."""

    arm: str
    sampler: str
    rows: dict[int, dict[str, Any]]

    def values(self, metric: str) -> dict[int, float]:
        """Return a metric by seed."""
        return {seed: row[self.sampler][metric] for seed, row in sorted(self.rows.items())}


def measured(searches: Iterable[str], results: Iterable[Path]) -> Arms:
    """Return the rows of some searches; rows of the same arm and seed are merged."""
    found: Arms = {}
    for search in searches:
        for path in results:
            for row in rows(search, path):
                arm = row["arm"]
                if arm["samples"] == SAMPLES and "error" not in row:
                    seeds = found.setdefault(arm["name"], {})
                    seeds[arm["seed"]] = seeds.get(arm["seed"], {}) | row
    return found


def choices(arms: Arms) -> list[Choice]:
    """Return all pairs of an arm and a sampler."""
    found = []
    for arm, seeds in arms.items():
        samplers = {key: None for row in seeds.values() for key, value in row.items() if _is_judged(value)}
        for sampler in samplers:
            judged = {seed: row for seed, row in seeds.items() if _is_judged(row.get(sampler))}
            found.append(Choice(arm, sampler, judged))
    return found


def best(arms: Arms, samplers: Container[str] | None = None) -> Choice | None:
    """Return the best of the choices with the most seeds, by the mean Fréchet distance; None without rows.

    Only `samplers` are considered, or all.
    """
    return min(
        (each for each in choices(arms) if samplers is None or each.sampler in samplers),
        key=lambda each: (-len(each.rows), mean(each.values("frechet_distance").values())),
        default=None,
    )


def calls(data: str) -> dict[str, int]:
    """Return how often each sampler of the searches calls the network per sample."""
    found: dict[str, int] = {}
    for name in (f"default_{data}", f"unet2d_{data}", f"unet2d_{data}_tuning"):
        for sampler, described in Search.load(SEARCHES / f"{name}.yaml").samplers.items():
            # Each of these solvers calls the network once per step.
            found[sampler] = described["steps"] * (1 if described.get("guidance", 1) == 1 else 2)
    return found


def ratios(theirs: Choice, ours: Choice) -> tuple[float, ...]:
    """Return their Fréchet distance divided by ours, for each seed that both have: above 1, ours is closer."""
    left, right = theirs.values("frechet_distance"), ours.values("frechet_distance")
    return tuple(left[seed] / right[seed] for seed in left if seed in right)


def show(data: str, results: Iterable[Path], console: Console) -> None:
    """Print the table of one data set."""
    paths = list(results)
    ours = measured([f"default_{data}"], paths)
    theirs = measured([f"unet2d_{data}_tuning", f"unet2d_{data}"], paths)
    example = {EXAMPLE: theirs.pop(EXAMPLE)} if EXAMPLE in theirs else {}
    default = next((each for each in choices(ours) if each.sampler == "default"), None)
    trainings, called = sum(len(seeds) for seeds in theirs.values()), calls(data)
    few = {sampler for sampler, count in called.items() if count <= called["default"]}
    columns = ("calls", "FD", "recognised", "dB", "parameters", "FD / ours")
    table = Table("recipe", "sampler", "seeds", *columns, box=box.SIMPLE, title=f"{DATA[data]}, {SAMPLES:,} samples")
    shown = {
        "ours, default": default,
        "ours, best sampler": best(ours),
        "UNet2DModel, example": best(example),
        f"UNet2DModel, best of {trainings} trainings": best(theirs),
        "… with as many calls as ours": best(theirs, few),
    }
    for name, choice in shown.items():
        if choice is None:
            table.add_row(name, "not measured")
            continue
        cells = [str(called[choice.sampler])]
        cells += [spread(tuple(choice.values(metric).values())) for metric in METRICS]
        some = next(iter(choice.rows.values()))
        ratio = () if default is None or name.startswith("ours") else ratios(choice, default)
        each = f"{spread(ratio)} ({', '.join(f'{value:.2f}' for value in ratio)})" if ratio else ""
        arm = "" if choice.arm in (EXAMPLE, "default") else f": {choice.arm}"
        seeds = ", ".join(map(str, sorted(choice.rows)))
        table.add_row(f"{name}{arm}", choice.sampler, seeds, *cells, f"{some['parameters']:,}", each)
    console.print(table)


def _is_judged(value: Any) -> bool:
    return isinstance(value, dict) and "frechet_distance" in value


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="*", default=[RESULTS], help="files of results")
    chosen = parser.parse_args()
    for data in DATA:
        show(data, chosen.results, Console(width=200))


if __name__ == "__main__":
    main()
