"""Mixed noises and U-turns keep the law, and what is left of the start is known in closed form."""

import math

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.mixing import power_fraction
from tests.helpers import dense
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import draw_data, half_spectrum

GRIDS = {"1-D": ms.Grid.of(time=9), "2-D": ms.Grid.of(height=4, width=6), "3-D": ms.Grid.of(frame=2, height=3, width=4)}
WHITE, COLORED = ms.Flat(), ms.PowerLaw(-0.5, corner=0.05)
COUNT = 1500


def make(grid: ms.Grid, spectrum: ms.Spectrum) -> ms.GaussianDenoiser:
    power = 0.05 + 1 / (1 + 40 * dense.radius(grid) ** 2)
    statistics = dense.stationary(power, grid, np.linspace(-1, 1, grid.numel).reshape(grid.shape))
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-14, 14)), ms.SpectralCovariance(spectrum, grid).double())
    return ms.GaussianDenoiser(process, statistics)


@pytest.mark.parametrize(
    ("kind", "grid", "spectrum", "time"),
    [
        ("exact flow", "2-D", COLORED, 0.4),
        ("flow", "1-D", COLORED, 0.4),
        ("flow", "3-D", COLORED, 0.1),
        ("reverse SDE", "2-D", WHITE, 0.1),
        ("reverse SDE", "3-D", COLORED, 0.4),
    ],
    ids=str,
)
def test_u_turn_keeps_the_law_and_has_the_known_correlation(kind, grid, spectrum, time):
    """Power and correlation at every frequency within 4.5 standard errors, and what so many steps miss."""
    grid = GRIDS[grid]
    denoiser = make(grid, spectrum)
    statistics, process, x0 = denoiser.statistics, denoiser.process, draw_data(denoiser.statistics, COUNT)
    sampler, steps = {
        "exact flow": (ms.GaussianIntegrator(statistics), 1),
        "flow": (ms.DPMSolver(), 30),
        "reverse SDE": (ms.DPMSolver(sde=True), 60),
    }[kind]
    turned = ms.u_turn(denoiser, sampler, x0, time, steps, range(COUNT), spacing="log_snr")
    before, after = (half_spectrum(x - statistics.mean, grid)[:, 0] for x in (x0, turned))
    power = after.abs().square().mean(0)
    assert float((power / statistics.power[0] - 1).abs().max()) < 0.03 + 4.5 * math.sqrt(2 / COUNT)
    correlation = (before.conj() * after).real.mean(0) / (before.abs().square().mean(0) * power).sqrt()
    expected = ms.u_turn_correlation(process, statistics, time, stochastic=kind == "reverse SDE")[0]
    error = (1 - expected**2) / math.sqrt(COUNT)
    assert bool(((correlation - expected).abs() < 0.01 + 4.5 * error).all())


def test_u_turn_correlation_is_its_formula():
    """`a²C/(a²C + b²W)` with the numbers of the cosine schedule, and its root."""
    denoiser = make(GRIDS["2-D"], COLORED)
    process, statistics = denoiser.process, denoiser.statistics
    C, W = statistics.power, process.covariance.power()
    share = math.cos(math.pi * 0.15) ** 2 * C / (math.cos(math.pi * 0.15) ** 2 * C + math.sin(math.pi * 0.15) ** 2 * W)
    for stochastic, expected in ((True, share), (False, share.sqrt())):
        correlation = ms.u_turn_correlation(process, statistics, 0.3, stochastic=stochastic)
        torch.testing.assert_close(correlation, expected)


