"""Plucked strings are in tune, decay, have 12 classes, and are functions of seed and index."""

import math

import numpy as np
import pytest
import torch

from modalities.audio import Audio
from modalities.audio_sets import LOWEST, PluckedStrings, pluck
from modalities.base import split
from modalities.image import Image
from modalities.representation import Waveform

AUDIO = Audio(rate=8000, seconds=0.5, representation=Waveform())


def fundamental(sound: np.ndarray, rate: int, near: float) -> float:
    """The peak of the spectrum within a semitone of `near`, between bins by a parabola."""
    spectrum = np.log(np.abs(np.fft.rfft(sound * np.hanning(len(sound)), 8 * len(sound))) + 1e-12)
    bins = np.arange(len(spectrum)) * rate / (8 * len(sound))
    inside = np.flatnonzero((bins > near * 0.94) & (bins < near * 1.06))
    top = inside[spectrum[inside].argmax()]
    a, b, c = spectrum[top - 1 : top + 2]
    return float((top + 0.5 * (a - c) / (a - 2 * b + c)) * rate / (8 * len(sound)))


@pytest.mark.parametrize("rate", [4000, 8000, 16000, 44100])
def test_pluck_is_in_tune(rate: int) -> None:
    for note in (0, 7, 18, 29, 35):
        frequency = LOWEST * 2 ** (note / 12)
        sound = pluck(frequency, 4.0, 0.3, 1.0, rate, rate, np.random.default_rng(0))
        cents = 1200 * math.log2(fundamental(sound, rate, frequency) / frequency)
        assert abs(cents) < 10, note


def test_pluck_is_its_recursion_sample_by_sample() -> None:
    rate, frequency, decay, samples = 8000, 440.0, 1.0, 400
    sound = pluck(frequency, decay, 0.25, 1.0, rate, samples, np.random.default_rng(3))
    # One sample at a time: the average, the all-pass and the loss, fed by the same burst through the same comb.
    delay = math.floor(rate / frequency - 0.6)
    rest, angle = rate / frequency - 0.5 - delay, math.pi * frequency / rate
    tune = math.sin(angle * (1 - rest)) / math.sin(angle * (1 + rest))
    burst = np.zeros(samples)
    burst[:delay] = np.random.default_rng(3).uniform(-1, 1, delay)
    burst[:delay] -= burst[:delay].mean()
    comb = [burst[n] - (burst[n - 5] if n >= 5 else 0.0) for n in range(samples)]  # a quarter of 18.18 samples
    string = np.zeros(samples)
    last_average = last_tuned = 0.0
    for n in range(samples):
        now, before = (string[n - delay - k] if n >= delay + k else 0.0 for k in (0, 1))
        average = (now + before) / 2
        tuned = tune * average + last_average - tune * last_tuned
        last_average, last_tuned = average, tuned
        string[n] = comb[n] + 10 ** (-3 / (frequency * decay)) * tuned
    assert np.allclose(sound, string, atol=1e-9)


def test_pluck_decays_and_high_partials_decay_first() -> None:
    sound = pluck(220.0, 1.0, 0.3, 1.0, 8000, 8000, np.random.default_rng(0))
    early, late = (np.abs(np.fft.rfft(sound[start : start + 1600])) ** 2 for start in (0, 4000))
    assert late.sum() < 0.1 * early.sum()
    low, high = slice(20, 100), slice(300, 700)  # 100 to 500 Hz, and 1500 to 3500 Hz
    assert late[high].sum() / late[low].sum() < 0.1 * early[high].sum() / early[low].sum()


def test_plucked_strings_depend_on_seed_and_index_alone() -> None:
    strings = PluckedStrings(AUDIO, count=30)
    assert len(strings) == 30
    assert strings.classes is not None
    assert len(strings.classes) == 12
    assert torch.equal(strings.example(7).x0, PluckedStrings(AUDIO, count=8).example(7).x0)
    other_seed = PluckedStrings(AUDIO, count=30, seed=1)
    assert not torch.equal(strings.example(7).x0, other_seed.example(7).x0)
    part = strings.subset([4, 7]).subset([1])
    assert torch.equal(part.example(0).x0, strings.example(7).x0)
    assert part.example(0).label == strings.example(7).label
    training, validation = split(strings, 0.2)
    assert (len(training), len(validation)) == (24, 6)
    assert len({each.fingerprint for each in (strings, training, other_seed)}) == 3
    assert strings.fingerprint == PluckedStrings(AUDIO, count=30).fingerprint
    for index in (-1, 30):
        with pytest.raises(IndexError, match=str(index)):
            strings.example(index)


def test_plucked_strings_have_the_pitch_of_their_label() -> None:
    strings = PluckedStrings(Audio(rate=8000, seconds=1.0, representation=Waveform()), count=40)
    batch = strings.batch(range(40))
    assert batch.labels is not None
    assert batch.mask is None
    assert len(batch.labels.unique()) > 8
    for label, sound in zip(batch.labels.tolist(), batch.x0[:, 0].double().numpy(), strict=True):
        spectrum = np.abs(np.fft.rfft(sound, 4 * len(sound)))
        frequencies = [LOWEST * 2 ** ((label + 12 * octave) / 12) for octave in range(3)]
        # The partials of the right pitch class outweigh those of the class half an octave off.
        right, wrong = (
            max(sum(spectrum[round(4 * f * shift * h)] for h in (1, 2, 3)) for f in frequencies)
            for shift in (1.0, 2**0.5)
        )
        assert right > wrong


def test_plucked_strings_augmentation_only_delays_the_pluck() -> None:
    strings = PluckedStrings(AUDIO, count=4)
    plain = strings.example(2).x0[0]
    onsets = set()
    for seed in range(12):
        delayed = strings.example(2, seed).x0[0]
        assert torch.equal(delayed, strings.example(2, seed).x0[0])
        onset = int(delayed.ne(0).nonzero()[0] - plain.ne(0).nonzero()[0])
        assert 0 <= onset <= 400
        assert torch.equal(delayed[onset:], plain[: 4000 - onset])
        onsets.add(onset)
    assert len(onsets) > 8


def test_plucked_strings_vary_in_loudness_unless_the_modality_levels_it() -> None:
    peaks = PluckedStrings(AUDIO, count=30).batch(range(30)).x0.abs().amax(dim=(1, 2))
    assert peaks.max() <= 0.9
    assert peaks.max() / peaks.min() > 3
    level = PluckedStrings(Audio(rate=8000, seconds=0.5, representation=Waveform(), loudness="peak"), count=5)
    peaks = level.batch(range(5)).x0.abs().amax(dim=(1, 2))
    assert torch.allclose(peaks, peaks[:1])


def test_plucked_strings_have_any_representation_and_length() -> None:
    stereo = PluckedStrings(Audio(rate=8000, seconds=0.5, mix="stereo"), count=10)
    assert stereo.batch([0, 1]).x0.shape == (2, 4, 257, 33)
    for samples in (1, 2, 3, 30):
        strings = PluckedStrings(Audio(rate=8000, seconds=samples / 8000, representation=Waveform()), count=8)
        x0 = strings.batch(range(8)).x0
        assert x0.shape == (8, 1, samples)
        assert bool(x0.isfinite().all()), samples


def test_plucked_strings_refuse_impossible_options() -> None:
    for modality, count, message in (
        (Image(), 10, "must be an Audio"),
        (Audio(rate=2000, representation=Waveform()), 10, "4000 samples per second"),
        (AUDIO, 0, "count"),
    ):
        with pytest.raises(ValueError, match=message):
            PluckedStrings(modality, count=count)  # type: ignore[arg-type]
