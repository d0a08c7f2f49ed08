"""Measurements equal matrices written out entry by entry, have the noise they state, and invert their covariance."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import multisagd as ms
from multisagd.measurement import conjugate_gradients
from tests.helpers import dense
from tests.helpers.measurements import cases, power
from tests.helpers.refusals import assert_refused

GRIDS = {
    "1-D even": ms.Grid.of(time=12),
    "1-D odd": ms.Grid.of(time=9),
    "2-D even": ms.Grid.of(height=4, width=6),
    "2-D odd": ms.Grid.of(height=3, width=5),
    "3-D mixed": ms.Grid.of(frame=3, height=2, width=4),
}
KINDS = ["kernel", "gaussian", "pooled", "masked"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_measurement_applies_and_solves_as_its_matrix(grid, kind):
    """Its solution is right for any covariance that is diagonal in frequency."""
    measurement, H = cases(grid)[kind]
    x = dense.random(2, 3, *grid.shape, seed=1)
    y = measurement.apply(x)
    np.testing.assert_allclose(y.reshape(2, 3, -1).numpy(), dense.flat(x, grid) @ H.T, atol=1e-12)
    z = dense.random(*y.shape, seed=2)
    back = dense.flat(measurement.adjoint(z), grid)
    np.testing.assert_allclose(back, z.reshape(2, 3, -1).numpy() @ H, atol=1e-12)
    spectra = [power(grid), 0.3 * np.ones(grid.shape)]
    halves = torch.stack([dense.tensor(dense.half(grid, each)) for each in spectra])[:, None]
    y = measurement.restrict(dense.random(2, 1, *y.shape[2:], seed=4))
    for variance in (0.04, 1.0):
        solved = measurement.solve(y, halves, variance).flatten(1).numpy()
        for item, spectrum in enumerate(spectra):
            matrix = H @ dense.operator(spectrum) @ H.T + variance * np.eye(len(H))
            expected = np.linalg.solve(matrix, y[item].flatten().numpy())
            np.testing.assert_allclose(solved[item], expected, atol=1e-5 if kind == "masked" else 1e-10)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(GRIDS)), st.sampled_from([*KINDS, "spectrum"]), st.integers(0, 10**6))
def test_measurement_adjoint_and_solve_are_consistent(name, kind, seed):
    """`⟨Hx, y⟩ = ⟨x, Hᵀy⟩`, and `(HRHᵀ + v) solve(y) = y` by the operator's own parts."""
    grid = GRIDS[name]
    measurement, _ = cases(grid)[kind]
    x = dense.random(1, 1, *grid.shape, seed=seed)
    y = measurement.restrict(dense.random(*measurement.apply(x).shape, seed=seed + 1))
    left, right = (measurement.apply(x) * y).sum(), (x * measurement.adjoint(y)).sum()
    torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-9)
    half, dims = dense.tensor(dense.half(grid, power(grid)))[None, None], tuple(range(2, x.dim()))
    z = measurement.solve(y, half, 0.1)
    covariance = torch.fft.irfftn(half * torch.fft.rfftn(measurement.adjoint(z), dim=dims), s=grid.shape, dim=dims)
    torch.testing.assert_close(measurement.apply(covariance) + 0.1 * z, y, atol=1e-5, rtol=0)


def test_filtered_of_spectrum_has_its_amplitude():
    grid = ms.Grid.of(height=6, width=5)
    filtered = ms.Filtered.of_spectrum(7 * ms.Gaussian(1.5), grid)
    expected = ms.Gaussian(1.5).power(grid)
    torch.testing.assert_close(filtered.transfer, (expected / expected.max()).sqrt())


@pytest.mark.parametrize("kind", ["kernel", "pooled", "masked"])
def test_observe_adds_noise_of_the_stated_deviation_where_it_measures(kind):
    grid = GRIDS["2-D even"]
    measurement, _ = cases(grid)[kind]
    x0 = dense.random(1, 1, *grid.shape).expand(2000, 1, *grid.shape)
    noise = measurement.observe(x0, 0.3, range(2000)) - measurement.apply(x0)
    measured = measurement.restrict(torch.ones_like(noise[:1]))[0].bool()
    assert not noise[:, ~measured].any()
    # The standard deviation of 2,000 draws is known to 1/√4,000.
    assert float((noise[:, measured].std(0) / 0.3 - 1).abs().max()) < 4.5 / 4000**0.5
    torch.testing.assert_close(measurement.observe(x0[:1], 0.3, [7]), measurement.observe(x0[:9], 0.3, range(9))[7:8])


def test_conjugate_gradients_stop_item_by_item_and_warn_without_convergence():
    """A zero item stays zero, and a solved one still, while others go on."""
    matrix = torch.diag(torch.linspace(0.01, 1, 20, dtype=torch.float64))
    y = torch.stack([torch.zeros(20), torch.eye(20)[3], torch.ones(20)]).double()
    z = conjugate_gradients(lambda v: v @ matrix, y, 1e-10, 100)
    torch.testing.assert_close(z, y / torch.diagonal(matrix), atol=1e-7, rtol=0)
    grid = ms.Grid.of(time=32)
    y = torch.randn(2, 1, 32, generator=torch.Generator().manual_seed(0))
    power = grid.even(ms.PowerLaw(-3.0).power(grid)).expand(1, 1, -1)
    with pytest.warns(RuntimeWarning, match=r"not converged in 2 iterations: .*, but 1.0e-06 was requested"):
        ms.Masked(torch.arange(32) % 8 >= 2, grid, iterations=2).solve(y, power, 1e-4)


def test_solve_without_noise_leaves_lost_frequencies_at_zero():
    transfer = torch.tensor([1.0, 0.5, 0.0, 0.0, 1.0], dtype=torch.float64)
    filtered, y = ms.Filtered(transfer, ms.Grid.of(time=8)), dense.random(1, 1, 8)
    solved = filtered.solve(filtered.apply(y), torch.ones(1, 1, 5, dtype=torch.float64), 0.0)
    back = torch.fft.rfft(filtered.apply(solved))
    torch.testing.assert_close(back[..., :2], torch.fft.rfft(y)[..., :2])
    assert float(back[..., 2:4].abs().max()) < 1e-12


def test_measurement_refuses_impossible_settings():
    grid = ms.Grid.of(height=4, width=6)
    assert_refused(
        ("expected a transfer function", lambda: ms.Filtered(torch.ones(4, 6), grid)),
        ("does not fit a grid", lambda: ms.Filtered.of_kernel(torch.ones(5, 1), grid)),
        ("a factor of 4 does not divide width", lambda: ms.Pooled({"height": 2, "width": 4}, grid)),
        ("no axis 'depth'", lambda: ms.Pooled({"depth": 2}, grid)),
        ("a batch of 2 needs 2 seeds, got 1", lambda: ms.Pooled({}, grid).observe(torch.zeros(2, 1, 4, 6), 0.1, [1])),
    )