def test_u_turn_of_an_item_depends_on_its_own_seed():
    denoiser = make(GRIDS["1-D"], ms.PowerLaw(-0.5))
    x0, sampler = draw_data(denoiser.statistics, 4), ms.DDIM(eta=1.0)
    batch = ms.u_turn(denoiser, sampler, x0, 0.5, 5, [3, 4, 5, 6])
    alone, other = (ms.u_turn(denoiser, sampler, x0[2:3], 0.5, 5, [seed]) for seed in (5, 6))
    torch.testing.assert_close(batch[2:3], alone)
    assert float((other - alone).abs().max()) > 0.01


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_mix_noise_takes_shares_of_power_from_both_noises(grid: ms.Grid) -> None:
    """The low-pass from the first and the rest from the second, so that any covariance of both is kept."""
    zero, unit = torch.zeros(grid.numel, *grid.shape).double(), torch.eye(grid.numel).double().reshape(-1, *grid.shape)
    low, high = (dense.flat(ms.mix_noise(*pair, ms.LowPass(0.25), grid), grid) for pair in ((unit, zero), (zero, unit)))
    share = 1 / (1 + (dense.radius(grid) / 0.25) ** 8)  # a filter of order 4
    np.testing.assert_allclose(low, dense.operator(np.sqrt(share)), atol=1e-12)
    np.testing.assert_allclose(high, dense.operator(np.sqrt(1 - share)), atol=1e-12)


def test_mixing_refuses_impossible_shares_shapes_and_iterations() -> None:
    grid, noise = ms.Grid.of(x=8), torch.zeros(1, 8)
    assert_refused(
        ("not a fraction of power", lambda: ms.mix_noise(noise, noise, ms.Flat(2.0), grid)),
        ("not a fraction of power", lambda: power_fraction(ms.Exponential(-1.0), grid)),
        ("the same shape", lambda: ms.mix_noise(noise, torch.zeros(1, 7), ms.Flat(), grid)),
        ("iterations", lambda: ms.Refinement(ms.LowPass(0.1), iterations=-1)),
    )


CLIP = ms.Grid.of(frame=(6, 0.125, "s"), x=8)
SEEDS = [1, 2, 3]


@pytest.fixture
def denoiser() -> ms.GaussianDenoiser:
    return make(CLIP, ms.PowerLaw(-0.2, corner=0.1, axes=("x",)))


def refined(denoiser, seeds, low_pass: ms.Spectrum, iterations: int, steps: int = 6, **options) -> torch.Tensor:
    refinement = ms.Refinement(low_pass, iterations, **options)
    return ms.sample_refined(denoiser, ms.Heun(), (len(seeds), 1, *CLIP.shape), steps, seeds, refinement)


def test_sample_refined_follows_each_seed_alone_and_without_iterations_is_plain_sampling(denoiser) -> None:
    low_pass = ms.LowPass(1.0, factors={"frame": 0.5, "x": 4.0})
    alone, together = (refined(denoiser, seeds, low_pass, 2) for seeds in ([2], SEEDS))
    assert torch.allclose(alone[0], together[1], atol=1e-10)
    plain = ms.sample(denoiser, ms.Heun(), (3, 1, *CLIP.shape), 6, SEEDS)
    assert torch.equal(refined(denoiser, SEEDS, low_pass, 0), plain)


@pytest.mark.parametrize("share", [0.0, 0.36, 1.0])
def test_sample_refined_starts_each_round_from_the_last_sample_noised_mixed_with_noise(denoiser, share: float) -> None:
    process, shape = denoiser.process, (3, 1, *CLIP.shape)
    start = process.schedule.time(torch.tensor([-4.0], dtype=torch.float64))
    times = float(start) * torch.linspace(1, 0, 7, dtype=torch.float64)
    x0 = ms.sample(denoiser, ms.Heun(), shape, 6, SEEDS)
    for iteration in range(2):
        fresh, low = ([ms.seeds.derive(seed, name, iteration) for seed in SEEDS] for name in ("refine", "refine/low"))
        noisy, other = (process.add_noise(x, start, process.noise(shape, s)) for x, s in ((x0, low), (0 * x0, fresh)))
        initial = share**0.5 * noisy + (1 - share) ** 0.5 * other
        x0 = ms.sample(denoiser, ms.Heun(), shape, 6, fresh, times=times, initial=initial)
    assert torch.allclose(refined(denoiser, SEEDS, ms.Flat(share), 2, log_snr=-4.0), x0, atol=1e-10)
