"""Mel bands: positions, triangular filters, and the estimation of a waveform from its power in the bands.

The mel scale follows O'Shaughnessy (Speech Communication, 1987): 2595·log10(1 + f/700).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from multisagd.libraries import importing

USE = "log-mel spectrograms"


def hertz(mel: float) -> float:
    """Return the frequency in Hz of a position on the mel scale."""
    return 700 * (10 ** (mel / 2595) - 1)


def centres(bands: int, low: float, high: float, window: int, rate: int) -> list[float]:
    """Return the lowest edge, the centre of each band and the highest edge, equally spaced, in mel.

    A band reaches from the previous centre to the next centre; `low` and `high` are in Hz.

    Raises:
        ValueError: If the bands reach above half the rate, or a band contains no frequency of a transform of `window`
            samples.
    """
    if not low < high <= rate / 2:
        raise ValueError(
            f"bands from {low:g} to {high:g} Hz do not fit below half the sample rate, {rate / 2:g} Hz: reduce high"
        )
    narrow = f"{bands} bands are too narrow for a window of {window} samples"
    remedy = "use fewer bands, a longer window, or a higher value of low"
    if bands > window:  # also bounds the memory that someone else's configuration asks for
        raise ValueError(f"{narrow}: {remedy}")
    first, last = (2595 * math.log10(1 + hertz / 700) for hertz in (low, high))
    mels = [first + (last - first) * index / (bands + 1) for index in range(bands + 2)]
    bins = [hertz(mel) * window / rate for mel in mels]
    for band in range(bands):
        if math.floor(bins[band]) + 1 >= bins[band + 2]:
            raise ValueError(f"{narrow}: band {band} contains no frequency; {remedy}")
    return mels


@lru_cache
def filters(bands: int, low: float, high: float, window: int, rate: int) -> Tensor:
    """Return triangular filters (bands, window/2 + 1) with value 1 at the centres; see `centres` for the arguments."""
    with importing("torchaudio", USE):
        from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(window // 2 + 1, low, high, bands, rate, norm=None, mel_scale="htk").T.contiguous()


def invert_filters(power: Tensor, triangles: Tensor, steps: int = 50) -> Tensor:
    """Estimate non-negative power (..., frequencies, frames) from the power in the bands, `power` (..., bands, frames).

    The estimate is a least-squares solution by multiplicative updates: Lee and Seung, Algorithms for non-negative
    matrix factorization, NIPS 2000.
    """
    estimate = target = triangles.T @ power
    overlap = triangles.T @ triangles
    for _ in range(steps):
        # A frequency outside all bands is 0/0 here; the floor is below any power of a float32 waveform.
        estimate = estimate * target / (overlap @ estimate).clamp(min=1e-20)
    return estimate


def invert_magnitude(magnitude: Tensor, window: int, hop: int, length: int, steps: int = 32) -> Tensor:
    """Return a waveform (..., length) whose Hann-windowed transform approximates a magnitude (..., bins, frames).

    The fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard, WASPAA 2013) starts from phase zero, so the
    result is deterministic.
    """
    with importing("torchaudio", USE):
        from torchaudio.functional import griffinlim

    return griffinlim(
        magnitude, torch.hann_window(window), n_fft=window, hop_length=hop, win_length=window, power=1.0, n_iter=steps,
        momentum=0.99, length=length, rand_init=False,
    )  # fmt: skip
