"""Spectral preconditioning against dense matrices, its scalar case, and the properties it is made for."""

import pytest
import torch
from torch import Tensor, nn

from multisagd import (
    Band,
    Blur,
    CosineSchedule,
    DataStatistics,
    Denoiser,
    Flat,
    FlowSchedule,
    GaussianDenoiser,
    Grid,
    KarrasSchedule,
    PaddedCovariance,
    PowerLaw,
    Process,
    SpectralCovariance,
)

GRIDS = [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=3, height=4, width=6)]
SPECTRA = [Flat(), PowerLaw(exponent=-0.6, corner=0.1)]
SCHEDULES = [CosineSchedule(), KarrasSchedule(), FlowSchedule()]
TIMES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


class Told(nn.Module):
    """A network that keeps what it is asked and answers as told."""

    def __init__(self, answer: Tensor | float = 0.0) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        self.asked.append(x)
        return torch.zeros_like(x) + self.answer


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(grid: Grid) -> DataStatistics:
    power = torch.stack([grid.even(each) for each in torch.exp(random(2, *grid.half_shape, seed=1))])
    return DataStatistics(random(2, *grid.shape, seed=2), power, grid, 10)


def built(grid: Grid, schedule: object = SCHEDULES[0], spectrum: object = SPECTRA[1], network: nn.Module | None = None):  # type: ignore[no-untyped-def]
    process = Process(schedule, SpectralCovariance(spectrum, grid)).double()  # type: ignore[arg-type]
    statistics = made(grid)
    return Denoiser(network or Told(), process, preconditioning="spectral", statistics=statistics), process, statistics


def matrix(power: Tensor, grid: Grid) -> Tensor:
    """The circulant matrix with these eigenvalues, from the full transform."""
    eye = torch.eye(grid.numel, dtype=torch.complex128).reshape(grid.numel, *grid.shape)
    dims = tuple(range(-grid.dimensions, 0))
    return torch.fft.ifftn(torch.fft.fftn(eye, dim=dims) * grid.full(power), dim=dims).real.reshape(grid.numel, -1)


