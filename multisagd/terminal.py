"""Check that the process ends in pure noise, by the signal-to-noise ratio at t = 1 in each frequency band."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

from multisagd.channel_covariance import ChannelCovariance
from multisagd.process import Process
from multisagd.statistics import DataStatistics


@dataclass(frozen=True)
class BandSNR:
    """The signal-to-noise ratio at t = 1 of the frequencies `low <= r < high`, in cycles per sample (`Grid.bands`)."""

    low: float
    high: float
    snr: float


def terminal_snr(
    process: Process, statistics: DataStatistics, bands: int = 8, limit: float = 0.01, time: float = 1.0
) -> list[BandSNR]:
    """Return the signal-to-noise ratio in frequency bands at `time`, the start of sampling.

    The signal includes the mean; if noise differs between channels, the ratio is that of the channel, or component,
    with the largest.
    Zero frequency is its own band. Sampling starts from noise alone, which the network
    has not seen in training unless these ratios are small. Bands without noise have an infinite ratio; this is intended
    in selective omission, where they are never generated.

    Warns:
        UserWarning: If the ratio of some band, named in the message, is above `limit`.
    """
    grid = statistics.grid
    at = process.coefficients(time, torch.empty((1, 1, *grid.shape), dtype=torch.float64, device="cpu"))
    covariance, dims = process.covariance, tuple(range(-grid.dimensions, 0))
    power, noise_power = statistics.power + statistics.mean_power, covariance.power(grid.shape)
    if isinstance(covariance, ChannelCovariance) and covariance.mixed:
        # A weak component is hidden in the power of the channels, which are mixtures of strong and weak ones.
        of_mean = covariance.to_components(torch.fft.rfftn(statistics.mean, dim=dims, norm="ortho"), grid.shape)
        power = covariance.power_in_components(statistics, grid.shape) + of_mean.abs().square()
        noise_power = covariance.components(grid.shape).power
    signal, noise = at.a[0] ** 2 * power, at.b[0, 0] ** 2 * noise_power
    if noise.dim() == grid.dimensions:  # the same in every channel
        signal, noise = signal.mean(0), noise.expand(grid.half_shape)
    result = []
    for low, high, weight in grid.bands(bands):
        of_signal, of_noise = ((each * weight).sum(dims) for each in (signal, noise))
        ratio = torch.where(of_noise > 0, of_signal / torch.where(of_noise > 0, of_noise, 1.0), math.inf)
        result.append(BandSNR(low, high, float(ratio.max())))
    above = [band for band in result if band.snr > limit]
    if above:
        listed = ", ".join(f"[{band.low:.2f}, {band.high:.2f}]: {band.snr:.2g}" for band in above)
        warnings.warn(
            f"signal remains at t = {time:g} (signal-to-noise ratio above {limit:g}) in the bands {listed} cycles "
            "per sample; use a schedule with more noise (shift), or noise with more power there",
            stacklevel=2,
        )
    return result
