"""Mean and power spectrum of data equal NumPy's, with gaps, in files, and in what is left of the data at t = 1."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import multisagd as ms
from tests.helpers import dense

GRIDS = {"1-D": ms.Grid.of(x=9), "2-D": ms.Grid.of(y=6, x=5), "3-D": ms.Grid.of(t=3, y=4, x=6)}
SQUARE, LINE = ms.Grid.of(y=8, x=8), ms.Grid.of(x=8)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_measure_equals_numpy(grid):
    """In batches of any size, with full masks or none, and sigma_data is the deviation about the mean."""
    x = dense.random(37, 2, *grid.shape).cumsum(-1) + 5 * dense.random(2, *grid.shape, seed=1) + 100
    statistics = ms.DataStatistics.measure(x.split(8), grid)
    np.testing.assert_allclose(statistics.mean.numpy(), x.numpy().mean(0), rtol=1e-12)
    centered = x.numpy() - x.numpy().mean(0)
    energy = np.abs(np.fft.fftn(centered, axes=tuple(range(2, centered.ndim)), norm="ortho")) ** 2
    np.testing.assert_allclose(statistics.power.numpy(), dense.half(grid, energy.sum(0) / 36), rtol=1e-9, atol=1e-10)
    assert statistics.count == 37
    assert statistics.mean.dtype == statistics.power.dtype == torch.float64
    assert statistics.sigma_data == pytest.approx(np.sqrt(np.var(x.numpy(), axis=0, ddof=1).mean()), rel=1e-10)
    full = torch.ones(37, 1, *(1,) * grid.dimensions, dtype=torch.bool)
    for batches in (x.split(37), x.split(1), [(x, torch.ones_like(x))], [(x, full)], [(x, None)]):
        torch.testing.assert_close(ms.DataStatistics.measure(batches, grid).power, statistics.power)


def test_measure_loses_no_digits_to_a_large_mean_or_half_precision():
    """The one-pass formula E|x|² - |E x|² would lose all of them here."""
    x = dense.random(50, 1, 8)
    near, far = (ms.DataStatistics.measure([x + offset], LINE) for offset in (0.0, 1e6))
    torch.testing.assert_close(far.power, near.power, rtol=1e-8, atol=1e-8)
    half, double = (ms.DataStatistics.measure([each], LINE) for each in (x.half(), x.half().double()))
    torch.testing.assert_close(half.power, double.power)


def test_measure_ignores_padding():
    """Whatever it holds; that mean and power are those of the whole data is tested with the estimator."""
    x, lengths = dense.random(400, 1, 16), torch.randint(4, 17, (400, 1, 1), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(16) < lengths
    zeros, *others = (
        ms.DataStatistics.measure([(torch.where(mask, x, padding), mask)], ms.Grid.of(x=16))
        for padding in (0.0, 1e3, float("nan"), float("inf"))
    )
    torch.testing.assert_close(zeros.mean[0], torch.where(mask, x, 0.0)[:, 0].sum(0) / mask[:, 0].sum(0))
    assert zeros.sigma_data == pytest.approx(1, rel=0.1)
    assert all(torch.equal(other.mean, zeros.mean) and torch.equal(other.power, zeros.power) for other in others)


def test_statistics_file_keeps_every_bit_and_a_foreign_file_is_refused(tmp_path):
    grid = ms.Grid((ms.Axis("time", 6, 0.04, "s", corner=0.5), ms.Axis("x", 5)))
    statistics = ms.DataStatistics.measure([dense.random(7, 3, 6, 5)], grid)
    statistics.save(tmp_path / "statistics.safetensors")
    loaded = ms.DataStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(loaded.mean, statistics.mean)
    assert torch.equal(loaded.power, statistics.power)
    assert (loaded.grid, loaded.count) == (grid, 7)
    save_file({"mean": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"other\.safetensors is not a statistics file.*measure the data again"):
        ms.DataStatistics.load(tmp_path / "other.safetensors")


def test_statistics_serve_other_grid_sizes():
    statistics = ms.DataStatistics.measure([dense.random(9, 2, 8, 8)], SQUARE)
    assert statistics.mean_on((8, 8)) is statistics.mean
    assert torch.equal(statistics.power_on((8, 8)), statistics.power)
    assert statistics.mean_on((12, 5)).shape == (2, 12, 5)
    torch.testing.assert_close(statistics.power_on((16, 24))[:, ::2, ::3], statistics.power)
    flat = ms.DataStatistics(torch.full((1, 8, 8), 3.0), torch.ones(1, 8, 5), SQUARE, 2)
    torch.testing.assert_close(flat.mean_on((5, 13)), torch.full((1, 5, 13), 3.0))


def test_spectrum_of_statistics_shapes_noise_like_the_data():
    grid = ms.Grid.of(y=6, x=8)
    statistics = ms.DataStatistics.measure([dense.random(200, 3, 6, 8).cumsum(-1)], grid)
    power, mean = ms.SpectralCovariance(statistics.spectrum(), grid).power(), statistics.power.mean(0)
    torch.testing.assert_close(power, mean / grid.mean(mean))


def test_measure_refuses_impossible_data_by_item():
    nan, infinity, zeros = float("nan"), float("inf"), torch.zeros(2, 1, 4)
    sizes = iter((2, 1))  # fewer data at the second reading
    shrinking = type("Shrinking", (), {"__iter__": lambda self: iter([zeros[: next(sizes)]])})()
    hidden = torch.tensor([[[True, True, True, False]]])
    for message, batches in (
        ("read twice.*not a generator", (x for x in [zeros])),
        ("no data", []),
        ("do not match", [torch.zeros(2, 1, 5)]),
        ("do not match", [torch.zeros(2, 4)]),
        ("item 3 .* NaN", [zeros, torch.tensor([[[1.0] * 4], [[1.0, nan, 1.0, 1.0]]])]),
        ("item 0 .* infinity", [torch.tensor([[[infinity] * 4]])]),
        ("item 0 .* NaN", [(torch.tensor([[[1.0, nan, 1.0, 1.0]]]), hidden)]),
        ("item 1 .* completely masked", [(zeros, torch.tensor([True, False]).reshape(2, 1, 1))]),
        ("2 items, then 1", shrinking),
    ):
        with pytest.raises(ValueError, match=message):
            ms.DataStatistics.measure(batches, ms.Grid.of(x=4))
    with pytest.raises(ValueError, match="do not match"):
        ms.DataStatistics(torch.zeros(1, 8), torch.zeros(1, 8), LINE, 1)
    with pytest.raises(ValueError, match="not finite"):
        ms.DataStatistics(torch.full((1, 8), nan), torch.zeros(1, 5), LINE, 1)


def terminal_snr(schedule: ms.Schedule, spectrum: ms.Spectrum, **options):
    """That of data of power ∝ (f + 1/16)⁻² and mean 0.7."""
    statistics = dense.stationary((dense.radius(SQUARE) + 1 / 16) ** -2, SQUARE, np.full(SQUARE.shape, 0.7))
    return ms.terminal_snr(ms.Process(schedule, ms.SpectralCovariance(spectrum, SQUARE)), statistics, **options)


@pytest.mark.filterwarnings("ignore")
def test_terminal_snr_is_its_formula_in_bands():
    bands = terminal_snr(ms.CosineSchedule(log_snr_range=(-8.0, 20.0)), ms.PowerLaw(-0.3), bands=4)
    r = dense.radius(SQUARE)
    C = (r + 1 / 16) ** -2
    C[0, 0] += 0.7**2 * 64
    W = np.maximum(r, 1 / 256) ** -0.6
    W /= W.mean()
    assert bands[0].low == bands[0].high == 0
    assert bands[0].snr == pytest.approx(np.exp(-8.0) * C[0, 0] / W[0, 0], rel=1e-6)
    edges = np.linspace(0, np.sqrt(0.5), 5) + np.array([0, -1e-9, -1e-9, -1e-9, 1e-9])
    assert len(bands) == 5
    for band, low, high in zip(bands[1:], edges, edges[1:], strict=False):
        inside = (r >= low) & (r < high) & (r > 0)
        assert band.snr == pytest.approx(np.exp(-8.0) * C[inside].sum() / W[inside].sum(), rel=1e-6)
    exploding = terminal_snr(ms.KarrasSchedule(), ms.Flat())
    assert exploding[0].snr == pytest.approx((256 + 0.49 * 64) / 80**2, rel=1e-9)


def test_terminal_snr_warns_of_remaining_signal_only():
    with pytest.warns(UserWarning, match=r"signal remains at t = 1 .*\[0\.00, 0\.00\].*more noise"):
        terminal_snr(ms.LinearSchedule(beta_max=8.0), ms.PowerLaw(0.3))
    with pytest.warns(UserWarning, match="inf"):
        bands = terminal_snr(ms.CosineSchedule(), ms.Band(0.3, 0.8))
    assert bands[0].snr == float("inf")
    assert bands[-1].snr < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(band.snr < 0.01 for band in terminal_snr(ms.CosineSchedule(), ms.Flat()))
