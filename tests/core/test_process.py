"""Schedules have published values and their inverses; the process agrees with dense matrices and with definitions."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import multisagd as ms
from multisagd.process import Quantity, target_weights
from tests.helpers import dense
from tests.helpers.networks import Affine
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
        ("two log-SNRs, in decreasing order", lambda: ms.TabulatedSchedule((1.0, 1.0))),
        ("at least two", lambda: ms.TabulatedSchedule((math.inf, 1.0))),
        ("must decrease.*start=1.0", lambda: ms.SigmoidSchedule(start=1.0, end=1.0)),
        ("must decrease.*beta_min=-1.0", lambda: ms.LinearSchedule(beta_min=-1.0)),
        ("must decrease.*offset=-0.1", lambda: ms.CosineSchedule(offset=-0.1)),
        ("must decrease", lambda: ms.CosineSchedule(log_snr_range=(-79.0, -75.0))),
    )


GRID = ms.Grid.of(y=4, x=5)
QUANTITIES: list[Quantity] = ["x0", "noise", "v", "flow", "score"]
ONE_OF_EACH = [
    ms.CosineSchedule(),
    ms.LinearSchedule(),
    ms.SigmoidSchedule(shift=2.0),
    ms.KarrasSchedule(),
    ms.FlowSchedule(),
    ms.CosineSchedule(path="exploding"),
]
MODULATIONS = {
    "scalar": None,
    "blur": ms.Blur(length=2.0, floor=0.01),
    "colour shift": ms.ColorShift(ms.PowerLaw(0.3), ms.PowerLaw(-0.2)),
}
SPECTRA = {"white": ms.Flat(), "power law": ms.PowerLaw(-0.5), "band": ms.Band(0.15, 0.5)}


def process(
    schedule: ms.Schedule | None = None, spectrum: ms.Spectrum | None = None, modulation: object = None
) -> ms.Process:
    covariance = ms.SpectralCovariance(spectrum or ms.PowerLaw(-0.5), GRID).double()
    return ms.Process(schedule or ms.CosineSchedule(), covariance, modulation)


def factors(p: ms.Process, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of signal and noise over the full spectrum, from the definitions."""
    alpha, sigma = (float(v) for v in p.schedule.alpha_sigma(double(t)))
    r = dense.radius(GRID)
    signal, noise = np.ones(GRID.shape), np.ones(GRID.shape)
    if isinstance(p.modulation, ms.Blur):
        # 2209.05557: d_t = (1 - d_min) exp(-λ τ) + d_min, λ = |2πf|², τ = σ_B²/2, σ_B = σ_max sin²(tπ/2).
        tau = (2.0 * np.sin(t * np.pi / 2) ** 2) ** 2 / 2
        signal = 0.99 * np.exp(-((2 * np.pi * r) ** 2) * tau) + 0.01
    if isinstance(p.modulation, ms.ColorShift):
        early, late = (np.maximum(r, 1 / 256) ** (2 * e) for e in (0.3, -0.2))
        noise = (1 - t) * np.sqrt(early / early.mean()) + t * np.sqrt(late / late.mean())
    return alpha * signal, sigma * noise


modulations = pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS)


