"""The forward process agrees with dense matrices, with the definitions of its quantities and with published ones."""

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import multisagd as ms
from multisagd.process import Quantity, target_weights
from tests.helpers import dense
from tests.helpers.networks import Affine
from tests.helpers.refusals import assert_refused

GRID = ms.Grid.of(y=4, x=5)
QUANTITIES: list[Quantity] = ["x0", "noise", "v", "flow", "score"]
SCHEDULES = [
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


double = partial(torch.tensor, dtype=torch.float64)


def factors(p: ms.Process, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of signal and noise over the full spectrum, from the definitions."""
    alpha, sigma = (float(v) for v in p.schedule.alpha_sigma(double([t])))
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
        x_t = p.add_noise(x0, double([0.2, 0.7]), noise)
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
    mean, factor = p.posterior(x0, x_t, double([t]), double([s]))
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
    x0 = oracle(x_t, double([t]))
    score = p.from_x0(x0, x_t, double([t]), "score")
    np.testing.assert_allclose(dense.flat(score[0], GRID), expected, atol=1e-9)
    posterior_mean = mean.reshape(1, -1) + centered @ dense.operator(a * C / (a**2 * C + b**2 * W))
    np.testing.assert_allclose(dense.flat(x0[0], GRID), posterior_mean, atol=1e-10)
    # E[x0|x_t] = (x_t + σ² Σ score)/α, on the range of Σ.
    back = p.to_x0(score, x_t, double([t]), "score")
    torch.testing.assert_close(p.covariance.project(back), p.covariance.project(x0), rtol=1e-9, atol=1e-9)


@settings(max_examples=150)
@given(
    schedule=st.sampled_from(SCHEDULES),
    t=st.floats(0.02, 0.98),
    spectrum=st.sampled_from(list(SPECTRA.values())),
    modulation=st.sampled_from(list(MODULATIONS.values())),
    source=st.sampled_from(QUANTITIES),
    target=st.sampled_from(QUANTITIES),
)
def test_to_x0_and_from_x0_convert_every_quantity(schedule, t, spectrum, modulation, source, target):
    """Every quantity of a true (x0, noise) pair converts to every other, through x0."""
    p = process(schedule, spectrum, modulation)
    at, time = p.coefficients(double([t]), torch.empty(1, 1, *GRID.shape, dtype=torch.float64)), double([t])
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
    x0, noise, t = dense.random(2, 1, *GRID.shape), p.noise((2, 1, *GRID.shape), [1, 2]), double([0.3, 0.8])
    x_t = p.add_noise(x0, t, noise)
    a, b = 1 - t.reshape(2, 1, 1, 1), t.reshape(2, 1, 1, 1)
    torch.testing.assert_close(x_t, a * x0 + b * noise)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "noise"), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "v"), a * noise - b * x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "flow"), noise - x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(p.from_x0(x0, x_t, t, "score"), -p.covariance.solve(noise) / b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
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
        return [grid.full(torch.cat(modulation(double([0.3]), grid))) for modulation in each]

    mirrored = -torch.arange(sizes[1]) % sizes[1]
    for here, there in zip(modulation_factors(1.3), modulation_factors(-1.3), strict=True):
        torch.testing.assert_close(here.index_select(2, mirrored), there, rtol=1e-9, atol=0)


@pytest.mark.parametrize("grid", [ms.Grid.of(x=9), ms.Grid.of(y=4, x=5), ms.Grid.of(t=3, y=4, x=6)], ids=str)
def test_prefilter_under_white_noise_is_shaped_noise_in_other_coordinates(grid):
    spectrum, t = ms.PowerLaw(-0.6, corner=0.1), double([0.3])
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
        ("expected .batch, channels, y, x.", lambda: p.noise((4, 5), [1, 2, 3, 4])),
        ("unknown quantity", lambda: p.to_x0(one, one, double([0.5]), "mean")),
        ("unknown quantity", lambda: p.from_x0(one, one, double([0.5]), "mean")),
        ("expected 1 or 3 time values", lambda: p.add_noise(three, double([0.5, 0.5]), three)),
    )
