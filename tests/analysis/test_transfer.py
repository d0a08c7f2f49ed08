"""Transfer functions equal samples, the recursions of the papers, Monte Carlo and dense matrices."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.dense import DenseLaw, dense_transfer
from multisagd.analysis.transfer import error_budget, transfer_function
from tests.helpers import dense
from tests.helpers.gaussian import RECURSIONS, recursion_of
from tests.helpers.networks import DenseDenoiser
from tests.helpers.stationary import half_spectrum, random_statistics

GRIDS = [ms.Grid.of(time=9), ms.Grid.of(height=5, width=6), ms.Grid.of(frame=3, height=4, width=5)]
SPECTRA = [ms.Flat(), ms.PowerLaw(exponent=-0.7, corner=0.1), ms.PowerLaw(exponent=0.4, corner=0.05)]
SCHEDULES = [ms.CosineSchedule(), ms.KarrasSchedule(), ms.FlowSchedule()]
DETERMINISTIC = [ms.DDIM(), ms.Euler(), ms.Heun(), ms.DPMSolver(), ms.DPMSolver(order=1), ms.UniPC()]
STOCHASTIC = [
    *(ms.DDIM(eta=0.6), ms.Ancestral(), ms.Ancestral(variance="forward")),
    *(ms.DPMSolver(sde=True), ms.Euler(churn=3), ms.Heun(churn=3)),
]


def statistics_of(grid: ms.Grid, seed: int = 1, channels: int = 2) -> ms.DataStatistics:
    return random_statistics(grid, seed, channels, spread=3.0)


def process_of(grid: ms.Grid, schedule=SCHEDULES[0], spectrum=SPECTRA[1], modulation=None) -> ms.Process:
    return ms.Process(schedule, ms.SpectralCovariance(spectrum, grid), modulation).double()


def times(steps: int) -> Tensor:
    """Uneven, and starting below 1."""
    return torch.linspace(0.97, 0.02, steps + 1, dtype=torch.float64) ** 1.3


def sample(denoiser, sampler, initial: Tensor, start: Tensor, seeds=None) -> Tensor:
    seeds = seeds or range(len(initial))
    return ms.sample(denoiser, sampler, initial.shape, len(start) - 1, seeds, times=start, initial=initial)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_transfer_function_maps_starts_to_the_samples_of_deterministic_samplers(sampler) -> None:
    for (i, grid), (j, schedule) in product(enumerate(GRIDS), enumerate(SCHEDULES)):
        spectrum = SPECTRA[(i + j) % 3]
        name = f"{grid.shape}, {schedule}, {spectrum}"
        statistics, process = statistics_of(grid), process_of(grid, schedule, spectrum)
        initial = 3 * dense.random(2, 2, *grid.shape, seed=2)
        samples = half_spectrum(sample(ms.GaussianDenoiser(process, statistics), sampler, initial, times(6)), grid)
        transfer = transfer_function(sampler, process, times(6), statistics)
        mean = transfer.mean_gain * half_spectrum(statistics.mean, grid)
        expected = transfer.noise_gain * half_spectrum(initial, grid) + mean
        assert torch.allclose(samples, expected, rtol=1e-10, atol=1e-10), name
        assert not bool(transfer.injected.any()), name
        sigma = process.schedule.alpha_sigma(times(6)[0])[1]
        assert torch.allclose(transfer.prior, sigma**2 * process.covariance.power()[None], atol=0, rtol=1e-7), name


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_transfer_function_has_the_gain_and_power_of_the_recursion(sampler) -> None:
    """The recursions of the papers, one weight for the start and for each step's noise, also under blur."""
    cases = [(*each, None) for each in zip(GRIDS, SCHEDULES, SPECTRA, strict=True)]
    if not isinstance(sampler, ms.Euler):
        cases.append((GRIDS[1], SCHEDULES[0], SPECTRA[1], ms.Blur(length=1.5)))
    start = torch.linspace(1, 0.02, 8, dtype=torch.float64)
    for grid, schedule, spectrum, modulation in cases:
        statistics, process = statistics_of(grid, 5, channels=1), process_of(grid, schedule, spectrum, modulation)
        recursion = recursion_of(process, statistics, start)
        weights = RECURSIONS[sampler](recursion)
        transfer = transfer_function(sampler, process, start, statistics)
        power = recursion.W * (recursion.sigma[0] ** 2 * weights[0] ** 2 + (weights[1:] ** 2).sum(0))
        for ours, theirs in ((transfer.noise_gain, weights[0]), (transfer.power, power)):
            np.testing.assert_allclose(ours[0].flatten().numpy(), theirs, rtol=1e-8, atol=1e-10, err_msg=str(schedule))


def test_transfer_function_that_starts_at_the_mean_adds_the_mean() -> None:
    grid = GRIDS[1]
    statistics, process = statistics_of(grid, 3), process_of(grid, ms.FlowSchedule())
    alpha = process.schedule.alpha_sigma(times(4)[0])[0]
    samples = sample(ms.GaussianDenoiser(process, statistics), ms.Heun(), (alpha * statistics.mean)[None], times(4))
    transfer = transfer_function(ms.Heun(), process, times(4), statistics, start_at_mean=True)
    expected = transfer.mean_gain * half_spectrum(statistics.mean, grid)
    torch.testing.assert_close(half_spectrum(samples, grid)[0], expected, rtol=1e-10, atol=1e-10)


