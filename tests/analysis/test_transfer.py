"""Transfer functions against brute force: samples themselves, product formulas, recursions, Monte Carlo, matrices."""

import math

import pytest
import torch
from torch import Tensor

from multisagd import (
    DDIM,
    Ancestral,
    Band,
    Blur,
    CosineSchedule,
    DataStatistics,
    DPMSolver,
    Euler,
    Flat,
    FlowSchedule,
    GaussianDenoiser,
    GaussianIntegrator,
    Grid,
    Heun,
    KarrasSchedule,
    PaddedCovariance,
    PowerLaw,
    Process,
    SpectralCovariance,
    UniPC,
    sample,
)
from multisagd.analysis.dense import DenseLaw, dense_transfer
from multisagd.analysis.transfer import error_budget, transfer_function
from multisagd.samplers import Sampler
from multisagd.schedule import Schedule
from multisagd.spectrum import Spectrum

GRIDS = [Grid.of(time=9), Grid.of(height=5, width=6), Grid.of(frame=3, height=4, width=5)]
SPECTRA = [Flat(), PowerLaw(exponent=-0.7, corner=0.1), PowerLaw(exponent=0.4, corner=0.05)]
SCHEDULES = [CosineSchedule(), KarrasSchedule(), FlowSchedule()]
DETERMINISTIC = [DDIM(), Euler(), Heun(), DPMSolver(), DPMSolver(order=1), UniPC()]
STOCHASTIC = [
    DDIM(eta=0.6),
    Ancestral(),
    Ancestral(variance="forward"),
    DPMSolver(sde=True),
    Euler(churn=3),
    Heun(churn=3),
]


def made(grid: Grid, seed: int, channels: int = 2) -> DataStatistics:
    """Statistics of random data: power over four decades, and a mean."""
    generator = torch.Generator().manual_seed(seed)
    power = torch.exp(3 * torch.randn(channels, *grid.half_shape, generator=generator, dtype=torch.float64) - 2)
    power = torch.stack([grid.even(each) for each in power])
    mean = torch.randn(channels, *grid.shape, generator=generator, dtype=torch.float64)
    return DataStatistics(mean, power, grid, 100)


def made_process(schedule: Schedule, spectrum: Spectrum, grid: Grid) -> Process:
    return Process(schedule, SpectralCovariance(spectrum, grid)).double()


def times(steps: int) -> Tensor:
    """Uneven, and beginning below 1."""
    return torch.linspace(0.97, 0.02, steps + 1, dtype=torch.float64) ** 1.3


def transform(x: Tensor, grid: Grid) -> Tensor:
    return torch.fft.rfftn(x, dim=tuple(range(-grid.dimensions, 0)), norm="ortho")


