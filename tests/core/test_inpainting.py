"""Variations keep the law of the data, and samples with known values follow the exact posterior and keep them."""

import pytest
import torch

import multisagd as ms
from multisagd.inpainting import NOISE, InpaintingDenoiser, put_back
from multisagd.u_turn import last_steps, vary
from tests.helpers import dense
from tests.helpers.stationary import draw_data, half_spectrum, random_statistics

GRID = ms.Grid.of(time=24)
CIRCLES = [ms.Grid((ms.Axis("time", 24, periodic=True),)),
           ms.Grid((ms.Axis("lat", 6, periodic=True), ms.Axis("lon", 5, periodic=True)))]  # fmt: skip
TIMES = ms.time_steps(ms.CosineSchedule(), 8)


def coloured(grid: ms.Grid) -> ms.Process:
    return ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid))


def test_last_steps_are_a_fraction_of_all_steps():
    for strength, taken in ((1, 8), (0.5, 4), (0.3, 2), (0.07, 1)):
        assert torch.equal(last_steps(TIMES, strength), TIMES[8 - taken :])
    for strength, message in ((0, "above 0"), (1.1, "at most 1"), (0.05, "none of 8 steps")):
        with pytest.raises(ValueError, match=message):
            last_steps(TIMES, strength)


@pytest.mark.parametrize("strength", [0.25, 0.625])
def test_vary_keeps_the_law_of_gaussian_data(strength):
    statistics, process = random_statistics(GRID), coloured(GRID)
    data = draw_data(statistics, 2000)
    denoiser = ms.GaussianDenoiser(process, statistics)
    varied = vary(denoiser, ms.GaussianIntegrator(statistics), data, strength, TIMES, range(2000))
    power = half_spectrum(varied - statistics.mean, GRID).abs().square().mean(0)
    torch.testing.assert_close(power, statistics.power, rtol=0.15, atol=0)
    torch.testing.assert_close(varied.mean(0), statistics.mean, rtol=0, atol=0.15)
    start = float(last_steps(TIMES, strength)[0])
    around = [half_spectrum(each - statistics.mean, GRID) for each in (data, varied)]
    correlation = (around[0] * around[1].conj()).real.mean(0) / statistics.power
    expected = ms.u_turn_correlation(process, statistics, start)
    torch.testing.assert_close(correlation, expected, rtol=0, atol=0.12)


def test_vary_with_strength_1_draws_the_samples_of_noise_alone():
    statistics = random_statistics(GRID)
    denoiser, seeds = ms.GaussianDenoiser(coloured(GRID), statistics), [3, 4]
    data = draw_data(statistics, 2).float()
    drawn = ms.sample(denoiser, ms.DDIM(eta=1.0), data.shape, 8, seeds, times=TIMES)
    assert torch.equal(vary(denoiser, ms.DDIM(eta=1.0), data, 1, TIMES, seeds), drawn)
    # A sample depends on its own seed and medium only.
    some = vary(denoiser, ms.DDIM(eta=1.0), data, 0.5, TIMES, seeds)
    torch.testing.assert_close(vary(denoiser, ms.DDIM(eta=1.0), data[1:], 0.5, TIMES, seeds[1:]), some[1:])


@pytest.mark.parametrize("grid", CIRCLES, ids=["1-D", "2-D"])
def test_inpainting_follows_the_exact_posterior_of_gaussian_data(grid):
    statistics = random_statistics(grid, channels=1)
    data = draw_data(statistics, 1).expand(600, -1, *(-1,) * grid.dimensions).clone()
    known = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    hidden = data.masked_fill(~known, torch.nan)
    everywhere = known.expand(600, *known.shape[1:])
    guided = InpaintingDenoiser(ms.GaussianDenoiser(coloured(grid), statistics), hidden, everywhere, statistics)
    drawn = ms.sample(guided, ms.DPMSolver(), data.shape, 40, range(600), spacing="log_snr")
    exact = ms.GaussianPosterior(statistics, ms.Masked(known, grid), NOISE * statistics.sigma_data)
    y = hidden.nan_to_num(0.0)
    spread = exact.sample(y, range(600)).std(0)
    torch.testing.assert_close(drawn.mean(0), exact.mean(y[:1])[0].to(drawn), rtol=0, atol=0.2 * float(spread.max()))
    torch.testing.assert_close(drawn.std(0), spread.to(drawn), rtol=0, atol=0.15 * float(spread.max()))
    assert float((drawn - data)[:, known[0]].square().mean().sqrt()) < 2 * NOISE * statistics.sigma_data
    kept = put_back(drawn, hidden.to(drawn), known.expand(600, *known.shape[1:]))
    assert torch.equal(kept[:, known[0]], data.to(drawn)[:, known[0]])
    assert torch.equal(kept[:, ~known[0]], drawn[:, ~known[0]])


