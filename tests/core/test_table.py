"""Tabulated spectra: exact on their own grid, linear between their knots on others."""

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense


def measured(grid: ms.Grid, seed: int = 0) -> torch.Tensor:
    """Power like that of real data: even, and different in every bin."""
    energy = np.abs(np.fft.fftn(dense.random(*grid.shape, seed=seed).numpy())) ** 2
    return dense.tensor(dense.half(grid, energy))


@pytest.fixture(params=dense.GRIDS.values(), ids=dense.GRIDS.keys())
def grid(request) -> ms.Grid:
    return request.param


def test_exact_on_its_own_grid(grid):
    values = measured(grid)
    assert torch.equal(ms.Table(values, grid).power(grid), values)


def test_exact_at_every_shared_frequency_of_a_finer_grid(grid):
    values = measured(grid)
    finer = grid.resize([3 * size for size in grid.shape])
    power = ms.Table(values, grid).power(finer)
    assert power.shape == finer.half_shape
    shared = power[(slice(None, None, 3),) * grid.dimensions]
    np.testing.assert_allclose(shared.numpy(), values.numpy(), rtol=1e-10)


@pytest.mark.parametrize("other", [(9, 10), (4, 17), (12, 3), (1, 1), (16, 16)])
def test_linear_between_knots(other):
    """Against NumPy's one-dimensional interpolation, one axis after the other."""
    grid = ms.Grid.of(y=8, x=7)
    full = np.fft.fftshift(grid.full(measured(grid)).numpy())
    full = np.concatenate([full, full[:1]])  # Nyquist of the even axis is both ends
    knots = [np.arange(-4, 5) / 8, np.arange(-3, 4) / 7]
    target = grid.resize(other)
    y, x = (np.asarray(target.frequencies(n)).ravel() for n in grid.names)
    along = np.stack([np.interp(x, knots[1], row) for row in full])
    expected = np.stack([np.interp(y, knots[0], column) for column in along.T], axis=1)
    np.testing.assert_allclose(ms.Table(measured(grid), grid).power(target).numpy(), expected, rtol=1e-10)


def test_interpolation_is_in_physical_frequency():
    grid = ms.Grid.of(t=(50, 0.02, "s"))
    table = ms.Table(1 + grid.radius(), grid)
    longer = ms.Grid.of(t=(200, 0.01, "s"))
    expected = 1 + longer.radius().clamp(max=25.0)
    torch.testing.assert_close(table.power(longer), expected)


@pytest.mark.parametrize("other", [(9, 10), (12, 16), (5, 5)])
def test_an_interpolated_table_is_still_even(other):
    """Or coloured noise would not be what the power says."""
    grid = ms.Grid.of(y=8, x=7)
    power = ms.Table(measured(grid), grid).power(grid.resize(other))
    first = power[:, 0]
    torch.testing.assert_close(first[1:], first[1:].flip(0), rtol=1e-9, atol=1e-12)


def test_it_composes_and_shapes_noise():
    grid = ms.Grid.of(y=6, x=5)
    values = measured(grid)
    covariance = ms.SpectralCovariance(ms.Table(values, grid) ** 0.5 + 0.1, grid)
    expected = values**0.5 + 0.1
    torch.testing.assert_close(covariance.power(), expected / grid.mean(expected))


def test_float32_values_are_kept_as_float64():
    grid = ms.Grid.of(x=6)
    assert ms.Table(torch.ones(4), grid).power(grid).dtype == torch.float64


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda g: ms.Table(torch.ones(6, 5), g), "needs a table of shape"),
        (lambda g: ms.Table(-torch.ones(6, 3), g), "non-negative"),
        (lambda g: ms.Table(torch.full((6, 3), float("nan")), g), "finite"),
        (lambda g: ms.Table(torch.ones(6, 3), g).power(ms.Grid.of(y=6, z=5)), "cannot be evaluated"),
        (lambda g: ms.Table(torch.ones(6, 3), g).power(ms.Grid.of(y=6, x=(5, 1.0, "s"))), "cannot be evaluated"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make(ms.Grid.of(y=6, x=5))
