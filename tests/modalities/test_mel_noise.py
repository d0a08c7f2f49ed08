"""Noise that follows log-mel spectrograms has the level and the spectrum of the sounds that these were made from."""

import pytest
import torch

import multisagd as ms
from modalities.audio import Audio
from modalities.image import Image
from modalities.mel_condition import MelSpectrogram
from modalities.mel_noise import MelNoise
from modalities.representation import Waveform

RATE, SAMPLES, SCALE = 8000, 8192, 5.0
AUDIO = Audio(rate=RATE, seconds=SAMPLES / RATE, representation=Waveform(scale=SCALE))
MEL = MelSpectrogram(bands=32)
GRID = AUDIO.grid()


def sounds() -> torch.Tensor:
    """Noise that falls by 6 dB per octave, 26 dB louder in its second half; the second sound is 20 dB quieter."""
    pink = ms.SpectralCovariance(ms.PowerLaw(-1.0, corner=200.0), GRID).sample([1, 2])
    level = torch.where(torch.arange(SAMPLES) < SAMPLES // 2, 0.005, 0.1)
    return SCALE * pink * level * torch.tensor([1.0, 0.1])[:, None, None]


def bound(x0: torch.Tensor, **options: bool | float) -> ms.ItemCovariance:
    dense = torch.stack([MEL.derive(each, AUDIO, 0) for each in x0])
    covariance = ms.ConditionedCovariance(MelNoise(MEL, AUDIO, **options), GRID)
    return covariance.bound(ms.Condition(dense=dense), x0.shape)


def decibels(x: torch.Tensor) -> float:
    return float(10 * x.square().mean().log10())


def test_sounds_are_white_in_units_of_their_noise():
    x0 = sounds()
    white = bound(x0, floor=80.0).whiten(x0)
    for item in white:
        # Away from the step and the ends, where a frame sees both levels or less than a window.
        assert decibels(item[:, 512:3584]) == pytest.approx(0, abs=1.5)
        assert decibels(item[:, 4608:7680]) == pytest.approx(0, abs=1.5)
        power = torch.fft.rfft(item[0, 4608:7680]).abs().square()
        bands = [float(10 * each.mean().log10()) for each in power[40:1500].chunk(4)]
        assert max(bands) - min(bands) < 3


@pytest.mark.parametrize(("options", "shaped"), [({"spectrum": False}, False), ({"envelope": False}, True)])
def test_parts_have_the_level_of_the_sound(options: dict[str, bool], shaped: bool):
    x0 = sounds()
    covariance = bound(x0, floor=80.0, **options)
    noise = torch.cat([covariance.sample([seed, seed + 1]) for seed in range(0, 20, 2)]).reshape(10, 2, SAMPLES)
    halves = (noise[..., 512:3584], noise[..., 4608:7680])
    for item in range(2):
        quiet, loud = (decibels(each[:, item]) for each in halves)
        if shaped:
            assert loud == pytest.approx(quiet, abs=0.5)
            assert loud == pytest.approx(decibels(x0[item]), abs=1.5)
        else:
            assert loud == pytest.approx(decibels(x0[item, 0, 4608:7680]), abs=1.5)
            assert quiet == pytest.approx(decibels(x0[item, 0, 512:3584]), abs=1.5)
    power = torch.fft.rfft(noise).abs().square().mean((0, 1))
    falls = float(10 * (power[300:600] / power[2400:2700]).mean().log10())
    assert (falls > 10) == shaped


@pytest.mark.parametrize("high", [None, 2000.0])
def test_level_is_that_of_all_frequencies(high: float | None):
    condition = MelSpectrogram(bands=32, high=high)
    x0 = SCALE * 0.1 * torch.randn(4, 1, SAMPLES, generator=torch.Generator().manual_seed(0))
    dense = torch.stack([condition.derive(each, AUDIO, 0) for each in x0])
    for options in ({}, {"spectrum": False}, {"envelope": False}):
        rule = MelNoise(condition, AUDIO, floor=80.0, **options)
        white = ms.ConditionedCovariance(rule, GRID).bound(ms.Condition(dense=dense), x0.shape).whiten(x0)
        assert decibels(white) == pytest.approx(0, abs=0.6), options


def test_silence_has_the_lowest_level_and_unknown_frames_are_silent():
    silent = torch.zeros(1, 1, SAMPLES)
    level = SCALE * 0.25 * 10 ** (-40 / 20)
    short = silent.clone()
    short[..., 4096:] = torch.nan
    for x0 in (silent, short):
        covariance = bound(x0, spectrum=False, floor=40.0)
        torch.testing.assert_close(covariance.envelope, torch.full_like(silent, level))


def test_other_conditions_and_settings_are_refused():
    with pytest.raises(ValueError, match="add condition=mel"):
        MelNoise(None, AUDIO)
    with pytest.raises(ValueError, match="add condition=mel"):
        MelNoise(MEL, Image(size=8))
    with pytest.raises(ValueError, match="both false"):
        MelNoise(MEL, AUDIO, envelope=False, spectrum=False)
    with pytest.raises(ValueError, match="floor must be"):
        MelNoise(MEL, AUDIO, floor=-1.0)
