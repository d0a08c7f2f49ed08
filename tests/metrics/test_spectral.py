"""Spectral errors and the logistic test of bands have their known values on noise of known power."""

import math

import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.profiles import NORMAL_95, axis_profile, radial_profile
from multisagd.metrics.discriminate import band_powers, discriminability
from multisagd.metrics.spectral import Curves, decibel_errors, decibels, error, item_curves

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
    assert accuracies(real, noise(600, 1)) == pytest.approx([0.5] * 4, abs=0.08)
    for number in (1, 2, 3):
        found = accuracies(real, in_band(noise(600, 1), number, 1.6))
        assert found[number] > 0.75
        assert [each for n, each in enumerate(found) if n != number] == pytest.approx([0.5] * 3, abs=0.08)


def test_discriminability_grows_with_the_difference() -> None:
    real, made = noise(400, 0), noise(400, 1)
    steps = [accuracies(real, in_band(made, 2, gain))[2] for gain in (1.0, 1.2, 1.5, 3.0)]
    assert steps == sorted(steps)
    assert steps[-1] > 0.97
    found = discriminability(*(band_powers([each], GRID, 3)[2][2] for each in (real, made)))
    assert found.count == 400
    assert found.error == pytest.approx(0.5 / 20, rel=0.05)


def test_band_powers_use_the_same_bins_of_both_sets() -> None:
    one, other = (band_powers(noise(5, 0).split(size), GRID, 3, maximum=7) for size in (5, 2))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a[2], b[2])
        assert a[2].shape[1] <= 7
    with pytest.raises(ValueError, match="at least 4 items"):
        discriminability(torch.ones(3, 2), torch.ones(9, 2))