@pytest.mark.parametrize("length", [4.0, 16.0])
def test_inpainting_does_not_join_the_ends_of_an_axis(length):
    """An AR(1) process, whose two ends are far apart, with its exact denoiser as a dense matrix."""
    size, count = 64, 800
    steps = torch.arange(size, dtype=torch.float64)
    covariance = torch.exp(-(steps[:, None] - steps).abs() / length)
    root = torch.linalg.cholesky(covariance).T
    data = dense.random(count, 1, size, seed=1) @ root
    statistics = ms.DataStatistics.measure([dense.random(3000, 1, size, seed=2) @ root], ms.Grid.of(time=size))
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), statistics.grid)).double()

    class Exact:
        def __init__(self) -> None:
            self.process = process

        def __call__(self, x_t, t, condition=None):
            a, b = process.schedule.alpha_sigma(t[:1].double())
            return x_t @ torch.linalg.solve(a**2 * covariance + b**2 * torch.eye(size).double(), a * covariance).to(x_t)

    known = (torch.arange(size) < size // 2).expand(count, 1, size)
    guided = InpaintingDenoiser(Exact(), data, known, statistics)
    times = ms.time_steps(process.schedule, 15, "log_snr", ends=(-7.0, 9.0))
    x = ms.sample(guided, ms.DPMSolver(sde=True), data.shape, 15, range(count), times=times)[:, 0].double()
    half = size // 2
    gain = covariance[half:, :half] @ torch.linalg.inv(covariance[:half, :half])
    left = covariance[half:, half:] - gain @ covariance[:half, half:]
    rest = x[:, half:] - data[:, 0, :half] @ gain.T
    torch.testing.assert_close(rest.var(0), left.diagonal(), rtol=0.25, atol=0)
    torch.testing.assert_close((x[:, 0] * x[:, -1]).mean(), covariance[0, -1], rtol=0, atol=0.15)


def test_known_values_differ_from_item_to_item():
    statistics = random_statistics(GRID, channels=2)
    data, known = draw_data(statistics, 2), torch.ones(2, 2, 24, dtype=torch.bool)
    known[0, :, 12:] = False
    known[1, 1, :12] = False
    denoiser = ms.GaussianDenoiser(coloured(GRID), statistics)

    def drawn(some: slice) -> torch.Tensor:
        guided = InpaintingDenoiser(denoiser, data[some], known[some], statistics)
        return ms.sample(guided, ms.DDIM(eta=1.0), data[some].shape, 10, [5, 6][some], spacing="log_snr")

    both = drawn(slice(None))
    torch.testing.assert_close(both[1:], drawn(slice(1, 2)), rtol=0, atol=1e-2)
    error = (both - data).masked_fill(~known, 0.0)
    assert float(error.abs().max()) < 0.1 * statistics.sigma_data


def test_inpainting_refuses_masks_of_another_shape_or_type():
    data = dense.random(2, 1, 24)
    for known in (torch.ones(2, 1, 24), torch.ones(2, 1, 20, dtype=torch.bool), torch.ones(24, dtype=torch.bool)):
        with pytest.raises(ValueError, match="known must be bool of shape"):
            put_back(data, data, known)
    with pytest.raises(ValueError, match="the known data have"):
        put_back(data[..., :20], data, torch.ones(2, 1, 24, dtype=torch.bool))
