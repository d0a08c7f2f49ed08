"""Profiles, fits, cross spectra and merged statistics against brute force on full spectra, and on known laws."""

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

GRIDS = [Grid.of(time=(9, 0.5, "s")), Grid.of(height=6, width=7), Grid.of(frame=(4, 0.1, "s"), height=5, width=6)]
ids = {"ids": lambda grid: "x".join(map(str, grid.shape))}


def drawn(grid: Grid, count: int, channels: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, channels, *grid.shape, generator=generator, dtype=torch.float64)
    mixed = white + 0.5 * white.flip(1)
    return SpectralCovariance(PowerLaw(exponent=-0.8, corner=0.1, axes=grid.names[-1:]), grid).color(mixed) + 3


def full_power(x: Tensor, dimensions: int) -> Tensor:
    return torch.fft.fftn(x, dim=tuple(range(-dimensions, 0)), norm="ortho").abs().square()


@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_radial_profiles_average_the_full_spectrum_by_radius(grid: Grid) -> None:
    x = drawn(grid, 5)
    statistics = DataStatistics.measure([x], grid)
    profile = radial_profile(statistics.power, grid, rings=3)
    power = full_power(x - x.mean(0), grid.dimensions).sum(0) / 4
    axes = [torch.fft.fftfreq(size, dtype=torch.float64) for size in grid.shape]
    radius = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
    edges = [0.5 * math.sqrt(grid.dimensions) * ring / 3 for ring in range(4)]
    expected = [power[:, radius == 0].mean(1)]
    for low, high in itertools.pairwise(edges):
        inside = (radius > low + 1e-9) & (radius <= high + 1e-9)
        if bool(inside.any()):
            expected.append(power[:, inside].mean(1))
    torch.testing.assert_close(profile.power, torch.stack(expected, 1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_axis_profiles_average_over_the_other_axes(grid: Grid) -> None:
    x = drawn(grid, 5)
    power = full_power(x - x.mean(0), grid.dimensions).sum(0).mean(0) / 4
    statistics = DataStatistics.measure([x], grid)
    for place, axis in enumerate(grid.axes):
        curve = power.movedim(place, 0).reshape(axis.size, -1).mean(1)
        profile = axis_profile(statistics.power, grid, axis.name)
        for number, frequency in enumerate(profile.frequency):
            assert float(frequency) == pytest.approx(number / axis.size / axis.spacing)
            both = (curve[number] + curve[-number]) / 2
            assert float(profile.power[number]) == pytest.approx(float(both), rel=1e-10)


def test_profiles_of_data_have_the_standard_errors_of_their_means() -> None:
    """The spread of the profile over 150 sets of 40 data, against the errors that each set gives (within 15 %)."""
    grid = GRIDS[1]
    sets = [drawn(grid, 40, seed=seed) for seed in range(150)]
    found = [measure_profiles([x], DataStatistics.measure([x], grid), rings=3)["radius"] for x in sets]
    spread = torch.stack([each.power for each in found]).std(0)
    stated = torch.stack([each.error for each in found if each.error is not None]).mean(0)
    torch.testing.assert_close(stated, spread, rtol=0.15, atol=0)
    low, high = found[0].confidence()
    assert bool((low < found[0].power).all() and (found[0].power < high).all())


@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_profiles_of_data_are_those_of_their_statistics(grid: Grid) -> None:
    x = drawn(grid, 7)
    statistics = DataStatistics.measure([x[:3], x[3:]], grid)
    found = measure_profiles([x[:3], x[3:]], statistics)
    torch.testing.assert_close(found["radius"].power, radial_profile(statistics.power.mean(0), grid).power)
    for name in grid.names:
        torch.testing.assert_close(found[name].power, axis_profile(statistics.power, grid, name).power)


@pytest.mark.parametrize(("exponent", "knee"), [(-2.0, 0.02), (-3.0, 0.1), (-1.0, 0.05), (1.5, 0.1)])
def test_a_power_law_with_a_knee_is_found_again(exponent: float, knee: float) -> None:
    radius = torch.linspace(0, 0.7, 60, dtype=torch.float64)
    fit = fit_power_law(Profile(radius, 0.3 * (radius**2 + knee**2) ** (exponent / 2)))
    assert fit.exponent == pytest.approx(exponent, rel=1e-3)
    assert fit.knee == pytest.approx(knee, rel=1e-3)
    assert fit.level == pytest.approx(0.3, rel=1e-3)
    assert fit.residual < 1e-3
    torch.testing.assert_close(fit.power(radius), 0.3 * (radius**2 + knee**2) ** (exponent / 2), rtol=1e-2, atol=0)


def test_the_residual_of_a_fit_is_in_decibels() -> None:
    radius = torch.linspace(0.01, 0.7, 400, dtype=torch.float64)
    sign = torch.ones(400, dtype=torch.float64)
    sign[::2] = -1
    fit = fit_power_law(Profile(radius, radius**-2 * 10 ** (sign * 0.1)))
    assert fit.residual == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_cross_spectra_and_coherence(grid: Grid) -> None:
    """The diagonal is the power; mixing by .5 correlates channels by .8, so their coherence is .64 (within .08)."""
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
    grid = Grid.of(height=8, width=8)
    first = torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.cat([first, first.roll(1, axis)], 1)
    cross = cross_spectrum([x], DataStatistics.measure([x], grid))
    name = grid.names[axis]
    for (_, _, matrix), (_, _, weight) in zip(coherence(cross, grid), grid.bands(8), strict=True):
        cosine = (2 * math.pi * grid.frequencies(name)).cos().expand(grid.half_shape)
        expected = float((cosine * weight).sum() / weight.sum()) ** 2
        assert float(matrix[0, 1]) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("exponent", [-60.0, 60.0])
def test_curves_too_steep_for_the_fit_get_its_steepest_law(exponent: float) -> None:
    frequency = torch.linspace(0.05, 0.5, 8, dtype=torch.float64)
    assert abs(fit_power_law(Profile(frequency, frequency**exponent)).exponent) == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("grid", GRIDS, **ids)
def test_merged_statistics_are_those_of_all_data(grid: Grid) -> None:
    x = drawn(grid, 12)
    x[5:] += 2  # means that differ between the parts
    parts = [DataStatistics.measure([each], grid) for each in (x[:1], x[1:5], x[5:])]
    merged, whole = DataStatistics.merge(parts), DataStatistics.measure([x], grid)
    assert merged.count == 12
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.power, whole.power)


def test_what_cannot_be_done_is_refused() -> None:
    grid = Grid.of(time=8)
    statistics = DataStatistics.measure([torch.randn(3, 1, 8)], grid)
    other = DataStatistics.measure([torch.randn(3, 1, 9)], Grid.of(time=9))
    with pytest.raises(ValueError, match="different grids"):
        DataStatistics.merge([statistics, other])
    with pytest.raises(ValueError, match="no statistics"):
        DataStatistics.merge([])
    with pytest.raises(ValueError, match="at least two data"):
        measure_profiles([torch.randn(1, 1, 8)], statistics)
    with pytest.raises(ValueError, match="four frequencies"):
        fit_power_law(Profile(torch.arange(3.0), torch.ones(3)))
    with pytest.raises(ValueError, match="no errors"):
        Profile(torch.arange(3.0), torch.ones(3)).confidence()


def test_channels_with_masks_of_their_own_cohere_where_both_are_valid() -> None:
    """White data of correlation 0.8 between channels, each valid on its own part of the grid."""
    grid = Grid.of(height=6, width=8)
    white = torch.randn(3000, 2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
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


def test_profiles_of_padded_data_are_those_of_their_statistics() -> None:
    grid = Grid.of(time=16)
    covariance = SpectralCovariance(PowerLaw(exponent=-1.5, corner=0.05), grid).double()
    white = torch.randn(600, 1, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(16) < torch.randint(6, 17, (600, 1, 1), generator=torch.Generator().manual_seed(1))
    batches = [(covariance.color(white).masked_fill(~mask, 0.0), mask)]
    statistics = DataStatistics.measure(batches, grid)
    found = measure_profiles(batches, statistics)
    torch.testing.assert_close(found["time"].power, axis_profile(statistics.power, grid, "time").power)
    torch.testing.assert_close(found["radius"].power, radial_profile(statistics.power.mean(0), grid).power)
    error = found["time"].error
    assert error is not None
    assert bool(((error > 0.01 * found["time"].power) & (error < 0.5 * found["time"].power)).all())
