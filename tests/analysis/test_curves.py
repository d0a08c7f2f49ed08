"""Profiles, fits, cross spectra and merged statistics agree with brute force on full spectra and with known laws."""

import itertools
import math
import warnings

import pytest
import torch
from torch import Tensor

from multisagd import DataStatistics, Grid, PowerLaw, SpectralCovariance
from multisagd.analysis.profiles import (
    Profile,
    axis_profile,
    coherence,
    cross_spectrum,
    fit_power_law,
    measure_profiles,
    radial_profile,
)
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
def test_cross_spectrum_has_the_power_on_its_diagonal_and_the_known_coherence(grid: Grid) -> None:
    """Mixing by .5 correlates channels by .8, so their coherence is .64 (within .08)."""
    x = drawn(grid, 4000)
    statistics = DataStatistics.measure([x], grid)
    cross = cross_spectrum([x[:1000], x[1000:]], statistics)
    torch.testing.assert_close(cross.diagonal().movedim(-1, 0).real, statistics.power)
    torch.testing.assert_close(cross[0, 1], cross[1, 0].conj())
    for _, _, matrix in coherence(cross, grid, bands=3):
        torch.testing.assert_close(matrix.diagonal(), torch.ones(2, dtype=torch.float64))
        assert float(matrix[0, 1]) == pytest.approx(0.64, abs=0.08)


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
        ("no errors", curve.confidence),
    )