@pytest.mark.parametrize("spectrum", SPECTRA, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_the_formula_on_dense_matrices(grid: Grid, schedule: object, spectrum: object) -> None:
    """D = μ + S(x - aμ) + O F(I(x - aμ)), with matrix functions of K and Σ from their eigenvalues."""
    answer = random(3, 2, *grid.shape, seed=3)
    network = Told(answer)
    denoiser, process, statistics = built(grid, schedule, spectrum, network)
    x = random(3, 2, *grid.shape, seed=4)
    result = denoiser(x, TIMES)
    noise = process.covariance.power()
    for item, t in enumerate(TIMES):
        a, b = process.schedule.alpha_sigma(t)
        for channel in range(2):
            power = statistics.power[channel]
            total = a**2 * power + b**2 * noise
            skip, into = matrix(a * power / total, grid), matrix(total**-0.5, grid)
            out = matrix((power * b**2 * noise / total).sqrt(), grid)
            mean = statistics.mean[channel].flatten()
            y = x[item, channel].flatten() - a * mean
            expected = mean + skip @ y + out @ answer[item, channel].flatten()
            torch.testing.assert_close(result[item, channel].flatten(), expected, rtol=1e-9, atol=1e-9)
            asked = network.asked[0][item, channel].flatten()
            torch.testing.assert_close(asked, into @ y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_a_network_of_zero_is_the_wiener_filter(grid: Grid) -> None:
    denoiser, process, statistics = built(grid)
    x = random(3, 2, *grid.shape)
    torch.testing.assert_close(denoiser(x, TIMES), GaussianDenoiser(process, statistics)(x, TIMES))


def test_it_serves_coefficients_that_depend_on_frequency() -> None:
    grid = GRIDS[1]
    process = Process(CosineSchedule(), SpectralCovariance(SPECTRA[1], grid), Blur(length=1.0)).double()
    denoiser = Denoiser(Told(), process, preconditioning="spectral", statistics=made(grid))
    x = random(3, 2, *grid.shape)
    torch.testing.assert_close(denoiser(x, TIMES), GaussianDenoiser(process, made(grid))(x, TIMES))


def test_flat_data_in_white_noise_are_karras() -> None:
    grid = GRIDS[1]
    statistics = DataStatistics(random(2, *grid.shape), torch.full((2, *grid.half_shape), 0.36).double(), grid, 10)
    process = Process(CosineSchedule(), SpectralCovariance(Flat(), grid)).double()
    network = Told(random(3, 2, *grid.shape, seed=5))
    one, other = (
        Denoiser(network, process, preconditioning=kind, statistics=statistics)  # type: ignore[arg-type]
        for kind in ("karras", "spectral")
    )
    x = random(3, 2, *grid.shape)
    torch.testing.assert_close(one(x, TIMES), other(x, TIMES))
    noise = process.noise(x.shape, [1, 2, 3])
    torch.testing.assert_close(one.error(x, TIMES, noise), other.error(x, TIMES, noise))
    torch.testing.assert_close(one.loss(x, TIMES, [1, 2, 3]), other.loss(x, TIMES, [1, 2, 3]))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)
def test_input_and_target_have_unit_power_at_every_frequency(schedule: object) -> None:
    """Monte Carlo over 4,000 Gaussian data: each power within 6 standard errors of one."""
    grid, count = GRIDS[1], 4000
    network = Told()
    denoiser, process, statistics = built(grid, schedule, network=network)
    white = random(count, 2, *grid.shape, seed=6)
    dims = (-2, -1)
    x0 = statistics.mean + torch.fft.irfftn(
        torch.fft.rfftn(white, dim=dims) * statistics.power.sqrt(), s=grid.shape, dim=dims
    )
    t = torch.full((count,), 0.4, dtype=torch.float64)
    error = denoiser.error(x0, t, process.noise(x0.shape, range(count)))
    for values in (network.asked[0], error):
        power = torch.fft.rfftn(values, dim=dims, norm="ortho").abs().square().mean(0)
        assert float((power - 1).abs().max()) < 6 * (2 / count) ** 0.5


@pytest.mark.parametrize("spectrum", [*SPECTRA, Band(0.0, 0.3)], ids=str)
def test_errors_of_the_output_are_errors_of_the_estimate(spectrum: object) -> None:
    """Also where the spectrum is empty: there the datum is known, and nothing is to be learned."""
    grid = GRIDS[1]
    denoiser, process, _ = built(grid, spectrum=spectrum, network=Told(random(3, 2, *grid.shape, seed=7)))
    x0 = random(3, 2, *grid.shape)
    noise = process.noise(x0.shape, [1, 2, 3])
    estimate = denoiser(process.add_noise(x0, TIMES, noise), TIMES)
    error = denoiser.error(x0, TIMES, noise)
    assert bool(torch.isfinite(error).all())
    torch.testing.assert_close(denoiser.x0_error(error, TIMES), estimate - x0, rtol=1e-8, atol=1e-8)


def test_the_metrics() -> None:
    """Whitened is the plain error of the output; Euclidean that of x0, as large on the whole."""
    grid = GRIDS[2]
    denoiser, process, _ = built(grid, network=Told(random(3, 2, *grid.shape, seed=8)))
    x0, noise = random(3, 2, *grid.shape), process.noise((3, 2, *grid.shape), [1, 2, 3])
    error = denoiser.error(x0, TIMES, noise)
    torch.testing.assert_close(denoiser.weigh(error, TIMES, metric="whitened"), error.square().flatten(1).mean(1))
    x0_error = denoiser.x0_error(error, TIMES).square().flatten(1).mean(1)
    # Errors of unit power everywhere come out as they are.
    white = random(400, 2, *grid.shape, seed=9)
    t = TIMES[1].expand(400)
    assert float(denoiser.weigh(white, t).mean()) == pytest.approx(1, abs=0.02)
    scale = denoiser.x0_error(white, t).square().mean()
    torch.testing.assert_close(denoiser.weigh(error, TIMES)[1], x0_error[1] / scale, rtol=0.05, atol=0)
    weighted = denoiser.weigh(error, TIMES, weighting="min_snr")
    snr = process.schedule.log_snr(TIMES).exp().clamp(max=5)
    torch.testing.assert_close(weighted, x0_error * snr)


def test_what_makes_no_sense_is_refused() -> None:
    grid = GRIDS[1]
    process = Process(CosineSchedule(), SpectralCovariance(Flat(), grid)).double()
    with pytest.raises(ValueError, match="needs the statistics"):
        Denoiser(Told(), process, preconditioning="spectral")
    padded = Process(CosineSchedule(), PaddedCovariance(Flat(), grid, {"width": 3}))
    with pytest.raises(ValueError, match="leave out the padding"):
        Denoiser(Told(), padded, preconditioning="spectral", statistics=made(grid))
    karras = Denoiser(Told(), process, preconditioning="karras", statistics=made(grid))
    with pytest.raises(ValueError, match="whitened metric"):
        karras.weigh(random(3, 2, *grid.shape), TIMES, metric="whitened")
    spectral = Denoiser(Told(), process, preconditioning="spectral", statistics=made(grid))
    with pytest.raises(ValueError, match="uniform weighting"):
        spectral.weigh(random(3, 2, *grid.shape), TIMES, metric="whitened", weighting="min_snr")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_comes_back_as_it_was(dtype: torch.dtype) -> None:
    grid = GRIDS[1]
    denoiser, process, statistics = built(grid)
    x = random(3, 2, *grid.shape).to(dtype)
    result = denoiser.float()(x, TIMES)
    assert result.dtype == dtype
    torch.testing.assert_close(
        result.double(), GaussianDenoiser(process, statistics)(x.double(), TIMES), rtol=0.05, atol=0.05
    )
