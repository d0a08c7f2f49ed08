"""Measure errors of the generated power spectrum in decibels: radially averaged, along every axis, and in bands.

Every item has its own curve, and the curve of a set is their mean. Items are independent but the points of one curve
are not, so uncertainties come from resampling items.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd import Grid
from multisagd.analysis.profiles import RADIUS, axis_profile, radial_profile
from multisagd.statistics import measure_mean, transforms_about

BANDS = "bands"
MIN_RELATIVE_POWER = 1e-12
"""Minimum power in ratios, as a fraction of the largest power."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The power of each item `(items, points)` at frequencies `(points,)`, averaged over channels.

    `edges` are the edges (low, high) of bands, in cycles per sample; they are empty if the points are single
    frequencies.
    """

    frequency: Tensor
    values: Tensor
    edges: tuple[tuple[float, float], ...] = ()


def item_curves(batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], grid: Grid, bands: int) -> dict[str, Curves]:
    """Return each item's curves: radial ("radius"), along every axis (by its name), and in "bands" (`Grid.bands`).

    `batches` are as for `DataStatistics.measure`. The power is about their mean, and multiplied by count / (count - 1)
    because the mean is measured on the same data. Padding leaks into the power: compare only data with the same masks.
    """
    mean, _, count, _ = measure_mean(batches, grid)
    rings = grid.bands(bands)
    curves: dict[str, list[Tensor]] = {name: [] for name in (RADIUS, BANDS, *grid.names)}
    frequency: dict[str, Tensor] = {}
    for transform in transforms_about(mean, batches, grid):
        power = transform.abs().square().mean(1) * (count / max(1, count - 1))
        radial = radial_profile(power, grid)
        curves[RADIUS].append(radial.power)
        frequency[RADIUS] = radial.frequency
        curves[BANDS].append(torch.stack([(power * w).flatten(1).sum(1) / w.sum() for _, _, w in rings], dim=1))
        for name in grid.names:
            profiles = [axis_profile(each, grid, name) for each in power]
            curves[name].append(torch.stack([profile.power for profile in profiles]))
            frequency[name] = profiles[0].frequency
    frequency[BANDS] = torch.tensor([(low + high) / 2 for low, high, _ in rings], dtype=torch.float64)
    edges = tuple((low, high) for low, high, _ in rings)
    return {
        name: Curves(frequency[name], torch.cat(values), edges if name == BANDS else ())
        for name, values in curves.items()
    }


def radial_curve(batches: Iterable[tuple[Tensor, Tensor | None]], grid: Grid) -> Curves:
    """Return the power `(items, rings)` in every ring of `radial_profile` but zero frequency, averaged over channels.

    Power and masks are as in `item_curves`.
    """
    mean, _, count, _ = measure_mean(batches, grid)
    curves = []
    for transform in transforms_about(mean, batches, grid):
        power = transform.abs().square().mean(1) * (count / max(1, count - 1))
        profile = radial_profile(power, grid)
        curves.append(profile.power[:, 1:])
    return Curves(profile.frequency[1:], torch.cat(curves))


def decibels(made: Tensor, real: Tensor) -> Tensor:
    """Return the ratio of mean generated to mean real power in dB, `(points,)`, from curves `(items, points)`."""
    above, below = made.mean(0), real.mean(0)
    minimum = MIN_RELATIVE_POWER * max(float(above.max()), float(below.max()), 1e-300)
    return 10 * (above.clamp(min=minimum) / below.clamp(min=minimum)).log10()


def decibel_errors(made: Tensor, real: Tensor) -> Tensor:
    """Return the standard error of each value of `decibels` in dB, to first order in the means' errors, `(points,)`."""
    relative = [each.std(0) / (len(each) ** 0.5 * each.mean(0).clamp(min=1e-300)) for each in (made, real)]
    return 10 / math.log(10) * (relative[0].square() + relative[1].square()).sqrt()


def error(made: Tensor, real: Tensor) -> float:
    """Return the root mean square of `decibels` `(points,)`: 0 for equal spectra, biased upwards at finite counts."""
    return float(decibels(made, real).square().mean().sqrt())


@dataclass(frozen=True)
class RingErrors:
    """Errors of generated power over rings of frequency, in dB: 0 for equal spectra, biased upwards at finite counts.

    `rms` is the root mean square over all rings, `quietest_third` the mean absolute error over the third of the rings
    in which the data have least power, and `worst` the largest absolute error.
    """

    rms: float
    quietest_third: float
    worst: float


def ring_errors(made: Tensor, real: Tensor) -> RingErrors:
    """Return the errors of the mean power of generated items, from curves `(items, rings)` of both sets.

    Raises:
        ValueError: If there are no rings, as on a grid of one sample.
    """
    if not made.shape[1]:
        raise ValueError("there are no rings of frequency: the grid has a single sample")
    errors = decibels(made, real).abs()
    quietest = real.mean(0).argsort()[: -(-len(errors) // 3)]
    return RingErrors(float(errors.square().mean().sqrt()), float(errors[quietest].mean()), float(errors.max()))
