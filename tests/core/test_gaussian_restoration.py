"""The Gaussian estimate of clean data against dense formulas, and where it must beat what is diagonal in frequency."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from multisagd import Band, Corruption, DataStatistics, Grid, SpectralCovariance
from multisagd.covariance import to_half_spectrum
from multisagd.gaussian_restoration import MOST_NUMBERS, GaussianRestoration
from tests.helpers import dense

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=2, height=3, width=4)]
BAND = Band(0.2, 0.45)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")


def draw(grid: Grid, count: int, seed: int = 0, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Gaussian data that are not stationary, `(count, channels, *grid)`, and their covariance matrix."""
    numbers = channels * grid.numel
    generator = torch.Generator().manual_seed(7)
    factor = torch.randn(numbers, numbers // 2, generator=generator, dtype=torch.float64) / numbers**0.5
    white = torch.randn(count, numbers // 2, generator=generator.manual_seed(100 + seed), dtype=torch.float64)
    return (white @ factor.T + 0.5).reshape(count, channels, *grid.shape), factor @ factor.T


def share_in_band(restored: Tensor, clean: Tensor, corruption: Corruption) -> float:
    """Squared error in the band over the clean data's power there."""
    inside = corruption.power() > 0
    error, power = (
        to_half_spectrum(each, corruption.grid.dimensions).abs().square().mean((0, 1))[inside].sum()
        for each in (restored - clean, clean - clean.mean(0))
    )
    return float(error / power)


@grids
def test_estimate_and_uncertainty_are_those_of_conditioning_a_gaussian(grid: Grid) -> None:
    corruption = Corruption(BAND, grid, 0.8)
    clean, covariance = draw(grid, 40000)
    fitted = GaussianRestoration.fit(corruption.corrupt(clean, range(40000)).split(5000), corruption)
    # The dense covariance of the corruption, from the full spectrum, one block a channel.
    inside = ((dense.radius(grid) >= 0.2 - 1e-9) & (dense.radius(grid) <= 0.45 + 1e-9)).astype(float)
    noise = torch.from_numpy(np.kron(np.eye(2), dense.operator(0.8**2 * inside / inside.mean())))
    gain = covariance @ torch.linalg.pinv(covariance + noise, hermitian=True, rtol=1e-9)
    x = corruption.corrupt(draw(grid, 2000, seed=1)[0], range(10**6, 10**6 + 2000))
    expected = (x - 0.5).flatten(1) @ gain.T + 0.5
    found = fitted.restore(x).flatten(1)
    # The fit knows the covariance to about 1/√40000 of it in every direction.
    difference = float((found - expected).square().mean().sqrt() / (x - 0.5).square().mean().sqrt())
    assert difference < 0.05
    left = float((covariance - gain @ covariance).diagonal().sum())
    assert float(fitted.root.square().sum()) == pytest.approx(left, rel=0.1, abs=0.05)
    assert fitted.risk == pytest.approx(left / float(noise.diagonal().sum()), rel=0.25, abs=0.01)


@grids
def test_outside_the_band_nothing_changes(grid: Grid) -> None:
    corruption = Corruption(BAND, grid, 0.8)
    x = corruption.corrupt(draw(grid, 500)[0], range(500))
    fitted = GaussianRestoration.fit([x], corruption)
    for restored in (fitted.restore(x), fitted.restore(x, range(500))):
        moved = restored - x
        torch.testing.assert_close(moved, corruption.covariance.project(moved), rtol=0, atol=1e-9)


@grids
def test_what_is_not_stationary_tells_more_than_its_spectrum(grid: Grid) -> None:
    """The Wiener filter, which knows the power alone, recovers less of the band than the covariance does."""
    corruption, count = Corruption(BAND, grid, 1.0), 20000
    clean, _ = draw(grid, count)
    x = corruption.corrupt(clean, range(count))
    ours = share_in_band(GaussianRestoration.fit([x], corruption).restore(x), clean, corruption)
    power = DataStatistics.measure([clean], grid).power
    half = to_half_spectrum(x - clean.mean(0), grid.dimensions) * power / (power + corruption.power())
    wiener = torch.fft.irfftn(half, s=grid.shape, dim=tuple(range(-grid.dimensions, 0))) + clean.mean(0)
    assert ours < 0.7 * share_in_band(wiener, clean, corruption)


def test_a_sample_has_the_power_that_the_mean_lacks() -> None:
    grid, count = Grid.of(height=6, width=7), 20000
    corruption = Corruption(BAND, grid, 1.0)
    # Stationary data: the band follows from nothing else, and its mean is as quiet as the Wiener filter makes it.
    clean = SpectralCovariance(Band(0.0, 1.0), grid).sample(range(count))
    x = corruption.corrupt(clean, range(count, 2 * count))
    fitted = GaussianRestoration.fit([x], corruption)
    inside = corruption.power() > 0
    powers = [
        DataStatistics.measure([each], grid).power[0][inside].mean()
        for each in (fitted.restore(x), fitted.restore(x, range(count)), clean)
    ]
    assert float(powers[0] / powers[2]) < 0.6
    assert float(powers[1] / powers[2]) == pytest.approx(1, abs=0.05)


def test_few_data_are_not_trusted() -> None:
    """With fewer data than numbers the covariance is singular, and the estimate must not follow the noise."""
    grid = Grid.of(height=8, width=8)
    corruption = Corruption(Band(0.2, 0.3), grid, 1.0)
    clean, _ = draw(grid, 540, channels=1)
    x = corruption.corrupt(clean, range(540))
    fitted = GaussianRestoration.fit([x[:40]], corruption)
    before = share_in_band(x[40:], clean[40:], corruption)
    assert share_in_band(fitted.restore(x[40:]), clean[40:], corruption) < before / 3


def test_what_channels_share_is_restored_as_that_and_not_as_anything_else() -> None:
    grid, count = Grid.of(height=6, width=7), 5000
    shared = Corruption(BAND, grid, 1.0, shared=True)
    clean, _ = draw(grid, count)
    x = shared.corrupt(clean, range(count))
    restored = GaussianRestoration.fit([x], shared).restore(x)
    assert share_in_band(restored, clean, shared) < 0.5 * share_in_band(x, clean, shared)
    with pytest.raises(ValueError, match="shared by the channels"):
        GaussianRestoration.fit([x], Corruption(BAND, grid, 1.0))


def test_it_is_kept_in_a_file(tmp_path: Path) -> None:
    grid = Grid.of(height=4, width=5)
    corruption = Corruption(BAND, grid)
    x = corruption.corrupt(draw(grid, 100)[0], range(100))
    fitted = GaussianRestoration.fit([x], corruption)
    fitted.save(tmp_path / "fit.safetensors")
    again = GaussianRestoration.load(tmp_path / "fit.safetensors")
    assert torch.equal(again.restore(x, range(100)), fitted.restore(x, range(100)))
    assert (again.grid, again.risk) == (fitted.grid, fitted.risk)


def test_files_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is not a restoration"):
        GaussianRestoration.load(path)
    save_file({"mean": torch.zeros(1, 4)}, path)
    with pytest.raises(ValueError, match="not a restoration of format"):
        GaussianRestoration.load(path)
    described = '{"format_version": 1, "risk": 0.1, "axes": [{"name": "time", "size": 4}]}'
    for shape in ((4, 5), (3, 4)):
        tensors = {"mean": torch.zeros(1, 4), "gain": torch.zeros(shape), "root": torch.zeros(4, 2)}
        save_file(tensors, path, metadata={"restoration": described})
        with pytest.raises(ValueError, match="do not fit"):
            GaussianRestoration.load(path)


def test_what_cannot_be_fitted_is_refused() -> None:
    corruption = Corruption(Band(0.1, 0.3), Grid.of(time=16))
    with pytest.raises(ValueError, match="needs more than 3"):
        GaussianRestoration.fit([torch.zeros(3, 1, 16)], corruption)
    with pytest.raises(ValueError, match="expected finite data"):
        GaussianRestoration.fit([torch.zeros(9, 1, 15)], corruption)
    with pytest.raises(ValueError, match="expected finite data"):
        GaussianRestoration.fit([torch.full((9, 1, 16), float("nan"))], corruption)
    with pytest.raises(ValueError, match="not a generator"):
        GaussianRestoration.fit((torch.zeros(9, 1, 16) for _ in range(2)), corruption)
    large = Corruption(Band(0.1, 0.3), Grid.of(time=MOST_NUMBERS + 1))
    with pytest.raises(ValueError, match="would not fit into memory"):
        GaussianRestoration.fit([torch.zeros(9, 1, MOST_NUMBERS + 1)], large)
    fitted = GaussianRestoration.fit([torch.randn(9, 1, 16, generator=torch.Generator().manual_seed(0))], corruption)
    with pytest.raises(ValueError, match="restores data of shape"):
        fitted.restore(torch.zeros(2, 1, 15))
