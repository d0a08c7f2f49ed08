"""Measure the distance between the spectra of two sounds over time, in decibels."""

from __future__ import annotations

import torch
from torch import Tensor

QUIET_DB = -60.0
"""Frames with less energy than this, relative to the loudest frame of the reference, are not compared."""
FLOOR_DB = -100.0
"""Power below this, relative to the largest of the reference at any time and frequency, counts as this."""


def log_spectral_distance(x: Tensor, reference: Tensor, window: int = 512, hop: int = 128) -> Tensor:
    """Return the log-spectral distance of sounds from references, in dB: (items, channels, samples) -> (items,).

    The power P of both is taken on Hann windows of `window` samples, `hop` samples apart, that lie in the sound. The
    distance of a frame is the root mean square over frequencies of the difference of 10·log10 P, and that of a sound
    the mean over its frames in all channels (Gray and Markel, Distance measures for speech processing, IEEE
    Transactions on Acoustics, Speech and Signal Processing 24, 1976, with the norm L2). Only frames are compared in
    which the reference has at least -60 dB of the energy of its loudest frame, and powers below -100 dB of its largest
    one count as that. Both sounds are in the same unit. Two independent stretches of the same noise are about 7.9 dB
    apart. The distance is NaN if the reference is silent.

    Raises:
        ValueError: If the shapes differ, or the sounds are shorter than the window.
    """
    if x.shape != reference.shape or x.dim() != 3 or x.shape[-1] < window:
        raise ValueError(
            f"expected two tensors (items, channels, samples) of one shape, with at least {window} samples, got "
            f"{tuple(x.shape)} and {tuple(reference.shape)}"
        )
    hann = torch.hann_window(window, dtype=torch.float64, device=x.device)
    powers = [
        torch.fft.rfft(each.double().unfold(-1, window, hop) * hann).abs().square().transpose(-1, -2)
        for each in (x, reference)
    ]  # (items, channels, frequencies, frames)
    energy = powers[1].sum(-2)
    loudest, largest = energy.amax((1, 2), keepdim=True), powers[1].amax((1, 2, 3), keepdim=True)
    compared = (energy >= loudest * 10 ** (QUIET_DB / 10)) & (loudest > 0)
    made, true = (10 * each.clamp(min=largest * 10 ** (FLOOR_DB / 10)).log10() for each in powers)
    distances = (made - true).square().mean(-2).sqrt().where(compared, 0.0)
    return distances.sum((1, 2)) / compared.sum((1, 2))
