"""`D(x, σ)` for every path, and the samplers of k-diffusion as they are written in its paper."""

import math
from itertools import pairwise

import pytest
import torch

import multisagd as ms
from benchmarks.diffusers_schedulers import DATA, GRID, NOISE, oracle
from multisagd.integrations import KarrasDenoiser

ORACLE = oracle(NOISE, DATA, GRID)
C, W = ORACLE.statistics.power[0], ORACLE.process.covariance.power()
SCHEDULES = {"preserving": ms.CosineSchedule(), "flow": ms.FlowSchedule(), "exploding": ms.KarrasSchedule()}


def denoiser(schedule: ms.Schedule = SCHEDULES["preserving"]) -> KarrasDenoiser:
    return KarrasDenoiser(ms.GaussianDenoiser(ms.Process(schedule, ORACLE.process.covariance), ORACLE.statistics))


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def karras_sigmas(steps: int, low: float = 0.01, high: float = 80.0) -> torch.Tensor:
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    return torch.cat([(high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7, torch.zeros(1)])


@pytest.mark.parametrize("path", SCHEDULES)
def test_it_is_the_estimate_under_noise_of_deviation_sigma(path):
    x, sigma = random(3, 1, 16, 16), torch.tensor([0.05, 1.0, 30.0])
    level = sigma.double()[:, None, None, None]
    expected = torch.fft.irfft2(C / (C + level**2 * W) * torch.fft.rfft2(x), s=GRID.shape)
    assert torch.allclose(denoiser(SCHEDULES[path])(x, sigma), expected, atol=1e-6)
    assert torch.allclose(denoiser(SCHEDULES[path])(x[:1], 0.05), expected[:1], atol=1e-6)


def test_its_range_is_the_schedules():
    model = denoiser(ms.KarrasSchedule(sigma_min=0.01, sigma_max=50.0))
    assert (model.sigma_min, model.sigma_max) == (pytest.approx(0.01), pytest.approx(50.0))
    model(random(1, 1, 16, 16), 50.0 * (1 + 1e-6))
    with pytest.raises(ValueError, match="sigma 60 is above the process's maximum 50"):
        model(random(1, 1, 16, 16), 60.0)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=f"at least 0, got {wrong:g}"):
            model(random(2, 1, 16, 16), torch.tensor([1.0, wrong]))
    with pytest.raises(ValueError, match="needs one sigma or 3, got 2"):
        model(random(3, 1, 16, 16), torch.ones(2))


def test_conditions_go_to_the_denoiser():
    class Labelled(ms.GaussianDenoiser):
        def forward(self, x_t, t, condition=None):
            return super().forward(x_t, t) + condition[:, None, None, None]

    model = KarrasDenoiser(Labelled(ORACLE.process, ORACLE.statistics))
    x = random(2, 1, 16, 16)
    difference = model(x, 1.0, condition=torch.ones(2)) - model(x, 1.0, condition=torch.zeros(2))
    assert torch.allclose(difference, torch.ones_like(x))


def test_eulers_method_follows_its_own_recursion():
    """arXiv 2206.00364, Algorithm 1 without churn."""
    model, sigmas = denoiser(), karras_sigmas(12)
    x = start = random(1, 1, 16, 16) * sigmas[0]
    transfer = torch.ones_like(C)
    for now, then in pairwise(sigmas):
        x = x + (x - model(x, now)) / now * (then - now)
        transfer = transfer * (1 + (1 - C / (C + now**2 * W)) * (then - now) / now)
    expected = torch.fft.irfft2(transfer * torch.fft.rfft2(start), s=GRID.shape)
    assert torch.allclose(x, expected, atol=1e-5)


def test_ancestral_steps_with_its_noise_have_the_power_of_their_recursion():
    """500 items: the standard error in a band of n ≥ 8 coefficients is at most 6.3 % / √8 = 0.1 dB."""
    model, sigmas, seeds, law = denoiser(), karras_sigmas(15), range(500), W * 80.0**2
    x = model.start((500, 1, 16, 16), seeds, sigma=float(sigmas[0])).double()
    sampler = model.noise_sampler(x, seeds)
    for now, then in pairwise(sigmas):
        up = min(float(then), math.sqrt(float(then**2 * (now**2 - then**2) / now**2)))
        down = math.sqrt(float(then) ** 2 - up**2)
        x = x + (x - model(x, now)) / now * (down - now) + up * sampler(now, then)
        law = law * (1 + (1 - C / (C + now**2 * W)) * (down - now) / now) ** 2 + up**2 * W
    power = torch.fft.rfft2(x, norm="ortho").abs().square().mean((0, 1))
    rings = [weight for _, _, weight in GRID.bands(8)][1:]
    errors = [10 * float(torch.log10((power * ring).sum() / (law * ring).sum())) for ring in rings]
    assert max(map(abs, errors)) < 0.3


def test_noise_follows_from_the_seed_and_the_number_of_the_call():
    model, x = denoiser(), torch.zeros(3, 1, 16, 16)
    sampler, again = (model.noise_sampler(x, seeds) for seeds in ([1, 2, 3], [3, 9, 1]))
    first, second = sampler(1.0, 0.5), sampler(0.5, 0.2)
    other = again(7.0, 6.0)
    assert torch.equal(first[0], other[2])
    assert torch.equal(first[2], other[0])
    assert not torch.allclose(first, second, atol=0.1)
    assert model.noise_sampler(x.double(), [1, 2, 3])(1.0, 0.5).dtype == torch.float64
    assert torch.allclose(model.start(x.shape, [1, 2, 3]) / model.sigma_max, model.process.noise(x.shape, [1, 2, 3]))


def test_a_modulation_has_no_one_sigma():
    process = ms.Process(ms.CosineSchedule(), ORACLE.process.covariance, ms.Blur(2.0))
    with pytest.raises(ValueError, match="no single noise level per time"):
        KarrasDenoiser(ms.GaussianDenoiser(process, ORACLE.statistics))
