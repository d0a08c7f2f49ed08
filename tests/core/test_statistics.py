"""Statistics of data equal NumPy's; of partly valid data they are those drawn with, and EM equals dense matrices."""

import itertools
import math
import warnings
from itertools import product

import numpy as np
import pytest
import scipy.optimize
import torch
from safetensors.torch import save_file
from torch import Tensor

import multisagd as ms
from multisagd import circulant_em, masked_power
from multisagd.circulant_em import Estimate, MaskGroup, fit_power, step
from multisagd.data_spectra import DataPower
from multisagd.masked_power import power_behind
from multisagd.statistics_of_sizes import measure_sizes
from tests.helpers import dense

GRIDS = {"1-D": ms.Grid.of(x=25), "2-D": ms.Grid.of(y=6, x=9), "3-D": ms.Grid.of(t=4, y=3, x=6)}
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


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_dynamic_range_ignores_rounding_errors(grid):
    power = 10 ** (-7 * dense.random(2, *grid.half_shape).abs().clamp(max=1))
    power[0].view(-1)[0], power[1].view(-1)[1] = 1.0, 1e-7
    statistics = ms.DataStatistics(torch.zeros(2, *grid.shape), 3 * power, grid, 9)
    assert statistics.dynamic_range == pytest.approx(70)
    power[1].view(-1)[2:4] = torch.tensor([1e-13, 0.0])
    assert ms.DataStatistics(torch.zeros(2, *grid.shape), 3 * power, grid, 9).dynamic_range == pytest.approx(70)
    assert ms.DataStatistics(torch.zeros(2, *grid.shape), 0 * power, grid, 9).dynamic_range == 0


def test_measure_loses_no_digits_to_a_large_mean_or_half_precision():
    """The one-pass formula E|x|² - |E x|² would lose all of them here."""
    x = dense.random(50, 1, 8)
    near, far = (ms.DataStatistics.measure([x + offset], LINE) for offset in (0.0, 1e6))
    torch.testing.assert_close(far.power, near.power, rtol=1e-8, atol=1e-8)
    half, double = (ms.DataStatistics.measure([each], LINE) for each in (x.half(), x.half().double()))
    torch.testing.assert_close(half.power, double.power)


def test_statistics_file_keeps_every_bit_and_a_foreign_file_is_refused(tmp_path):
    grid = ms.Grid((ms.Axis("time", 6, 0.04, "s", corner=0.5), ms.Axis("x", 5, periodic=True)))
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


def test_spectra_of_statistics_shape_noise_like_the_data_or_a_power_of_it():
    grid = ms.Grid.of(y=6, x=8)
    statistics = ms.DataStatistics.measure([dense.random(200, 3, 6, 8).cumsum(-1)], grid)
    for spectrum, exponent in (
        (statistics.spectrum(), 1.0),
        (DataPower(statistics), 1.0),
        (DataPower(statistics, 0.5), 0.5),
    ):
        power, expected = ms.SpectralCovariance(spectrum, grid).power(), statistics.power.mean(0) ** exponent
        torch.testing.assert_close(power, expected / grid.mean(expected))


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


COLORS = {"red": -1.0, "white": 0.0, "blue": 1.0}
SHORT = ms.Grid.of(x=12)


def lengths(grid: ms.Grid, count: int) -> Tensor:
    """Every item is valid up to a place along the first axis."""
    size = grid.shape[0]
    last = torch.randint(math.ceil(size / 3), size + 1, (count, 1), generator=torch.Generator().manual_seed(1))
    return (torch.arange(size) < last).reshape(count, 1, size, *(1,) * (grid.dimensions - 1))


