"""The log-SNRs at which the frequencies of data emerge from noise, octave by octave."""

from __future__ import annotations

import numpy as np
import torch

from multisagd.analysis.design import IGNORED
from multisagd.analysis.profiles import radial_profile
from multisagd.analysis.transfer import Spectra
from multisagd.process import Process
from multisagd.statistics import ROUNDING, DataStatistics


def octave_log_snrs(statistics: DataStatistics, process: Process, count: int = 64) -> tuple[float, ...]:
    """Return the log-SNRs at which noise has the power of the data, at `count` frequencies spaced evenly in octaves.

    The frequencies lie between the lowest and the highest ring of the grid (`radial_profile`); their powers are
    averaged over channels and interpolated on logarithmic axes. Rings more than 120 dB below the strongest have only
    rounding errors, and count as 60 dB below it. Rings without noise do not matter, nor do log-SNRs that the schedule
    does not reach: a large part of the times drawn there would be its first or last one.

    Raises:
        ValueError: If the process is incompatible with the statistics (see `Spectra.of`), the data have no power where
            there is noise, or the schedule reaches none of the log-SNRs.
    """
    spectra = Spectra.of(statistics, process)
    data, noise = (radial_profile(each.mean(0), statistics.grid) for each in (spectra.data, spectra.noise))
    used = (data.frequency > 0) & (noise.power > 0)
    ratio = torch.where(used, data.power / noise.power, 0.0)
    if not float(ratio.max()) > 0:
        raise ValueError("the data have no power where there is noise, so no log-SNRs follow from their spectrum")
    ratio = torch.where(ratio > ROUNDING * ratio.max(), ratio, IGNORED * ratio.max())[used].log()
    octaves = data.frequency[used].log()
    places = np.linspace(float(octaves[0]), float(octaves[-1]), count)
    found = -np.interp(places, octaves.numpy(), ratio.numpy())
    first, last = process.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    found = found[(found > first) & (found < last)]
    if not len(found):
        raise ValueError(f"the schedule, from log-SNR {first:.3g} to {last:.3g}, reaches no frequency of the data")
    return tuple(found.tolist())
