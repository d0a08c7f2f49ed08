"""Metrics of fields equal brute force, SciPy, and closed forms for Gaussian fields, in one to three dimensions."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.profiles import coherence
from multisagd.cross_spectra import cross_spectrum
from multisagd.grid import Axis, Grid
from multisagd.metrics.coherence import band_correlation, item_cross_powers
from multisagd.metrics.ensemble import crps, rank_histogram, spread_and_skill
from multisagd.metrics.increments import increments, lags_along, structure_error, structure_functions, structure_sums
from multisagd.metrics.one_point import (
    cumulative,
    difference_sums,
    distribution_edges,
    fractions,
    moments,
    power_sums,
    wasserstein_distance,
)
from multisagd.metrics.spectral import radial_curve, ring_errors
from tests.helpers.refusals import assert_refused

SHAPES = ((16,), (9,), (8, 7), (7, 8), (6, 5, 4), (5, 4, 7))


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grid_of(shape: tuple[int, ...], periodic: bool = True) -> Grid:
    return Grid(tuple(Axis("zyx"[-len(shape) :][n], size, periodic=periodic) for n, size in enumerate(shape)))


def in_two(x: Tensor, mask: Tensor | None = None) -> list[tuple[Tensor, Tensor | None]]:
    """Return data as two batches."""
    half = len(x) // 2
    return [(x[:half], None if mask is None else mask[:half]), (x[half:], None if mask is None else mask[half:])]


def masked(x: Tensor) -> Tensor:
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(9)) > 0.3
    mask.flatten()[0] = True
    return mask


def test_moments_are_those_of_scipy_with_and_without_masks() -> None:
    x = 300 + values(6, 1, 8, 7) ** 3
    for mask in (None, masked(x)):
        kept = (x if mask is None else x[mask]).numpy().ravel()
        for centre in (0.0, 300.0):
            found = moments(power_sums(in_two(x, mask), centre), centre)
            expected = (kept.mean(), kept.std(), scipy.stats.skew(kept), scipy.stats.kurtosis(kept, fisher=False))
            assert found == pytest.approx(expected, rel=1e-6 if centre == 0 else 1e-11)


def test_moments_refuse_equal_values_and_masks_of_everything() -> None:
    x = torch.full((2, 1, 4), 0.1)
    assert_refused(
        ("all values are equal", lambda: moments(power_sums([(x, None)]))),
        ("all are masked", lambda: moments(power_sums([(x, torch.zeros(x.shape, dtype=torch.bool))]))),
        ("all are masked", lambda: distribution_edges(x[:0])),
    )


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_differences_and_structure_functions_are_sums_over_pairs(shape: tuple[int, ...], periodic: bool) -> None:
    grid, x = grid_of(shape, periodic), values(4, 1, *shape)
    mask = masked(x)
    padded, mode = x.numpy(), "wrap" if periodic else "constant"
    for number, name in enumerate(grid.names):
        axis = 2 + number
        for lag in lags_along(grid.axis(name)):
            width = [(0, lag if each == axis else 0) for each in range(x.ndim)]
            ahead = np.take(np.pad(padded, width, mode), range(lag, lag + shape[number]), axis)
            valid = np.take(np.pad(mask.numpy(), width, mode), range(lag, lag + shape[number]), axis) & mask.numpy()
            expected = [(np.abs(ahead - padded)[valid] ** order).mean() for order in (2, 3, 4)]
            sums = structure_sums(in_two(x, mask), grid, name, [lag])
            assert structure_functions(sums)[0].tolist() == pytest.approx(expected, rel=1e-11), (name, lag)
    for one, other in ((a, b) for a in grid.names for b in grid.names if a < b):
        found = moments(difference_sums([(x, None)], grid, (one, other))).kurtosis
        mixed = padded
        for name in (one, other):
            axis = 2 + grid.names.index(name)
            mixed = np.roll(mixed, -1, axis) - mixed if periodic else np.diff(mixed, axis=axis)
        assert found == pytest.approx(scipy.stats.kurtosis(mixed.ravel(), fisher=False), rel=1e-11)


def test_structure_functions_of_gaussian_fields_have_the_closed_form() -> None:
    """S2 = 2 (C(0) - C(r)), S3 = 2 sqrt(2/pi) S2^(3/2) and S4 = 3 S2^2, with the covariance C of the spectrum."""
    grid = grid_of((16, 15))
    covariance = ms.SpectralCovariance(ms.PowerLaw(-1.0), grid)
    x = covariance.sample(range(3000)).double()
    correlation = torch.fft.irfft2(covariance.power(), s=grid.shape)
    lags = lags_along(grid.axis("x"))
    found = structure_functions(structure_sums([(x, None)], grid, "x", lags))
    for lag, each in zip(lags, found, strict=True):
        second = 2 * float(correlation[0, 0] - correlation[0, lag])
        third = 2 * (2 / math.pi) ** 0.5 * second**1.5
        assert each.tolist() == pytest.approx([second, third, 3 * second**2], rel=0.02), lag


def test_structure_error_is_that_of_the_power_in_every_order() -> None:
    grid, x = grid_of((8, 8)), values(5, 1, 8, 8)
    sums = [structure_sums([(each, None)], grid, "y", [1, 2, 4]) for each in (x, x * 10 ** (3 / 20))]
    assert [structure_error(sums[1], sums[0], order) for order in range(3)] == pytest.approx([3.0] * 3)
    with pytest.raises(ValueError, match="a lag along y must be from 1 to 7"):
        increments(x, None, grid, "y", 8)


def test_wasserstein_distance_is_that_of_scipy() -> None:
    a, b = values(20, 1, 12, 12), values(30, 1, 12, 12, seed=1).tanh() * 1.3 + 0.1
    mask = masked(b)
    edges = distribution_edges(torch.cat([a.flatten(), b[mask]]))
    one, other = cumulative(in_two(a), edges), cumulative(in_two(b, mask), edges)
    kept = b[mask].numpy()
    assert wasserstein_distance(one, other, edges) == pytest.approx(
        scipy.stats.wasserstein_distance(a.numpy().ravel(), kept), rel=0.01
    )
    assert fractions(other).tolist() == pytest.approx([(kept <= edge).mean() for edge in edges.tolist()])
    # A few values in common, such as days without rain, and a shift.
    rain = torch.where(a > 0.5, a, 0.0)
    edges = distribution_edges(torch.cat([rain.flatten(), rain.flatten() + 0.25]))
    moved = [cumulative([(each, None)], edges) for each in (rain, rain + 0.25)]
    assert wasserstein_distance(*moved, edges) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_ring_errors_find_the_ring_and_the_decibels_that_differ(shape: tuple[int, ...]) -> None:
    grid = grid_of(shape)
    real = ms.SpectralCovariance(ms.PowerLaw(-1.0), grid).sample(range(40)).double() + 5.0
    loud = radial_curve(in_two(real * 10 ** (2 / 20)), grid)
    curve = radial_curve(in_two(real), grid)
    assert vars(ring_errors(loud.values, curve.values)).values() == pytest.approx([2.0] * 3, abs=1e-9)
    assert float(curve.frequency.min()) > 0
    changed = curve.values.clone()
    changed[:, -1] /= 10  # the quietest ring of a steep power law is the highest
    found, rings = ring_errors(changed, curve.values), changed.shape[1]
    assert found.worst == pytest.approx(10.0)
    assert found.rms == pytest.approx(10.0 / rings**0.5)
    assert found.quietest_third == pytest.approx(10.0 / math.ceil(rings / 3))


@pytest.mark.parametrize("shape", [(9,), (8, 7), (5, 4, 6)])
def test_band_correlation_has_the_coherence_as_its_square_and_keeps_the_sign(shape: tuple[int, ...]) -> None:
    grid, x = grid_of(shape), values(30, 3, *shape)
    x[:, 1] = 0.8 * x[:, 0] - 0.6 * x[:, 1]
    for mask in (None, masked(x)):
        batches = in_two(x, mask)
        edges, cross = item_cross_powers(batches, grid, 3)
        found = band_correlation(cross)
        if mask is None:
            expected = coherence(cross_spectrum(batches, ms.DataStatistics.measure(batches, grid)), grid, 3)
            for each, (_, _, squared) in zip(found, expected, strict=True):
                torch.testing.assert_close(each.square(), squared)
            assert edges == [(low, high) for low, high, _ in expected]
        assert found[1:, 0, 1].tolist() == pytest.approx([0.8] * (len(edges) - 1), abs=0.35)
        opposite = x * torch.tensor([1, -1, 1]).view(3, *[1] * len(shape))
        flipped = band_correlation(item_cross_powers(in_two(opposite, mask), grid, 3)[1])
        torch.testing.assert_close(flipped[:, 0, 1], -found[:, 0, 1])


def test_crps_is_the_double_sum_over_members() -> None:
    members, observed = values(5, 3, 2, 4), values(3, 2, 4, seed=1)
    pairs = sum((a - b).abs() for a in members for b in members)
    expected = (members - observed).abs().mean(0) - pairs / (2 * 5 * 4)
    torch.testing.assert_close(crps(members, observed), expected)
    moved = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(crps(members[moved], observed), expected)


def test_crps_of_a_gaussian_has_the_closed_form_at_any_number_of_members() -> None:
    """For members and y from N(0, 1), E |x - y| - E |x - x'| / 2 = 1 / sqrt(pi)."""
    for count in (2, 20):
        found = crps(values(count, 40_000), values(40_000, seed=1))
        assert float(found.mean()) == pytest.approx(1 / math.pi**0.5, abs=4 * float(found.std()) / 200)