@pytest.mark.parametrize("spectrum", SPECTRA, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_deterministic_samplers_do_what_the_transfer_function_says(
    sampler: Sampler, grid: Grid, schedule: Schedule, spectrum: Spectrum
) -> None:
    statistics, process = made(grid, 1), made_process(schedule, spectrum, grid)
    initial = 3 * torch.randn(2, 2, *grid.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = sample(
        GaussianDenoiser(process, statistics), sampler, initial.shape, 6, [0, 1], times=times(6), initial=initial
    )
    transfer = transfer_function(sampler, process, times(6), statistics)
    expected = transfer.noise_gain * transform(initial, grid) + transfer.mean_gain * transform(statistics.mean, grid)
    torch.testing.assert_close(transform(drawn, grid), expected, rtol=1e-10, atol=1e-10)
    assert not bool(transfer.injected.any())
    sigma = process.schedule.alpha_sigma(times(6)[0])[1]
    torch.testing.assert_close(transfer.prior, sigma**2 * process.covariance.power()[None])


def test_starting_at_the_mean_adds_it() -> None:
    grid = GRIDS[1]
    statistics, process = made(grid, 3), made_process(FlowSchedule(), SPECTRA[1], grid)
    start = times(4)
    alpha = process.schedule.alpha_sigma(start[0])[0]
    initial = (alpha * statistics.mean)[None]
    drawn = sample(GaussianDenoiser(process, statistics), Heun(), initial.shape, 4, [0], times=start, initial=initial)
    transfer = transfer_function(Heun(), process, start, statistics, start_at_mean=True)
    expected = transfer.mean_gain * transform(statistics.mean, grid)
    torch.testing.assert_close(transform(drawn, grid)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampler", [DDIM(), DPMSolver(), UniPC(), DPMSolver(sde=True), Ancestral()], ids=str)
def test_coefficients_that_depend_on_frequency(sampler: Sampler) -> None:
    """The same for blurring: the response to the start exactly, the rest by Monte Carlo, 6 standard errors of 4,000."""
    grid = GRIDS[1]
    process = Process(CosineSchedule(), SpectralCovariance(SPECTRA[1], grid), Blur(length=1.5)).double()
    statistics = made(grid, 4)
    initial = torch.randn(1, 2, *grid.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    settings = {"shape": initial.shape, "steps": 5, "seeds": [7], "times": times(5)}
    oracle = GaussianDenoiser(process, statistics)
    drawn, shifted = (sample(oracle, sampler, **settings, initial=x) for x in (initial, 2 * initial))  # type: ignore[arg-type]
    transfer = transfer_function(sampler, process, times(5), statistics)
    # The difference of two runs with the same draws is the response to the difference of their starts.
    torch.testing.assert_close(
        transform(shifted - drawn, grid)[0], transfer.noise_gain * transform(initial, grid)[0], rtol=1e-9, atol=1e-10
    )
    count = 4000
    start = transform(process.noise((count, 2, *grid.shape), range(count)), grid)
    start = start * (transfer.prior / process.covariance.power()).sqrt()
    initial = torch.fft.irfftn(start, s=grid.shape, dim=(-2, -1), norm="ortho")
    drawn = sample(oracle, sampler, initial.shape, 5, range(count), times=times(5), initial=initial)
    away = transform(drawn, grid) - transfer.mean_gain * transform(statistics.mean, grid)
    assert float((away.abs().square().mean(0) / transfer.power - 1).abs().max()) < 6 * math.sqrt(2 / count)
    assert float((away.mean(0).abs() / transfer.power.sqrt()).max()) < 6 / math.sqrt(count)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("spectrum", SPECTRA[:2], ids=str)
def test_ddim_multiplies_up_to_the_product_formula(schedule: Schedule, spectrum: Spectrum) -> None:
    """arXiv 2502.00180, written out: D1 = Π G_s, D2 = Σ_i (Π_{j<i} G_j) M_i."""
    grid = GRIDS[2]
    statistics, process = made(grid, 5), made_process(schedule, spectrum, grid)
    power, noise = statistics.power, process.covariance.power()
    gain, mean = torch.ones_like(power), torch.zeros_like(power)
    alpha, sigma = schedule.alpha_sigma(times(7))
    for now in range(7):
        a, s = alpha[now], sigma[now]
        keep = sigma[now + 1] / s
        step = alpha[now + 1] - a * keep
        total = a**2 * power + s**2 * noise
        factor = keep + step * a * power / total
        gain, mean = factor * gain, factor * mean + step * s**2 * noise / total
    transfer = transfer_function(DDIM(), process, times(7), statistics)
    torch.testing.assert_close(transfer.noise_gain, gain, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(transfer.mean_gain, mean, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_ancestral_sampling_follows_the_variance_recursion(schedule: Schedule) -> None:
    """v_{s-1} = H_s² v_s + β̃_s W, with the scalars of DDPM written out."""
    grid = GRIDS[1]
    statistics, process = made(grid, 6), made_process(schedule, SPECTRA[1], grid)
    power, noise = statistics.power, process.covariance.power()
    alpha, sigma = schedule.alpha_sigma(times(7))
    variance = sigma[0] ** 2 * noise.expand_as(power)
    for now in range(7):
        a, s, a_s, s_s = alpha[now], sigma[now], alpha[now + 1], sigma[now + 1]
        ratio = a / a_s
        of_step = s**2 - ratio**2 * s_s**2
        wiener = a * power / (a**2 * power + s**2 * noise)
        factor = ratio * s_s**2 / s**2 + a_s * of_step / s**2 * wiener
        variance = factor**2 * variance + of_step * s_s**2 / s**2 * noise
    transfer = transfer_function(Ancestral(), process, times(7), statistics)
    torch.testing.assert_close(transfer.power, variance, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_stochastic_samplers_generate_that_power(sampler: Sampler, grid: Grid) -> None:
    """Monte Carlo over 4,000 samples: each power within 6 of its standard errors, √(2/n) at most, and the mean too."""
    count = 4000
    statistics, process = made(grid, 8, channels=1), made_process(CosineSchedule(), SPECTRA[1], grid)
    initial = process.schedule.alpha_sigma(times(5)[0])[1] * process.noise((count, 1, *grid.shape), range(count))
    drawn = sample(
        GaussianDenoiser(process, statistics), sampler, initial.shape, 5, range(count), times=times(5), initial=initial
    )
    transfer = transfer_function(sampler, process, times(5), statistics)
    mean = transfer.mean_gain * transform(statistics.mean, grid)
    away = transform(drawn, grid) - mean
    power = away.abs().square().mean(0)
    assert float((power / transfer.power - 1).abs().max()) < 6 * math.sqrt(2 / count)
    assert float((away.mean(0).abs() / transfer.power.sqrt()).max()) < 6 / math.sqrt(count)
    assert bool((transfer.injected > 0).any())


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_full_matrices_agree_on_stationary_data(sampler: Sampler, grid: Grid) -> None:
    statistics, process = made(grid, 9, channels=1), made_process(CosineSchedule(), SPECTRA[1], grid)
    law = dense_transfer(sampler, process, times(4), stationary_law(statistics))
    transfer = transfer_function(sampler, process, times(4), statistics)
    expected = circulant(transfer.power[0], grid)
    torch.testing.assert_close(law.covariance, expected, rtol=1e-9, atol=1e-9)
    spectrum = transfer.mean_gain * transform(statistics.mean, grid)
    mean = torch.fft.irfftn(spectrum[0], s=grid.shape, norm="ortho")
    torch.testing.assert_close(law.mean, mean.flatten(), rtol=1e-9, atol=1e-9)
    distance = law.wasserstein(stationary_law(statistics))
    assert distance == pytest.approx(float(transfer.total(transfer.wasserstein()).sqrt()), rel=1e-6)


def circulant(power: Tensor, grid: Grid) -> Tensor:
    """The matrix that is diagonal in frequency with these values, column by column."""
    eye = torch.eye(grid.numel, dtype=torch.float64).reshape(grid.numel, *grid.shape)
    return torch.fft.irfftn(
        transform(eye, grid) * power, s=grid.shape, norm="ortho", dim=tuple(range(-grid.dimensions, 0))
    ).reshape(grid.numel, grid.numel)


def stationary_law(statistics: DataStatistics) -> DenseLaw:
    return DenseLaw(statistics.mean[0].flatten(), circulant(statistics.power[0], statistics.grid))


@pytest.mark.parametrize("sampler", [Heun(), Ancestral()], ids=str)
def test_full_matrices_hold_for_data_that_are_not_stationary(sampler: Sampler) -> None:
    """Monte Carlo of the sampler with a dense optimal denoiser: 20,000 samples, within 6 standard errors."""
    grid, count = Grid.of(time=6), 20000
    process = made_process(CosineSchedule(), PowerLaw(exponent=-0.5, corner=0.1), grid)
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covariance, mean = root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64), torch.arange(6.0).double()
    eye = torch.eye(6, dtype=torch.float64)
    noise = process.covariance.apply(eye)

    class Dense(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.process = process

        def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
            a, s = (each[0] for each in process.schedule.alpha_sigma(t.double()))
            gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * noise)
            return mean + (x - a * mean) @ gain.T

    initial = process.schedule.alpha_sigma(times(5)[0])[1] * process.noise((count, 1, 6), range(count))
    drawn = sample(Dense(), sampler, initial.shape, 5, range(count), times=times(5), initial=initial)[:, 0]
    law = dense_transfer(sampler, process, times(5), DenseLaw(mean, covariance))
    scale = law.covariance.diagonal().sqrt()
    assert float(((drawn.mean(0) - law.mean) / scale).abs().max()) < 6 / math.sqrt(count)
    assert float(((drawn.T.cov() - law.covariance) / scale / scale[:, None]).abs().max()) < 6 * math.sqrt(2 / count)


def test_the_budget_adds_up() -> None:
    grid = GRIDS[1]
    statistics, process = made(grid, 10), made_process(CosineSchedule(), Flat(), grid)
    transfer = transfer_function(DDIM(), process, times(5), statistics)
    budget = error_budget(transfer, grid, bands=4)
    assert sum(band.share for band in budget) == pytest.approx(1)
    assert budget[0].power == pytest.approx(float(transfer.power[:, 0, 0].sum() / statistics.power[:, 0, 0].sum()))


def test_perfect_generation_has_no_error() -> None:
    """Very many steps: every distance goes to zero, and the mean arrives."""
    grid = Grid.of(time=8)
    statistics, process = made(grid, 11, channels=1), made_process(CosineSchedule(), Flat(), grid)
    many = process.schedule.time(torch.linspace(-20, 20, 4001, dtype=torch.float64))
    transfer = transfer_function(Heun(), process, many, statistics, start_at_mean=True)
    for error in (transfer.wasserstein(), transfer.kl(), transfer.deviation()):
        assert float(transfer.total(error)) < 1e-3 * float(transfer.total(statistics.power))


def test_divergence_where_data_are_constant() -> None:
    """A frequency of which neither data nor noise hold anything diverges by nothing; with noise on it, by infinity."""
    grid = Grid.of(time=8)
    power = made(grid, 13, channels=1).power
    power[:, 0] = 0
    statistics = DataStatistics(torch.zeros(1, 8, dtype=torch.float64), power, grid, 10)
    silent, white = (made_process(CosineSchedule(), each, grid) for each in (Band(0.1, 1.0), Flat()))
    assert not silent.covariance.power()[0]
    divergence = transfer_function(DDIM(), silent, times(4), statistics).kl()
    assert divergence[0, 0] == 0
    assert bool(divergence.isfinite().all())
    assert transfer_function(DDIM(), white, times(4), statistics).kl()[0, 0] == math.inf


def test_what_has_no_transfer_function_is_refused() -> None:
    grid = Grid.of(time=8)
    statistics = made(grid, 12)
    padded = Process(CosineSchedule(), PaddedCovariance(Flat(), grid, {"time": 12}))
    with pytest.raises(ValueError, match="padded"):
        transfer_function(DDIM(), padded, times(3), statistics)
    with pytest.raises(ValueError, match="does not fit"):
        transfer_function(DDIM(), made_process(CosineSchedule(), Flat(), Grid.of(width=8)), times(3), statistics)
    with pytest.raises(ValueError, match="two descending times"):
        transfer_function(DDIM(), made_process(CosineSchedule(), Flat(), grid), times(3).flip(0), statistics)
    process = made_process(CosineSchedule(), Flat(), grid)
    with pytest.raises(ValueError, match="nothing to analyse or design"):
        transfer_function(GaussianIntegrator(statistics), process, times(3), statistics)
    with pytest.raises(ValueError, match="nothing to analyse or design"):
        dense_transfer(GaussianIntegrator(statistics), process, times(3), DenseLaw(torch.zeros(8), torch.eye(8)))
    large = made_process(CosineSchedule(), Flat(), Grid.of(time=2000))
    with pytest.raises(ValueError, match="up to 1024"):
        dense_transfer(DDIM(), large, times(3), DenseLaw(torch.zeros(2000), torch.eye(2000)))
