"""A Karras denoiser is `D(x, σ)` for every path, and ancestral steps follow their recursion with its noise."""

import math
from itertools import pairwise

import pytest
import torch

import multisagd as ms
from benchmarks.diffusers_schedulers import DATA, GRID, NOISE, oracle
from multisagd.integrations import KarrasDenoiser
from tests.helpers.refusals import assert_refused

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


class Labelled(ms.GaussianDenoiser):
    def forward(self, x_t, t, condition=None):
        return super().forward(x_t, t) + condition[:, None, None, None]


def test_karras_denoiser_is_the_estimate_under_noise_of_deviation_sigma():
    x, sigma = random(3, 1, 16, 16), torch.tensor([0.05, 1.0, 30.0])
    level = sigma.double()[:, None, None, None]
    expected = torch.fft.irfft2(C / (C + level**2 * W) * torch.fft.rfft2(x), s=GRID.shape)
    for path, schedule in SCHEDULES.items():
        assert torch.allclose(denoiser(schedule)(x, sigma), expected, atol=1e-6), path
        assert torch.allclose(denoiser(schedule)(x[:1], 0.05), expected[:1], atol=1e-6), path
    model = KarrasDenoiser(Labelled(ORACLE.process, ORACLE.statistics))
    difference = model(x, 1.0, condition=torch.ones(3)) - model(x, 1.0, condition=torch.zeros(3))
    assert torch.allclose(difference, torch.ones_like(x))


def test_karras_denoiser_has_the_range_of_its_schedule():
    model, x = denoiser(ms.KarrasSchedule(sigma_min=0.01, sigma_max=50.0)), random(3, 1, 16, 16)
    assert (model.sigma_min, model.sigma_max) == (pytest.approx(0.01), pytest.approx(50.0))
    model(x, 50.0 * (1 + 1e-6))
    modulated = ms.Process(ms.CosineSchedule(), ORACLE.process.covariance, ms.Blur(2.0))
    assert_refused(
        ("sigma 60 is above the process's maximum 50", lambda: model(x, 60.0)),
        ("at least 0, got -1", lambda: model(x[:2], torch.tensor([1.0, -1.0]))),
        ("at least 0, got nan", lambda: model(x[:2], torch.tensor([1.0, math.nan]))),
        ("expected 1 or 3 sigmas for a batch of 3, got 2", lambda: model(x, torch.ones(2))),
        ("needs a single noise level", lambda: KarrasDenoiser(ms.GaussianDenoiser(modulated, ORACLE.statistics))),
    )


def test_ancestral_steps_have_the_power_of_their_recursion():
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


def test_noise_sampler_follows_from_the_seed_and_the_number_of_the_call():
    model, x = denoiser(), torch.zeros(3, 1, 16, 16)
    sampler, again = (model.noise_sampler(x, seeds) for seeds in ([1, 2, 3], [3, 9, 1]))
    first, second = sampler(1.0, 0.5), sampler(0.5, 0.2)
    other = again(7.0, 6.0)
    assert torch.equal(first[0], other[2])
    assert torch.equal(first[2], other[0])
    assert not torch.allclose(first, second, atol=0.1)
    assert model.noise_sampler(x.double(), [1, 2, 3])(1.0, 0.5).dtype == torch.float64
    assert torch.allclose(model.start(x.shape, [1, 2, 3]) / model.sigma_max, model.process.noise(x.shape, [1, 2, 3]))
