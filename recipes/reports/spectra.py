"""Power over frequency of a run's data, its noise and its samples: over the radius, and along every axis."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from multisagd import DataStatistics, Grid, Process
from multisagd.analysis.profiles import Profile
from multisagd.metrics.spectral import LEAST, RADIUS
from recipes.plotting.curves import Axis, Series, draw
from recipes.plotting.figures import on_logarithmic_axis, profile_of, unit_of
from recipes.reports.blocks import Block

BATCH = 32


def power_of(samples: Tensor, grid: Grid) -> Tensor:
    """Return the power of samples `(count, channels, *grid)` about their own mean.

    Raises:
        ValueError: for fewer than two.
    """
    if len(samples) < 2:
        raise ValueError("one sample has no power about the mean: draw more")
    return DataStatistics.measure(samples.split(BATCH), grid).power


def noise_power(process: Process, statistics: DataStatistics) -> Tensor:
    """Return the noise's power, of the data's variance."""
    return statistics.sigma_data**2 * process.covariance.power()


def spectrum_charts(powers: Mapping[str, Tensor], grid: Grid, name: str = "spectrum") -> list[Block]:
    """Return a chart over the radius and one along every axis, with a curve for each power `(..., *half_shape)`.

    The first power is that of the data; those of which the name begins with "samples" are also shown in decibels over
    it.
    """
    blocks: list[Block | None] = []
    about = (
        "Zero frequency, the mean of a datum, stands at half the lowest frequency. The noise is scaled to the data's "
        "variance."
    )
    over = "Decibels of the samples' power over the data's: 0 is the data's own."
    for place, along in enumerate((RADIUS, *grid.names) if grid.dimensions > 1 else grid.names):
        where = "over the radius" if along == RADIUS else f"along {along}"
        x = Axis(unit_of(along, grid), "log")
        curves, ratios, data = [], [], None
        for number, (key, power) in enumerate(powers.items()):
            profile = profile_of(power, grid, along)
            data = profile.power if data is None else data
            curves.append(_series(key, number, profile, profile.power, profile.power))
            if key.startswith("samples"):
                decibels = 10 * (profile.power / data).log10()
                ratios.append(_series(key, number, profile, decibels, data))
        blocks.append(draw(f"{name}-{place}", f"Power {where}", about, x, Axis("power", "log"), curves))
        title = f"Samples over data {where}"
        blocks.append(draw(f"{name}-{place}-ratio", title, over, x, Axis("dB", level=0.0), ratios))
    return [block for block in blocks if block is not None]


def _series(key: str, number: int, profile: Profile, values: Tensor, power: Tensor) -> Series:
    """Return values over frequency, without those where a power cannot be told from rounding."""
    kept = values.where(power > LEAST * power.max(), math.nan)
    return Series(key, on_logarithmic_axis(profile.frequency).tolist(), kept.tolist(), f"c{number % 8}", number)
