"""Audio datasets that need no download: plucked strings, synthesised on demand."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import scipy
import torch

from modalities.audio import Audio
from modalities.base import Dataset, Example
from multisagd.seeds import derive

LOWEST = 110.0
"""Pitch of the lowest string in Hz, an A."""
NOTES = 36
"""Number of pitches, one semitone apart, from the lowest upwards: three octaves, up to 831 Hz."""
LATEST = 0.1
"""Maximum delay of the pluck, as a fraction of the clip, if there is an augmentation seed."""


class PluckedStrings(Dataset):
    """`count` plucked strings of random pitch, decay, plucking position, brightness and loudness, in 12 pitch classes.

    Each string depends on `seed` and its index only. It is plucked at time 0 or, if there is an augmentation seed, up
    to a tenth of the clip later. The whole clip is data, including the silence before the pluck.

    Raises:
        ValueError: If the modality is not `Audio`, its rate is below 4 kHz (strings need some samples per period), or
            the count is below 1.
    """

    classes: tuple[str, ...] | None = ("A", "A#", "B", "C", "C#", "D", "D#", "E", "F", "F#", "G", "G#")

    def __init__(self, modality: Audio, count: int = 2000, seed: int = 0) -> None:
        if not isinstance(modality, Audio):
            raise ValueError(f"plucked strings are audio: modality must be an Audio, got {type(modality).__name__}")
        if modality.rate < 4000:
            raise ValueError(f"plucked strings need a rate of at least 4000 samples per second, got {modality.rate}")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        self.modality: Audio = modality
        self.seed = seed
        self.numbers = list(range(count))

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one string; see `Dataset.example`."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} strings")
        rng, note = self._drawn(index)
        decay, position, brightness = 10 ** rng.uniform(-0.5, 0.6), rng.uniform(0.1, 0.5), rng.uniform(0.3, 1.0)
        peak = 10 ** (rng.uniform(-18, -1) / 20)
        onset = 0 if seed is None else derive(seed, "onset") % (1 + int(LATEST * self.modality.samples))
        string = pluck(
            LOWEST * 2 ** (note / 12), decay, position, brightness, self.modality.rate, self.modality.samples, rng
        )
        waveform = np.zeros(self.modality.samples, np.float32)
        # A clip of a few samples may end before the string is plucked.
        waveform[onset:] = (string * (peak / max(np.abs(string).max(), 1e-9)))[: len(waveform) - onset]
        media = self.modality.level(self.modality.remix(torch.from_numpy(waveform).unsqueeze(0)))
        return Example(self.modality.encode(media), note % 12)

    def label(self, index: int) -> int | None:
        """Return the pitch class of one string, without synthesising it."""
        return self._drawn(index)[1] % 12

    def _drawn(self, index: int) -> tuple[np.random.Generator, int]:
        """Return the random generator of one string, and its first draw: the pitch in semitones."""
        rng = np.random.default_rng(derive(self.seed, "string", self.numbers[index]))
        return rng, int(rng.integers(NOTES))

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these strings only."""
        part = copy.copy(self)
        part.numbers = [self.numbers[index] for index in indices]
        return part

    @property
    def fingerprint(self) -> str:
        """A hash of the seed and the indices of the strings."""
        return hashlib.sha256(json.dumps(["plucked strings", self.seed, self.numbers]).encode()).hexdigest()


def pluck(
    frequency: float,
    decay: float,
    position: float,
    brightness: float,
    rate: int,
    samples: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Synthesise a plucked string, float64 of shape (samples,), with arbitrary loudness.

    A burst of noise circulates in a delay loop of one period, which averages neighbouring samples (Karplus and Strong,
    Computer Music Journal 7(2), 1983). An all-pass filter tunes the loop between whole samples, a factor shortens its
    decay, a comb filter on the burst sets where the string is plucked, and a low-pass filter sets how softly it is
    plucked (Jaffe and Smith, same issue).

    Args:
        frequency: pitch in Hz.
        decay: time in seconds in which the fundamental decays by about 60 dB; high partials decay faster.
        position: where the string is plucked, as a fraction of its length.
        brightness: from just above 0 (dull) to 1.
        rate: samples per second.
        samples: length of the result.
        rng: random generator of the burst.
    """
    period = rate / frequency
    # The average delays by half a sample; the all-pass filter delays by 0.1 to 1.1 samples, where it is well behaved.
    delay = math.floor(period - 0.6)
    rest, angle = period - 0.5 - delay, math.pi / period
    tune = math.sin(angle * (1 - rest)) / math.sin(angle * (1 + rest))
    burst = np.zeros(samples)
    noise = rng.uniform(-1, 1, delay)[:samples]
    burst[: len(noise)] = noise - noise.mean()
    burst = scipy.signal.lfilter([brightness], [1, brightness - 1], burst)
    shift = max(1, round(position * period))
    plucked = burst.copy()
    plucked[shift:] -= burst[:-shift]
    # The loop, solved for its output: y = x / (1 - L), L = loss z^-delay (1 + z^-1)/2 (tune + z^-1)/(1 + tune z^-1).
    loss = 10 ** (-3 / (frequency * decay))
    loop = np.zeros(delay + 3)
    loop[:2] = 1, tune
    loop[delay:] -= loss * np.convolve([0.5, 0.5], [tune, 1])
    return scipy.signal.lfilter([1, tune], loop, plucked)