def test_spread_equals_skill_for_members_drawn_like_the_observation() -> None:
    members, observed = values(4, 50, 1, 20, 20), values(50, 1, 20, 20, seed=1)
    found = spread_and_skill(members, observed)
    assert found.ratio == pytest.approx(1.0, abs=0.02)
    assert found.skill == pytest.approx(1.25**0.5, rel=0.02)
    assert spread_and_skill(0.5 * members, observed).ratio < 0.6
    mask = observed < 1e9
    mask[:, :, 10:] = False
    worse = observed.masked_fill(~mask, 1e6)
    assert spread_and_skill(members, worse, mask).ratio == pytest.approx(1.0, abs=0.03)
    kept = rank_histogram(members[..., :10, :], observed[..., :10, :])
    torch.testing.assert_close(rank_histogram(members, worse, mask), kept)


def test_rank_histogram_is_flat_or_says_what_is_wrong_and_shares_ties() -> None:
    members, observed = values(4, 20_000), values(20_000, seed=1)
    assert rank_histogram(members, observed).tolist() == pytest.approx([0.2] * 5, abs=0.015)
    narrow = rank_histogram(0.3 * members, observed)
    assert float(narrow[[0, -1]].min()) > 0.3
    assert float(rank_histogram(members + 2, observed)[0]) > 0.7
    ties = rank_histogram(torch.tensor([[0.0, 1.0], [0.0, 2.0], [3.0, 3.0]]), torch.tensor([0.0, 2.5]))
    assert ties.tolist() == pytest.approx([1 / 6, 1 / 6, 1 / 6 + 1 / 2, 0.0])


def test_ensemble_metrics_refuse_shapes_that_do_not_match() -> None:
    members = values(3, 2, 4)
    assert_refused(
        ("at least two members", lambda: crps(members[:1], members[0])),
        (r"got \(3, 2, 4\) and \(4,\)", lambda: spread_and_skill(members, members[0, 0])),
        ("all are masked", lambda: rank_histogram(members, members[0], torch.zeros(2, 4, dtype=torch.bool))),
    )
