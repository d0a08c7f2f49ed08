"""Constant-Q bands: filters at equal distances in pitch, their responses, and the estimation of a waveform from them.

The filters are librosa's (`librosa.filters.wavelet`). They are applied in the Fourier domain of the whole clip, at
the full rate: librosa's own transform halves the rate from octave to octave, and builds the filters anew in every call,
which takes longer, above all in the inverse, which calls it many times.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy
import torch
from torch import Tensor

from multisagd.libraries import importing

USE = "constant-Q spectrograms"
LEAST = 0.1
"""Fraction of the largest gain of all filters together below which the inverse does not amplify what is left."""


def frequencies(low: float, octaves: int, bins_per_octave: int) -> list[float]:
    """Return the centre frequencies of all filters in Hz, from `low` upwards."""
    return [low * 2 ** (number / bins_per_octave) for number in range(octaves * bins_per_octave)]


@lru_cache
def extent(low: float, octaves: int, bins_per_octave: int, rate: int) -> tuple[float, float, float]:
    """Return the lengths in samples of the longest and the shortest filter, and the highest frequency of all, in Hz."""
    with importing("librosa", USE):
        from librosa.filters import wavelet_lengths

    lengths, highest = wavelet_lengths(freqs=np.array(frequencies(low, octaves, bins_per_octave)), sr=rate)
    return float(lengths[0]), float(lengths[-1]), float(highest)


@lru_cache(maxsize=8)
def filters(low: float, octaves: int, bins_per_octave: int, rate: int) -> tuple[Tensor, ...]:
    """Return the filters of each octave, from low to high: complex64 (bins per octave, a power of two of samples).

    Their middle is time 0; a tone at full scale in the centre of a band has a response of magnitude 1.
    """
    with importing("librosa", USE):
        from librosa.filters import wavelet

    made, every = [], frequencies(low, octaves, bins_per_octave)
    for start in range(0, len(every), bins_per_octave):
        waves, _ = wavelet(freqs=np.array(every[start : start + bins_per_octave]), sr=rate, norm=1, pad_fft=True)
        made.append(2 * torch.from_numpy(waves).to(torch.complex64))
    return tuple(made)


def response(waveform: Tensor, hop: int, settings: tuple[float, int, int, int]) -> Tensor:
    """Return the responses (..., bins, frames) to a waveform (..., samples), in frames centred `hop` samples apart.

    `samples` is a multiple of the hop; before and after is silence. `settings` are the arguments of `filters`.
    """
    frames = waveform.shape[-1] // hop + 1
    transforms, _ = _transforms(hop, frames, *settings)
    periods = _periods(hop, frames, *settings)
    spectrum = torch.fft.rfft(waveform, periods * hop)[..., None, :] * transforms.conj()
    # To take every `hop`-th sample is to add the spectra that lie `periods` bins apart.
    folded = torch.nn.functional.pad(spectrum, (0, -spectrum.shape[-1] % periods)).unflatten(-1, (-1, periods)).sum(-2)
    return torch.fft.ifft(folded)[..., :frames] / hop


def seen(length: int, hop: int, frames: int, settings: tuple[float, int, int, int]) -> Tensor:
    """Return the fraction (bins, frames) of each filter's energy that lies within the first `length` samples."""
    found = []
    for each in filters(*settings):
        size = each.shape[1]
        energy = torch.nn.functional.pad(each.abs().square().double().cumsum(1), (1, 0))
        starts = torch.arange(frames) * hop - size // 2
        inside = energy[:, (length - starts).clamp(0, size)] - energy[:, (-starts).clamp(0, size)]
        found.append((inside / energy[:, -1:]).clamp(min=0).float())
    return torch.cat(found)


def invert(responses: Tensor, hop: int, settings: tuple[float, int, int, int]) -> Tensor:
    """Return the waveform (..., (frames - 1)·hop) with these complex responses (..., bins, frames).

    It is the adjoint of `response`, divided by the gain of all filters together. It is nearly exact for sounds between
    the lowest and the highest filter if the hop is much shorter than the filters.
    """
    frames = responses.shape[-1]
    transforms, gain = _transforms(hop, frames, *settings)
    periods = _periods(hop, frames, *settings)
    repeats = -(-transforms.shape[-1] // periods)
    repeated = torch.fft.fft(responses, periods).repeat(*[1] * (responses.ndim - 1), repeats)
    spectrum = (repeated[..., : transforms.shape[-1]] * transforms).sum(-2) / gain
    return torch.fft.irfft(spectrum, periods * hop)[..., : (frames - 1) * hop] * hop


def _periods(hop: int, frames: int, *settings: float) -> int:
    """Return the length of the transforms in hops: the sound and its longest filter, so that nothing wraps around."""
    longest = filters(*settings)[0].shape[1]
    return int(scipy.fft.next_fast_len(frames + -(-longest // hop)))


@lru_cache(maxsize=8)
def _transforms(hop: int, frames: int, *settings: float) -> tuple[Tensor, Tensor]:
    """Return the Fourier transforms (bins, frequencies) of `filters`, and the sum of their powers with a least value.

    Frequencies are not negative, as those of the filters.
    """
    size, found = _periods(hop, frames, *settings) * hop, []
    for each in filters(*settings):
        long = torch.nn.functional.pad(each, (0, size - each.shape[1])).roll(-(each.shape[1] // 2), -1)
        found.append(torch.fft.fft(long)[:, : size // 2 + 1])
    transforms = torch.cat(found)
    gain = transforms.abs().square().sum(0)
    return transforms, gain.clamp(min=LEAST * float(gain.max()))


def invert_magnitude(
    magnitude: Tensor, hop: int, settings: tuple[float, int, int, int], steps: int = 32, momentum: float = 0.99
) -> Tensor:
    """Return a waveform (channels, (frames - 1)·hop) whose responses approximate `magnitude` (channels, bins, frames).

    The fast Griffin-Lim algorithm (Perraudin, Balazs and Søndergaard, WASPAA 2013) starts from the phases of steady
    tones in the centre of each band, so the result is deterministic.
    """
    low, octaves, bins_per_octave, rate = settings
    cycles = torch.tensor(frequencies(low, octaves, bins_per_octave), dtype=torch.float64)[:, None] * hop / rate
    turned = 2 * math.pi * (cycles * torch.arange(magnitude.shape[-1]) % 1)
    phase = torch.polar(torch.ones_like(turned), turned).to(torch.complex64)
    before = torch.zeros(())
    for _ in range(steps):
        rebuilt = response(invert(magnitude * phase, hop, settings), hop, settings)
        ahead = rebuilt - momentum / (1 + momentum) * before
        phase, before = ahead / ahead.abs().clamp(min=1e-20), rebuilt
    return invert(magnitude * phase, hop, settings)
