"""Discrete schedules have the noise levels of diffusers' schedulers at every timestep."""

import diffusers
import pytest
import torch

from multisagd.integrations.discrete import DiscreteSchedule
from tests.helpers.refusals import assert_refused

CURVES = [
    ({}, {}),
    ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, {"betas": "scaled_linear"}),
    ({"beta_schedule": "squaredcos_cap_v2"}, {"betas": "squaredcos_cap_v2"}),
    ({"beta_schedule": "sigmoid"}, {"betas": "sigmoid"}),
    ({"num_train_timesteps": 50, "beta_end": 0.3}, {"steps": 50, "beta_end": 0.3}),
    ({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.4]}, {"steps": 3, "betas": (0.1, 0.2, 0.4)}),
]


@pytest.mark.parametrize(("theirs", "ours"), CURVES, ids=str)
def test_discrete_schedule_has_the_noise_of_diffusers_at_every_timestep(theirs: dict, ours: dict) -> None:
    values = {key: theirs[key] for key in ("beta_start", "beta_end") if key in theirs}
    schedule = DiscreteSchedule(**{**values, **ours})
    kept = diffusers.DDPMScheduler(**theirs).alphas_cumprod.double()
    t = torch.arange(1, len(kept) + 1, dtype=torch.float64) / len(kept)
    alpha, sigma = schedule.alpha_sigma(t)
    # Theirs is a product in single precision, and 1 - ᾱ loses its digits near the data.
    torch.testing.assert_close(alpha, kept.sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sigma, (1 - kept).sqrt(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


def test_discrete_schedule_of_zero_terminal_snr_ends_in_noise_alone() -> None:
    options = {"num_train_timesteps": 100, "beta_end": 0.2, "rescale_betas_zero_snr": True}
    kept = diffusers.DDIMScheduler(**options).alphas_cumprod.double()
    schedule = DiscreteSchedule(steps=100, beta_end=0.2, zero_terminal_snr=True)
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    assert float(schedule.log_snr(t[-1])) == -20
    torch.testing.assert_close(schedule.alpha_sigma(t)[0][:-1], kept.sqrt()[:-1], rtol=1e-3, atol=1e-5)


def test_discrete_schedule_refuses_invalid_betas() -> None:
    beyond = r"outside log_snr_range=\[-20.0, 20.0\], where they are indistinguishable: use fewer steps"
    assert_refused(
        ("at least two betas between 0 and 1, got 1", lambda: DiscreteSchedule(steps=1)),
        ("of 3 steps needs 3 betas, got 2", lambda: DiscreteSchedule(steps=3, betas=(0.1, 0.2))),
        ("between 0 and 1", lambda: DiscreteSchedule(steps=2, betas=(0.1, 1.5))),
        (beyond, lambda: DiscreteSchedule(beta_end=0.3)),
        ("outside log_snr_range=", lambda: DiscreteSchedule(beta_start=1e-12, beta_end=1e-11)),
        ("unknown betas 'linera'; choose linear, scaled_linear", lambda: DiscreteSchedule(betas="linera")),
    )