def stationary_law(statistics: ms.DataStatistics) -> DenseLaw:
    power = statistics.grid.full(statistics.power[0]).numpy()
    return DenseLaw(statistics.mean[0].flatten(), dense.tensor(dense.operator(power)))


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_dense_transfer_equals_the_transfer_function_on_stationary_data(sampler) -> None:
    for grid in GRIDS:
        statistics, process = statistics_of(grid, 9, channels=1), process_of(grid)
        data = stationary_law(statistics)
        law = dense_transfer(sampler, process, times(4), data)
        transfer = transfer_function(sampler, process, times(4), statistics)
        expected = dense.tensor(dense.operator(grid.full(transfer.power[0]).numpy()))
        torch.testing.assert_close(law.covariance, expected, rtol=1e-9, atol=1e-9)
        spectrum = transfer.mean_gain * half_spectrum(statistics.mean, grid)
        mean = torch.fft.irfftn(spectrum[0], s=grid.shape, norm="ortho")
        torch.testing.assert_close(law.mean, mean.flatten(), rtol=1e-9, atol=1e-9)
        assert law.wasserstein(data) == pytest.approx(float(transfer.total(transfer.wasserstein()).sqrt()), rel=1e-6)


@pytest.mark.parametrize("sampler", [ms.Heun(), ms.Ancestral()], ids=str)
def test_dense_transfer_predicts_samples_of_data_that_are_not_stationary(sampler) -> None:
    """Monte Carlo of the sampler with a dense optimal denoiser: 20,000 samples, within 6 standard errors."""
    grid, count, root = ms.Grid.of(time=6), 20000, dense.random(6, 6)
    process = process_of(grid, spectrum=ms.PowerLaw(exponent=-0.5, corner=0.1))
    data = DenseLaw(torch.arange(6.0).double(), root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64))
    initial = process.schedule.alpha_sigma(times(5)[0])[1] * process.noise((count, 1, 6), range(count))
    noise = process.covariance.apply(torch.eye(6, dtype=torch.float64))
    denoiser = DenseDenoiser(process, data.covariance, noise, data.mean)
    samples = sample(denoiser, sampler, initial, times(5))[:, 0]
    law = dense_transfer(sampler, process, times(5), data)
    scale = law.covariance.diagonal().sqrt()
    assert float(((samples.mean(0) - law.mean) / scale).abs().max()) < 6 / math.sqrt(count)
    assert float(((samples.T.cov() - law.covariance) / scale / scale[:, None]).abs().max()) < 6 * math.sqrt(2 / count)


def test_error_budget_adds_up() -> None:
    grid = GRIDS[1]
    statistics, process = statistics_of(grid, 10), process_of(grid, spectrum=ms.Flat())
    transfer = transfer_function(ms.DDIM(), process, times(5), statistics)
    budget = error_budget(transfer, grid, bands=4)
    assert sum(band.fraction for band in budget) == pytest.approx(1)
    assert budget[0].power == pytest.approx(float(transfer.power[:, 0, 0].sum() / statistics.power[:, 0, 0].sum()))


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_transfer_function_has_no_error_in_the_limit_of_many_steps(sampler) -> None:
    """Every sampler generates the law of the data, from coloured noise."""
    statistics, process = statistics_of(GRIDS[0], 11, channels=1), process_of(GRIDS[0])
    many = process.schedule.time(torch.linspace(-16, 16, 2001, dtype=torch.float64))
    transfer = transfer_function(sampler, process, many, statistics, start_at_mean=True)
    tolerance = 1e-3 if sampler == ms.Heun() else 1e-2  # of second order, and of at least first order
    for error in (transfer.wasserstein(), transfer.kl(), transfer.absolute_error()):
        assert float(transfer.total(error)) < tolerance * float(transfer.total(statistics.power))


def test_kl_is_zero_without_data_and_noise_and_infinite_with_noise_only() -> None:
    grid = ms.Grid.of(time=8)
    power = statistics_of(grid, 13, channels=1).power
    power[:, 0] = 0
    statistics = ms.DataStatistics(torch.zeros(1, 8, dtype=torch.float64), power, grid, 10)
    silent, white = (process_of(grid, spectrum=each) for each in (ms.Band(0.1, 1.0), ms.Flat()))
    assert not silent.covariance.power()[0]
    divergence = transfer_function(ms.DDIM(), silent, times(4), statistics).kl()
    assert divergence[0, 0] == 0
    assert bool(divergence.isfinite().all())
    assert transfer_function(ms.DDIM(), white, times(4), statistics).kl()[0, 0] == math.inf


def test_transfer_function_refuses_what_has_none() -> None:
    grid, start = ms.Grid.of(time=8), times(3)
    statistics, process = statistics_of(grid, 12), process_of(grid)
    integrator = ms.GaussianIntegrator(statistics)
    padded = ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), grid, {"time": 12}))
    for message, sampler, its_process, its_times in (
        ("padded", ms.DDIM(), padded, start),
        ("is incompatible", ms.DDIM(), process_of(ms.Grid.of(width=8)), start),
        ("two decreasing times", ms.DDIM(), process, start.flip(0)),
        ("nothing to analyse or design", integrator, process, start),
    ):
        with pytest.raises(ValueError, match=message):
            transfer_function(sampler, its_process, its_times, statistics)
    with pytest.raises(ValueError, match="nothing to analyse or design"):
        dense_transfer(integrator, process, start, DenseLaw(torch.zeros(8), torch.eye(8)))
    large = process_of(ms.Grid.of(time=2000))
    with pytest.raises(ValueError, match="up to 1024"):
        dense_transfer(ms.DDIM(), large, start, DenseLaw(torch.zeros(2000), torch.eye(2000)))