@modulations
def test_add_noise_filters_signal_and_noise(modulation):
    for name, spectrum in SPECTRA.items():
        p = process(spectrum=spectrum, modulation=modulation)
        x0, noise = dense.random(2, 3, *GRID.shape), dense.random(2, 3, *GRID.shape, seed=1)
        x_t = p.add_noise(x0, double(0.2, 0.7), noise)
        for item, t in enumerate((0.2, 0.7)):
            A, B = (dense.operator(v) for v in factors(p, t))
            expected = dense.flat(x0[item], GRID) @ A + dense.flat(noise[item], GRID) @ B
            np.testing.assert_allclose(dense.flat(x_t[item], GRID), expected, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@modulations
def test_posterior_is_gaussian_conditioning(spectrum, modulation):
    """Join x_s and x_t given x0 by the Markov chain x_t = (a_t/a_s) x_s + noise, then condition."""
    p = process(spectrum=spectrum, modulation=modulation)
    x0, x_t = dense.random(1, 2, *GRID.shape), p.covariance.project(dense.random(1, 2, *GRID.shape, seed=1))
    s, t = 0.35, 0.6
    (a_s, b_s), (a_t, b_t) = factors(p, s), factors(p, t)
    W = GRID.full(p.covariance.power()).numpy()
    cov_s, cov_t, cross = (dense.operator(v) for v in (b_s**2 * W, b_t**2 * W, a_t / a_s * b_s**2 * W))
    gain = cross @ np.linalg.pinv(cov_t, rcond=1e-10, hermitian=True)
    residual = dense.flat(x_t[0], GRID) - dense.flat(x0[0], GRID) @ dense.operator(a_t)
    expected = dense.flat(x0[0], GRID) @ dense.operator(a_s) + residual @ gain.T
    mean, factor = p.posterior(x0, x_t, double(t), double(s))
    support = dense.operator((W > 0).astype(float))
    # Outside the support nothing is random, and what x_t holds there is not defined: compare on it.
    np.testing.assert_allclose(dense.flat(mean[0], GRID) @ support, expected @ support, atol=1e-9)
    columns = p.scale(torch.eye(GRID.numel, dtype=torch.float64).reshape(-1, 1, *GRID.shape), factor)
    F = dense.flat(columns[:, 0], GRID).T
    np.testing.assert_allclose(F @ dense.operator(W) @ F.T, cov_s - gain @ cross.T, atol=1e-9)


@pytest.mark.parametrize("spectrum", SPECTRA.values(), ids=SPECTRA)
@modulations
def test_score_and_gaussian_denoiser_obey_tweedies_formula(spectrum, modulation):
    """For Gaussian data the score of x_t is known, and the oracle's estimate must imply it."""
    p = process(spectrum=spectrum, modulation=modulation)
    C, mean = (dense.radius(GRID) + 0.2) ** -2, dense.random(*GRID.shape, seed=3).numpy()
    oracle = ms.GaussianDenoiser(p, dense.stationary(C, GRID, mean))
    x_t, t = dense.random(1, 1, *GRID.shape, seed=4), 0.4
    a, b = factors(p, t)
    W = GRID.full(p.covariance.power()).numpy()
    centered = dense.flat(x_t[0], GRID) - mean.reshape(1, -1) @ dense.operator(a)
    expected = -centered @ dense.operator(1 / (a**2 * C + b**2 * W)) @ dense.operator((W > 0).astype(float))
    x0 = oracle(x_t, double(t))
    score = p.from_x0(x0, x_t, double(t), "score")
    np.testing.assert_allclose(dense.flat(score[0], GRID), expected, atol=1e-9)
    posterior_mean = mean.reshape(1, -1) + centered @ dense.operator(a * C / (a**2 * C + b**2 * W))
    np.testing.assert_allclose(dense.flat(x0[0], GRID), posterior_mean, atol=1e-10)
    # E[x0|x_t] = (x_t + σ² Σ score)/α, on the range of Σ.
    back = p.to_x0(score, x_t, double(t), "score")
    torch.testing.assert_close(p.covariance.project(back), p.covariance.project(x0), rtol=1e-9, atol=1e-9)


@settings(max_examples=150)
@given(
    schedule=st.sampled_from(ONE_OF_EACH),
    t=st.floats(0.02, 0.98),
    spectrum=st.sampled_from(list(SPECTRA.values())),
    modulation=st.sampled_from(list(MODULATIONS.values())),
    source=st.sampled_from(QUANTITIES),
    target=st.sampled_from(QUANTITIES),
)
def test_to_x0_and_from_x0_convert_every_quantity(schedule, t, spectrum, modulation, source, target):
    """Every quantity of a true (x0, noise) pair converts to every other, through x0."""
    p = process(schedule, spectrum, modulation)
    at, time = p.coefficients(double(t), torch.empty(1, 1, *GRID.shape, dtype=torch.float64)), double(t)
    assume(float((at.b / at.a).max()) < 300)
    x0, noise = p.covariance.project(dense.random(1, 2, *GRID.shape)), p.noise((1, 2, *GRID.shape), [7])
    x_t = p.add_noise(x0, time, noise)

    def truth(quantity: Quantity) -> torch.Tensor:
        if quantity == "score":
            return -p.covariance.solve(p.scale(noise, 1 / at.b))
        signal, chance = target_weights(at, p.schedule, quantity)
        return p.scale(x0, signal) + p.scale(noise, chance)

    recovered = p.to_x0(truth(source), x_t, time, source)
    scale = max(1.0, float((at.b / at.a).max()))
    torch.testing.assert_close(recovered, x0, rtol=1e-10, atol=1e-10 * scale)
    value = truth(target)
    converted = p.from_x0(x0, x_t, time, target)
    tolerance = 1e-10 * max(1.0, float((at.a / at.b).max()), float(value.abs().max()))
    torch.testing.assert_close(converted, value, rtol=1e-9, atol=tolerance)


def test_from_x0_follows_the_definitions():
    p = process(ms.FlowSchedule())
    x0, noise, t = dense.random(2, 1, *GRID.shape), p.noise((2, 1, *GRID.shape), [1, 2]), double(0.3, 0.8)
    x_t = p.add_noise(x0, t, noise)
    a, b = 1 - t.reshape(2, 1, 1, 1), t.reshape(2, 1, 1, 1)
    torch.testing.assert_close(x_t, a * x0 + b * noise)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "noise"), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "v"), a * noise - b * x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "flow"), noise - x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "score"), -p.covariance.solve(noise) / b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", ONE_OF_EACH, ids=lambda s: type(s).__name__)
