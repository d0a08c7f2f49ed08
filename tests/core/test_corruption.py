"""Corruption has its dense covariance, is found in data, and is removed by dense conditioning."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

import multisagd as ms
from multisagd import Band, Corruption, DataStatistics, Grid, Outside, SpectralCovariance
from multisagd.analysis.excess import estimate_corruption, excess_power, fitted_power
from multisagd.covariance import to_half_spectrum
from multisagd.gaussian_restoration import MAX_NUMBERS, GaussianRestoration
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

BAND = Band(0.2, 0.3)
IMAGE = Grid.of(height=16, width=15)


@pytest.mark.parametrize("scale", ["std", "bins"])
@pytest.mark.parametrize("name", [name for name, grid in dense.GRIDS.items() if min(grid.shape) > 2])
def test_corruption_noise_has_the_covariance_of_its_dense_matrix(name: str, scale: str) -> None:
    grid, low, high, level = dense.GRIDS[name], 0.2, 0.45, 0.7
    corruption = Corruption(Band(low, high), grid, level, scale)
    inside = dense.ring(grid, low - 1e-9, high + 1e-9)
    per_bin = level**2 * (inside / inside.mean() if scale == "std" else inside)
    np.testing.assert_allclose(corruption.power().numpy(), dense.half(grid, per_bin), atol=1e-12)
    # Every sample of the grid then has the variance that stands on the diagonal of the dense covariance.
    variance = dense.operator(per_bin)[0, 0]
    assert variance == pytest.approx(corruption.std**2, rel=1e-12)
    drawn = corruption.noise((1, 1, *grid.shape), [7])
    torch.testing.assert_close(drawn, corruption.std * corruption.covariance.sample([7]))


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
    assert estimate.std == pytest.approx(0.5, rel=0.05)


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
    assert estimate.std == pytest.approx(0.5, rel=0.1)


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
    assert Corruption.load(path, grid.resize((128,))).std == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="axes"):
        Corruption.load(path, Grid.of(width=64))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a corruption"):
        Corruption.load(path, grid)


def test_corruption_and_its_estimate_refuse_what_makes_no_sense() -> None:
    grid = Grid.of(time=8)
    lines = [measured(Grid.of(x=size), 20, 0) for size in (8, 9)]
    assert_refused(
        *(("level", partial(Corruption, ms.Flat(), grid, level)) for level in (0.0, -1.0, math.inf, math.nan)),
        ("std or bins", lambda: Corruption(ms.Flat(), grid, 1.0, "decibels")),
        ("nothing to omit", lambda: Outside(Band(0.6, 0.7)).power(grid)),
        ("no corruption is", lambda: estimate_corruption(measured(IMAGE, 2000, 7000), measured(IMAGE, 2000, 0))),
        ("cannot be compared", lambda: estimate_corruption(*lines)),
    )


GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=2, height=3, width=4)]
SMALL = Grid.of(height=6, width=7)
WIDE = Band(0.2, 0.45)


def draw(grid: Grid, count: int, seed: int = 0, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Gaussian data that are not stationary, `(count, channels, *grid)`, and their covariance matrix."""
    numbers = channels * grid.numel
    factor = dense.random(numbers, numbers // 2, seed=7) / numbers**0.5
    white = dense.random(count, numbers // 2, seed=100 + seed)
    return (white @ factor.T + 0.5).reshape(count, channels, *grid.shape), factor @ factor.T


def share_in_band(restored: Tensor, clean: Tensor, corruption: Corruption) -> float:
    """Squared error in the band over the clean data's power there."""
    inside = corruption.power() > 0
    error, power = (
        to_half_spectrum(each, corruption.grid.dimensions).abs().square().mean((0, 1))[inside].sum()
        for each in (restored - clean, clean - clean.mean(0))
    )
    return float(error / power)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
def test_gaussian_restoration_conditions_the_dense_gaussian_in_its_band(grid: Grid) -> None:
    corruption, count = Corruption(WIDE, grid, 0.8), 40000
    clean, covariance = draw(grid, count)
    corrupted = corruption.corrupt(clean, range(count))
    fitted = GaussianRestoration.fit(corrupted.split(5000), corruption)
    # The dense covariance of the corruption, from the full spectrum, one block a channel.
    inside = dense.ring(grid, 0.2 - 1e-9, 0.45 + 1e-9)
    noise = torch.from_numpy(np.kron(np.eye(2), dense.operator(0.8**2 * inside / inside.mean())))
    gain = covariance @ torch.linalg.pinv(covariance + noise, hermitian=True, rtol=1e-9)
    x = corruption.corrupt(draw(grid, 2000, seed=1)[0], range(10**6, 10**6 + 2000))
    restored, expected = fitted.restore(x), (x - 0.5).flatten(1) @ gain.T + 0.5
    # The fit knows the covariance to about 1/√40000 of it in every direction.
    error = (restored.flatten(1) - expected).square().mean().sqrt() / (x - 0.5).square().mean().sqrt()
    assert float(error) < 0.05
    left = float((covariance - gain @ covariance).diagonal().sum())
    assert float(fitted.root.square().sum()) == pytest.approx(left, rel=0.1, abs=0.05)
    assert fitted.risk == pytest.approx(left / float(noise.diagonal().sum()), rel=0.25, abs=0.01)
    # Outside of the band, neither the mean nor a sample changes anything.
    for moved in (restored - x, fitted.restore(x, range(2000)) - x):
        torch.testing.assert_close(moved, corruption.covariance.project(moved), rtol=0, atol=1e-9)


def test_gaussian_restoration_sample_has_the_power_that_the_mean_lacks() -> None:
    corruption, count = Corruption(WIDE, SMALL, 1.0), 20000
    # Stationary data: the band follows from nothing else, and its mean is as quiet as the Wiener filter makes it.
    clean = SpectralCovariance(Band(0.0, 1.0), SMALL).sample(range(count))
    x = corruption.corrupt(clean, range(count, 2 * count))
    fitted = GaussianRestoration.fit([x], corruption)
    mean, sample, original = (
        float(DataStatistics.measure([each], SMALL).power[0][corruption.power() > 0].mean())
        for each in (fitted.restore(x), fitted.restore(x, range(count)), clean)
    )
    assert mean / original < 0.6
    assert sample / original == pytest.approx(1, abs=0.05)


def test_gaussian_restoration_does_not_follow_the_noise_of_few_data() -> None:
    """With fewer data than numbers the covariance is singular."""
    grid = Grid.of(height=8, width=8)
    corruption = Corruption(Band(0.2, 0.3), grid, 1.0)
    clean, _ = draw(grid, 540, channels=1)
    x = corruption.corrupt(clean, range(540))
    restored = GaussianRestoration.fit([x[:40]], corruption).restore(x[40:])
    assert share_in_band(restored, clean[40:], corruption) < share_in_band(x[40:], clean[40:], corruption) / 3


def test_gaussian_restoration_handles_corruption_shared_by_channels_only_as_such() -> None:
    shared, count = Corruption(WIDE, SMALL, 1.0, shared=True), 5000
    clean, _ = draw(SMALL, count)
    x = shared.corrupt(clean, range(count))
    restored = GaussianRestoration.fit([x], shared).restore(x)
    assert share_in_band(restored, clean, shared) < 0.5 * share_in_band(x, clean, shared)
    with pytest.raises(ValueError, match="shared by the channels"):
        GaussianRestoration.fit([x], Corruption(WIDE, SMALL, 1.0))


def test_gaussian_restoration_is_kept_in_a_file(tmp_path: Path) -> None:
    grid, path = Grid.of(height=4, width=5), tmp_path / "fit.safetensors"
    corruption = Corruption(WIDE, grid)
    x = corruption.corrupt(draw(grid, 100)[0], range(100))
    fitted = GaussianRestoration.fit([x], corruption)
    fitted.save(path)
    again = GaussianRestoration.load(path)
    assert torch.equal(again.restore(x, range(100)), fitted.restore(x, range(100)))
    assert (again.grid, again.risk) == (fitted.grid, fitted.risk)


def test_gaussian_restoration_refuses_files_with_other_contents(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is not a restoration"):
        GaussianRestoration.load(path)
    save_file({"mean": torch.zeros(1, 4)}, path)
    with pytest.raises(ValueError, match="not a restoration file of format"):
        GaussianRestoration.load(path)
    described = '{"format_version": 1, "risk": 0.1, "axes": [{"name": "time", "size": 4}]}'
    for shape in ((4, 5), (3, 4)):
        tensors = {"mean": torch.zeros(1, 4), "gain": torch.zeros(shape), "root": torch.zeros(4, 2)}
        save_file(tensors, path, metadata={"restoration": described})
        with pytest.raises(ValueError, match="do not match"):
            GaussianRestoration.load(path)


def test_gaussian_restoration_refuses_unusable_data() -> None:
    corruption, large = (Corruption(Band(0.1, 0.3), Grid.of(time=size)) for size in (16, MAX_NUMBERS + 1))
    fit, nan = GaussianRestoration.fit, torch.full((9, 1, 16), float("nan"))
    assert_refused(
        ("needs at least 4 examples, got 3", lambda: fit([torch.zeros(3, 1, 16)], corruption)),
        ("expected finite data", lambda: fit([torch.zeros(9, 1, 15)], corruption)),
        ("expected finite data", lambda: fit([nan], corruption)),
        ("not a generator", lambda: fit((nan for _ in range(2)), corruption)),
        ("would not fit into memory", lambda: fit([torch.zeros(9, 1, MAX_NUMBERS + 1)], large)),
        (
            "this restoration is for shape",
            lambda: fit([dense.random(9, 1, 16)], corruption).restore(torch.zeros(2, 1, 15)),
        ),
    )
