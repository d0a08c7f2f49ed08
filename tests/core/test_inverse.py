"""Guidance by measurements is exact conditioning on Gaussian data, and guided samples follow the exact posterior."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
import multisagd.inverse
from tests.helpers import dense
from tests.helpers.measurements import cases, power
from tests.helpers.small_networks import labelled_denoiser
from tests.helpers.stationary import half_spectrum

GRIDS = {
    "1-D": ms.Grid.of(time=12),
    "2-D": ms.Grid.of(height=4, width=6),
    "2-D odd": ms.Grid.of(height=3, width=5),
    "3-D": ms.Grid.of(frame=3, height=2, width=4),
}
NOISES = {"white": ms.Flat(), "power law": ms.PowerLaw(-0.6, corner=0.05), "blue": ms.PowerLaw(0.4, corner=0.05)}
MODULATIONS = {"blur": ms.Blur(1.0, floor=0.1), "changing": ms.ColorShift(ms.PowerLaw(0.5), ms.PowerLaw(-0.5))}
ALWAYS = (-math.inf, math.inf)
GRADIENTS = (ALWAYS, None, ms.inverse.TRUSTED)
KINDS = ["kernel", "gaussian", "pooled", "masked"]
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


class Bent(torch.nn.Module):
    """A denoiser that is not linear, to tell a Jacobian from its transpose."""

    def __init__(self, process: ms.Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        return torch.tanh(x_t + 0.5 * x_t.roll(1, -1) ** 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("noise", NOISES)
def test_dps_and_pigdm_corrections_are_gradients_of_a_log_density(noise, kind):
    """`(b²/a) Σ ∇ log N(y; H D, S)` with S held fixed, differentiated by autograd and Σ a full matrix."""
    grid = GRIDS["2-D odd"]
    process = model(grid, noise).process
    denoiser, (measurement, H) = Bent(process), cases(grid)[kind]
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


def guided_samples(
    grid: ms.Grid, noise: str, kind: str, sampler: ms.samplers.Sampler, steps: int, count: int
) -> tuple[Tensor, ms.GaussianPosterior, Tensor, np.ndarray]:
    """Return guided samples, the exact posterior, the measurement, and its matrix."""
    denoiser, (measurement, H) = model(grid, noise, ms.CosineSchedule(log_snr_range=(-14, 14))), cases(grid)[kind]
    y = measurement.observe(dense.random(1, 1, *grid.shape), SIGMA, [0])
    guided = ms.PiGDM(denoiser, measurement, y, SIGMA, denoiser.statistics, gradient=None)
    drawn = ms.sample(guided, sampler, (count, 1, *grid.shape), steps, range(count), spacing="log_snr")
    return drawn, ms.GaussianPosterior(denoiser.statistics, measurement, SIGMA), y, H


@pytest.mark.parametrize("noise", ["white", "power law"])
@pytest.mark.parametrize(("name", "kind"), [("1-D", "flow"), ("3-D", "flow"), ("2-D odd", "ancestral")])
def test_guided_samples_follow_the_posterior_at_every_frequency(name, kind, noise):
    """Mean and power of 1,000 samples from one measurement, within 4.5 standard errors.

    Power has a relative standard error of √(1/N), √(2/N) where the transform is real; 3 % are left to the steps.
    """
    grid, count = GRIDS[name], 1000
    sampler, steps = {"flow": (ms.DPMSolver(), 60), "ancestral": (ms.DDIM(eta=1.0), 250)}[kind]
    drawn, posterior, y, _ = guided_samples(grid, noise, "kernel", sampler, steps, count)
    left = posterior.power()[0]
    away = half_spectrum(drawn - posterior.mean(y), grid)[:, 0]
    assert float((away.mean(0).abs() / (left / count).sqrt()).max()) < 5
    ratio = (away - away.mean(0)).abs().square().mean(0) / left
    assert float((ratio - 1).abs().max()) < 0.03 + 4.5 * math.sqrt(2 / count)


@pytest.mark.parametrize("kind", ["pooled", "masked"])
def test_guided_samples_follow_the_posterior_at_every_pixel(kind):
    """Mean and variance of 1,000 samples, against the dense posterior, which is not stationary."""
    grid, count = GRIDS["2-D"], 1000
    drawn, posterior, y, H = guided_samples(grid, "power law", kind, ms.DPMSolver(), 40, count)
    C = dense.operator(power(grid))
    left = np.diag(C - C @ H.T @ np.linalg.solve(H @ C @ H.T + SIGMA**2 * np.eye(len(H)), H @ C))
    values, center = dense.flat(drawn, grid)[:, 0], dense.flat(posterior.mean(y), grid)[0, 0]
    assert np.abs((values.mean(0) - center) / np.sqrt(left / count)).max() < 5
    assert np.abs(values.var(0) / left - 1).max() < 0.03 + 4.5 * math.sqrt(2 / count)


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


def test_guidance_and_posterior_refuse_what_they_cannot_follow():
    grid = GRIDS["1-D"]
    measurement, y, denoiser = ms.Pooled({"time": 2}, grid), torch.zeros(1, 1, 6), model(grid, "white")
    padded = Bent(ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), grid, {"time": 2})))
    posterior = ms.GaussianPosterior(data(grid), measurement, 0.1)
    for call, message in (
        (lambda: ms.DPS(padded, measurement, y, 0.1), "without padding"),
        (lambda: ms.DPS(denoiser, measurement, y, -0.1), "at least 0"),
        (lambda: ms.DPS(denoiser, measurement, y, 0.1, interval=(2.0, 1.0)), "in log-SNR"),
        (lambda: ms.PiGDM(denoiser, measurement, y, 0.1, 1.0, gradient=(1.0, 1.0)), "in log-SNR"),
        (lambda: ms.PiGDM(denoiser, measurement, y, 0.1, 0.0), "positive"),
        (lambda: ms.GaussianPosterior(data(grid), measurement, -0.1), "at least 0"),
        (lambda: posterior.power(), "stationary"),
        (lambda: posterior.sample(y, [1, 2]), "1 seeds"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