def test_coefficients_in_float32_keep_their_digits_at_both_ends(schedule):
    t32 = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 1 - 1e-3, 1.0])
    p = process(schedule)
    narrow = p.coefficients(t32, torch.empty(6, 1, *GRID.shape))
    wide = p.coefficients(t32.double(), torch.empty(6, 1, *GRID.shape, dtype=torch.float64))
    assert narrow.a.dtype == torch.float32
    assert narrow.a.shape == (6, 1, 1, 1)
    for ours, exact in ((narrow.a, wide.a), (narrow.b, wide.b)):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-6, atol=0)
    for at, rtol, atol in ((narrow, 1e-6, 1e-5), (wide, 1e-9, 1e-9)):
        log_snr = 2 * (at.a.double().log() - at.b.double().log()).flatten()
        torch.testing.assert_close(log_snr, schedule.log_snr(t32.double()), rtol=rtol, atol=atol)


def test_noise_and_prior_follow_the_covariance_and_their_seeds():
    p, shape, seeds = process(ms.KarrasSchedule()), (2, 3, *GRID.shape), [4, 5]
    noise = p.noise(shape, seeds)
    assert torch.equal(noise, p.covariance.sample(seeds, channels=3))
    assert p.noise((2, 3, 2, *GRID.shape), seeds).shape == (2, 3, 2, *GRID.shape)
    torch.testing.assert_close(p.prior(shape, seeds), 80.0 * noise)
    mean = dense.random(3, *GRID.shape)
    torch.testing.assert_close(p.prior(shape, seeds, mean), 80.0 * noise + mean)


