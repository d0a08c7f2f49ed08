"""Corruption against dense matrices, and its estimate against what was put in."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multisagd import (
    Band,
    Corruption,
    DataStatistics,
    Flat,
    Grid,
    HarmonicStop,
    Outside,
    PowerLaw,
    SpectralCovariance,
    Spots,
    Streaks,
    Table,
)
from multisagd.analysis.excess import estimate_corruption, excess_power, fitted_power, measured_corruption
from tests.helpers.dense import GRIDS, half, operator, radius

SIZES = {name: grid for name, grid in GRIDS.items() if min(grid.shape) > 2}


@pytest.mark.parametrize("grid", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("scale", ["deviation", "bins"])
def test_the_covariance_of_a_corruption_is_its_dense_matrix(grid: Grid, scale: str) -> None:
    low, high, level = 0.2, 0.45, 0.7
    corruption = Corruption(Band(low, high), grid, level, scale)  # type: ignore[arg-type]
    inside = ((radius(grid) >= low - 1e-9) & (radius(grid) <= high + 1e-9)).astype(float)
    per_bin = level**2 * (inside / inside.mean() if scale == "deviation" else inside)
    np.testing.assert_allclose(corruption.power().numpy(), half(grid, per_bin), atol=1e-12)
    # Every sample of the grid then has the variance that stands on the diagonal of the dense covariance.
    variance = operator(per_bin)[0, 0]
    assert variance == pytest.approx(corruption.deviation**2, rel=1e-12)
    drawn = corruption.noise((4000, 1, *grid.shape), range(4000)).double()
    # 4,000 draws of at least a few independent numbers each: 5 standard errors of a mean square are below 12 %.
    assert float(drawn.square().mean()) == pytest.approx(variance, rel=0.12)
    spectrum = torch.fft.rfftn(drawn, dim=tuple(range(2, drawn.dim())), norm="ortho").abs().square().mean(0)[0]
    assert float(spectrum[corruption.power() == 0].max()) < 1e-10


def test_levels_mean_what_they_say() -> None:
    grid = Grid.of(height=32, width=32)
    narrow, wide = Band(0.1, 0.12), Band(0.1, 0.4)
    assert [Corruption(band, grid, 0.5).deviation for band in (narrow, wide)] == pytest.approx([0.5, 0.5])
    loud = [float(Corruption(band, grid, 0.5, "bins").power().max()) for band in (narrow, wide)]
    assert loud == pytest.approx([0.25, 0.25])


def test_one_seed_one_corruption() -> None:
    corruption = Corruption(Band(0.1, 0.3), Grid.of(time=12))
    x0 = torch.zeros(3, 2, 12)
    together = corruption.corrupt(x0, [5, 6, 7])
    assert torch.equal(together[1:2], corruption.corrupt(x0[:1], [6]))


@pytest.mark.parametrize("level", [0.0, -1.0, math.inf, math.nan])
def test_levels_without_meaning_are_refused(level: float) -> None:
    with pytest.raises(ValueError, match="level"):
        Corruption(Flat(), Grid.of(time=8), level)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="deviation or bins"):
        Corruption(Flat(), Grid.of(time=8), 1.0, "decibels")  # type: ignore[arg-type]


def measured(grid: Grid, count: int, seed: int, corruption: Corruption | None = None) -> DataStatistics:
    """Statistics of coloured Gaussian data of two channels, corrupted or not."""
    x0 = 0.6 * SpectralCovariance(PowerLaw(-1.0, corner=0.1, axes=grid.names[-1:]), grid).sample(
        range(seed, seed + count), 2
    )
    if corruption is not None:
        x0 = corruption.corrupt(x0, range(10**6 + seed, 10**6 + seed + count))
    return DataStatistics.measure([x0], grid)


@pytest.mark.parametrize(
    ("grid", "spectrum"),
    [
        (Grid.of(time=(200, 1 / 1000, "s")), Outside(HarmonicStop(100.0, width=10.0, axis="time", harmonics=3))),
        (Grid.of(height=16, width=15), Band(0.2, 0.3)),
        (Grid.of(height=12, width=12), Streaks(90.0, 30.0) * Band(0.2, 0.8)),
        (Grid.of(frame=(8, 1 / 8, "s"), height=6, width=6), Spots({"frame": 2.0}, 0.4)),
    ],
    ids=["hum", "band", "rain", "flicker"],
)
def test_band_and_level_are_found_beside_clean_data(grid: Grid, spectrum: object) -> None:
    made = Corruption(spectrum, grid, 0.5)  # type: ignore[arg-type]
    found = estimate_corruption(measured(grid, 2000, 7000, made), measured(grid, 2000, 0))
    assert torch.equal(found.power() > 0, made.power() > 0)
    # The level is the root of a difference of mean powers, each known to 3 % or so.
    assert found.deviation == pytest.approx(0.5, rel=0.05)


def test_clean_data_show_no_corruption() -> None:
    grid = Grid.of(height=16, width=15)
    with pytest.raises(ValueError, match="no corruption is visible"):
        estimate_corruption(measured(grid, 2000, 7000), measured(grid, 2000, 0))


def test_a_power_law_fitted_elsewhere_serves_where_no_clean_data_are() -> None:
    grid = Grid.of(height=16, width=15)
    made = Corruption(Band(0.2, 0.3), grid, 0.5)
    expected = 0.6**2 * SpectralCovariance(PowerLaw(-1.0, corner=0.1, axes=("width",)), grid).power()
    excess = excess_power(measured(grid, 2000, 7000, made), expected, errors=5.0)
    assert torch.equal(excess > 0, made.power() > 0)
    assert measured_corruption(excess, grid).deviation == pytest.approx(0.5, rel=0.05)


def test_data_on_another_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        estimate_corruption(measured(Grid.of(x=8), 20, 0), measured(Grid.of(x=9), 20, 0))


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_outside_is_the_complement_of_the_support(sizes: list[int], seed: int) -> None:
    grid = Grid.of(**dict(zip("abc", sizes, strict=False)))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    power = (torch.rand(grid.half_shape, generator=generator, dtype=torch.float64) - 0.5).clamp(min=0)
    power.flatten()[0] = 1.0
    inner, outer = (grid.even(each.power(grid)) for each in (Table(power, grid), Outside(Table(power, grid))))
    assert torch.equal((inner > 0) ^ (outer > 0), torch.ones_like(inner, dtype=torch.bool))
    assert torch.equal(outer, Outside(Table(power, grid) * 7.0 + 0.0).power(grid))


def test_nothing_to_leave_out_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to leave out"):
        Outside(Band(0.6, 0.7)).power(Grid.of(time=8))


@pytest.mark.parametrize(
    "spectrum", [Band(0.3, 0.36), Spots({"height": 0.25, "width": 0.125}, 0.03)], ids=["band", "moiré"]
)
def test_without_clean_data_a_power_law_takes_their_place(spectrum: object) -> None:
    grid = Grid.of(height=32, width=32)
    natural = SpectralCovariance(PowerLaw(-1.0, corner=0.03), grid)
    made = Corruption(spectrum, grid, 0.5)  # type: ignore[arg-type]
    x0 = made.corrupt(0.6 * natural.sample(range(1500)), range(5000, 6500))
    data = DataStatistics.measure([x0], grid)
    off = 10 * (fitted_power(data) / (0.36 * natural.power())).log10()
    assert float(off[(grid.radius() > 0.03) & (grid.radius() < 0.5)].abs().max()) < 1.5
    found = estimate_corruption(data)
    assert torch.equal(found.power() > 0, made.power() > 0)
    assert found.deviation == pytest.approx(0.5, rel=0.1)


def test_a_corruption_is_kept_in_a_file_and_serves_other_grids(tmp_path: Path) -> None:
    grid = Grid.of(time=(64, 0.01, "s"))
    made = Corruption(Band(10.0, 20.0), grid, 0.5)
    made.save(tmp_path / "band.safetensors")
    again = Corruption.load(tmp_path / "band.safetensors", grid)
    torch.testing.assert_close(again.power(), made.power(), rtol=1e-12, atol=0)
    longer = Corruption.load(tmp_path / "band.safetensors", grid.resize((128,)))
    assert longer.deviation == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="axes"):
        Corruption.load(tmp_path / "band.safetensors", Grid.of(width=64))
    (tmp_path / "band.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a corruption"):
        Corruption.load(tmp_path / "band.safetensors", grid)


def test_what_channels_share_is_the_same_in_all_of_them() -> None:
    grid = Grid.of(height=8, width=7)
    shared = Corruption(Band(0.2, 0.4), grid, 0.5, shared=True).noise((4, 3, 8, 7), range(4))
    assert torch.equal(shared[:, 0], shared[:, 2])
    apart = Corruption(Band(0.2, 0.4), grid, 0.5).noise((4, 3, 8, 7), range(4))
    assert not torch.allclose(apart[:, 0], apart[:, 2])


def test_the_level_in_the_loudest_bin_is_kept_on_other_grids() -> None:
    corruption = Corruption(Band(99.5, 100.5), Grid.of(time=(1000, 1 / 1000, "s")), 1.0, "bins")
    for size in (1000, 2000):
        assert float(corruption.power((size,)).max()) == pytest.approx(1.0)


def test_channels_that_say_the_same_do_not_count_as_more_data() -> None:
    grid = Grid.of(height=8, width=8)
    found = 0
    for trial in range(10):
        one, other = (
            SpectralCovariance(Flat(), grid).sample(range(start, start + 200)).expand(200, 3, 8, 8)
            for start in (1000 * trial, 1000 * trial + 500)
        )
        excess = excess_power(*_measured(one, other, grid))
        found += bool((excess > 0).any())
    assert found == 0


def _measured(one: torch.Tensor, other: torch.Tensor, grid: Grid) -> tuple[DataStatistics, torch.Tensor, float, int]:
    return DataStatistics.measure([one], grid), DataStatistics.measure([other], grid).power.mean(0), 4.0, len(other)
