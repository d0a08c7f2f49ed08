"""The Gaussian estimate of clean data equals dense conditioning, and beats what is diagonal in frequency."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from multisagd import Band, Corruption, DataStatistics, Grid, SpectralCovariance
from multisagd.covariance import to_half_spectrum
from multisagd.gaussian_restoration import MAX_NUMBERS, GaussianRestoration
from tests.helpers import dense

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=2, height=3, width=4)]
IMAGE = Grid.of(height=6, width=7)
BAND = Band(0.2, 0.45)


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
    corruption, count = Corruption(BAND, grid, 0.8), 40000
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
    # The Wiener filter, which knows the power alone, recovers less of the band than the covariance does.
    power = DataStatistics.measure([clean], grid).power
    half = to_half_spectrum(corrupted - clean.mean(0), grid.dimensions) * power / (power + corruption.power())
    wiener = torch.fft.irfftn(half, s=grid.shape, dim=tuple(range(-grid.dimensions, 0))) + clean.mean(0)
    ours = share_in_band(fitted.restore(corrupted), clean, corruption)
    assert ours < 0.7 * share_in_band(wiener, clean, corruption)
    # Outside of the band, neither the mean nor a sample changes anything.
    for moved in (restored - x, fitted.restore(x, range(2000)) - x):
        torch.testing.assert_close(moved, corruption.covariance.project(moved), rtol=0, atol=1e-9)


def test_gaussian_restoration_sample_has_the_power_that_the_mean_lacks() -> None:
    corruption, count = Corruption(BAND, IMAGE, 1.0), 20000
    # Stationary data: the band follows from nothing else, and its mean is as quiet as the Wiener filter makes it.
    clean = SpectralCovariance(Band(0.0, 1.0), IMAGE).sample(range(count))
    x = corruption.corrupt(clean, range(count, 2 * count))
    fitted = GaussianRestoration.fit([x], corruption)
    mean, sample, original = (
        float(DataStatistics.measure([each], IMAGE).power[0][corruption.power() > 0].mean())
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
    shared, count = Corruption(BAND, IMAGE, 1.0, shared=True), 5000
    clean, _ = draw(IMAGE, count)
    x = shared.corrupt(clean, range(count))
    restored = GaussianRestoration.fit([x], shared).restore(x)
    assert share_in_band(restored, clean, shared) < 0.5 * share_in_band(x, clean, shared)
    with pytest.raises(ValueError, match="shared by the channels"):
        GaussianRestoration.fit([x], Corruption(BAND, IMAGE, 1.0))


def test_gaussian_restoration_is_kept_in_a_file(tmp_path: Path) -> None:
    grid, path = Grid.of(height=4, width=5), tmp_path / "fit.safetensors"
    corruption = Corruption(BAND, grid)
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
    with pytest.raises(ValueError, match="not a restoration of format"):
        GaussianRestoration.load(path)
    described = '{"format_version": 1, "risk": 0.1, "axes": [{"name": "time", "size": 4}]}'
    for shape in ((4, 5), (3, 4)):
        tensors = {"mean": torch.zeros(1, 4), "gain": torch.zeros(shape), "root": torch.zeros(4, 2)}
        save_file(tensors, path, metadata={"restoration": described})
        with pytest.raises(ValueError, match="do not match"):
            GaussianRestoration.load(path)


def test_gaussian_restoration_refuses_unusable_data() -> None:
    corruption = Corruption(Band(0.1, 0.3), Grid.of(time=16))
    large = Corruption(Band(0.1, 0.3), Grid.of(time=MAX_NUMBERS + 1))
    for batches, other, message in (
        ([torch.zeros(3, 1, 16)], corruption, "needs more than 3"),
        ([torch.zeros(9, 1, 15)], corruption, "expected finite data"),
        ([torch.full((9, 1, 16), float("nan"))], corruption, "expected finite data"),
        ((torch.zeros(9, 1, 16) for _ in range(2)), corruption, "not a generator"),
        ([torch.zeros(9, 1, MAX_NUMBERS + 1)], large, "would not fit into memory"),
    ):
        with pytest.raises(ValueError, match=message):
            GaussianRestoration.fit(batches, other)
    fitted = GaussianRestoration.fit([dense.random(9, 1, 16)], corruption)
    with pytest.raises(ValueError, match="restores data of shape"):
        fitted.restore(torch.zeros(2, 1, 15))
