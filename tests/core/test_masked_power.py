"""The power of partly valid data is that they were drawn with, and EM of a circulant Gaussian equals dense matrices."""

import itertools
import math
import warnings

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import multisagd as ms
from multisagd import circulant_em, masked_power
from multisagd.circulant_em import Estimate, MaskGroup, fit_power, step
from multisagd.masked_power import power_behind
from tests.helpers import dense
from tests.helpers.stationary import half_spectrum

GRIDS = {"1-D": ms.Grid.of(x=25), "2-D": ms.Grid.of(y=6, x=9), "3-D": ms.Grid.of(t=4, y=3, x=6)}
COLORS = {"red": -1.0, "white": 0.0, "blue": 1.0}
LINE, SHORT = GRIDS["1-D"], ms.Grid.of(x=12)


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


def measure(x: Tensor, mask: Tensor, grid: ms.Grid, size: int = 10**9) -> ms.DataStatistics:
    padded = torch.where(mask, x, 99.0)
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


def test_measured_power_of_each_channel_uses_its_own_mask():
    """Measured together or each by itself, with the masks of others or without."""
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


@pytest.mark.parametrize("masks", [lengths, scattered])
def test_measured_power_does_not_depend_on_batches(masks):
    grid = GRIDS["2-D"]
    x, _ = draw(grid, -1.0, 300)
    one, many = (measure(x, masks(grid, 300), grid, size) for size in (300, 7))
    torch.testing.assert_close(one.power, many.power, rtol=1e-6, atol=0)


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


@pytest.mark.parametrize("masks", [lengths, scattered])
def test_measured_power_with_too_many_masks_uses_what_a_common_mask_shows(masks, monkeypatch):
    """Half of the masks at most are affordable, and the items with others still count."""
    monkeypatch.setattr(masked_power, "WORK", 40_000)
    ratios = measured_over_true_power(LINE, masks, 3000)
    assert all(0.8 < ratio < 1.25 for ratio in ratios), ratios


def test_measured_power_of_fewer_items_bounds_the_second_moments(monkeypatch):
    monkeypatch.setattr(masked_power, "MAX_NUMBERS", 25 * 500)
    ratios = measured_over_true_power(LINE, lengths, 3000)
    assert all(0.75 < ratio < 1.3 for ratio in ratios), ratios


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
    """Against the mean of |F (mask · x)|² of many data; without masks it is the power itself."""
    x, _ = draw(grid, -1.0, 6_000, channels=2)
    x = x - x.mean(0)
    mask = torch.cat([lengths(grid, 6_000).expand(-1, 1, *grid.shape), scattered(grid, 6_000)], 1)
    power, seen = (half_spectrum(each, grid).abs().square().mean(0) for each in (x, x * mask))
    torch.testing.assert_close(power_behind(mask, power, grid), seen, rtol=0.15, atol=0)
    full = torch.ones(2, 1, *grid.shape, dtype=torch.bool)
    torch.testing.assert_close(power_behind(full, power, grid), power)


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