def hole(grid: ms.Grid, count: int) -> Tensor:
    """The same hole in all items."""
    mask = torch.ones(1, 1, *grid.shape, dtype=torch.bool)
    mask[(..., *(slice(size // 3, size // 3 + math.ceil(size / 4)) for size in grid.shape))] = False
    return mask.expand(count, 1, *grid.shape)


def scattered(grid: ms.Grid, count: int) -> Tensor:
    """Samples missing at random, in one of 5 ways."""
    ways = torch.rand(5, 1, *grid.shape, generator=torch.Generator().manual_seed(2)) < 0.7
    return ways[torch.arange(count) % 5]


def draw(grid: ms.Grid, exponent: float, count: int, seed: int = 0, channels: int = 1) -> tuple[Tensor, Tensor]:
    """Return data with a mean, and their power."""
    covariance = ms.SpectralCovariance(ms.PowerLaw(exponent, corner=0.02), grid).double()
    white = torch.randn(count, channels, *grid.shape, generator=torch.Generator().manual_seed(seed)).double()
    mean = torch.linspace(-3, 3, grid.numel, dtype=torch.float64).reshape(grid.shape)
    return covariance.color(white) + mean, covariance.power()


def measure(x: Tensor, mask: Tensor, grid: ms.Grid, size: int = 10**9, padding: float = 99.0) -> ms.DataStatistics:
    padded = torch.where(mask, x, padding)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ms.DataStatistics.measure(list(zip(padded.split(size), mask.split(size), strict=True)), grid)


def measured_over_true_power(grid: ms.Grid, masks, count: int, exponent: float = -1.0) -> list[float]:
    """The ratio in six bands."""
    x, truth = draw(grid, exponent, count)
    power = measure(x, masks(grid, count), grid).power[0]
    assert bool((power > 0).all())
    return [float((power / truth * weight).sum() / weight.sum()) for *_, weight in grid.bands(6)]


@pytest.mark.parametrize("masks", [lengths, hole, scattered])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_measured_power_does_not_depend_on_padding(grid, masks):
    for color, exponent in COLORS.items():
        ratios = measured_over_true_power(grid, masks, 1500, exponent)
        # Of blue data zero frequency holds next to nothing, which missing samples hide.
        assert all(0.78 < ratio < 1.15 for ratio in ratios[color == "blue" :]), (color, ratios)


def test_measured_power_keeps_the_weakest_frequencies_of_steep_spectra():
    """Power over five decades: with padding set to the mean it would be up to 1e5 times too large, and errors of the
    mean at each place alone would make it 30 times too large.
    """
    ratios = measured_over_true_power(ms.Grid.of(time=32), lengths, 2000, -2.5)
    assert all(0.85 < ratio < 1.15 for ratio in ratios), ratios


def test_measured_power_of_each_channel_uses_its_own_mask_and_no_padding():
    """Measured together, in batches or each by itself, with the masks of others or without."""
    grid = ms.Grid.of(y=5, x=6)
    x, _ = draw(grid, -1.0, 200, channels=3)
    mask = torch.cat([torch.ones(200, 1, 5, 6, dtype=torch.bool), hole(grid, 200), scattered(grid, 200)], 1)
    mask[:7, 2] = False  # nothing at all of one channel in some items
    together = measure(x, mask, grid)
    torch.testing.assert_close(together.power[0], ms.DataStatistics.measure([x[:, :1]], grid).power[0])
    torch.testing.assert_close(together.power[1], measure(x[:, 1:2], mask[:, 1:2], grid).power[0])
    torch.testing.assert_close(together.power[1], measure(x, mask[:, 1:2], grid).power[1])
    torch.testing.assert_close(together.power[2], measure(x[7:, 2:], mask[7:, 2:], grid).power[0], rtol=1e-3, atol=0)
    valid = mask.sum(0).double()
    torch.testing.assert_close(together.mean, torch.where(mask, x, 0.0).sum(0) / valid.clamp(min=1))
    torch.testing.assert_close(measure(x, mask, grid, size=7).power, together.power, rtol=1e-6, atol=0)
    for padding in (0.0, float("nan"), float("inf")):
        other = measure(x, mask, grid, padding=padding)
        assert torch.equal(other.mean, together.mean), padding
        assert torch.equal(other.power, together.power), padding


def test_measured_power_is_the_same_with_constant_axes_transformed():
    """Masks that change along one axis only, and the same with one sample missing elsewhere, which takes both axes."""
    grid = ms.Grid.of(y=5, x=6)
    x, _ = draw(grid, -1.0, 400)
    mask = lengths(ms.Grid.of(x=6), 400).reshape(400, 1, 1, 6).expand(400, 1, 5, 6)
    odd = mask.clone()
    odd[0, 0, 0, 0] = False
    torch.testing.assert_close(measure(x, mask, grid).power, measure(x, odd, grid).power, rtol=0.02, atol=0)


def test_measure_warns_of_places_that_are_never_valid():
    x, _ = draw(SHORT, -1.0, 50)
    with pytest.warns(UserWarning, match="no item") as caught:
        statistics = ms.DataStatistics.measure([(x, (torch.arange(12) < 4).expand(50, 1, 12))], SHORT)
    warned = [str(warning.message) for warning in caught]
    assert any("at 8 of 12 grid points" in message and "set to 0" in message for message in warned)
    assert any("two valid samples" in message and "the undetermined part stays close" in message for message in warned)
    assert bool((statistics.mean[..., 4:] == 0).all())
    assert bool((statistics.power > 0).all())


def test_measured_power_of_one_item_and_of_constant_data_is_zero():
    x, _ = draw(SHORT, -1.0, 1)
    assert float(measure(x, (torch.arange(12) < 9).expand(1, 1, 12), SHORT).power.max()) == 0
    assert float(measure(torch.ones(40, 1, 12).double(), lengths(SHORT, 40), SHORT).power.max()) == 0


@pytest.mark.parametrize(
    ("limit", "value", "masks"),
    [("WORK", 40_000, lengths), ("WORK", 40_000, scattered), ("MAX_NUMBERS", 25 * 500, lengths)],
)
def test_measured_power_with_too_many_masks_or_numbers_is_that_of_some_items(limit, value, masks, monkeypatch):
    """Half of the masks at most are affordable, and the items with others still count."""
    monkeypatch.setattr(masked_power, limit, value)
    ratios = measured_over_true_power(GRIDS["1-D"], masks, 3000)
    assert all(0.8 < ratio < 1.25 for ratio in ratios), ratios


@pytest.mark.parametrize("masks", [lengths, scattered])
@pytest.mark.parametrize("grid", [ms.Grid.of(x=511), ms.Grid.of(y=40, x=33)], ids=["1-D", "2-D"])
def test_measured_power_of_pairs_on_large_grids_is_right_in_bands(grid, masks, monkeypatch):
    """What is done with grids too large for EM."""
    monkeypatch.setattr(masked_power, "LARGEST", 0)
    for color, exponent in COLORS.items():
        # Zero frequency is one number, and of blue data next to nothing.
        ratios = measured_over_true_power(grid, masks, 400, exponent)[1:]
        assert all(0.6 < ratio < 1.6 for ratio in ratios), (color, ratios)


def test_measured_power_refuses_a_distance_without_a_pair(monkeypatch):
    monkeypatch.setattr(masked_power, "LARGEST", 0)
    grid = ms.Grid.of(time=64)
    x, _ = draw(grid, -1.0, 100)
    with pytest.raises(ValueError, match=r"that are 20 along time apart.*smaller grid"):
        measure(x, (torch.arange(64) < 20).expand(100, 1, 64), grid)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_power_behind_masks_is_what_a_transform_sees(grid):
    """The diagonal of F M C M F* for every mask M, averaged."""
    power = torch.stack([draw(grid, exponent, 1)[1] for exponent in (-1.0, 0.5)])
    masks = torch.cat([lengths(grid, 20).expand(-1, 1, *grid.shape), scattered(grid, 20)], 1)
    transform, seen = dense.dft(grid.shape), np.zeros((2, *grid.half_shape))
    for channel, mask in product(range(2), range(20)):
        behind = transform * masks[mask, channel].flatten().numpy() @ dense.operator(grid.full(power[channel]).numpy())
        behind = behind * masks[mask, channel].flatten().numpy() @ transform.conj().T
        seen[channel] += dense.half(grid, np.diag(behind).real.reshape(grid.shape)) / 20
    np.testing.assert_allclose(power_behind(masks, power, grid).numpy(), seen, rtol=1e-9)


SHAPES = [(7,), (6,), (3, 4), (2, 3, 2)]


def random_groups(
    shape: tuple[int, ...], complex_valued: bool, observed: list[int]
) -> tuple[list[MaskGroup], Tensor, list[Tensor]]:
    """Return groups of 3, 4, … items with random masks, a random power, and the items of each group."""
    generator = torch.Generator().manual_seed(0)
    size, blocks = math.prod(shape), 2 if complex_valued else 1
    dtype = torch.complex128 if complex_valued else torch.float64
    power = torch.rand(blocks, *shape, generator=generator, dtype=torch.float64) + 0.1
    if not complex_valued:  # the power of real data is even
        power = torch.fft.fftn(torch.rand(shape, generator=generator, dtype=torch.float64)).abs()[None] + 0.1
    groups, items = [], []
    for number, count in enumerate(observed):
        places = torch.randperm(size, generator=generator)[:count].sort().values
        x = torch.randn(blocks, 3 + number, count, generator=generator, dtype=dtype)
        groups.append(MaskGroup(places, torch.cat([torch.ones_like(x[..., :1]), x], 2), 3 + number))
        items.append(x)
    return groups, power, items


def dense_step(
    groups: list[MaskGroup], items: list[Tensor], power: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return power, mean, and log-likelihood per block of the estimate before it, item by item with dense matrices."""
    shape = tuple(power.shape[1:])
    F, size = dense.tensor(dense.dft(shape)), math.prod(shape)
    new_power, new_mean = torch.zeros(len(power), size, dtype=torch.float64), torch.zeros_like(mean)
    likelihood = torch.zeros(len(power), dtype=torch.float64)
    for block in range(len(power)):
        covariance = F.mH @ torch.diag(power[block].flatten().to(F.dtype)) @ F
        filled, spread = [], []
        for group, x in zip(groups, items, strict=True):
            o = group.indices
            gain = covariance[:, o] @ torch.linalg.inv(covariance[o][:, o])
            for row in x[block]:
                rest = (row - mean[block, o]).to(F.dtype)
                filled.append(gain @ rest)
                spread.append((F @ (covariance - gain @ covariance[o]) @ F.mH).diagonal().real)
                square = (rest.conj() @ torch.linalg.solve(covariance[o][:, o], rest)).real
                likelihood[block] -= 0.5 * (torch.linalg.slogdet(covariance[o][:, o])[1] + square)
        shift = torch.stack(filled).mean(0)
        new_mean[block] = mean[block] + (shift if mean.is_complex() else shift.real)
        new_power[block] = ((torch.stack(filled) - shift) @ F.T).abs().square().mean(0) + torch.stack(spread).mean(0)
    return new_power.reshape(power.shape), new_mean, likelihood


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_equals_dense_matrices(shape, complex_valued):
    """With few samples observed and with most, for which there are two formulas, and with all."""
    size = math.prod(shape)
    groups, power, items = random_groups(shape, complex_valued, [1, 2, size // 2, size - 1, size - 1, size])
    mean = torch.randn(len(power), size, generator=torch.Generator().manual_seed(1), dtype=items[0].dtype)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)[: len(power)]
    estimate, likelihood = step(Estimate(power, mean), circulant_em._stacked(groups, size), weight)
    new_power, new_mean, expected = dense_step(groups, items, power, mean)
    torch.testing.assert_close(estimate.power, new_power)
    torch.testing.assert_close(estimate.mean, new_mean)
    assert likelihood == pytest.approx(float((weight * expected).sum()), rel=1e-10)


def test_fit_power_maximises_the_likelihood(monkeypatch):
    """As SciPy's search over the powers of 5 samples does, 3 to 5 of them observed, with a mean of zero."""
    monkeypatch.setattr(circulant_em, "TOLERANCE", 1e-9)
    grid = ms.Grid.of(x=5)
    root = dense.tensor(dense.operator(np.sqrt([4.0, 1.0, 0.3, 0.3, 1.0])))
    generator, groups, rows = torch.Generator().manual_seed(0), [], []
    for observed in (3, 4, 5):
        x = torch.randn(40, 5, generator=generator, dtype=torch.float64) @ root.T
        x = torch.cat([x, -x])[:, :observed]  # the mean of what is observed is zero, and its most likely value
        rows.append(x)
        groups.append(MaskGroup(torch.arange(observed), torch.cat([torch.ones(1, 80, 1).double(), x[None]], 2), 80))

    def negative(logs: np.ndarray) -> float:
        covariance = dense.tensor(dense.operator(grid.full(torch.from_numpy(np.exp(logs))).numpy()))
        total = 0.0
        for x in rows:
            part = covariance[: x.shape[1], : x.shape[1]]
            square = (x * torch.linalg.solve(part, x.T).T).sum()
            total += 0.5 * float(len(x) * torch.linalg.slogdet(part)[1] + square)
        return total

    best = scipy.optimize.minimize(negative, np.zeros(3), method="BFGS")
    fit = fit_power(groups, torch.ones(1, 5, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert fit.converged
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(fit.log_likelihood))
    np.testing.assert_allclose(fit.estimate.power[0, :3].numpy(), np.exp(best.x), rtol=2e-3)
    np.testing.assert_allclose(fit.estimate.mean.numpy(), 0, atol=1e-9)


def stationary(grid: ms.Grid, count: int, seed: int) -> Tensor:
    """Periodic stationary data of two channels with means 1 and -2, and the power of one spectrum on every grid."""
    gain = 1 / (0.1 + grid.radius()).sqrt()
    white = torch.randn(count, 2, *grid.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    dims = tuple(range(-grid.dimensions, 0))
    data = torch.fft.irfftn(gain * torch.fft.rfftn(white, dim=dims), s=grid.shape, dim=dims)
    return data + torch.tensor([1.0, -2.0], dtype=torch.float64).view(2, *[1] * grid.dimensions)


@pytest.mark.parametrize("shapes", [((16,), (24,)), ((8, 12), (12, 8)), ((4, 6, 6), (6, 6, 6))])
def test_measure_sizes_returns_the_common_power_on_one_grid(shapes):
    grids = [ms.Grid.of(**{f"a{axis}": size for axis, size in enumerate(shape)}) for shape in shapes]
    data = [stationary(grid, 1500, seed) for seed, grid in enumerate(grids)]
    pairs = [(each.split(400), grid) for each, grid in zip(data, grids, strict=True)]
    statistics = measure_sizes(pairs, grids[0], grids)
    ratio = statistics.power * (0.1 + grids[0].radius())
    assert 0.8 < float(ratio.min()) < float(ratio.max()) < 1.3
    varying = [axis for axis in range(len(shapes[0])) if shapes[0][axis] != shapes[1][axis]]
    kept = statistics.mean.mean([axis + 1 for axis in varying], keepdim=True)
    torch.testing.assert_close(statistics.mean, kept.expand_as(statistics.mean))
    torch.testing.assert_close(
        statistics.mean.flatten(1).mean(1), torch.tensor([1.0, -2.0], dtype=torch.float64), atol=0.1, rtol=0
    )
    assert statistics.count == 3000
    torch.testing.assert_close(statistics.at(grids[1]).mean, kept.expand(-1, *grids[1].shape))


def test_measure_sizes_omits_padding():
    """The mean and power are those of the valid samples, also where only a few items are valid."""
    grids = [ms.Grid.of(time=size) for size in (16, 24)]
    data = [stationary(grid, 800, seed) for seed, grid in enumerate(grids)]
    mask = torch.arange(16) < torch.randint(10, 17, (800, 1, 1), generator=torch.Generator().manual_seed(0))
    padded = torch.where(mask, data[0], torch.nan)
    statistics = measure_sizes([([(padded, mask)], grids[0]), ([data[1]], grids[1])], grids[1], grids)
    whole = measure_sizes([([each], grid) for each, grid in zip(data, grids, strict=True)], grids[1], grids)
    torch.testing.assert_close(statistics.power, whole.power, rtol=0.1, atol=0)
    torch.testing.assert_close(statistics.mean, whole.mean, rtol=0.02, atol=0)


def test_measure_sizes_refuses_no_data_and_constant_data():
    grids = [ms.Grid.of(x=4), ms.Grid.of(x=6)]
    with pytest.raises(ValueError, match="no data to measure"):
        measure_sizes([], grids[0], grids)
    with pytest.raises(ValueError, match="constant and equal"):
        measure_sizes([([torch.ones(2, 1, 4)], grids[0]), ([torch.ones(1, 1, 6)], grids[1])], grids[0], grids)
