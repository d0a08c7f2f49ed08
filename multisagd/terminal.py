"""Whether noising reaches pure noise: the signal-to-noise ratio at t = 1, by band of frequency."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

from multisagd.process import Process
from multisagd.statistics import DataStatistics


@dataclass(frozen=True)
class BandSNR:
    """Signal-to-noise ratio at t = 1 of the frequencies `low <= r < high`, in cycles per sample (`Grid.bands`)."""

    low: float
    high: float
    snr: float


def terminal_snr(
    process: Process, statistics: DataStatistics, bands: int = 8, limit: float = 0.01, time: float = 1.0
) -> list[BandSNR]:
    """Return what is left of the data at t = 1 in bands of frequency, the mean included, zero frequency a band alone.

    `time` is where sampling starts, if not at t = 1.

    Sampling starts from noise alone. Where this ratio is not small, the network never saw such a start in training.
    Empty bands of the spectrum have an infinite ratio: deliberate in selective omission, where they never get noise and
    are never generated.

    Warns:
        UserWarning: naming the bands above `limit`.
    """
    grid = statistics.grid
    at = process.coefficients(time, torch.empty((1, 1, *grid.shape), dtype=torch.float64, device="cpu"))
    signal = (at.a[0] ** 2 * (statistics.power + statistics.mean_power)).mean(0)
    noise = (at.b[0, 0] ** 2 * process.covariance.power(grid.shape)).expand(grid.half_shape)
    result = []
    for low, high, weight in grid.bands(bands):
        noise_power = float((noise * weight).sum())
        result.append(BandSNR(low, high, float((signal * weight).sum()) / noise_power if noise_power else math.inf))
    loud = [band for band in result if band.snr > limit]
    if loud:
        listed = ", ".join(f"[{band.low:.2f}, {band.high:.2f}]: {band.snr:.2g}" for band in loud)
        warnings.warn(
            f"signal is left at t = {time:g} (signal-to-noise ratio above {limit:g}) in bands {listed} cycles per "
            "sample; use a schedule with more noise (shift), or noise with more power there",
            stacklevel=2,
        )
    return result
