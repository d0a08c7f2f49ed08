"""Samples under a linear-Gaussian condition have the mean and covariance that the transfer function predicts.

The prediction is made with dense matrices: the data given y are Gaussian with covariance `C' = C - K H C`, and in the
basis that diagonalises `W^-½ C' W^-½` every sampler acts on each coordinate as on one frequency of stationary data.
"""

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.transfer import Spectra, follow
from tests.helpers import dense
from tests.helpers.stationary import half_spectrum, random_statistics

GRIDS = [dense.GRIDS["1-D even"], dense.GRIDS["2-D odd even"], dense.GRIDS["3-D even"]]
SPECTRA = ["white", "power law"]
STEPS = 3


def coarse(grid: ms.Grid) -> ms.Pooled:
    return ms.Pooled({axis.name: 2 for axis in grid.axes if axis.size % 2 == 0}, grid)


def oracle(grid: ms.Grid, spectrum: str, measurement: ms.Measurement, noise: float) -> ms.ConditionalGaussianDenoiser:
    """Of data of one channel with power ∝ 1/(1 + 40 f²) and a mean."""
    power, mean = 1 / (1 + 40 * dense.radius(grid) ** 2), dense.random(*grid.shape, seed=7).numpy()
    covariance = ms.SpectralCovariance(dense.SPECTRA[spectrum][0](grid), grid).double()
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-12, 12)), covariance)
    posterior = ms.GaussianPosterior(dense.stationary(power, grid, mean), measurement, noise)
    return ms.ConditionalGaussianDenoiser(process, posterior)


def root(matrix: np.ndarray, exponent: float = 0.5) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors @ np.diag(values**exponent) @ vectors.T


def predicted(denoiser: ms.ConditionalGaussianDenoiser, y: Tensor, sampler: ms.samplers.Sampler, times: Tensor):
    """Mean and covariance of samples given y, by the transfer function along the eigenvectors of the posterior."""
    posterior, process = denoiser.posterior, denoiser.process
    grid, measurement = process.grid, posterior.measurement
    unit = torch.eye(grid.numel, dtype=torch.float64).reshape(-1, 1, *grid.shape)
    H = measurement.apply(unit).flatten(1).T.numpy()
    C, mean = operator(posterior.statistics.power[0], grid), posterior.statistics.mean.flatten().numpy()
    K = C @ H.T @ np.linalg.inv(H @ C @ H.T + posterior.noise**2 * np.eye(len(H)))
    given, left = mean + K @ (y.flatten().numpy() - H @ mean), C - K @ H @ C
    W = operator(process.covariance.power(), grid)
    colour, white = root(W), root(W, -0.5)
    values, U = np.linalg.eigh(white @ left @ white)
    values, along = dense.tensor(values.clip(min=0))[None], U.T @ white @ given
    ones = torch.ones_like(values)
    found = follow(sampler, process, times, Spectra(values, dense.tensor(along**2)[None], ones, ones), ones[None])
    back = colour @ U
    return back @ (found.mean_gain[0].numpy() * along), back @ np.diag(found.power[0].numpy()) @ back.T


def operator(power: Tensor, grid: ms.Grid) -> np.ndarray:
    """The covariance matrix of a power on the half spectrum."""
    unit = torch.eye(grid.numel, dtype=torch.float64).reshape(-1, *grid.shape)
    dims = tuple(range(-grid.dimensions, 0))
    moved = torch.fft.irfftn(half_spectrum(unit, grid) * power, s=grid.shape, dim=dims, norm="ortho")
    return moved.flatten(1).numpy()


def drawn_law(denoiser: ms.ConditionalGaussianDenoiser, y: Tensor, sampler: ms.samplers.Sampler, times: Tensor):
    """Mean and covariance of samples given y: they are linear in the start and in each draw of noise, so unit vectors
    in place of each give the matrices of `sample` itself."""
    process, n = denoiser.process, denoiser.process.grid.numel
    shape, steps = (n, 1, *process.grid.shape), len(times) - 1
    unit, zero = torch.eye(n, dtype=torch.float64).reshape(shape), torch.zeros(shape, dtype=torch.float64)
    condition = ms.Condition(dense=y.expand(n, *y.shape[1:]))

    def sample(source: int | None) -> np.ndarray:
        noises = iter([unit if source == i else zero for i in range(1, steps + 1)])
        process.noise = lambda shape, seeds: next(noises)
        start = unit if source == 0 else zero
        samples = ms.sample(denoiser, sampler, shape, steps, range(n), condition, times=times, initial=start)
        del process.noise
        return samples.flatten(1).numpy()

    mean = sample(None)
    responses = [(sample(source) - mean).T for source in range(steps + 1 if sampler.stochastic else 1)]
    W, first = operator(process.covariance.power(), process.grid), float(process.schedule.alpha_sigma(times)[1][0])
    covariance = sum((first**2 if i == 0 else 1.0) * J @ W @ J.T for i, J in enumerate(responses))
    return mean[0], covariance


