"""What selective omission recovers: the fraction of the gap between corrupted and clean training that an arm closes."""

from __future__ import annotations

from collections.abc import Iterable
from math import isnan

from benchmarks.experiments.metrics import SAMPLERS
from benchmarks.experiments.reading import Results
from benchmarks.experiments.statistics import closed

CLEAN, WHITE = "clean", "white"


def bands(names: Iterable[str]) -> list[str]:
    """Return the bands in the names of arms of selective omission, `BAND: ARM`."""
    return list(dict.fromkeys(name.split(": ")[0] for name in names if ": " in name))


def fractions(results: Results, key: str = "frechet_distance") -> list[list[str]]:
    """Return a line for each arm of each band: the band, the arm, and the fraction closed with both samplers."""
    lines = []
    for band in bands(results.numbers):
        for arm in (name for name in results.numbers if name.startswith(f"{band}: ")):
            kind = arm.removeprefix(f"{band}: ")
            if kind == WHITE or arm in results.experiment.untrained:
                continue
            cells = [_fraction(results, f"{band}: {WHITE}", arm, f"{sampler}.{key}") for sampler in SAMPLERS]
            lines.append([band, kind, *cells])
    return lines


def _fraction(results: Results, start: str, arm: str, key: str) -> str:
    columns = [
        {seed: row[key] for seed, row in results.numbers.get(name, {}).items() if key in row}
        for name in (start, arm, CLEAN)
    ]
    seeds = sorted(set.intersection(*(set(column) for column in columns)))
    fraction, half = closed(*([column[seed] for seed in seeds] for column in columns))
    if isnan(fraction):
        return ""
    return f"{100 * fraction:.0f} %" + (
        "" if isnan(half) else f" [{100 * (fraction - half):.0f}, {100 * (fraction + half):.0f}]"
    )
