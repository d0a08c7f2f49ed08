import pytest
import torch

from multisagd.integrations.discrete import DiscreteSchedule

CURVES = [
    ({}, {}),
    ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, {"betas": "scaled_linear"}),
    ({"beta_schedule": "squaredcos_cap_v2"}, {"betas": "squaredcos_cap_v2"}),
    ({"beta_schedule": "sigmoid"}, {"betas": "sigmoid"}),
    ({"num_train_timesteps": 50, "beta_end": 0.3}, {"steps": 50, "beta_end": 0.3}),
    ({"num_train_timesteps": 3, "trained_betas": [0.1, 0.2, 0.4]}, {"steps": 3, "betas": (0.1, 0.2, 0.4)}),
]


@pytest.mark.parametrize(("theirs", "ours"), CURVES, ids=str)
def test_every_timestep_has_the_noise_of_diffusers_scheduler(theirs: dict, ours: dict) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDPMScheduler(**theirs)
    values = {key: theirs[key] for key in ("beta_start", "beta_end") if key in theirs}
    schedule = DiscreteSchedule(**{**values, **ours})
    steps = torch.arange(len(scheduler.alphas_cumprod), dtype=torch.float64)
    t = (steps + 1) / len(steps)
    alpha, sigma = schedule.alpha_sigma(t)
    kept = scheduler.alphas_cumprod.double()
    # Theirs is a product in single precision, and 1 - ᾱ loses its digits near the data.
    torch.testing.assert_close(alpha, kept.sqrt(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sigma, (1 - kept).sqrt(), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=0, atol=1e-9)


def test_zero_terminal_snr_ends_in_noise_alone() -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    schedule = DiscreteSchedule(steps=100, beta_end=0.2, zero_terminal_snr=True)
    theirs = diffusers.DDIMScheduler(
        num_train_timesteps=100, beta_end=0.2, rescale_betas_zero_snr=True
    ).alphas_cumprod.double()
    t = torch.arange(1, 101, dtype=torch.float64) / 100
    assert float(schedule.log_snr(t[-1])) == -20
    torch.testing.assert_close(schedule.alpha_sigma(t)[0][:-1], theirs.sqrt()[:-1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 1}, "at least two betas between 0 and 1, got 1"),
        ({"steps": 3, "betas": (0.1, 0.2)}, "of 3 steps needs as many betas, got 2"),
        ({"steps": 2, "betas": (0.1, 1.5)}, "between 0 and 1"),
        (
            {"beta_end": 0.3},
            r"outside log_snr_range=\[-20.0, 20.0\], where they are indistinguishable: take fewer steps",
        ),
        ({"beta_start": 1e-12, "beta_end": 1e-11}, "outside log_snr"),
        ({"betas": "linera"}, "unknown betas 'linera'; choose linear, scaled_linear"),
    ],
)
def test_what_makes_no_sense_is_told(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteSchedule(**arguments)