@pytest.mark.parametrize("path", ["preserving", "exploding", "flow"])
@pytest.mark.parametrize("ends", [20.0, 80.0])
def test_conversions_and_losses_are_finite_at_both_ends_of_the_widest_ranges(ends, path):
    grid = ms.Grid.of(y=4, x=5)
    schedule = ms.TabulatedSchedule((ends, -ends), log_snr_range=(-ends, ends), path=path)
    for spectrum, t in product((ms.Flat(), ms.PowerLaw(-0.5), ms.Band(0.1, 0.4)), (0, 1)):
        process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid))
        x0, noise = dense.random(2, 1, 4, 5).float(), process.noise((2, 1, 4, 5), [0, 1])
        x_t = process.add_noise(x0, t, noise)
        for quantity in QUANTITIES:
            value = process.from_x0(x0, x_t, t, quantity)
            assert value.isfinite().all(), (spectrum, t, quantity)
            assert process.to_x0(value, x_t, t, quantity).isfinite().all(), (spectrum, t, quantity)
        for options in ({}, {"preconditioning": "karras"}, *({"prediction": p} for p in ("x0", "noise", "flow"))):
            denoiser = ms.Denoiser(Affine(0.5), process, **options)
            assert denoiser(x_t, t).isfinite().all(), (spectrum, t, options)
            assert denoiser.loss(x0, t, [0, 1]).isfinite().all(), (spectrum, t, options)


@pytest.mark.parametrize("sizes", [(4, 4, 5), (3, 6, 4), (4, 2, 2)])
def test_modulations_of_opposite_velocities_are_mirror_images(sizes):
    grid, schedule = ms.Grid.of(**dict(zip(("frame", "height", "width"), sizes, strict=True))), ms.CosineSchedule()
    covariance = ms.SpectralCovariance(ms.Flat(), grid)

    def modulation_factors(speed: float) -> list[torch.Tensor]:
        drift = ms.VelocityTuned({"height": speed, "width": 0.4}, 2.0)
        floor = ms.NoiseFloor(schedule, covariance, ms.Corruption(drift, grid))
        each = (ms.ColorShift(drift, ms.Flat()), ms.Prefilter(drift), floor)
        return [grid.full(torch.cat(modulation(double(0.3), grid))) for modulation in each]

    mirrored = -torch.arange(sizes[1]) % sizes[1]
    for here, there in zip(modulation_factors(1.3), modulation_factors(-1.3), strict=True):
        torch.testing.assert_close(here.index_select(2, mirrored), there, rtol=1e-9, atol=0)


@pytest.mark.parametrize("grid", [ms.Grid.of(x=9), ms.Grid.of(y=4, x=5), ms.Grid.of(t=3, y=4, x=6)], ids=str)
def test_prefilter_under_white_noise_is_shaped_noise_in_other_coordinates(grid):
    spectrum, t = ms.PowerLaw(-0.6, corner=0.1), double(0.3)
    white = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid), ms.Prefilter(spectrum)).double()
    shaped = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, grid)).double()
    x0, noise = dense.random(1, 1, *grid.shape), dense.random(1, 1, *grid.shape)
    # x_t of filtered data is that of shaped noise, whitened: Σ^{-1/2} (a x0 + b Σ^{1/2} ξ).
    expected = shaped.covariance.whiten(shaped.add_noise(x0, t, shaped.covariance.color(noise)))
    torch.testing.assert_close(white.add_noise(x0, t, noise), expected)
    with pytest.raises(ValueError, match="without power"):
        ms.Prefilter(ms.Band(0.1, 0.2))(t, grid)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_add_noise_in_half_precision_under_autocast_stays_finite(dtype):
    for name, modulation in MODULATIONS.items():
        p = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID), modulation)
        x0 = dense.random(2, 1, *GRID.shape).to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x_t = p.add_noise(x0, torch.tensor([0.0, 1.0]), p.noise(x0.shape, [1, 2]))
        assert x_t.isfinite().all(), name


def test_process_refuses_impossible_arguments():
    p, one, three = process(), torch.zeros(1, 1, 4, 5), torch.zeros(3, 1, 4, 5)
    assert_refused(
        ("expected 2 seeds for a batch of 2, one per item, got 1", lambda: p.noise((2, 1, 4, 5), [1])),
        ("expected shape .batch, channels, y, x.", lambda: p.noise((4, 5), [1, 2, 3, 4])),
        ("unknown quantity", lambda: p.to_x0(one, one, double(0.5), "mean")),
        ("unknown quantity", lambda: p.from_x0(one, one, double(0.5), "mean")),
        ("expected 1 or 3 time values", lambda: p.add_noise(three, double(0.5, 0.5), three)),
    )
