"""Spectra along axes, spectral errors, tests of bands and the input of VGGish have their closed forms."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.profiles import NORMAL_95, axis_profile, radial_profile
from multisagd.metrics.axes import bands_along, mean_difference, neighbour_differences
from multisagd.metrics.discriminate import band_powers, discriminability
from multisagd.metrics.spectral import Curves, decibel_errors, decibels, error, item_curves
from multisagd.metrics.vggish import BANDS, FRAMES, OFFSET, RATE, log_mel, mel_bands

GRID = ms.Grid.of(time=(8, 0.01, "s"), width=9)


def noise(count: int, seed: int, channels: int = 2) -> Tensor:
    return torch.randn(count, channels, *GRID.shape, generator=torch.Generator().manual_seed(seed)).double()


def curves(x: Tensor, mask: Tensor | None = None) -> dict[str, Curves]:
    batches = list(zip(x.split(16), [None] * 99 if mask is None else mask.split(16), strict=False))
    return item_curves(batches, GRID, 3)


def test_item_curves_average_to_the_profiles_of_the_set() -> None:
    x = noise(40, 0)
    found, power = curves(x), ms.DataStatistics.measure([x], GRID).power.mean(0)
    assert found.keys() == {"radius", "bands", "time", "width"}
    profiles = {"radius": radial_profile(power, GRID)}
    profiles |= {name: axis_profile(power, GRID, name) for name in ("time", "width")}
    for name, profile in profiles.items():
        assert found[name].frequency.tolist() == pytest.approx(profile.frequency.tolist())
        assert found[name].values.mean(0).tolist() == pytest.approx(profile.power.tolist(), rel=1e-10)
    sums = [float((power * weight).sum() / weight.sum()) for _, _, weight in GRID.bands(3)]
    assert found["bands"].values.mean(0).tolist() == pytest.approx(sums, rel=1e-10)
    assert found["bands"].edges == tuple((low, high) for low, high, _ in GRID.bands(3))


def test_decibels_of_a_gain_are_its_logarithm_everywhere() -> None:
    x = noise(30, 0)
    for name, found in curves(2 * x).items():
        values, gain = curves(x)[name].values, 20 * math.log10(2)
        assert decibels(found.values, values).tolist() == pytest.approx([gain] * values.shape[1])
        assert error(found.values, values) == pytest.approx(gain)
    # Zero power on both sides.
    nothing = torch.zeros(4, 3, dtype=torch.float64)
    assert decibels(nothing, nothing).tolist() == [0.0] * 3
    assert decibels(torch.ones(4, 1).double(), nothing[:, :1]).tolist() == pytest.approx([120.0])


def test_item_curves_ignore_padding() -> None:
    x, mask = noise(600, 0), torch.ones(600, 1, *GRID.shape, dtype=torch.bool)
    mask[::2, :, 4:] = False
    padded, whole = curves(torch.where(mask, x, 99.0), mask), curves(x)
    assert error(padded["bands"].values, whole["bands"].values) < 0.4


def test_decibel_errors_give_confidence_bands_of_the_stated_level() -> None:
    inside = []
    for seed in range(60):
        made, real = (curves(noise(40, 2 * seed + number))["radius"].values for number in range(2))
        inside.append(decibels(made, real).abs() <= NORMAL_95 * decibel_errors(made, real))
    assert float(torch.stack(inside).double().mean()) == pytest.approx(0.95, abs=0.025)


def in_band(x: Tensor, number: int, gain: float) -> Tensor:
    """Multiply one band of three of data."""
    weight = 1 + (gain - 1) * (GRID.bands(3)[number][2] > 0)
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=(-2, -1)) * weight, s=GRID.shape, dim=(-2, -1))


def accuracies(real: Tensor, made: Tensor) -> list[float]:
    found = zip(band_powers([real], GRID, 3), band_powers(made.split(50), GRID, 3), strict=True)
    return [discriminability(a[2], b[2]).accuracy for a, b in found]


def test_discriminability_finds_the_bands_that_differ() -> None:
    real = noise(600, 0)
    same = discriminability(*(band_powers([each], GRID, 3)[2][2] for each in (real, noise(600, 1))))
    assert (same.count, same.error) == (600, pytest.approx(0.5 / 600**0.5, rel=0.05))
    assert accuracies(real, noise(600, 1)) == pytest.approx([0.5] * 4, abs=0.08)
    for number in (1, 2, 3):
        found = accuracies(real, in_band(noise(600, 1), number, 1.6))
        assert found[number] > 0.75
        assert [each for n, each in enumerate(found) if n != number] == pytest.approx([0.5] * 3, abs=0.08)


def test_band_powers_use_the_same_bins_of_both_sets() -> None:
    one, other = (band_powers(noise(5, 0).split(size), GRID, 3, maximum=7) for size in (5, 2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[2], b[2])
        assert a[2].shape[1] <= 7
    with pytest.raises(ValueError, match="at least 4 items"):
        discriminability(torch.ones(3, 2), torch.ones(9, 2))


def test_bands_along_cover_every_frequency_once() -> None:
    grid = ms.Grid.of(frame=(5, 0.125, "s"), height=4, width=7)
    frequency = axis_profile(torch.ones(grid.half_shape), grid, "width").frequency
    names, members = zip(*bands_along(grid.axis("width"), frequency, 3), strict=True)
    assert names == ("0", "0-0.143 / sample", "0.143-0.286 / sample", "0.286-0.429 / sample")
    assert [each.tolist() for each in members] == [[0], [1], [2], [3]]
    assert torch.cat([each for _, each in bands_along(grid.axis("width"), frequency, 2)]).tolist() == [0, 1, 2, 3]


def test_mean_difference_of_a_ramp_is_its_slope_without_padding() -> None:
    def average_difference(batches: list[tuple[Tensor, Tensor | None]], grid: ms.Grid, name: str) -> float:
        return float(mean_difference(neighbour_differences(batches, grid, name)))

    grid = ms.Grid.of(frame=4, x=3)
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(2, 1, 4, 3).clone()
    assert average_difference([(ramp, None)], grid, "frame") == 1.0
    assert average_difference([(ramp, None)], grid, "x") == 0.0
    padded, mask = ramp.clone(), torch.ones(2, 1, 4, 3, dtype=torch.bool)
    padded[:, :, 3], mask[:, :, 3] = 100.0, False
    assert average_difference([(padded, mask)], grid, "frame") == 1.0
    assert average_difference([(torch.ones(2, 1, 1, 3), None)], grid.resize((1, 3)), "frame") == 0.0
    # Every pair has the same weight: two of a padded batch and three of a full one.
    assert average_difference([(3 * padded, mask), (ramp, None)], grid, "frame") == (3 * 2 + 3) / 5


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
