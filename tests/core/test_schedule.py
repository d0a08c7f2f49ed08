"""Schedules invert their log-SNR, follow their paths, have the published values, and stay finite at both ends."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import multisagd as ms
from tests.helpers.refusals import assert_refused

SCHEDULES = {
    "cosine": ms.CosineSchedule(),
    "cosine, offset": ms.CosineSchedule(offset=0.008),
    "linear": ms.LinearSchedule(),
    "sigmoid": ms.SigmoidSchedule(),
    "sigmoid, steep": ms.SigmoidSchedule(start=0.0, end=3.0, temperature=0.7),
    "karras": ms.KarrasSchedule(),
    "flow": ms.FlowSchedule(),
    "tabulated": ms.TabulatedSchedule((12.0, 5.0, 4.5, 0.0, -9.0)),
    "cosine, shifted": ms.CosineSchedule(shift=4.0),
    "flow, shifted": ms.FlowSchedule(shift=3.0),
    "linear, shifted back": ms.LinearSchedule(shift=0.5),
    "karras, preserving": ms.KarrasSchedule(path="preserving"),
    "cosine, exploding": ms.CosineSchedule(path="exploding"),
    "cosine, flow": ms.CosineSchedule(path="flow"),
}
INSIDE = torch.linspace(0.001, 0.999, 333, dtype=torch.float64)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@every_schedule
def test_log_snr_falls_and_is_inverted_by_time(schedule):
    log_snr = schedule.log_snr(INSIDE)
    inside = (log_snr > schedule.log_snr_range[0]) & (log_snr < schedule.log_snr_range[1])
    assert inside.sum() > 300
    torch.testing.assert_close(schedule.time(log_snr)[inside], INSIDE[inside], rtol=1e-9, atol=1e-12)
    first, last = schedule.log_snr(double(0.0, 1.0))
    log_snr = torch.lerp(first, last, torch.linspace(0.05, 0.95, 100, dtype=torch.float64))
    torch.testing.assert_close(schedule.log_snr(schedule.time(log_snr)), log_snr, rtol=0, atol=1e-6)
    log_snr = schedule.log_snr(torch.linspace(0, 1, 2001, dtype=torch.float64))
    assert (log_snr.diff() <= 0).all()
    low, high = schedule.log_snr_range
    clear = (log_snr[1:] > low) & (log_snr[:-1] < high)
    assert (log_snr.diff()[clear] < 0).all()


@every_schedule
def test_schedule_in_float32_is_precise_and_finite_at_its_ends(schedule):
    for dtype in (torch.float32, torch.float64):
        t = torch.tensor([0.0, 1e-30, 1e-7, 1 - 1e-7, 1.0], dtype=dtype)
        log_snr = schedule.log_snr(t)
        assert log_snr.dtype == dtype
        assert log_snr.isfinite().all(), dtype
        assert schedule.log_snr_range[0] <= log_snr.min() <= log_snr.max() <= schedule.log_snr_range[1], dtype
        alpha, sigma = schedule.alpha_sigma(t)
        assert (alpha.isfinite() & (alpha > 0) & (sigma > 0)).all(), dtype
        ends = schedule.time(torch.tensor([-math.inf, -1e3, 1e3, math.inf], dtype=dtype))
        assert ((ends >= 0) & (ends <= 1)).all(), dtype
    t = torch.linspace(0.001, 0.999, 99)
    log_snr = schedule.log_snr(t)
    torch.testing.assert_close(log_snr.double(), schedule.log_snr(t.double()), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(schedule.time(log_snr).double(), schedule.time(log_snr.double()), rtol=1e-5, atol=1e-5)


@every_schedule
def test_alpha_and_sigma_follow_the_path_and_tangent_is_the_derivative_along_it(schedule):
    alpha, sigma = schedule.alpha_sigma(INSIDE)
    torch.testing.assert_close(2 * (alpha / sigma).log(), schedule.log_snr(INSIDE), rtol=1e-9, atol=1e-9)
    identity = {"preserving": alpha**2 + sigma**2, "exploding": alpha, "flow": alpha + sigma}[schedule.path]
    torch.testing.assert_close(identity, torch.ones_like(identity), rtol=1e-12, atol=0)
    log_snr = torch.linspace(-12, 12, 49, dtype=torch.float64, requires_grad=True)
    alpha, sigma = schedule.from_log_snr(log_snr)
    (along,) = torch.autograd.grad(schedule.path_parameter(alpha, sigma).sum(), log_snr, retain_graph=True)
    # Adding nothing ties a constant α to the graph.
    slopes = [torch.autograd.grad((x + 0 * log_snr).sum(), log_snr, retain_graph=True)[0] for x in (alpha, sigma)]
    alpha, sigma = alpha.detach(), sigma.detach()
    signal, noise = schedule.tangent(alpha, sigma)
    torch.testing.assert_close(torch.stack([signal, noise]), torch.stack(slopes) / along, rtol=1e-9, atol=1e-9)
    one = alpha * noise - sigma * signal
    torch.testing.assert_close(one, torch.ones_like(one), rtol=1e-12, atol=0)


@settings(max_examples=300)
@given(start=st.floats(-6, 2), span=st.floats(0.5, 8), temperature=st.floats(0.1, 3))
@example(start=-1.1139457718296697, span=4.08137312969066, temperature=1.6888026112036718)
def test_sigmoid_schedule_is_finite_at_its_ends_for_any_setting(start, span, temperature):
    """ᾱ is 1 and 0 there, computed as differences that rounding can push across zero (once: NaN in large batches)."""
    schedule = ms.SigmoidSchedule(start=start, end=start + span, temperature=temperature)
    log_snr = schedule.log_snr(double(*[0.0, 0.5, 1.0] * 8))
    assert log_snr.isfinite().all()
    assert (log_snr[::3] == 20).all()
    assert (log_snr[2::3] == -20).all()
    assert schedule.time(double(-20.0, 0.0, 20.0)).isfinite().all()


def test_log_snr_range_clamps():
    schedule = ms.CosineSchedule(log_snr_range=(-6.0, 8.0))
    torch.testing.assert_close(schedule.log_snr(double(0.0, 0.5, 1.0)), double(8.0, 0.0, -6.0))
    alpha, _ = schedule.alpha_sigma(double(1.0))
    assert alpha.item() ** 2 == pytest.approx(1 / (1 + math.exp(6)))


def test_cosine_schedule_is_the_cosine_with_the_published_offset():
    """Improved DDPM: ᾱ(t) = f(t)/f(0), f(t) = cos²((t + s)/(1 + s) · π/2)."""
    alpha, sigma = ms.CosineSchedule().alpha_sigma(INSIDE)
    torch.testing.assert_close(alpha, torch.cos(math.pi / 2 * INSIDE), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sigma, torch.sin(math.pi / 2 * INSIDE), rtol=1e-10, atol=1e-12)
    alpha, _ = ms.CosineSchedule(offset=0.008).alpha_sigma(INSIDE)
    expected, start = (torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (INSIDE, double(0.0)))
    torch.testing.assert_close(alpha**2, expected / start, rtol=1e-9, atol=1e-12)


def test_linear_schedule_is_the_limit_of_a_thousand_discrete_steps():
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    alpha, sigma = (x.numpy() for x in ms.LinearSchedule().alpha_sigma(torch.arange(1, 1001).double() / 1000))
    # log ᾱ differs by Σβ²/2: 1 % at t = 0.5, 7 % of ᾱ = 4e-5 at the end.
    np.testing.assert_allclose(alpha[:500] ** 2, alpha_bar[:500], rtol=1e-2)
    np.testing.assert_allclose(np.log(alpha[20:]) * 2, np.log(alpha_bar[20:]), rtol=3.5e-2)
    np.testing.assert_allclose(sigma[200:] ** 2, 1 - alpha_bar[200:], rtol=1e-2)


def test_karras_schedule_has_the_sigmas_of_the_paper():
    steps = np.arange(18)
    expected = (80 ** (1 / 7) + steps / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    alpha, sigma = ms.KarrasSchedule().alpha_sigma(torch.from_numpy(1 - steps / 17))
    np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-10)
    assert (alpha == 1).all()


def test_sigmoid_schedule_is_the_published_one():
    """2212.11972, Algorithm 1: γ(t) = (v_end - sigmoid((t(end - start) + start)/τ))/(v_end - v_start)."""
    start, end, now = (1 / (1 + np.exp(-x / 0.9)) for x in (-3, 3, 6 * INSIDE.numpy() - 3))
    alpha, _ = ms.SigmoidSchedule(temperature=0.9).alpha_sigma(INSIDE)
    np.testing.assert_allclose(alpha.numpy() ** 2, (end - now) / (end - start), rtol=1e-9)


def test_tabulated_schedule_goes_through_its_knots():
    schedule = ms.TabulatedSchedule((12.0, 5.0, -9.0))
    torch.testing.assert_close(schedule.log_snr(double(0.0, 0.25, 0.5, 0.75, 1.0)), double(12.0, 8.5, 5.0, -2.0, -9.0))


@settings(max_examples=50)
@given(shift=st.floats(0.2, 8))
@example(shift=1.0)
def test_flow_schedule_is_a_straight_line_with_the_published_shift(shift):
    alpha, sigma = ms.FlowSchedule(shift=shift).alpha_sigma(INSIDE)
    expected = shift * INSIDE / (1 + (shift - 1) * INSIDE)
    torch.testing.assert_close(sigma, expected, rtol=1e-12 if shift == 1 else 1e-10, atol=0)
    torch.testing.assert_close(alpha, 1 - expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("make", [ms.CosineSchedule, ms.LinearSchedule, ms.SigmoidSchedule, ms.KarrasSchedule])
def test_shift_divides_the_snr_by_its_square(make):
    """2301.11093: for an image d times as wide, SNR(t)/d²."""
    t = torch.linspace(0.1, 0.8, 15, dtype=torch.float64)
    difference = make().log_snr(t) - make(shift=2.0).log_snr(t)
    torch.testing.assert_close(difference, torch.full_like(t, math.log(4)))


def test_schedule_refuses_impossible_parameters():
    assert_refused(
        ("shift must be positive", lambda: ms.CosineSchedule(shift=0.0)),
        ("must increase", lambda: ms.CosineSchedule(log_snr_range=(5.0, -5.0))),
        ("between -80 and 80", lambda: ms.CosineSchedule(log_snr_range=(-math.inf, 5.0))),
        ("between -80 and 80", lambda: ms.FlowSchedule(log_snr_range=(-20.0, 200.0))),
        ("preserving, exploding, flow", lambda: ms.CosineSchedule(path="straight")),
        ("sigma_min < sigma_max", lambda: ms.KarrasSchedule(sigma_min=2.0, sigma_max=1.0)),
        ("at least two", lambda: ms.TabulatedSchedule((1.0,))),
        ("two decreasing log-SNRs", lambda: ms.TabulatedSchedule((1.0, 1.0))),
        ("at least two", lambda: ms.TabulatedSchedule((math.inf, 1.0))),
        ("must decrease.*start=1.0", lambda: ms.SigmoidSchedule(start=1.0, end=1.0)),
        ("must decrease.*beta_min=-1.0", lambda: ms.LinearSchedule(beta_min=-1.0)),
        ("must decrease.*offset=-0.1", lambda: ms.CosineSchedule(offset=-0.1)),
        ("must decrease", lambda: ms.CosineSchedule(log_snr_range=(-79.0, -75.0))),
    )
