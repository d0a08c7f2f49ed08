"""Tabulated spectra are exact on their own grid, and linear between their knots on others."""

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense
from tests.helpers.refusals import assert_refused

GRID = ms.Grid.of(y=8, x=7)


def measured(grid: ms.Grid) -> torch.Tensor:
    """Power like that of real data: even, and different in every bin."""
    energy = np.abs(np.fft.fftn(dense.random(*grid.shape).numpy())) ** 2
    return dense.tensor(dense.half(grid, energy))


@pytest.mark.parametrize("grid", dense.GRIDS.values(), ids=dense.GRIDS)
def test_table_is_exact_at_every_shared_frequency(grid):
    values = measured(grid)
    table, finer = ms.Table(values, grid), grid.resize([3 * size for size in grid.shape])
    assert torch.equal(table.power(grid), values)
    power = table.power(finer)
    assert power.shape == finer.half_shape
    shared = power[(slice(None, None, 3),) * grid.dimensions]
    np.testing.assert_allclose(shared.numpy(), values.numpy(), rtol=1e-10)


@pytest.mark.parametrize("other", [(9, 10), (4, 17), (12, 3), (1, 1), (16, 16), (5, 5)])
def test_table_is_linear_between_knots_and_even(other):
    """Against NumPy's one-dimensional interpolation, one axis after the other."""
    full = np.fft.fftshift(GRID.full(measured(GRID)).numpy())
    full = np.concatenate([full, full[:1]])  # Nyquist of the even axis is both ends
    knots = [np.arange(-4, 5) / 8, np.arange(-3, 4) / 7]
    target = GRID.resize(other)
    y, x = (np.asarray(target.frequencies(n)).ravel() for n in GRID.names)
    along = np.stack([np.interp(x, knots[1], row) for row in full])
    expected = np.stack([np.interp(y, knots[0], column) for column in along.T], axis=1)
    power = ms.Table(measured(GRID), GRID).power(target)
    np.testing.assert_allclose(power.numpy(), expected, rtol=1e-10)
    # Else coloured noise would not have this power.
    torch.testing.assert_close(power[1:, 0], power[1:, 0].flip(0), rtol=1e-9, atol=1e-12)


def test_table_interpolates_in_physical_frequency():
    grid, longer = ms.Grid.of(t=(50, 0.02, "s")), ms.Grid.of(t=(200, 0.01, "s"))
    power = ms.Table(1 + grid.radius(), grid).power(longer)
    torch.testing.assert_close(power, 1 + longer.radius().clamp(max=25.0))


def test_table_composes_and_keeps_float32_values_as_float64():
    values = measured(GRID)
    covariance = ms.SpectralCovariance(ms.Table(values, GRID) ** 0.5 + 0.1, GRID)
    expected = values**0.5 + 0.1
    torch.testing.assert_close(covariance.power(), expected / GRID.mean(expected))
    assert ms.Table(values.float(), GRID).power(GRID).dtype == torch.float64


def test_table_refuses_bad_values_and_foreign_grids():
    grid, ones = ms.Grid.of(y=6, x=5), torch.ones(6, 3)
    assert_refused(
        ("needs a table of shape", lambda: ms.Table(torch.ones(6, 5), grid)),
        ("non-negative", lambda: ms.Table(-ones, grid)),
        ("finite", lambda: ms.Table(ones * float("nan"), grid)),
        ("cannot be evaluated", lambda: ms.Table(ones, grid).power(ms.Grid.of(y=6, z=5))),
        ("cannot be evaluated", lambda: ms.Table(ones, grid).power(ms.Grid.of(y=6, x=(5, 1.0, "s")))),
    )
