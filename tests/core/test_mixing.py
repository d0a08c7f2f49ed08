"""Mixing two noises in frequency keeps their law; refined samples follow their seeds alone."""

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.mixing import share_of_power
from tests.helpers import dense
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import half_spectrum

GRIDS = {"1-D": ms.Grid.of(x=9), "2-D": ms.Grid.of(t=4, x=6), "3-D": ms.Grid.of(t=4, y=3, x=2)}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_mix_noise_keeps_the_covariance(grid: ms.Grid) -> None:
    low_pass, zero = ms.LowPass(0.25), torch.zeros(grid.numel, *grid.shape, dtype=torch.float64)
    unit = torch.eye(grid.numel, dtype=torch.float64).reshape(-1, *grid.shape)
    low = ms.mix_noise(unit, zero, low_pass, grid).reshape(grid.numel, -1).numpy().T
    high = ms.mix_noise(zero, unit, low_pass, grid).reshape(grid.numel, -1).numpy().T
    for spectrum in (ms.Flat(), ms.PowerLaw(-0.6, corner=0.1)):
        matrix = dense.operator(grid.full(ms.SpectralCovariance(spectrum, grid).power()).numpy())
        np.testing.assert_allclose(low @ matrix @ low.T + high @ matrix @ high.T, matrix, atol=1e-12)


def test_mix_noise_takes_low_frequencies_from_the_first_and_high_from_the_second() -> None:
    grid = ms.Grid.of(t=16, x=16)
    first, second = (ms.SpectralCovariance(ms.Flat(), grid).double().sample([seed]) for seed in (1, 2))
    mixed = half_spectrum(ms.mix_noise(first, second, ms.Band(0.0, 0.2), grid), grid)
    low = grid.radius() <= 0.2
    for part, source in ((low, first), (~low, second)):
        assert torch.allclose(mixed[0, 0][part], half_spectrum(source, grid)[0, 0][part], atol=1e-10)


def test_mixing_refuses_impossible_shares_shapes_and_iterations() -> None:
    grid, noise = ms.Grid.of(x=8), torch.zeros(1, 8)
    assert_refused(
        ("not a fraction of power", lambda: ms.mix_noise(noise, noise, ms.Flat(2.0), grid)),
        ("not a fraction of power", lambda: share_of_power(ms.Exponential(-1.0), grid)),
        ("the same shape", lambda: ms.mix_noise(noise, torch.zeros(1, 7), ms.Flat(), grid)),
        ("iterations", lambda: ms.Refinement(ms.LowPass(0.1), iterations=-1)),
    )


GRID = ms.Grid.of(frame=(6, 0.125, "s"), x=8)
FACTORS = {"frame": 0.125, "x": 1.0}
LOW_BAND = ms.Band(0.0, 0.2, factors=FACTORS)
LOW = GRID.radius(factors=FACTORS) < 0.2
SEEDS = [1, 2, 3]


@pytest.fixture
def denoiser() -> ms.GaussianDenoiser:
    power = (ms.PowerLaw(-1.0, corner=0.1).on("x") * ms.Autoregressive(0.6, axis="frame")).power(GRID)
    statistics = ms.DataStatistics(torch.ones(1, 6, 8, dtype=torch.float64), power[None], GRID, 9)
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.2, corner=0.1, axes=("x",)), GRID)
    return ms.GaussianDenoiser(ms.Process(ms.CosineSchedule(), covariance).double(), statistics)


def refined(denoiser, seeds, low_pass: ms.Spectrum, iterations: int, steps: int = 6, **options) -> torch.Tensor:
    refinement = ms.Refinement(low_pass, iterations, **options)
    return ms.sample_refined(denoiser, ms.Heun(), (len(seeds), 1, *GRID.shape), steps, seeds, refinement)


def test_sample_refined_follows_each_seed_alone_and_without_iterations_is_plain_sampling(denoiser) -> None:
    low_pass = ms.LowPass(1.0, factors={"frame": 0.5, "x": 4.0})
    alone, together = (refined(denoiser, seeds, low_pass, 2) for seeds in ([2], SEEDS))
    assert torch.allclose(alone[0], together[1], atol=1e-10)
    plain = ms.sample(denoiser, ms.Heun(), (3, 1, *GRID.shape), 6, SEEDS)
    assert torch.equal(refined(denoiser, SEEDS, low_pass, 0), plain)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_sample_refined_starts_each_round_from_the_last_sample_noised_or_from_noise(denoiser, share: float) -> None:
    process, shape = denoiser.process, (3, 1, *GRID.shape)
    start = process.schedule.time(torch.tensor([-4.0], dtype=torch.float64))
    times = float(start) * torch.linspace(1, 0, 7, dtype=torch.float64)
    x0 = ms.sample(denoiser, ms.Heun(), shape, 6, SEEDS)
    for iteration in range(2):
        fresh, low = ([ms.seeds.derive(seed, name, iteration) for seed in SEEDS] for name in ("refine", "refine/low"))
        initial = process.add_noise(share * x0, start, process.noise(shape, low if share else fresh))
        x0 = ms.sample(denoiser, ms.Heun(), shape, 6, fresh, times=times, initial=initial)
    assert torch.allclose(refined(denoiser, SEEDS, ms.Flat(share), 2, log_snr=-4.0), x0, atol=1e-10)


def test_sample_refined_keeps_low_frequencies_and_more_at_a_higher_log_snr(denoiser) -> None:
    seeds = range(200)
    once = half_spectrum(refined(denoiser, seeds, ms.Flat(0.0), 0) - 1, GRID)[:, 0]

    def correlations(log_snr: float) -> tuple[float, float]:
        again = half_spectrum(refined(denoiser, seeds, LOW_BAND, 1, log_snr=log_snr) - 1, GRID)[:, 0]
        products, sizes = (once * again.conj()).real, (once.abs() * again.abs())
        return tuple(float(products[:, part].sum() / sizes[:, part].sum()) for part in (LOW, ~LOW))

    far, near = correlations(-12.0), correlations(-1.0)
    assert abs(far[0]) < 0.25
    assert near[0] > 0.6
    assert abs(near[1]) < 0.15


def test_sample_refined_keeps_the_law_of_the_data(denoiser) -> None:
    # Adding the first noise again instead of new noise would double the power of the lowest frequencies.
    x0 = refined(denoiser, range(600), LOW_BAND, 2, steps=64, log_snr=-5.0)
    power = half_spectrum(x0 - 1, GRID).abs().square().mean((0, 1))
    ratio = power / denoiser.statistics.power[0]
    # 600 draws tell a power to 6 %, or 4 % where it is of a complex number.
    assert float((ratio[LOW] - 1).abs().max()) < 0.2
    # Of high frequencies nothing is kept, not even the little that a log-SNR of -5 leaves of them.
    assert 0.85 < float(ratio[~LOW].mean()) < 1.05