@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.Heun(), ms.DPMSolver(sde=True)], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_conditional_samples_have_the_law_that_the_transfer_function_predicts(grid, sampler):
    for spectrum, (measurement, noise) in product(
        SPECTRA, ((coarse(grid), 0.0), (coarse(grid), 0.3), (ms.Filtered.gaussian(1.0, grid), 0.3))
    ):
        denoiser = oracle(grid, spectrum, measurement, noise)
        times = ms.time_steps(denoiser.process.schedule, STEPS)
        y = measurement.observe(dense.random(1, 1, *grid.shape, seed=3), noise, [1])
        for ours, theirs in zip(
            drawn_law(denoiser, y, sampler, times), predicted(denoiser, y, sampler, times), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-10 * np.abs(theirs).max(), err_msg=f"{spectrum} {noise}")


def test_gaussian_integrator_draws_the_exact_conditional_mean_and_covariance():
    """Each deviation from the conditional mean grows as the conditional deviation of its frequency does."""
    for grid, spectrum, steps in product(GRIDS, SPECTRA, (1, 5)):
        measurement = ms.Filtered.gaussian(1.0, grid)
        denoiser = oracle(grid, spectrum, measurement, 0.3)
        y = measurement.observe(dense.random(1, 1, *grid.shape, seed=3), 0.3, [1])
        posterior, schedule = denoiser.posterior, denoiser.process.schedule
        given = ms.DataStatistics(posterior.mean(y)[0], posterior.power(), grid, 1)
        initial, times = dense.random(2, 1, *grid.shape, seed=2), torch.linspace(0.95, 0.03, steps + 1).double()
        drawn = ms.sample(
            denoiser, ms.GaussianIntegrator(given), initial.shape, steps, [0, 1],
            ms.Condition(dense=y.expand(2, *y.shape[1:])), times=times, initial=initial,
        )  # fmt: skip
        (a, a_s), (b, b_s) = (each[[0, -1]] for each in schedule.alpha_sigma(times))
        noise, dims = denoiser.process.covariance.power(), tuple(range(-grid.dimensions, 0))
        growth = ((a_s**2 * given.power + b_s**2 * noise) / (a**2 * given.power + b**2 * noise)).sqrt()
        deviation = half_spectrum(initial - a * given.mean, grid) * growth
        expected = a_s * given.mean + torch.fft.irfftn(deviation, s=grid.shape, dim=dims, norm="ortho")
        torch.testing.assert_close(drawn, expected, rtol=1e-10, atol=1e-10)


def test_conditional_samples_of_a_batch_depend_on_their_own_item_channel_and_grid_only():
    grid = ms.Grid.of(y=4, x=6)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid).double())
    posterior = ms.GaussianPosterior(random_statistics(grid), coarse(grid), 0.1)
    denoiser = ms.ConditionalGaussianDenoiser(process, posterior)
    y = dense.random(3, 2, 2, 3)

    def sample(y: Tensor, seeds) -> Tensor:
        return ms.sample(denoiser, ms.DPMSolver(sde=True), (len(y), 2, 4, 6), 4, seeds, ms.Condition(dense=y))

    whole, other = sample(y, [0, 1, 2]), y.clone()
    other[1, 0] += 1.0
    changed = sample(other, [0, 1, 2])
    assert torch.equal(changed[[0, 2]], whole[[0, 2]])
    assert torch.equal(changed[1, 1], whole[1, 1])
    assert float((changed[1, 0] - whole[1, 0]).abs().min()) > 1e-3
    torch.testing.assert_close(sample(y[1:2], [1])[0], whole[1], rtol=1e-10, atol=1e-10)
    sample(dense.random(1, 2, 2, 3), [5])  # no state is kept
    assert torch.equal(sample(y, [0, 1, 2]), whole)


def test_conditional_denoiser_without_a_condition_is_the_wiener_filter():
    denoiser = oracle(GRIDS[1], "power law", coarse(GRIDS[1]), 0.1)
    x, t = dense.random(2, 1, 5, 6), torch.tensor([0.2, 0.7], dtype=torch.float64)
    plain = ms.GaussianDenoiser(denoiser.process, denoiser.posterior.statistics)(x, t)
    assert torch.equal(denoiser(x, t), plain)
    assert torch.equal(ms.ClassifierFree(denoiser, 1.0)(x, t, ms.Condition(dense=None)), plain)
