"""Representations of sounds are inverted exactly, equal librosa's, and keep the physical meaning of their axes."""

import math
from itertools import product

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from modalities.representation import LOUDEST, LogMel, Representation, Stft, Waveform


def noise(channels: int, samples: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(channels, samples, generator=generator) * 2 - 1


@pytest.mark.parametrize(("window", "hop"), [(512, 128), (256, 128), (64, 17), (512, 256)])
def test_stft_is_exactly_invertible(window: int, hop: int) -> None:
    for channels, samples, power in product((1, 2), (1, 127, 1000, 1001, 1024, 16000), (0.3, 0.5, 1.0)):
        stft = Stft(window=window, hop=hop, power=power, scale=2.0)
        waveform = noise(channels, samples)
        x0 = stft.encode(waveform, 16000)
        assert x0.shape == (2 * channels, *stft.grid(samples, 16000).shape)
        assert x0.shape[0] == stft.channels(channels)
        assert (stft.decode(x0, samples, 16000) - waveform).abs().max() < 1e-5, (channels, samples, power)


@pytest.mark.parametrize(("window", "hop", "power", "scale"), [(256, 64, 1.0, 1.0), (512, 128, 0.5, 3.0)])
def test_stft_equals_librosa(window: int, hop: int, power: float, scale: float) -> None:
    sound = 0.2 * np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    x0 = Stft(window, hop, power, scale).encode(torch.from_numpy(sound[None]), 8000)
    plain = librosa.stft(sound, n_fft=window, hop_length=hop, window="hann", center=True, pad_mode="constant")
    plain *= 4 / window
    np.testing.assert_allclose(torch.complex(*x0), scale * plain * np.abs(plain) ** (power - 1), atol=1e-4 * scale)


@pytest.mark.parametrize("bands", [20, 40])
def test_log_mel_equals_librosa(bands: int) -> None:
    sound = 0.2 * np.random.default_rng(0).standard_normal(4096).astype(np.float32)
    x0 = LogMel(512, 128, bands, low=60.0, floor_db=-80.0).encode(torch.from_numpy(sound[None]), 8000)[0]
    power = np.abs(librosa.stft(sound, n_fft=512, hop_length=128, pad_mode="constant") * 4 / 512) ** 2
    filters = librosa.filters.mel(sr=8000, n_fft=512, n_mels=bands, fmin=60.0, fmax=4000.0, htk=True, norm=None)
    decibels = 10 * np.log10(np.maximum(filters @ power, 1e-12))
    np.testing.assert_allclose(x0.numpy(), np.maximum(decibels, -80) / 40 + 1, atol=1e-3)


def test_representations_keep_silence() -> None:
    silence = torch.zeros(1, 4000)
    for each in (Stft(), LogMel(bands=20)):
        assert each.decode(each.encode(silence, 8000), 4000, 8000).abs().max() < 1e-6
    assert LogMel(bands=20).encode(silence, 8000).unique().tolist() == [-1.0]


def test_waveform_is_the_scaled_and_limited_sound() -> None:
    waveform, scaled = noise(2, 100), Waveform(scale=5)
    assert torch.equal(scaled.encode(waveform, 8000), 5 * waveform)
    torch.testing.assert_close(scaled.decode(5 * waveform, 100, 8000), waveform)
    assert scaled.decode(1e18 * waveform, 100, 8000).abs().max() == LOUDEST


@pytest.mark.parametrize("rate", [8000, 16000])
def test_log_mel_decode_comes_near_and_is_deterministic(rate: int) -> None:
    time = torch.arange(rate) / rate
    glide = sum(torch.sin(2 * math.pi * h * (150 * time + 60 * time**2)) / h for h in range(1, 12))
    waveform = 0.2 * (glide * torch.sin(math.pi * 3 * time) ** 2).unsqueeze(0) + 0.001 * noise(1, rate)
    log_mel = LogMel()
    x0 = log_mel.encode(waveform, rate)
    state = torch.get_rng_state()
    decoded = log_mel.decode(x0, rate, rate)
    assert torch.equal(decoded, log_mel.decode(x0, rate, rate))
    assert torch.equal(state, torch.get_rng_state())
    assert decoded.shape == waveform.shape
    magnitudes = [10 ** (-80 * (1 - x) / 40) for x in (x0, log_mel.encode(decoded, rate))]
    assert (magnitudes[0] - magnitudes[1]).norm() / magnitudes[0].norm() < 0.15
    assert (40 * (x0 - log_mel.encode(decoded, rate))).abs().mean() < 4.0


UNITS = {Stft: {"frequency": "Hz", "time": "s"}, LogMel: {"mel": "mel", "time": "s"}, Waveform: {"time": "s"}}


@pytest.mark.parametrize("kind", UNITS, ids=lambda kind: kind.__name__)
def test_representation_grid_has_units_and_corners_of_its_own(kind: type[Representation]) -> None:
    grids = [kind().grid(samples, rate) for rate in (8000, 16000, 44100) for samples in (4000, 16001)]
    if kind is not Waveform:
        grids += [kind(window=window, hop=hop).grid(16000, 16000) for window, hop in ((512, 64), (1024, 512))]
    (axes,) = {tuple((axis.name, axis.unit, axis.corner) for axis in grid.axes) for grid in grids}
    assert {name: unit for name, unit, _ in axes} == UNITS[kind]


def test_representation_grid_has_physical_spacings() -> None:
    frequency, time = Stft(window=512, hop=128).grid(16000, 16000).axes
    assert (frequency.size, frequency.spacing) == (257, 31.25)
    assert (time.size, time.spacing) == (126, 0.008)
    assert Waveform().grid(8000, 8000).axis("time").spacing == 1 / 8000
    band = LogMel(bands=64).grid(16000, 16000).axis("mel")
    assert band.size == 64
    assert band.spacing == pytest.approx(2595 * math.log10((1 + 8000 / 700) / (1 + 60 / 700)) / 65)


def test_representation_refuses_impossible_settings() -> None:
    for message, *builds in (
        ("window must be an even", lambda: Stft(window=511), lambda: Stft(window=2)),
        ("hop must be from 1 to", lambda: Stft(hop=257), lambda: Stft(hop=0)),
        ("power", lambda: Stft(power=0.0), lambda: Stft(power=1.5)),
        ("scale", lambda: Stft(scale=-1.0), lambda: Waveform(scale=math.inf)),
        ("bands", lambda: LogMel(bands=0)),
        ("low", lambda: LogMel(low=500, high=400), lambda: LogMel(low=-1)),
        ("floor_db", lambda: LogMel(floor_db=0.0)),
        ("half the rate", lambda: LogMel(high=5000).grid(8000, 8000), lambda: LogMel(low=5000).grid(8000, 8000)),
        ("too narrow", lambda: LogMel(bands=200).grid(8000, 8000)),
        ("shorter than the window", lambda: LogMel().grid(511, 8000)),
    ):
        for build in builds:
            with pytest.raises(ValueError, match=message):
                build()
