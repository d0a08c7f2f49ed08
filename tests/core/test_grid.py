"""Grids against NumPy's frequencies and brute force over the full spectrum."""

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense


@pytest.fixture(params=dense.GRIDS.values(), ids=dense.GRIDS.keys())
def grid(request) -> ms.Grid:
    return request.param


def test_half_spectrum_is_the_one_of_rfftn(grid):
    assert torch.fft.rfftn(torch.zeros(grid.shape)).shape == grid.half_shape


def test_multiplicity_counts_how_many_bins_of_the_full_spectrum_a_stored_one_stands_for(grid):
    last = grid.shape[-1]
    stored = grid.half_shape[-1]
    counts = np.zeros(stored)
    for k in range(last):
        counts[k if k < stored else last - k] += 1
    np.testing.assert_array_equal(grid.multiplicity.numpy(), np.broadcast_to(counts, grid.half_shape))
    assert float(grid.multiplicity.sum()) == grid.numel


def test_mean_is_over_the_full_spectrum(grid):
    energy = np.abs(np.fft.fftn(dense.random(*grid.shape).numpy())) ** 2
    values = dense.tensor(dense.half(grid, energy))
    np.testing.assert_allclose(grid.mean(values).item(), energy.mean(), rtol=1e-12)
    batch = torch.stack([values, 2 * values])
    np.testing.assert_allclose(grid.mean(batch).numpy(), [energy.mean(), 2 * energy.mean()], rtol=1e-12)


def test_the_plain_mean_of_the_half_spectrum_would_be_wrong():
    """The defect this guards from: noise of variance .92 by normalising with the mean of what is stored."""
    grid = ms.Grid.of(y=8, x=8)
    power = ms.PowerLaw(-1.0).power(grid)
    assert abs(float(power.mean() / grid.mean(power)) - 1) > 0.05


def test_mean_refuses_another_shape():
    with pytest.raises(ValueError, match="half spectrum"):
        ms.Grid.of(y=8, x=8).mean(torch.zeros(8, 8))


def test_full_mirrors_to_the_negative_frequencies(grid):
    energy = np.abs(np.fft.fftn(dense.random(*grid.shape).numpy())) ** 2
    full = grid.full(dense.tensor(dense.half(grid, energy)))
    np.testing.assert_allclose(full.numpy(), energy, rtol=1e-10)
    pair = grid.full(torch.stack([dense.tensor(dense.half(grid, energy))] * 2))
    np.testing.assert_allclose(pair[1].numpy(), energy, rtol=1e-10)


def test_even_averages_each_bin_with_its_mirror_image(grid):
    """A real field filtered by any real gain feels only the even part of the gain."""
    gain = torch.rand(grid.half_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    even = grid.even(gain)
    x = dense.random(*grid.shape)
    dims = tuple(range(grid.dimensions))
    filtered, again = (torch.fft.irfftn(g * torch.fft.rfftn(x, dim=dims), s=grid.shape, dim=dims) for g in (gain, even))
    torch.testing.assert_close(filtered, again)
    full = grid.full(even).numpy()
    for index in np.ndindex(grid.shape):
        assert full[index] == full[tuple(-i % size for i, size in zip(index, grid.shape, strict=True))]
    assert torch.equal(grid.even(even), even)


def test_radius_and_frequencies_are_those_of_numpy(grid):
    np.testing.assert_allclose(grid.radius().numpy(), dense.half(grid, dense.radius(grid)), atol=1e-15)
    for name, expected in zip(grid.names, dense.frequencies(grid), strict=True):
        ours = grid.frequencies(name).expand(grid.half_shape).numpy()
        # NumPy stores the Nyquist frequency of an even axis as negative, rfft as positive: the same bin.
        np.testing.assert_allclose(np.abs(ours), np.abs(dense.half(grid, expected)), atol=1e-15)


def test_spacing_puts_frequencies_in_cycles_per_unit():
    grid = ms.Grid.of(time=(100, 1 / 50, "s"))
    assert float(grid.radius().max()) == pytest.approx(25.0)
    assert grid.axis("time").nyquist == 25.0
    assert grid.axis("time").corner_frequency == pytest.approx(50 / 256)
    assert grid.resize((300,)).axis("time").nyquist == 25.0


def test_factors_make_axes_of_different_units_comparable():
    grid = ms.Grid.of(time=(6, 0.04, "s"), y=5, x=4)
    t, y, x = dense.frequencies(grid)
    expected = dense.half(grid, np.sqrt((0.1 * t) ** 2 + (2 * y) ** 2 + x**2))
    np.testing.assert_allclose(grid.radius(factors={"time": 0.1, "y": 2.0}).numpy(), expected, atol=1e-15)
    np.testing.assert_allclose(
        grid.radius(("y", "x")).numpy(), dense.half(grid, np.sqrt(y**2 + x**2) + 0 * t), atol=1e-15
    )
    assert grid.corner(factors={"time": 0.1}) == pytest.approx(max(0.1 / 0.04, 1) / 256)


def test_mixing_units_without_factors_is_an_error_that_says_what_to_do():
    grid = ms.Grid.of(time=(6, 0.04, "s"), y=5, x=4)
    with pytest.raises(ValueError, match=r"time in cycles per s.*give factors"):
        grid.radius()
    with pytest.raises(ValueError, match=r"time in cycles per s"):
        ms.SpectralCovariance(ms.PowerLaw(-0.5), grid)
    grid.radius(factors={"time": 1.0})
    grid.radius(("time",))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ms.Grid(()), "at least one axis"),
        (lambda: ms.Grid((ms.Axis("x", 4), ms.Axis("x", 5))), "must differ"),
        (lambda: ms.Grid.of(x=0), "'x': size"),
        (lambda: ms.Grid.of(x=2.5), "whole number"),
        (lambda: ms.Grid.of(x=(4, 0.0)), "'x': spacing"),
        (lambda: ms.Axis("x", 4, spacing=float("nan")), "spacing"),
        (lambda: ms.Axis("x", 4, corner=-1.0), "corner"),
        (lambda: ms.Grid.of(y=4, x=4).axis("z"), "its axes are y, x"),
        (lambda: ms.Grid.of(y=4, x=4).select(["z"]), "no axis 'z'"),
        (lambda: ms.Grid.of(y=4, x=4).resize((4,)), "expected 2 sizes"),
        (lambda: ms.Grid.of(y=4, x=4).radius(factors={"z": 1.0}), "factors name"),
        (lambda: ms.Grid.of(y=4, x=4).radius(("y",), factors={"x": 1.0}), "factors name"),
    ],
)
def test_errors_name_the_offender(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("shape", [(7,), (8,), (8, 8), (6, 5), (4, 3, 5)])
def test_bands_hold_every_frequency_once(shape):
    grid = ms.Grid.of(**{f"axis{place}": (size, 0.5, "s") for place, size in enumerate(shape)})
    bands = grid.bands(4)
    total = sum(weight for _, _, weight in bands)
    torch.testing.assert_close(total, grid.multiplicity, rtol=0, atol=0)
    assert bands[0][:2] == (0.0, 0.0)
    assert float(bands[0][2].sum()) == 1
    radius = grid.radius() * 0.5  # cycles per sample
    for low, high, weight in bands[1:]:
        inside = radius[weight > 0]
        assert low - 1e-6 <= float(inside.min()) <= float(inside.max()) <= high + 1e-6
