"""What is doubtful about a process and its denoiser at pure noise, where sampling starts."""

from __future__ import annotations

import math
import warnings

import torch

from multisagd import DataStatistics, Denoiser, Process, terminal_snr

LARGE_SHARE = 0.5
"""Above this share of the power at zero frequency, the noise is mostly a random brightness."""

LARGE_SIGMA = 2.0
"""Noise beyond this, in units of the data's range, is too much for a network to be given as it is."""

LOW_LOG_SNR = -12.0
"""Below this, a prediction of the noise says next to nothing about the data."""


def process_notes(process: Process, denoiser: Denoiser, statistics: DataStatistics) -> list[str]:
    """Return what is doubtful about a process and its denoiser at pure noise, t = 1."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        terminal_snr(process, statistics)
    notes = [str(warning.message) for warning in caught]
    power = process.covariance.power()
    share = float(power.flatten()[0]) / process.grid.numel
    if share > LARGE_SHARE:
        notes.append(
            f"zero frequency, the mean of a datum, takes {share:.0%} of the noise's power, and little is left for all "
            "else: a milder exponent or a higher corner spreads it"
        )
    end = torch.ones(1, dtype=torch.float64)
    log_snr, sigma = float(process.schedule.log_snr(end)), float(process.schedule.alpha_sigma(end)[1])
    if denoiser.preconditioning == "none" and sigma > LARGE_SIGMA:
        notes.append(
            f"the schedule's noise grows to sigma={sigma:.3g}, and this denoiser scales neither inputs nor targets: "
            "denoiser=karras does"
        )
    if denoiser.preconditioning == "none" and denoiser.prediction == "noise" and log_snr < LOW_LOG_SNR:
        notes.append(
            f"predicting noise down to a log-SNR of {log_snr:.3g} multiplies the network's errors by "
            f"{math.exp(-log_snr / 2):.3g} where sampling starts: set schedule.log_snr_range=[-10,20], or "
            "choose denoiser=velocity"
        )
    return notes
