"""Spectrograms against librosa's, which shares no code with torch's."""

import librosa
import numpy as np
import pytest
import torch

from modalities.representation import LogMel, Stft


@pytest.fixture(scope="module")
def sound() -> np.ndarray:
    return 0.2 * np.random.default_rng(0).standard_normal(4096).astype(np.float32)


@pytest.mark.parametrize(("window", "hop"), [(256, 64), (512, 128)])
def test_the_complex_spectrogram_is_librosas(window: int, hop: int, sound: np.ndarray) -> None:
    found = Stft(window, hop, power=1.0, scale=1.0).encode(torch.from_numpy(sound[None]), 8000)
    expected = librosa.stft(sound, n_fft=window, hop_length=hop, window="hann", center=True, pad_mode="constant")
    np.testing.assert_allclose(torch.complex(*found).numpy(), expected * 4 / window, atol=1e-5)


@pytest.mark.parametrize("bands", [20, 40])
def test_the_mel_bands_are_librosas(bands: int, sound: np.ndarray) -> None:
    found = LogMel(512, 128, bands, low=60.0, floor_db=-80.0).encode(torch.from_numpy(sound[None]), 8000)[0]
    power = np.abs(librosa.stft(sound, n_fft=512, hop_length=128, pad_mode="constant") * 4 / 512) ** 2
    filters = librosa.filters.mel(sr=8000, n_fft=512, n_mels=bands, fmin=60.0, fmax=4000.0, htk=True, norm=None)
    decibels = 10 * np.log10(np.maximum(filters @ power, 1e-12))
    np.testing.assert_allclose(found.numpy(), np.maximum(decibels, -80) / 40 + 1, atol=1e-3)
