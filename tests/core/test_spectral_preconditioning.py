"""Spectral preconditioning equals dense matrices and its scalar case, and has the properties it is made for."""

import pytest
import torch
from torch import Tensor

import multisagd as ms
from tests.helpers import dense
from tests.helpers.networks import Affine
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import draw_data, half_spectrum, random_statistics

GRIDS = [ms.Grid.of(time=9), ms.Grid.of(height=4, width=5), ms.Grid.of(frame=3, height=4, width=6)]
PLANE = GRIDS[1]
SPECTRA = [ms.Flat(), ms.PowerLaw(exponent=-0.6, corner=0.1)]
SCHEDULES = [ms.CosineSchedule(), ms.KarrasSchedule(), ms.FlowSchedule()]
TIMES = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)

grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)


def build(grid=PLANE, schedule=SCHEDULES[0], spectrum=SPECTRA[1], output=0.0, modulation=None) -> ms.Denoiser:
    process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid), modulation).double()
    statistics = random_statistics(grid)
    return ms.Denoiser(Affine(offset=output), process, preconditioning="spectral", statistics=statistics)


def data(grid=PLANE, seed=0) -> Tensor:
    return dense.random(3, 2, *grid.shape, seed=seed)


def matrix(power: Tensor, grid: ms.Grid) -> Tensor:
    return dense.tensor(dense.operator(grid.full(power).numpy()))


@grids
@schedules
def test_spectral_preconditioning_is_the_formula_on_dense_matrices(grid, schedule) -> None:
    """D = μ + S(x - aμ) + O F(I(x - aμ)), with matrix functions of K and Σ from their eigenvalues."""
    output, x = data(grid, 3), data(grid, 4)
    for spectrum in SPECTRA:
        denoiser = build(grid, schedule, spectrum, output)
        result, noise = denoiser(x, TIMES), denoiser.process.covariance.power()
        for item, t in enumerate(TIMES):
            a, b = schedule.alpha_sigma(t)
            for channel, power in enumerate(denoiser.statistics.power):
                total = a**2 * power + b**2 * noise
                skip, into = matrix(a * power / total, grid), matrix(total**-0.5, grid)
                out = matrix((power * b**2 * noise / total).sqrt(), grid)
                mean = denoiser.statistics.mean[channel].flatten()
                y = x[item, channel].flatten() - a * mean
                expected = mean + skip @ y + out @ output[item, channel].flatten()
                torch.testing.assert_close(result[item, channel].flatten(), expected, rtol=1e-9, atol=1e-9)
                network_input = denoiser.network.inputs[0][item, channel].flatten()
                torch.testing.assert_close(network_input, into @ y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("modulation", [None, ms.Blur(length=1.0)], ids=["scalar", "blur"])
@grids
def test_spectral_preconditioning_of_a_zero_network_is_the_wiener_filter(grid, modulation) -> None:
    denoiser, x = build(grid, modulation=modulation), data(grid)
    oracle = ms.GaussianDenoiser(denoiser.process, denoiser.statistics)
    torch.testing.assert_close(denoiser(x, TIMES), oracle(x, TIMES))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        result = denoiser.float()(x.to(dtype), TIMES)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), oracle(x.to(dtype).double(), TIMES), rtol=0.05, atol=0.05)


def test_spectral_preconditioning_of_flat_data_in_white_noise_is_karras() -> None:
    flat = torch.full((2, *PLANE.half_shape), 0.36).double()
    statistics = ms.DataStatistics(dense.random(2, *PLANE.shape), flat, PLANE, 10)
    process, network, x = build(spectrum=ms.Flat()).process, Affine(offset=data(seed=5)), data()
    one, other = (
        ms.Denoiser(network, process, preconditioning=kind, statistics=statistics) for kind in ("karras", "spectral")
    )
    noise = process.noise(x.shape, [1, 2, 3])
    torch.testing.assert_close(one(x, TIMES), other(x, TIMES))
    torch.testing.assert_close(one.error(x, TIMES, noise), other.error(x, TIMES, noise))
    torch.testing.assert_close(one.loss(x, TIMES, [1, 2, 3]), other.loss(x, TIMES, [1, 2, 3]))


@schedules
def test_spectral_preconditioning_gives_input_and_target_unit_power_at_every_frequency(schedule) -> None:
    """Monte Carlo over 4,000 Gaussian data: each power within 6 standard errors of one."""
    denoiser, count = build(schedule=schedule), 4000
    x0, t = draw_data(denoiser.statistics, count, seed=6), torch.full((count,), 0.4, dtype=torch.float64)
    error = denoiser.error(x0, t, denoiser.process.noise(x0.shape, range(count)))
    for values in (denoiser.network.inputs[0], error):
        power = half_spectrum(values, PLANE).abs().square().mean(0)
        assert float((power - 1).abs().max()) < 6 * (2 / count) ** 0.5


@pytest.mark.parametrize("spectrum", [*SPECTRA, ms.Band(0.0, 0.3)], ids=str)
def test_x0_error_turns_errors_of_the_output_into_errors_of_the_estimate(spectrum) -> None:
    """Also where the spectrum is empty: there the datum is known, and nothing is to be learned."""
    denoiser, x0 = build(spectrum=spectrum, output=data(seed=7)), data()
    noise = denoiser.process.noise(x0.shape, [1, 2, 3])
    estimate = denoiser(denoiser.process.add_noise(x0, TIMES, noise), TIMES)
    error = denoiser.error(x0, TIMES, noise)
    assert bool(torch.isfinite(error).all())
    torch.testing.assert_close(denoiser.x0_error(error, TIMES), estimate - x0, rtol=1e-8, atol=1e-8)


def test_weigh_applies_each_metric_and_weighting() -> None:
    """Whitened is the plain error of the output; Euclidean that of x0, as large on the whole."""
    grid = GRIDS[2]
    denoiser, x0 = build(grid, output=data(grid, 8)), data(grid)
    error = denoiser.error(x0, TIMES, denoiser.process.noise(x0.shape, [1, 2, 3]))
    torch.testing.assert_close(denoiser.weigh(error, TIMES, metric="whitened"), error.square().flatten(1).mean(1))
    x0_error = denoiser.x0_error(error, TIMES).square().flatten(1).mean(1)
    # Errors of unit power everywhere come out as they are.
    white, t = dense.random(400, 2, *grid.shape, seed=9), TIMES[1].expand(400)
    assert float(denoiser.weigh(white, t).mean()) == pytest.approx(1, abs=0.02)
    scale = denoiser.x0_error(white, t).square().mean()
    torch.testing.assert_close(denoiser.weigh(error, TIMES)[1], x0_error[1] / scale, rtol=0.05, atol=0)
    snr = denoiser.process.schedule.log_snr(TIMES).exp().clamp(max=5)
    torch.testing.assert_close(denoiser.weigh(error, TIMES, weighting="min_snr"), x0_error * snr)


def test_spectral_preconditioning_refuses_impossible_settings() -> None:
    spectral = build()
    process, statistics = spectral.process, spectral.statistics
    padded = ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), PLANE, {"width": 3}))
    karras = ms.Denoiser(Affine(), process, preconditioning="karras", statistics=statistics)
    options = {"preconditioning": "spectral"}
    assert_refused(
        ("needs the statistics", lambda: ms.Denoiser(Affine(), process, **options)),
        ("remove the padding", lambda: ms.Denoiser(Affine(), padded, statistics=statistics, **options)),
        ("whitened metric", lambda: karras.weigh(data(), TIMES, metric="whitened")),
        ("uniform weighting", lambda: spectral.weigh(data(), TIMES, metric="whitened", weighting="min_snr")),
    )
