"""Measurements against matrices written out entry by entry."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multisagd as ms
from multisagd.measurement import conjugate_gradients
from tests.helpers import dense
from tests.helpers.measurements import cases, power

GRIDS = {
    "1-D even": ms.Grid.of(time=12),
    "1-D odd": ms.Grid.of(time=9),
    "2-D even": ms.Grid.of(height=4, width=6),
    "2-D odd": ms.Grid.of(height=3, width=5),
    "3-D mixed": ms.Grid.of(frame=3, height=2, width=4),
}


@pytest.mark.parametrize("kind", ["kernel", "gaussian", "pooled", "masked"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_equals_its_matrix(grid, kind):
    measurement, H = cases(grid)[kind]
    x = dense.random(2, 3, *grid.shape, seed=1)
    y = measurement.apply(x)
    np.testing.assert_allclose(y.reshape(2, 3, -1).numpy(), dense.flat(x, grid) @ H.T, atol=1e-12)
    z = dense.random(*y.shape, seed=2)
    back = dense.flat(measurement.adjoint(z), grid)
    np.testing.assert_allclose(back, z.reshape(2, 3, -1).numpy() @ H, atol=1e-12)


@pytest.mark.parametrize("variance", [0.04, 1.0])
@pytest.mark.parametrize("kind", ["kernel", "gaussian", "pooled", "masked"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_solves_for_any_covariance_diagonal_in_frequency(grid, kind, variance):
    measurement, H = cases(grid)[kind]
    spectra = [power(grid), 0.3 * np.ones(grid.shape)]
    halves = torch.stack([dense.tensor(dense.half(grid, each)) for each in spectra])[:, None]
    y = measurement.restrict(dense.random(*measurement.apply(dense.random(2, 1, *grid.shape)).shape, seed=4))
    solved = measurement.solve(y, halves, variance).flatten(1).numpy()
    for item, spectrum in enumerate(spectra):
        matrix = H @ dense.operator(spectrum) @ H.T + variance * np.eye(len(H))
        expected = np.linalg.solve(matrix, y[item].flatten().numpy())
        np.testing.assert_allclose(solved[item], expected, atol=1e-5 if kind == "masked" else 1e-10)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(GRIDS)), st.sampled_from(list(cases(GRIDS["2-D even"]))), st.integers(0, 10**6))
def test_adjoint_and_solve_are_what_they_say(name, kind, seed):
    """`⟨Hx, y⟩ = ⟨x, Hᵀy⟩`, and `(HRHᵀ + v) solve(y) = y` by the operator's own parts."""
    grid = GRIDS[name]
    measurement, _ = cases(grid)[kind]
    x = dense.random(1, 1, *grid.shape, seed=seed)
    y = measurement.restrict(dense.random(*measurement.apply(x).shape, seed=seed + 1))
    left, right = (measurement.apply(x) * y).sum(), (x * measurement.adjoint(y)).sum()
    torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-9)
    half = dense.tensor(dense.half(grid, power(grid)))[None, None]
    z = measurement.solve(y, half, 0.1)
    covariance = torch.fft.irfftn(
        half * torch.fft.rfftn(measurement.adjoint(z), dim=tuple(range(2, x.dim()))),
        s=grid.shape, dim=tuple(range(2, x.dim())),
    )  # fmt: skip
    torch.testing.assert_close(measurement.apply(covariance) + 0.1 * z, y, atol=1e-5, rtol=0)


def test_a_filter_of_a_spectrum_has_its_amplitude():
    grid = ms.Grid.of(height=6, width=5)
    filtered = ms.Filtered.of_spectrum(7 * ms.Gaussian(1.5), grid)
    expected = ms.Gaussian(1.5).power(grid)
    torch.testing.assert_close(filtered.transfer, (expected / expected.max()).sqrt())


@pytest.mark.parametrize("kind", ["kernel", "pooled", "masked"])
def test_observations_have_the_noise_they_say(kind):
    grid = GRIDS["2-D even"]
    measurement, _ = cases(grid)[kind]
    x0 = dense.random(1, 1, *grid.shape).expand(2000, 1, *grid.shape)
    away = measurement.observe(x0, 0.3, range(2000)) - measurement.apply(x0)
    measured = measurement.restrict(torch.ones_like(away[:1]))[0].bool()
    assert not away[:, ~measured].any()
    deviations = away[:, measured].std(0)
    # The standard deviation of 2,000 draws is known to 1/√4,000.
    assert float((deviations / 0.3 - 1).abs().max()) < 4.5 / 4000**0.5
    torch.testing.assert_close(measurement.observe(x0[:1], 0.3, [7]), measurement.observe(x0[:9], 0.3, range(9))[7:8])


def test_conjugate_gradients_stop_item_by_item():
    """A zero item stays zero, and a solved one still, while others go on."""
    matrix = torch.diag(torch.linspace(0.01, 1, 20, dtype=torch.float64))
    y = torch.stack([torch.zeros(20), torch.eye(20)[3], torch.ones(20)]).double()
    z = conjugate_gradients(lambda v: v @ matrix, y, 1e-10, 100)
    torch.testing.assert_close(z, y / torch.diagonal(matrix), atol=1e-7, rtol=0)


def test_without_noise_what_is_lost_stays_zero():
    grid = ms.Grid.of(time=8)
    transfer = torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0], dtype=torch.float64)
    filtered, y = ms.Filtered(transfer, grid), dense.random(1, 1, 8)
    solved = filtered.solve(filtered.apply(y), torch.ones(1, 1, 5, dtype=torch.float64), 0.0)
    back = torch.fft.rfft(filtered.apply(solved))
    torch.testing.assert_close(back[..., :2], torch.fft.rfft(y)[..., :2])
    assert float(back[..., 2:4].abs().max()) < 1e-12


def test_refusals():
    grid = ms.Grid.of(height=4, width=6)
    with pytest.raises(ValueError, match="expected a transfer function"):
        ms.Filtered(torch.ones(4, 6), grid)
    with pytest.raises(ValueError, match="does not fit a grid"):
        ms.Filtered.of_kernel(torch.ones(5, 1), grid)
    with pytest.raises(ValueError, match="a factor of 4 does not divide width"):
        ms.Pooled({"height": 2, "width": 4}, grid)
    with pytest.raises(ValueError, match="no axis 'depth'"):
        ms.Pooled({"depth": 2}, grid)
    with pytest.raises(ValueError, match="a batch of 2 needs 2 seeds, got 1"):
        ms.Pooled({"height": 2}, grid).observe(torch.zeros(2, 1, 4, 6), 0.1, [1])


def test_conjugate_gradients_that_do_not_converge_are_told():
    grid = ms.Grid.of(time=32)
    mask = torch.arange(32) % 8 >= 2
    y = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    power = grid.even(ms.PowerLaw(-3.0).power(grid)).expand(1, 1, -1)
    with pytest.warns(RuntimeWarning, match=r"not converged in 2 iterations: a residual is .* where 1.0e-06"):
        ms.Masked(mask, grid, iterations=2).solve(y, power, 1e-4)
