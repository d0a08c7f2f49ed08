"""The power of data of which a part is valid is the power that they were drawn with."""

import math
import warnings

import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd import masked_power
from multisagd.masked_power import power_behind
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
    assert any("at 8 of 12 places" in message and "set to 0" in message for message in warned)
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


def test_measured_power_chooses_the_largest_mask_inside(monkeypatch):
    shown = torch.arange(12) < torch.tensor([3, 6, 9, 12])[:, None]
    items = torch.tensor([10.0, 10.0, 10.0, 10.0], dtype=torch.float64)
    assert masked_power._kept(shown, items, 1).tolist() == [0, 1, 2, 3]
    monkeypatch.setattr(masked_power, "WORK", 0)
    monkeypatch.setattr(masked_power, "FEWEST_ITEMS", 20)
    assert masked_power._kept(shown, items, 1).tolist() == [-1, 1, 1, 3]
    monkeypatch.setattr(masked_power, "FEWEST_ITEMS", 40)
    assert masked_power._kept(shown, items, 1) is None


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


def test_measured_power_of_a_large_grid_uses_pairs():
    ratios = measured_over_true_power(ms.Grid.of(x=9001), lengths, 20)[1:]
    assert all(0.7 < ratio < 1.4 for ratio in ratios), ratios


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
