"""The input of VGGish has its closed forms."""

import numpy as np
import pytest
import torch

from multisagd.metrics.vggish import BANDS, FRAMES, OFFSET, RATE, log_mel, mel_bands


def tone(frequency: float, seconds: float) -> torch.Tensor:
    return torch.sin(2 * torch.pi * frequency * torch.arange(int(seconds * RATE)) / RATE)


def test_log_mel_cuts_sounds_into_whole_pieces_of_96_frames() -> None:
    for seconds, pieces in ((0.1, 1), (0.975, 1), (1.9, 1), (1.95, 2), (3.0, 3)):
        assert log_mel(tone(440, seconds)).shape == (pieces, FRAMES, BANDS), seconds


def test_mel_bands_are_triangles_that_add_up_to_one() -> None:
    bands, frequency = mel_bands(), torch.linspace(0, RATE / 2, 257)
    mel = 1127 * (1 + frequency / 700).log()
    edges = torch.linspace(*(1127 * float(np.log(1 + f / 700)) for f in (125.0, 7500.0)), BANDS + 2)
    between = (mel >= edges[1]) & (mel <= edges[-2])
    assert bands.sum(0)[between].tolist() == pytest.approx([1.0] * int(between.sum()), abs=1e-5)
    assert not bool(bands[:, (mel <= edges[0]) | (mel >= edges[-1])].any())


def test_log_mel_of_a_tone_is_largest_in_its_band() -> None:
    for frequency in (300.0, 1000.0, 4000.0):
        mel = 1127 * np.log(1 + np.array([125.0, 7500.0, frequency]) / 700)
        expected = (mel[2] - mel[0]) / (mel[1] - mel[0]) * (BANDS + 1) - 1
        assert int(log_mel(tone(frequency, 1.0))[0, 10].argmax()) == pytest.approx(expected, abs=1)
    assert log_mel(torch.zeros(100)).unique().tolist() == pytest.approx([np.log(OFFSET)])
