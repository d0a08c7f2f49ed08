"""Metrics of generated fields relative to real ones: power in rings of frequency, and moments of values.

Rings alone do not suffice: Gaussian fields with the spectrum of the data have the right rings, too.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from multisagd import Grid
from multisagd.metrics.one_point import Moments, difference_sums, moments, power_sums
from multisagd.metrics.spectral import radial_curve, ring_errors


def field_errors(x0: Tensor, clean: Tensor, grid: Grid) -> dict[str, float]:
    """Return the errors of samples x0 relative to clean examples, both `(count, channels, *grid)`.

    `rings_rms_db`, `rings_quietest_db` and `rings_worst_db` are errors of power over rings (`RingErrors`). The others
    are differences from the value of clean examples, in percent of it: of the deviation and kurtosis of values, of the
    kurtosis of differences between neighbours (over all axes), and of that of mixed second differences (over all pairs
    of axes).
    """
    made, real = (radial_curve([(each, None)], grid).values for each in (x0, clean))
    rings = ring_errors(made, real)
    values = {
        "rings_rms_db": rings.rms, "rings_quietest_db": rings.quietest_third, "rings_worst_db": rings.worst,
    }  # fmt: skip
    ours, theirs = _moments(x0, grid), _moments(clean, grid)
    values["deviation_error"] = _percent(ours["values"].deviation, theirs["values"].deviation)
    for name, key in (("values", "kurtosis"), ("gradients", "gradient_kurtosis"), ("mixed", "mixed_kurtosis")):
        if name in theirs:
            values[f"{key}_error"] = _percent(ours[name].kurtosis, theirs[name].kurtosis)
    return values


def _moments(x: Tensor, grid: Grid) -> dict[str, Moments]:
    """Return the moments of values, of first differences, and of mixed second differences if there are two axes."""
    batches = [(x, None)]
    names = [axis.name for axis in grid.axes if axis.size > 1]
    sums = {
        "values": [power_sums(batches)],
        "gradients": [difference_sums(batches, grid, [name]) for name in names],
        "mixed": [difference_sums(batches, grid, pair) for pair in combinations(names, 2)],
    }
    return {name: moments(torch.cat(each)) for name, each in sums.items() if each}


def _percent(made: float, real: float) -> float:
    return 100 * (made / real - 1)
