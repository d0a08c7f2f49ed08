"""Notes about frequencies of the data that are so quiet that a run would not learn or draw them."""

from __future__ import annotations

import math

import torch

from multisagd import DataStatistics, Denoiser, Process
from multisagd.analysis.design import ratio_range
from multisagd.denoiser import dynamic_range

HIDDEN_BELOW = 3
"""How much further the log-SNR must reach for noise that is 13 dB below the quietest frequency."""


def floor_notes(denoiser: Denoiser, statistics: DataStatistics) -> list[str]:
    """Return a warning if some frequencies of the data are quieter than the floor of spectral preconditioning."""
    if denoiser.preconditioning != "spectral":
        return []
    quietest = dynamic_range(denoiser.process, statistics)
    if quietest <= denoiser.floor:
        return []
    return [
        f"the quietest frequency of the data is {quietest:.0f} dB below the strongest, but the preconditioning takes "
        f"all as at most {denoiser.floor:g} dB below it: if the quieter ones matter, set "
        f"denoiser.floor=null"
    ]


def last_level_notes(process: Process, statistics: DataStatistics) -> list[str]:
    """Return a warning if noise hides some frequencies of the data even at the schedule's last log-SNR."""
    if process.modulation is not None or not process.covariance.diagonal:
        return []
    last = float(process.schedule.log_snr(torch.zeros(1, dtype=torch.float64)))
    needed = -math.log(ratio_range(statistics, process)[0])
    if needed <= last:
        return []
    return [
        f"the schedule ends at a log-SNR of {last:.3g}, where noise still hides the quietest frequency of the data: if "
        f"that matters, let it reach {math.ceil(needed + HIDDEN_BELOW)} (schedule.log_snr_range, or schedule.sigma_min)"
    ]
