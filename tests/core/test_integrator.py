"""The Gaussian integrator: exact where it should be, and a first-order method everywhere else."""

import pytest
import torch
from torch import Tensor, nn

from multisagd import (
    DDIM,
    Band,
    Blur,
    CosineSchedule,
    DataStatistics,
    Flat,
    FlowSchedule,
    GaussianDenoiser,
    GaussianIntegrator,
    Grid,
    Heun,
    KarrasSchedule,
    PowerLaw,
    Process,
    SpectralCovariance,
    sample,
)

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=3, height=4, width=6)]


def made(grid: Grid, scale: float = 1.0) -> DataStatistics:
    generator = torch.Generator().manual_seed(1)
    power = torch.exp(torch.randn(2, *grid.half_shape, generator=generator, dtype=torch.float64))
    mean = torch.randn(2, *grid.shape, generator=generator, dtype=torch.float64)
    return DataStatistics(mean, scale * torch.stack([grid.even(each) for each in power]), grid, 10)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("spectrum", [Flat(), PowerLaw(exponent=-0.6, corner=0.1)], ids=str)
@pytest.mark.parametrize(
    "schedule", [CosineSchedule(), KarrasSchedule(), FlowSchedule()], ids=lambda s: type(s).__name__
)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_gaussian_data_are_exact_in_any_number_of_steps(
    grid: Grid, schedule: object, spectrum: object, steps: int
) -> None:
    """Each deviation from the mean grows as the standard deviation of its frequency does, the flow's own solution."""
    statistics = made(grid)
    process = Process(schedule, SpectralCovariance(spectrum, grid)).double()  # type: ignore[arg-type]
    times = torch.linspace(0.95, 0.03, steps + 1, dtype=torch.float64)
    initial = random(2, 2, *grid.shape)
    oracle, sampler = GaussianDenoiser(process, statistics), GaussianIntegrator(statistics)
    drawn = sample(oracle, sampler, initial.shape, steps, [0, 1], times=times, initial=initial)
    (a, a_s), (b, b_s) = (each[[0, -1]] for each in process.schedule.alpha_sigma(times))
    noise, dims = process.covariance.power(), tuple(range(-grid.dimensions, 0))
    growth = ((a_s**2 * statistics.power + b_s**2 * noise) / (a**2 * statistics.power + b**2 * noise)).sqrt()
    away = torch.fft.irfftn(torch.fft.rfftn(initial - a * statistics.mean, dim=dims) * growth, s=grid.shape, dim=dims)
    torch.testing.assert_close(drawn, a_s * statistics.mean + away, rtol=1e-8, atol=1e-8)


class Bent(nn.Module):
    """An estimate that is not linear: the Wiener filter, pulled to ±1."""

    def __init__(self, process: Process, statistics: DataStatistics) -> None:
        super().__init__()
        self.process, self.oracle = process, GaussianDenoiser(process, statistics)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        estimate: Tensor = self.oracle(x, t)
        return estimate + 0.3 * torch.tanh(2 * estimate)


def test_it_converges_at_first_order_for_other_data() -> None:
    grid = GRIDS[1]
    statistics = made(grid)
    process = Process(CosineSchedule(), SpectralCovariance(PowerLaw(exponent=-0.5, corner=0.1), grid)).double()
    denoiser, initial = Bent(process, statistics), random(4, 2, *grid.shape)

    def drawn(sampler: object, steps: int) -> Tensor:
        times = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
        return sample(denoiser, sampler, initial.shape, steps, range(4), times=times, initial=initial)  # type: ignore[arg-type]

    exact = drawn(Heun(), 1000)
    errors = [float((drawn(GaussianIntegrator(statistics), steps) - exact).abs().mean()) for steps in (16, 32, 64)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)
    assert errors[0] < float((drawn(DDIM(), 16) - exact).abs().mean())


def test_without_variance_it_is_ddim() -> None:
    grid = GRIDS[2]
    statistics = made(grid, scale=1e-10)
    process = Process(CosineSchedule(), SpectralCovariance(Flat(), grid)).double()
    denoiser, initial = Bent(process, made(grid)), random(2, 2, *grid.shape)
    times = torch.linspace(0.9, 0.2, 5, dtype=torch.float64)
    one, other = (
        sample(denoiser, sampler, initial.shape, 4, [0, 1], times=times, initial=initial)
        for sampler in (DDIM(), GaussianIntegrator(statistics))
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_what_it_cannot_follow_is_refused() -> None:
    grid = GRIDS[1]
    statistics, shape = made(grid), (1, 2, 4, 5)

    def draw(process: Process, shape: tuple[int, ...] = shape) -> None:
        stand_in = Bent(process.double(), statistics)
        stand_in.oracle = nn.Identity()  # type: ignore[assignment]
        stand_in.forward = lambda x, t, condition=None: x  # type: ignore[method-assign]
        sample(stand_in, GaussianIntegrator(statistics), shape, 2, [0])

    with pytest.raises(ValueError, match="scalar coefficients"):
        draw(Process(CosineSchedule(), SpectralCovariance(Flat(), grid), Blur(length=1.0)))
    with pytest.raises(ValueError, match="every frequency"):
        draw(Process(CosineSchedule(), SpectralCovariance(Band(0.0, 0.3), grid)))
    with pytest.raises(ValueError, match="2 channels"):
        draw(Process(CosineSchedule(), SpectralCovariance(Flat(), grid)), (1, 3, 4, 5))
