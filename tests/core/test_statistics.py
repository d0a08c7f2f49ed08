"""Mean and power spectrum of data against NumPy, gaps, files, and what is left of the data at t = 1."""

import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import multisagd as ms
from tests.helpers import dense

GRIDS = {"1-D": ms.Grid.of(x=9), "2-D": ms.Grid.of(y=6, x=5), "3-D": ms.Grid.of(t=3, y=4, x=6)}


@pytest.fixture(params=GRIDS.values(), ids=GRIDS.keys())
def grid(request) -> ms.Grid:
    return request.param


def data(grid: ms.Grid, count: int = 37, channels: int = 2) -> torch.Tensor:
    x = dense.random(count, channels, *grid.shape)
    return x.cumsum(-1) + 5 * dense.random(channels, *grid.shape, seed=1) + 100


def test_against_numpy(grid):
    x = data(grid)
    statistics = ms.DataStatistics.measure(x.split(8), grid)
    np.testing.assert_allclose(statistics.mean.numpy(), x.numpy().mean(0), rtol=1e-12)
    centered = x.numpy() - x.numpy().mean(0)
    energy = np.abs(np.fft.fftn(centered, axes=tuple(range(2, centered.ndim)), norm="ortho")) ** 2
    np.testing.assert_allclose(statistics.power.numpy(), dense.half(grid, energy.sum(0) / 36), rtol=1e-9, atol=1e-10)
    assert statistics.count == 37
    assert statistics.mean.dtype == statistics.power.dtype == torch.float64


def test_sigma_data_is_the_deviation_about_the_mean(grid):
    x = data(grid)
    expected = np.sqrt(np.var(x.numpy(), axis=0, ddof=1).mean())
    assert ms.DataStatistics.measure([x], grid).sigma_data == pytest.approx(expected, rel=1e-10)


def test_how_the_data_are_batched_does_not_matter(grid):
    x = data(grid)
    one, many = (ms.DataStatistics.measure(x.split(size), grid) for size in (37, 1))
    torch.testing.assert_close(one.power, many.power)


def test_a_large_mean_costs_no_digits():
    """The one-pass formula E|x|² - |E x|² would lose all of them here."""
    grid = ms.Grid.of(x=8)
    x = dense.random(50, 1, 8)
    near, far = (ms.DataStatistics.measure([x + offset], grid) for offset in (0.0, 1e6))
    torch.testing.assert_close(far.power, near.power, rtol=1e-8, atol=1e-8)


def test_float32_and_half_data_are_summed_in_float64():
    grid = ms.Grid.of(x=8)
    x = dense.random(50, 1, 8).half()
    torch.testing.assert_close(
        ms.DataStatistics.measure([x], grid).power, ms.DataStatistics.measure([x.double()], grid).power
    )


