"""Corruption has the covariance of its dense matrix, and its estimate finds the band and level that were put in."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multisagd as ms
from multisagd import Band, Corruption, DataStatistics, Grid, Outside, SpectralCovariance
from multisagd.analysis.excess import estimate_corruption, excess_power, fitted_power
from tests.helpers import dense

BAND = Band(0.2, 0.3)
IMAGE = Grid.of(height=16, width=15)


@pytest.mark.parametrize("scale", ["deviation", "bins"])
@pytest.mark.parametrize("name", [name for name, grid in dense.GRIDS.items() if min(grid.shape) > 2])
def test_corruption_noise_has_the_covariance_of_its_dense_matrix(name: str, scale: str) -> None:
    grid, low, high, level = dense.GRIDS[name], 0.2, 0.45, 0.7
    corruption = Corruption(Band(low, high), grid, level, scale)
    inside = dense.ring(grid, low - 1e-9, high + 1e-9)
    per_bin = level**2 * (inside / inside.mean() if scale == "deviation" else inside)
    np.testing.assert_allclose(corruption.power().numpy(), dense.half(grid, per_bin), atol=1e-12)
    # Every sample of the grid then has the variance that stands on the diagonal of the dense covariance.
    variance = dense.operator(per_bin)[0, 0]
    assert variance == pytest.approx(corruption.deviation**2, rel=1e-12)
    drawn = corruption.noise((4000, 1, *grid.shape), range(4000)).double()
    # 4,000 draws of at least a few independent numbers each: 5 standard errors of a mean square are below 12 %.
    assert float(drawn.square().mean()) == pytest.approx(variance, rel=0.12)
    spectrum = torch.fft.rfftn(drawn, dim=tuple(range(2, drawn.dim())), norm="ortho").abs().square().mean(0)[0]
    assert float(spectrum[corruption.power() == 0].max()) < 1e-10


def test_corruption_keeps_the_level_of_its_loudest_bin_on_every_grid() -> None:
    hum = Corruption(Band(99.5, 100.5), Grid.of(time=(1000, 1 / 1000, "s")), 1.0, "bins")
    for size in (1000, 2000):
        assert float(hum.power((size,)).max()) == pytest.approx(1.0)


def test_corruption_noise_depends_on_its_seed_and_may_be_shared_by_channels() -> None:
    grid = Grid.of(height=8, width=7)
    apart, shared = (Corruption(Band(0.2, 0.4), grid, 0.5, shared=shared) for shared in (False, True))
    x0 = torch.zeros(4, 3, 8, 7)
    together = apart.corrupt(x0, [5, 6, 7, 8])
    assert torch.equal(together[1:2], apart.corrupt(x0[:1], [6]))
    assert not torch.allclose(together[:, 0], together[:, 2])
    noise = shared.noise((4, 3, 8, 7), range(4))
    assert torch.equal(noise[:, 0], noise[:, 2])


def measured(grid: Grid, count: int, seed: int, corruption: Corruption | None = None) -> DataStatistics:
    """Statistics of coloured Gaussian data of two channels, corrupted or not."""
    covariance = SpectralCovariance(ms.PowerLaw(-1.0, corner=0.1, axes=grid.names[-1:]), grid)
    x0 = 0.6 * covariance.sample(range(seed, seed + count), 2)
    if corruption is not None:
        x0 = corruption.corrupt(x0, range(10**6 + seed, 10**6 + seed + count))
    return DataStatistics.measure([x0], grid)


@pytest.mark.parametrize(
    ("grid", "spectrum"),
    [
        (Grid.of(time=(200, 1 / 1000, "s")), Outside(ms.HarmonicStop(100.0, width=10.0, axis="time", harmonics=3))),
        (IMAGE, BAND),
        (Grid.of(height=12, width=12), ms.Streaks(90.0, 30.0) * Band(0.2, 0.8)),
        (Grid.of(frame=(8, 1 / 8, "s"), height=6, width=6), ms.Spots({"frame": 2.0}, 0.4)),
    ],
    ids=["hum", "band", "rain", "flicker"],
)
def test_estimate_corruption_finds_band_and_level_given_clean_data(grid: Grid, spectrum: ms.Spectrum) -> None:
    made = Corruption(spectrum, grid, 0.5)
    estimate = estimate_corruption(measured(grid, 2000, 7000, made), measured(grid, 2000, 0))
    assert torch.equal(estimate.power() > 0, made.power() > 0)
    # The level is the root of a difference of mean powers, each known to 3 % or so.
    assert estimate.deviation == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    "spectrum", [Band(0.3, 0.36), ms.Spots({"height": 0.25, "width": 0.125}, 0.03)], ids=["band", "moiré"]
)
def test_estimate_corruption_without_clean_data_fits_a_power_law(spectrum: ms.Spectrum) -> None:
    grid = Grid.of(height=32, width=32)
    natural = SpectralCovariance(ms.PowerLaw(-1.0, corner=0.03), grid)
    made = Corruption(spectrum, grid, 0.5)
    x0 = made.corrupt(0.6 * natural.sample(range(1500)), range(5000, 6500))
    data = DataStatistics.measure([x0], grid)
    error = 10 * (fitted_power(data) / (0.36 * natural.power())).log10()
    assert float(error[(grid.radius() > 0.03) & (grid.radius() < 0.5)].abs().max()) < 1.5
    estimate = estimate_corruption(data)
    assert torch.equal(estimate.power() > 0, made.power() > 0)
    assert estimate.deviation == pytest.approx(0.5, rel=0.1)


def test_excess_power_does_not_count_equal_channels_as_more_data() -> None:
    grid = Grid.of(height=8, width=8)
    for start in range(0, 10_000, 1000):
        one, other = (
            DataStatistics.measure([SpectralCovariance(ms.Flat(), grid).sample(seeds).expand(200, 3, 8, 8)], grid)
            for seeds in (range(start, start + 200), range(start + 500, start + 700))
        )
        assert not (excess_power(one, other.power.mean(0), 4.0, 200) > 0).any()


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_outside_is_the_complement_of_the_support(sizes: list[int], seed: int) -> None:
    grid = Grid.of(**dict(zip("abc", sizes, strict=False)))
    power = dense.random(*grid.half_shape, seed=seed).clamp(min=0)
    power.flatten()[0] = 1.0
    table = ms.Table(power, grid)
    inner, outer = (grid.even(each.power(grid)) for each in (table, Outside(table)))
    assert torch.equal((inner > 0) ^ (outer > 0), torch.ones_like(inner, dtype=torch.bool))
    assert torch.equal(outer, Outside(table * 7.0 + 0.0).power(grid))


def test_corruption_is_kept_in_a_file_for_grids_of_any_size(tmp_path: Path) -> None:
    grid, path = Grid.of(time=(64, 0.01, "s")), tmp_path / "band.safetensors"
    made = Corruption(Band(10.0, 20.0), grid, 0.5)
    made.save(path)
    torch.testing.assert_close(Corruption.load(path, grid).power(), made.power(), rtol=1e-12, atol=0)
    assert Corruption.load(path, grid.resize((128,))).deviation == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="axes"):
        Corruption.load(path, Grid.of(width=64))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a corruption"):
        Corruption.load(path, grid)


def test_corruption_and_its_estimate_refuse_what_makes_no_sense() -> None:
    grid = Grid.of(time=8)
    for level in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="level"):
            Corruption(ms.Flat(), grid, level)
    with pytest.raises(ValueError, match="deviation or bins"):
        Corruption(ms.Flat(), grid, 1.0, "decibels")
    with pytest.raises(ValueError, match="nothing to omit"):
        Outside(Band(0.6, 0.7)).power(grid)
    with pytest.raises(ValueError, match="no corruption is visible"):
        estimate_corruption(measured(IMAGE, 2000, 7000), measured(IMAGE, 2000, 0))
    with pytest.raises(ValueError, match="cannot be compared"):
        estimate_corruption(measured(Grid.of(x=8), 20, 0), measured(Grid.of(x=9), 20, 0))
