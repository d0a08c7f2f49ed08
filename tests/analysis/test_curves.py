"""Profiles, cross spectra and spectral errors agree with brute force on full spectra and with closed forms."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from multisagd import Axis, DataStatistics, Grid, PowerLaw, SpectralCovariance
from multisagd.analysis.profiles import (
    NORMAL_95,
    Profile,
    axis_profile,
    coherence,
    fit_power_law,
    measure_profiles,
    radial_profile,
)
from multisagd.cross_spectra import cross_spectrum
from multisagd.metrics.axes import bands_along, mean_difference, neighbour_differences
from multisagd.metrics.discriminate import band_powers, discriminability
from multisagd.metrics.spectral import Curves, decibel_errors, decibels, error, item_curves
from multisagd.metrics.vggish import BANDS, FRAMES, OFFSET, RATE, log_mel, mel_bands
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

GRIDS = [Grid.of(time=(9, 0.5, "s")), Grid.of(height=6, width=7), Grid.of(frame=(4, 0.1, "s"), height=5, width=6)]
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))


def drawn(grid: Grid, count: int, seed: int = 0) -> Tensor:
    white = torch.randn(count, 2, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mixed = white + 0.5 * white.flip(1)
    return SpectralCovariance(PowerLaw(exponent=-0.8, corner=0.1, axes=grid.names[-1:]), grid).color(mixed) + 3


@grids
def test_profiles_average_the_full_spectrum_by_radius_and_over_the_other_axes(grid: Grid) -> None:
    x, dims = drawn(grid, 7), tuple(range(-grid.dimensions, 0))
    statistics = DataStatistics.measure([x[:3], x[3:]], grid)
    measured = measure_profiles([x[:3], x[3:]], statistics)
    power = torch.fft.fftn(x - x.mean(0), dim=dims, norm="ortho").abs().square().sum(0) / 6
    axes = [torch.fft.fftfreq(size, dtype=torch.float64) for size in grid.shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    edges = [0.5 * math.sqrt(grid.dimensions) * ring / 3 for ring in range(4)]
    expected = [power[:, radius == 0].mean(1)]
    for low, high in itertools.pairwise(edges):
        inside = (radius > low + 1e-9) & (radius <= high + 1e-9)
        if bool(inside.any()):
            expected.append(power[:, inside].mean(1))
    rings = radial_profile(statistics.power, grid, rings=3).power
    torch.testing.assert_close(rings, torch.stack(expected, 1), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(measured["radius"].power, radial_profile(statistics.power.mean(0), grid).power)
    for place, axis in enumerate(grid.axes):
        curve = power.mean(0).movedim(place, 0).reshape(axis.size, -1).mean(1)
        numbers = torch.arange(axis.size // 2 + 1)
        profile = axis_profile(statistics.power, grid, axis.name)
        torch.testing.assert_close(profile.frequency, numbers.double() / axis.size / axis.spacing)
        torch.testing.assert_close(profile.power, (curve[numbers] + curve[-numbers]) / 2, rtol=1e-10, atol=0)
        torch.testing.assert_close(measured[axis.name].power, profile.power)


def test_measure_profiles_states_the_standard_errors_of_the_means() -> None:
    """The deviation of the profile over 150 sets of 40 data, against the errors that each set gives (within 15 %)."""
    grid = GRIDS[1]
    sets = [drawn(grid, 40, seed=seed) for seed in range(150)]
    profiles = [measure_profiles([x], DataStatistics.measure([x], grid), rings=3)["radius"] for x in sets]
    deviation = torch.stack([each.power for each in profiles]).std(0)
    stated = torch.stack([each.error for each in profiles if each.error is not None]).mean(0)
    torch.testing.assert_close(stated, deviation, rtol=0.15, atol=0)
    low, high = profiles[0].confidence()
    assert bool((low < profiles[0].power).all() and (profiles[0].power < high).all())


def test_measure_profiles_of_padded_data_equals_their_statistics() -> None:
    grid = Grid.of(time=16)
    covariance = SpectralCovariance(PowerLaw(exponent=-1.5, corner=0.05), grid).double()
    mask = torch.arange(16) < torch.randint(6, 17, (600, 1, 1), generator=torch.Generator().manual_seed(1))
    batches = [(covariance.color(dense.random(600, 1, 16)).masked_fill(~mask, 0.0), mask)]
    statistics = DataStatistics.measure(batches, grid)
    profiles = measure_profiles(batches, statistics)
    torch.testing.assert_close(profiles["time"].power, axis_profile(statistics.power, grid, "time").power)
    torch.testing.assert_close(profiles["radius"].power, radial_profile(statistics.power.mean(0), grid).power)
    error, power = profiles["time"].error, profiles["time"].power
    assert bool(((error > 0.01 * power) & (error < 0.5 * power)).all())


@pytest.mark.parametrize(("exponent", "knee"), [(-2.0, 0.02), (-3.0, 0.1), (-1.0, 0.05), (1.5, 0.1)])
def test_fit_power_law_recovers_exponent_knee_and_level(exponent: float, knee: float) -> None:
    radius = torch.linspace(0, 0.7, 60, dtype=torch.float64)
    power = 0.3 * (radius**2 + knee**2) ** (exponent / 2)
    fit = fit_power_law(Profile(radius, power))
    assert (fit.exponent, fit.knee, fit.level) == pytest.approx((exponent, knee, 0.3), rel=1e-3)
    assert fit.residual < 1e-3
    torch.testing.assert_close(fit.power(radius), power, rtol=1e-2, atol=0)


def test_fit_power_law_gives_its_residual_in_decibels_and_bounds_the_exponent() -> None:
    radius = torch.linspace(0.01, 0.7, 400, dtype=torch.float64)
    sign = torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat(200)
    assert fit_power_law(Profile(radius, radius**-2 * 10 ** (sign * 0.1))).residual == pytest.approx(1.0, rel=0.01)
    frequency = torch.linspace(0.05, 0.5, 8, dtype=torch.float64)
    for exponent in (-60.0, 60.0):
        assert abs(fit_power_law(Profile(frequency, frequency**exponent)).exponent) == pytest.approx(20, abs=0.1)


@grids
def test_cross_spectrum_is_hermitian_with_the_power_on_its_diagonal(grid: Grid) -> None:
    x = drawn(grid, 40)
    statistics = DataStatistics.measure([x], grid)
    cross = cross_spectrum([x[:10], x[10:]], statistics)
    torch.testing.assert_close(cross.diagonal().movedim(-1, 0).real, statistics.power)
    torch.testing.assert_close(cross[0, 1], cross[1, 0].conj())
    for _, _, matrix in coherence(cross, grid, bands=3):
        torch.testing.assert_close(matrix.diagonal(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("axis", [-1, -2])
def test_coherence_is_the_same_along_the_axis_that_is_stored_halved(axis: int) -> None:
    """White data, and a channel moved by one of 8 samples: their correlation in a band is the mean of its cosines."""
    grid, first = Grid.of(height=8, width=8), dense.random(4000, 1, 8, 8)
    x = torch.cat([first, first.roll(1, axis)], 1)
    cross = cross_spectrum([x], DataStatistics.measure([x], grid))
    cosine = (2 * math.pi * grid.frequencies(grid.names[axis])).cos().expand(grid.half_shape)
    for (_, _, matrix), (_, _, weight) in zip(coherence(cross, grid), grid.bands(8), strict=True):
        expected = float((cosine * weight).sum() / weight.sum()) ** 2
        assert float(matrix[0, 1]) == pytest.approx(expected, abs=0.03)


def test_cross_spectrum_of_masked_channels_counts_where_both_are_valid() -> None:
    """White data of correlation 0.8 between channels, each valid on its own part of the grid."""
    grid, white = Grid.of(height=6, width=8), dense.random(3000, 2, 6, 8)
    x = torch.stack([white[:, 0], 0.8 * white[:, 0] + 0.6 * white[:, 1]], 1)
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 0, :2], mask[:, 1, :, 5:] = False, False
    mask[::3, 1] = False  # a channel that some data lack
    batches = [(x.masked_fill(~mask, 0.0), mask)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        statistics = DataStatistics.measure(batches, grid)
    cross = cross_spectrum(batches, statistics)
    for (_, _, weight), (_, _, matrix) in zip(grid.bands(3), coherence(cross, grid, bands=3), strict=True):
        mean = (cross.real * weight).flatten(2).sum(2) / weight.sum()
        expected = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(mean, expected, rtol=0.1, atol=0)
        assert float(matrix[0, 1]) == pytest.approx(0.64, abs=0.1)


@grids
def test_merge_gives_the_statistics_of_all_data(grid: Grid) -> None:
    x = drawn(grid, 12)
    x[5:] += 2  # means that differ between the parts
    merged = DataStatistics.merge([DataStatistics.measure([each], grid) for each in (x[:1], x[1:5], x[5:])])
    whole = DataStatistics.measure([x], grid)
    assert merged.count == 12
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.power, whole.power)


def test_profiles_and_merge_refuse_impossible_data() -> None:
    statistics, other = (DataStatistics.measure([torch.randn(3, 1, n)], Grid.of(time=n)) for n in (8, 9))
    curve = Profile(torch.arange(3.0), torch.ones(3))
    assert_refused(
        ("different grids", lambda: DataStatistics.merge([statistics, other])),
        ("no statistics", lambda: DataStatistics.merge([])),
        ("at least two examples", lambda: measure_profiles([torch.randn(1, 1, 8)], statistics)),
        ("four frequencies", lambda: fit_power_law(curve)),
        ("no standard errors", curve.confidence),
    )


GRID = Grid.of(time=(8, 0.01, "s"), width=9)


def noise(count: int, seed: int, channels: int = 2) -> Tensor:
    return torch.randn(count, channels, *GRID.shape, generator=torch.Generator().manual_seed(seed)).double()


def curves(x: Tensor, mask: Tensor | None = None) -> dict[str, Curves]:
    batches = list(zip(x.split(16), [None] * 99 if mask is None else mask.split(16), strict=False))
    return item_curves(batches, GRID, 3)


def test_item_curves_average_to_the_profiles_of_the_set() -> None:
    x = noise(40, 0)
    found, power = curves(x), DataStatistics.measure([x], GRID).power.mean(0)
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
    grid = Grid.of(frame=(5, 0.125, "s"), height=4, width=7)
    frequency = axis_profile(torch.ones(grid.half_shape), grid, "width").frequency
    names, members = zip(*bands_along(grid.axis("width"), frequency, 3), strict=True)
    assert names == ("0", "0-0.143 / sample", "0.143-0.286 / sample", "0.286-0.429 / sample")
    assert [each.tolist() for each in members] == [[0], [1], [2], [3]]
    assert torch.cat([each for _, each in bands_along(grid.axis("width"), frequency, 2)]).tolist() == [0, 1, 2, 3]


def test_mean_difference_of_a_ramp_is_its_slope_without_padding() -> None:
    def average_difference(batches: list[tuple[Tensor, Tensor | None]], grid: Grid, name: str) -> float:
        return float(mean_difference(neighbour_differences(batches, grid, name)))

    grid = Grid.of(frame=4, x=3)
    ramp = torch.arange(4.0).reshape(1, 1, 4, 1).expand(2, 1, 4, 3).clone()
    assert average_difference([(ramp, None)], grid, "frame") == 1.0
    assert average_difference([(ramp, None)], grid, "x") == 0.0
    circle = Grid((Axis("frame", 4, periodic=True), Axis("x", 3)))
    assert average_difference([(ramp, torch.ones_like(ramp, dtype=torch.bool))], circle, "frame") == (3 + 3) / 4
    padded, mask = ramp.clone(), torch.ones(2, 1, 4, 3, dtype=torch.bool)
    padded[:, :, 3], mask[:, :, 3] = 100.0, False
    assert average_difference([(padded, mask)], grid, "frame") == 1.0
    assert average_difference([(torch.ones(2, 1, 1, 3), None)], grid.resize((1, 3)), "frame") == 0.0
    # Every pair has the same weight: two of a padded batch and three of a full one.
    assert average_difference([(3 * padded, mask), (ramp, None)], grid, "frame") == (3 * 2 + 3) / 5


def tone(frequency: float, seconds: float) -> Tensor:
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