@pytest.mark.parametrize("padding", [0.0, 1e3, float("nan"), float("inf")], ids=str)
def test_padding_counts_for_nothing(padding):
    """White data with a mean, cut to random lengths: mean and power are those of the whole data."""
    grid, count = ms.Grid.of(x=16), 4000
    x = 2 * dense.random(count, 1, 16) + torch.linspace(-3, 3, 16, dtype=torch.float64)
    lengths = torch.randint(4, 17, (count, 1, 1), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(16) < lengths
    padded = torch.where(mask, x, padding)
    batches = list(zip(padded.split(500), mask.split(500), strict=True))
    statistics = ms.DataStatistics.measure(batches, grid)
    valid = mask[:, 0].sum(0)
    expected = torch.where(mask, x, 0.0)[:, 0].sum(0) / valid
    torch.testing.assert_close(statistics.mean[0], expected)
    standard_error = 4 * 2 / (count / (16 / 13 * 8)) ** 0.5
    assert (statistics.power - 4).abs().max() < 4 * standard_error
    assert statistics.sigma_data == pytest.approx(2, rel=0.02)


def test_a_full_mask_changes_nothing(grid):
    x = data(grid)
    plain = ms.DataStatistics.measure([x], grid)
    for mask in (torch.ones_like(x), torch.ones(37, 1, *(1,) * grid.dimensions, dtype=torch.bool), None):
        torch.testing.assert_close(ms.DataStatistics.measure([(x, mask)], grid).power, plain.power)


def test_files_keep_every_bit(tmp_path):
    grid = ms.Grid((ms.Axis("time", 6, 0.04, "s", corner=0.5), ms.Axis("x", 5)))
    statistics = ms.DataStatistics.measure([dense.random(7, 3, 6, 5)], grid)
    statistics.save(tmp_path / "statistics.safetensors")
    again = ms.DataStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(again.mean, statistics.mean)
    assert torch.equal(again.power, statistics.power)
    assert again.grid == grid
    assert again.count == 7


def test_a_foreign_file_is_named(tmp_path):
    save_file({"mean": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(ValueError, match=r"other\.safetensors is not data statistics.*measure them again"):
        ms.DataStatistics.load(tmp_path / "other.safetensors")


def test_on_other_grid_sizes():
    grid = ms.Grid.of(y=8, x=8)
    statistics = ms.DataStatistics.measure([dense.random(9, 2, 8, 8)], grid)
    assert statistics.mean_on((8, 8)) is statistics.mean
    assert torch.equal(statistics.power_on((8, 8)), statistics.power)
    assert statistics.mean_on((12, 5)).shape == (2, 12, 5)
    torch.testing.assert_close(statistics.power_on((16, 24))[:, ::2, ::3], statistics.power)
    flat = ms.DataStatistics(torch.full((1, 8, 8), 3.0), torch.ones(1, 8, 5), grid, 2)
    torch.testing.assert_close(flat.mean_on((5, 13)), torch.full((1, 5, 13), 3.0))


def test_spectrum_shapes_noise_like_the_data():
    grid = ms.Grid.of(y=6, x=8)
    statistics = ms.DataStatistics.measure([dense.random(200, 3, 6, 8).cumsum(-1)], grid)
    power = ms.SpectralCovariance(statistics.spectrum(), grid).power()
    mean = statistics.power.mean(0)
    torch.testing.assert_close(power, mean / grid.mean(mean))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ((x for x in [torch.zeros(2, 1, 4)]), "read twice.*not a generator"),
        ([], "no data"),
        ([torch.zeros(2, 1, 5)], "do not fit"),
        ([torch.zeros(2, 4)], "do not fit"),
        ([torch.zeros(2, 1, 4), torch.tensor([[[1.0] * 4], [[1.0, float("nan"), 1.0, 1.0]]])], "item 3 .* NaN"),
        ([torch.tensor([[[float("inf")] * 4]])], "item 0 .* infinity"),
        (
            [(torch.tensor([[[1.0, float("nan"), 1.0, 1.0]]]), torch.tensor([[[True, True, True, False]]]))],
            "item 0 .* NaN",
        ),
        ([(torch.zeros(2, 1, 4), torch.tensor([True, False]).reshape(2, 1, 1))], "item 1 .* completely masked"),
    ],
)
def test_errors_name_the_item(batches, message):
    with pytest.raises(ValueError, match=message):
        ms.DataStatistics.measure(batches, ms.Grid.of(x=4))


def test_data_that_change_between_the_passes_are_noticed():
    class Shrinking:
        reads = 0

        def __iter__(self):
            self.reads += 1
            return iter([torch.zeros(3 - self.reads, 1, 4)])

    with pytest.raises(ValueError, match="2 items, then 1"):
        ms.DataStatistics.measure(Shrinking(), ms.Grid.of(x=4))


def test_ill_fitting_statistics_are_refused():
    grid = ms.Grid.of(x=4)
    with pytest.raises(ValueError, match="do not fit"):
        ms.DataStatistics(torch.zeros(1, 4), torch.zeros(1, 4), grid, 1)
    with pytest.raises(ValueError, match="not finite"):
        ms.DataStatistics(torch.full((1, 4), float("nan")), torch.zeros(1, 3), grid, 1)


class TestTerminalSnr:
    grid = ms.Grid.of(y=8, x=8)

    def statistics(self) -> ms.DataStatistics:
        C = (dense.radius(self.grid) + 1 / 16) ** -2
        return dense.stationary(C, self.grid, np.full(self.grid.shape, 0.7))

    def process(self, schedule: ms.Schedule, spectrum: ms.Spectrum) -> ms.Process:
        return ms.Process(schedule, ms.SpectralCovariance(spectrum, self.grid))

    def test_formula(self):
        schedule = ms.CosineSchedule(log_snr_range=(-8.0, 20.0))
        process = self.process(schedule, ms.PowerLaw(-0.3))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bands = ms.terminal_snr(process, self.statistics(), bands=4)
        C = (dense.radius(self.grid) + 1 / 16) ** -2
        C[0, 0] += 0.7**2 * 64
        W = np.maximum(dense.radius(self.grid), 1 / 256) ** -0.6
        W /= W.mean()
        r = dense.radius(self.grid)
        snr = np.exp(-8.0)
        assert bands[0].low == bands[0].high == 0
        assert bands[0].snr == pytest.approx(snr * C[0, 0] / W[0, 0], rel=1e-6)
        edges = np.linspace(0, np.sqrt(0.5), 5) + np.array([0, -1e-9, -1e-9, -1e-9, 1e-9])
        assert len(bands) == 5
        for band, low, high in zip(bands[1:], edges, edges[1:], strict=False):
            inside = (r >= low) & (r < high) & (r > 0)
            assert band.snr == pytest.approx(snr * C[inside].sum() / W[inside].sum(), rel=1e-6)

    @pytest.mark.parametrize("size", [(8,), (9,), (8, 6), (4, 4, 4)])
    def test_every_frequency_is_in_a_band(self, size):
        grid = ms.Grid.of(**dict(zip("tyx", size, strict=False)))
        nyquist = np.zeros(grid.half_shape)
        nyquist[tuple(n // 2 for n in grid.shape)] = 1e9
        statistics = ms.DataStatistics(torch.zeros(1, *grid.shape), dense.tensor(nyquist)[None], grid, 2)
        with pytest.warns(UserWarning, match="signal remains"):
            bands = ms.terminal_snr(ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid)), statistics)
        assert [band.snr > 0 for band in bands] == [False] * (len(bands) - 1) + [True]

    def test_warns_of_signal_that_is_left(self):
        process = self.process(ms.LinearSchedule(beta_max=8.0), ms.PowerLaw(0.3))
        with pytest.warns(UserWarning, match=r"signal remains at t = 1 .*\[0\.00, 0\.00\].*more noise"):
            ms.terminal_snr(process, self.statistics())

    def test_is_silent_when_nothing_is_left(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bands = ms.terminal_snr(self.process(ms.CosineSchedule(), ms.Flat()), self.statistics())
        assert all(band.snr < 0.01 for band in bands)

    def test_exploding_ends_low_enough_too(self):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bands = ms.terminal_snr(self.process(ms.KarrasSchedule(), ms.Flat()), self.statistics())
        assert bands[0].snr == pytest.approx((256 + 0.49 * 64) / 80**2, rel=1e-9)

    def test_frequencies_left_out_are_infinite(self):
        with pytest.warns(UserWarning, match="inf"):
            bands = ms.terminal_snr(self.process(ms.CosineSchedule(), ms.Band(0.3, 0.8)), self.statistics())
        assert bands[0].snr == float("inf")
        assert bands[-1].snr < 0.01
