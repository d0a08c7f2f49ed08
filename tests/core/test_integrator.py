"""The Gaussian integrator is exact on Gaussian data in any number of steps, and of first order on all others."""

import itertools

import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from tests.helpers import dense
from tests.helpers.small_networks import UnchangedEstimate
from tests.helpers.stationary import half_spectrum, random_statistics

GRIDS = [ms.Grid.of(time=9), ms.Grid.of(height=4, width=5), ms.Grid.of(frame=3, height=4, width=6)]
SCHEDULES = [ms.CosineSchedule(), ms.KarrasSchedule(), ms.FlowSchedule()]
RED = ms.PowerLaw(exponent=-0.6, corner=0.1)


def white_process(grid: ms.Grid) -> ms.Process:
    return ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid)).double()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_gaussian_integrator_is_exact_on_gaussian_data_in_any_number_of_steps(schedule: ms.Schedule) -> None:
    """Each deviation from the mean grows as the standard deviation of its frequency does, the flow's own solution."""
    for grid, spectrum, steps in itertools.product(GRIDS, (ms.Flat(), RED), (1, 2, 7)):
        statistics, initial = random_statistics(grid), dense.random(2, 2, *grid.shape, seed=2)
        process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid)).double()
        times = torch.linspace(0.95, 0.03, steps + 1, dtype=torch.float64)
        oracle, sampler = ms.GaussianDenoiser(process, statistics), ms.GaussianIntegrator(statistics)
        drawn = ms.sample(oracle, sampler, initial.shape, steps, [0, 1], times=times, initial=initial)
        (a, a_s), (b, b_s) = (each[[0, -1]] for each in process.schedule.alpha_sigma(times))
        noise, dims = process.covariance.power(), tuple(range(-grid.dimensions, 0))
        growth = ((a_s**2 * statistics.power + b_s**2 * noise) / (a**2 * statistics.power + b**2 * noise)).sqrt()
        deviation = half_spectrum(initial - a * statistics.mean, grid) * growth
        expected = a_s * statistics.mean + torch.fft.irfftn(deviation, s=grid.shape, dim=dims, norm="ortho")
        torch.testing.assert_close(drawn, expected, rtol=1e-8, atol=1e-8)


class Bent(nn.Module):
    """An estimate that is not linear: the Wiener filter, pulled to ±1."""

    def __init__(self, process: ms.Process, statistics: ms.DataStatistics) -> None:
        super().__init__()
        self.process, self.oracle = process, ms.GaussianDenoiser(process, statistics)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        estimate: Tensor = self.oracle(x, t)
        return estimate + 0.3 * torch.tanh(2 * estimate)


def test_gaussian_integrator_converges_at_first_order_on_other_data() -> None:
    grid = GRIDS[1]
    statistics, initial = random_statistics(grid), dense.random(4, 2, *grid.shape, seed=2)
    covariance = ms.SpectralCovariance(ms.PowerLaw(exponent=-0.5, corner=0.1), grid)
    denoiser = Bent(ms.Process(ms.CosineSchedule(), covariance).double(), statistics)

    def drawn(sampler: ms.samplers.Sampler, steps: int) -> Tensor:
        times = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
        return ms.sample(denoiser, sampler, initial.shape, steps, range(4), times=times, initial=initial)

    exact = drawn(ms.Heun(), 1000)
    errors = [float((drawn(ms.GaussianIntegrator(statistics), steps) - exact).abs().mean()) for steps in (16, 32, 64)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)
    assert errors[0] < float((drawn(ms.DDIM(), 16) - exact).abs().mean())


def test_gaussian_integrator_without_variance_is_ddim() -> None:
    grid = GRIDS[2]
    statistics, initial = random_statistics(grid), dense.random(2, 2, *grid.shape, seed=2)
    denoiser = Bent(white_process(grid), statistics)
    constant = ms.DataStatistics(statistics.mean, 1e-10 * statistics.power, grid, 10)
    times = torch.linspace(0.9, 0.2, 5, dtype=torch.float64)
    one, other = (
        ms.sample(denoiser, sampler, initial.shape, 4, [0, 1], times=times, initial=initial)
        for sampler in (ms.DDIM(), ms.GaussianIntegrator(constant))
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_gaussian_integrator_refuses_what_it_cannot_follow() -> None:
    grid = GRIDS[1]
    statistics, schedule, white = random_statistics(grid), ms.CosineSchedule(), white_process(grid)
    for process, channels, message in (
        (ms.Process(schedule, white.covariance, ms.Blur(length=1.0)), 2, "scalar coefficients"),
        (ms.Process(schedule, ms.SpectralCovariance(ms.Band(0.0, 0.3), grid)), 2, "every frequency"),
        (white, 3, "2 channels"),
    ):
        denoiser = UnchangedEstimate(process.double())
        with pytest.raises(ValueError, match=message):
            ms.sample(denoiser, ms.GaussianIntegrator(statistics), (1, channels, 4, 5), 2, [0])
