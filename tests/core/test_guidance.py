"""Guidance equals its papers; measurements equal matrices, and guidance by them is exact conditioning."""

import math
from functools import reduce

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from multisagd.measurement import conjugate_gradients
from tests.helpers import dense
from tests.helpers.networks import Estimate, labelled_denoiser
from tests.helpers.refusals import assert_refused

GRID = ms.Grid.of(y=4, x=5)
PROCESS = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID).double())
X = dense.random(4, 1, *GRID.shape)
T = torch.tensor([0.05, 0.4, 0.6, 0.95], dtype=torch.float64)
LABELS = torch.tensor([1, 2, 3, 4])
SHIFT = LABELS.reshape(4, 1, 1, 1).double()


class Conditional(nn.Module):
    """A multiple of its input plus the label; it counts its calls."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.process, self.gain, self.calls = PROCESS, gain, 0

    def forward(self, x_t, t, condition=None):
        self.calls += 1
        return self.gain * x_t + (0.0 if condition is None else condition.reshape(-1, 1, 1, 1).double())


def test_classifier_free_guidance_is_the_published_formula():
    """2207.12598 in the form D_w = D(∅) + w (D(c) - D(∅)); a scale of one costs one call."""
    for scale in (0.0, 0.5, 1.0, 3.0):
        denoiser = Conditional()
        torch.testing.assert_close(ms.ClassifierFree(denoiser, scale)(X, T, LABELS), X + scale * SHIFT)
        assert denoiser.calls == (1 if scale == 1 else 2)


def test_autoguidance_is_the_published_formula():
    """2406.02507, Eq. 3: D_w = w D_1 + (1 - w) D_0, both under the condition."""
    guided = ms.Autoguidance(Conditional(1.0), Conditional(0.5), 2.5)
    torch.testing.assert_close(guided(X, T, LABELS), 2.5 * (X + SHIFT) + (1 - 2.5) * (0.5 * X + SHIFT))
    nested = ms.Autoguidance(ms.ClassifierFree(Conditional(), 2.0), Conditional(0.5), 2.5)
    torch.testing.assert_close(nested(X, T, LABELS), 2.5 * (X + 2 * SHIFT) + (1 - 2.5) * (0.5 * X + SHIFT))
    assert nested.process is PROCESS


def test_classifier_free_guidance_keeps_scalars_and_drops_the_rest_in_its_weak_estimate():
    calls = []

    def denoiser(x_t, t, condition=None):
        calls.append(condition)
        return x_t

    guided, scalars = ms.ClassifierFree(Conditional(), 2.0), T[:, None]
    guided.denoiser.forward = denoiser
    for condition in (ms.Condition(LABELS, scalars=scalars), ms.Condition(scalars=scalars, dense=X)):
        guided(X, T, condition)
        strong, weak = calls[-2:]
        assert strong is condition
        assert weak == ms.Condition(scalars=scalars)
    with pytest.raises(ValueError, match="a class, a text or a dense condition"):
        guided(X, T, ms.Condition(scalars=scalars))


def test_guidance_interval_is_of_log_snr_and_per_item():
    log_snr = PROCESS.schedule.log_snr(T)
    denoiser = Conditional()
    guided = ms.ClassifierFree(denoiser, 3.0, (float(log_snr[2]) - 0.1, float(log_snr[1]) + 0.1))
    scale = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64).reshape(4, 1, 1, 1)
    torch.testing.assert_close(guided(X, T, LABELS), X + scale * SHIFT)
    assert denoiser.calls == 2
    outside = guided(X[:1], T[:1], LABELS[:1])
    assert denoiser.calls == 3
    assert torch.equal(outside, denoiser(X[:1], T[:1], LABELS[:1]))


def power(grid: ms.Grid) -> np.ndarray:
    return 0.02 + 1 / (1 + 40 * dense.radius(grid) ** 2)


def blur(grid: ms.Grid, kernel: torch.Tensor) -> np.ndarray:
    """`(H x)(p) = Σ_q k(q) x(p - q + middle)`, periodic."""
    units, axes = np.eye(grid.numel).reshape(-1, *grid.shape), tuple(range(1, 1 + grid.dimensions))
    moved = np.zeros_like(units)
    for place, value in np.ndenumerate(kernel.numpy()):
        shift = [p - size // 2 for p, size in zip(place, kernel.shape, strict=True)]
        moved += value * np.roll(units, shift, axes)
    return moved.reshape(grid.numel, -1).T


def pool(grid: ms.Grid, blocks: tuple[int, ...]) -> np.ndarray:
    sizes = zip(grid.shape, blocks, strict=True)
    return reduce(np.kron, [np.kron(np.eye(size // block), np.full((1, block), 1 / block)) for size, block in sizes])


def factors(grid: ms.Grid) -> dict[str, int]:
    """The least divisor above one of every axis but the first of several."""
    return {
        axis.name: next(d for d in range(2, axis.size + 1) if axis.size % d == 0)
        for axis in grid.axes[1 if grid.dimensions > 1 else 0 :]
    }


def cases(grid: ms.Grid) -> dict[str, tuple[ms.Measurement, np.ndarray]]:
    kernel = dense.random(*(min(3, size) for size in grid.shape))
    mask = dense.random(1, *grid.shape, seed=3) > 0
    pooled = ms.Pooled(factors(grid), grid)
    smooth = np.exp(-2 * np.pi**2 * 1.3**2 * dense.radius(grid) ** 2)
    return {
        "kernel": (ms.Filtered.of_kernel(kernel, grid), blur(grid, kernel)),
        "gaussian": (ms.Filtered.gaussian(1.3, grid), dense.operator(smooth)),
        "pooled": (pooled, pool(grid, pooled.blocks)),
        "masked": (ms.Masked(mask, grid), np.diag(mask.double().flatten().numpy())),
    }


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


def test_filtered_of_spectrum_has_its_amplitude():
    grid = ms.Grid.of(height=6, width=5)
    filtered = ms.Filtered.of_spectrum(7 * ms.Gaussian(1.5), grid)
    expected = ms.Gaussian(1.5).power(grid)
    torch.testing.assert_close(filtered.transfer, (expected / expected.max()).sqrt())


@pytest.mark.parametrize("kind", KINDS)
def test_observe_adds_white_noise_of_each_seed_where_it_measures(kind):
    grid = GRIDS["2-D even"]
    measurement, _ = cases(grid)[kind]
    x0 = dense.random(3, 2, *grid.shape)
    exact = measurement.apply(x0)
    white = torch.stack([dense.random(*exact.shape[1:], seed=seed) for seed in (5, 6, 7)])
    measured = measurement.mask if kind == "masked" else torch.ones(())
    torch.testing.assert_close(measurement.observe(x0, 0.3, [5, 6, 7]), exact + 0.3 * white * measured)


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


NOISES = {"white": ms.Flat(), "power law": ms.PowerLaw(-0.6, corner=0.05), "blue": ms.PowerLaw(0.4, corner=0.05)}
MODULATIONS = {"blur": ms.Blur(1.0, floor=0.1), "changing": ms.ColorShift(ms.PowerLaw(0.5), ms.PowerLaw(-0.5))}
ALWAYS = (-math.inf, math.inf)
GRADIENTS = (ALWAYS, None, ms.inverse.TRUSTED)
SIGMA = 0.2
"""Noise of the measurements."""
TIMES = torch.tensor([0.02, 0.3, 0.7, 0.97], dtype=torch.float64)


def data(grid: ms.Grid) -> ms.DataStatistics:
    return dense.stationary(power(grid), grid, 0.5 * np.sin(np.arange(grid.numel)).reshape(grid.shape))


def model(grid: ms.Grid, noise: str, schedule: ms.Schedule | None = None) -> ms.GaussianDenoiser:
    covariance = ms.SpectralCovariance(NOISES.get(noise, ms.Flat()), grid).double()
    process = ms.Process(schedule or ms.CosineSchedule(), covariance, MODULATIONS.get(noise))
    return ms.GaussianDenoiser(process, data(grid))


def conditional(denoiser: ms.GaussianDenoiser, H: np.ndarray, y: Tensor, x_t: Tensor, t: Tensor) -> np.ndarray:
    """`E[x0 | x_t, y]` by conditioning the joint Gaussian of (x0, x_t, y) on the last two."""
    statistics, process, grid = denoiser.statistics, denoiser.process, denoiser.statistics.grid
    mean, C = dense.flat(statistics.mean[0], grid), dense.operator(power(grid))
    results = []
    for item in range(len(x_t)):
        at = process.coefficients(t[item : item + 1], x_t[:1])
        ones = torch.ones((1, 1, *grid.half_shape), dtype=torch.float64)
        A, B = (dense.operator(grid.full((each * ones)[0, 0]).numpy()) for each in (at.a, at.b))
        V = B @ dense.operator(grid.full(process.covariance.power()).numpy()) @ B.T
        cross = np.concatenate([C @ A.T, C @ H.T], 1)
        joint = np.block([[A @ C @ A.T + V, A @ C @ H.T], [H @ C @ A.T, H @ C @ H.T + SIGMA**2 * np.eye(len(H))]])
        away = np.concatenate([x_t[item].flatten().numpy() - A @ mean, y[item].flatten().numpy() - H @ mean])
        results.append(mean + cross @ np.linalg.solve(joint, away))
    return np.stack(results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", [*NOISES, *MODULATIONS])
def test_pigdm_with_statistics_is_exact_for_gaussian_data(noise, kind):
    """The guided estimate IS `E[x0 | x_t, y]`, on every grid, with and without the gradient of the network."""
    for name, grid in GRIDS.items():
        denoiser, (measurement, H) = model(grid, noise), cases(grid)[kind]
        y = measurement.observe(dense.random(4, 1, *grid.shape), SIGMA, range(4))
        x_t = dense.random(4, 1, *grid.shape, seed=8)
        expected = conditional(denoiser, H, y, x_t, TIMES)
        for gradient in GRADIENTS:
            guided = ms.PiGDM(denoiser, measurement, y, SIGMA, denoiser.statistics, gradient=gradient)
            with torch.no_grad():
                estimate = dense.flat(guided(x_t, TIMES), grid)[:, 0]
            tolerance = 1e-5 if kind == "masked" else 1e-8
            np.testing.assert_allclose(estimate, expected, atol=tolerance, err_msg=f"{name}, {gradient}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_dps_and_pigdm_corrections_are_gradients_of_a_log_density(noise, kind):
    """`(b²/a) Σ ∇ log N(y; H D, S)` with S held fixed, differentiated by autograd and Σ a full matrix."""
    grid = GRIDS["2-D odd"]
    process = model(grid, noise).process
    (measurement, H) = cases(grid)[kind]
    # An estimate that is not linear, to tell a Jacobian from its transpose.
    denoiser = Estimate(process, lambda x, t: torch.tanh(x + 0.5 * x.roll(1, -1) ** 2))
    y = measurement.observe(dense.random(2, 1, *grid.shape), SIGMA, range(2))
    x_t, t = dense.random(2, 1, *grid.shape, seed=5), TIMES[1:3]
    a, b = (each.reshape(2, 1) for each in process.schedule.alpha_sigma(t))
    sigma = dense.tensor(dense.operator(grid.full(process.covariance.power()).numpy()))
    D = denoiser(x_t, t).flatten(1)
    residual = y.flatten(1) - D @ dense.tensor(H).T
    measured = dense.tensor(np.diag(H) if kind == "masked" else np.ones(len(H)))  # what is not measured has no error
    mean_square = residual.square().sum(1, keepdim=True) / measured.sum()
    r2 = 0.7**2 * b**2 / (a**2 * 0.7**2 + b**2)
    gram = dense.tensor(H @ H.T)
    variances = {"dps": mean_square[..., None] * torch.eye(len(H)), "pigdm": r2[..., None] * gram}
    variances["pigdm"] = variances["pigdm"] + SIGMA**2 * torch.eye(len(H), dtype=torch.float64)
    guided = {
        "dps": ms.DPS(denoiser, measurement, y, SIGMA, scale=0.8, interval=None)(x_t, t),
        "pigdm": ms.PiGDM(denoiser, measurement, y, SIGMA, 0.7, scale=0.8, gradient=ALWAYS)(x_t, t),
    }
    for name, matrix in variances.items():
        x = x_t.clone().requires_grad_()
        away = y.flatten(1) - denoiser(x, t).flatten(1) @ dense.tensor(H).T
        log_p = -torch.einsum("bi,bij,bj->b", away, torch.linalg.inv(matrix.double()), away).sum() / 2
        (gradient,) = torch.autograd.grad(log_p, x)
        expected = D + 0.8 * b**2 / a * gradient.flatten(1) @ sigma
        torch.testing.assert_close(guided[name].flatten(1), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gaussian_posterior_equals_the_dense_one(kind):
    """Mean and power exactly, and the mean and covariance of 4,000 draws within 5 standard errors."""
    for name, grid in GRIDS.items():
        measurement, H = cases(grid)[kind]
        posterior = ms.GaussianPosterior(data(grid), measurement, SIGMA)
        C, mean = dense.operator(power(grid)), dense.flat(data(grid).mean[0], grid)
        K = C @ H.T @ np.linalg.inv(H @ C @ H.T + SIGMA**2 * np.eye(len(H)))
        y = measurement.observe(dense.random(1, 1, *grid.shape), SIGMA, [0])
        center, left = mean + K @ (y.flatten().numpy() - H @ mean), C - K @ H @ C
        filters = kind in ("kernel", "gaussian")
        ours = dense.flat(posterior.mean(y), grid)[0, 0]
        np.testing.assert_allclose(ours, center, atol=1e-10 if filters else 1e-5, err_msg=name)
        if filters:
            F = dense.dft(grid.shape)
            expected = dense.half(grid, np.diag(F @ left @ F.conj().T).real.reshape(grid.shape))
            np.testing.assert_allclose(posterior.power()[0].numpy(), expected, atol=1e-12, err_msg=name)
        drawn = dense.flat(posterior.sample(y.expand(4000, *y.shape[1:]), range(4000)), grid)[:, 0]
        diagonal = np.diag(left)
        errors = np.sqrt((left**2 + np.outer(diagonal, diagonal)) / 4000)
        assert np.abs((np.cov(drawn.T) - left) / errors).max() < 5, name
        assert np.abs((drawn.mean(0) - center) / np.sqrt(diagonal / 4000)).max() < 4.5, name
        again = posterior.sample(y, [17])
        torch.testing.assert_close(dense.flat(again, grid)[0, 0], drawn[17], atol=1e-5, rtol=0, check_dtype=False)


def test_guidance_follows_interval_scale_and_condition_in_inference_mode():
    grid = ms.Grid.of(height=8, width=8)
    denoiser, measurement = labelled_denoiser(grid), ms.Pooled({"height": 2, "width": 2}, grid)
    x, t, labels = dense.random(2, 1, 8, 8).float(), torch.tensor([0.2, 0.8]), torch.tensor([0, 2])
    y, plain = measurement.apply(x), denoiser(x, t, labels)
    torch.testing.assert_close(ms.DPS(denoiser, measurement, y, 0.1, scale=0.0)(x, t, labels), plain)
    low = ms.DPS(denoiser, measurement, y, 0.1, interval=(0.0, math.inf))(x, t, labels)
    torch.testing.assert_close(low[1], plain[1])
    assert float((low[0] - plain[0]).detach().abs().max()) > 1e-6
    outside = ms.PiGDM(denoiser, measurement, y, 0.1, 0.5, interval=(50.0, 60.0))
    torch.testing.assert_close(outside(x, t, labels), plain)
    guided = ms.PiGDM(denoiser, measurement, y, 0.1, 0.5)
    with torch.inference_mode():
        drawn = ms.sample(guided, ms.DDIM(), (2, 1, 8, 8), 3, [0, 1], condition=labels)
    assert drawn.dtype == torch.float32
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_guidance_and_measurements_refuse_what_they_cannot_follow():
    grid, plane = GRIDS["1-D even"], GRIDS["2-D even"]
    measurement, y, denoiser = ms.Pooled({"time": 2}, grid), torch.zeros(1, 1, 6), model(grid, "white")
    padded = Estimate(ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), grid, {"time": 2})))
    posterior = ms.GaussianPosterior(data(grid), measurement, 0.1)
    assert_refused(
        ("increasing log-SNRs", lambda: ms.ClassifierFree(Conditional(), 2.0, (3.0, -3.0))),
        ("increasing log-SNRs", lambda: ms.Autoguidance(Conditional(), Conditional(), 2.0, (3.0, 3.0))),
        ("needs a class, a text or a dense condition", lambda: ms.ClassifierFree(Conditional(), 2.0)(X, T)),
        ("remove the padding", lambda: ms.DPS(padded, measurement, y, 0.1)),
        ("at least 0", lambda: ms.DPS(denoiser, measurement, y, -0.1)),
        ("increasing log-SNRs", lambda: ms.DPS(denoiser, measurement, y, 0.1, interval=(2.0, 1.0))),
        ("increasing log-SNRs", lambda: ms.PiGDM(denoiser, measurement, y, 0.1, 1.0, gradient=(1.0, 1.0))),
        ("positive", lambda: ms.PiGDM(denoiser, measurement, y, 0.1, 0.0)),
        ("at least 0", lambda: ms.GaussianPosterior(data(grid), measurement, -0.1)),
        ("stationary", lambda: posterior.power()),
        ("1 seeds", lambda: posterior.sample(y, [1, 2])),
        ("expected a transfer function", lambda: ms.Filtered(torch.ones(4, 6), plane)),
        ("does not fit a grid", lambda: ms.Filtered.of_kernel(torch.ones(5, 1), plane)),
        (
            "factor 4 does not divide the size 6 of the axis 'width'",
            lambda: ms.Pooled({"height": 2, "width": 4}, plane),
        ),
        ("no axis 'depth'", lambda: ms.Pooled({"depth": 2}, plane)),
        (
            "expected 2 seeds for a batch of 2, one per item, got 1",
            lambda: ms.Pooled({}, plane).observe(torch.zeros(2, 1, 4, 6), 0.1, [1]),
        ),
    )
