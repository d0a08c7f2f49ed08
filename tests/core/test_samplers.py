"""Samplers agree with closed forms: the exact denoiser of Gaussian data makes every one of them linear."""

import math
from itertools import product

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.samplers import Model, Point, Sampler, SamplerState
from multisagd.seeds import derive
from tests.helpers.gaussian import Recursion
from tests.helpers.stationary import half_spectrum

GRIDS = [ms.Grid.of(time=7), ms.Grid.of(time=8), ms.Grid.of(height=6, width=5), ms.Grid.of(frame=3, height=4, width=4)]
FULL_SUPPORT = {
    "white": ms.Flat(),
    "power law": ms.PowerLaw(exponent=-0.5),
    "two bands": ms.TwoBand(weights=(0.7, 0.3)),
}
SPECTRA = {**FULL_SUPPORT, "singular": ms.Band(0.2, 0.9, "nyquist")}
SCHEDULES = {
    "preserving": ms.CosineSchedule(log_snr_range=(-12, 12)),
    "exploding": ms.KarrasSchedule(sigma_max=10),
    "flow": ms.FlowSchedule(log_snr_range=(-12, 12)),
}
MODULATIONS = {
    "blur": ms.Blur(length=1.5, floor=0.05),
    "changing colour": ms.ColorShift(early=ms.PowerLaw(0.5), late=ms.PowerLaw(-0.5)),
}
RECURSIONS = {
    ms.DDIM(): lambda r: r.ddim(),
    ms.DDIM(eta=0.6): lambda r: r.ddim(0.6),
    ms.DDIM(eta=1.0): lambda r: r.ancestral(),
    ms.Ancestral(): lambda r: r.ancestral(),
    ms.Ancestral(variance="forward"): lambda r: r.ancestral("forward"),
    ms.Euler(): lambda r: r.ode(False),
    ms.Heun(): lambda r: r.ode(True),
    ms.Euler(churn=2.0): lambda r: r.ode(False, churn=2.0),
    ms.Heun(churn=2.0): lambda r: r.ode(True, churn=2.0),
    ms.DPMSolver(order=1): lambda r: r.dpm(order=1),
    ms.DPMSolver(): lambda r: r.dpm(),
    ms.DPMSolver(sde=True): lambda r: r.dpm(sde=True),
    ms.DPMSolver(order=1, sde=True): lambda r: r.dpm(order=1, sde=True),
    ms.UniPC(): lambda r: r.unipc(),
}
DETERMINISTIC = [ms.DDIM(), ms.Euler(), ms.Heun(), ms.DPMSolver(), ms.UniPC()]
STOCHASTIC = [ms.DDIM(eta=1.0), ms.Ancestral(), ms.Heun(churn=20), ms.DPMSolver(sde=True)]


def gaussian_data(grid: ms.Grid, mean: float = 0.0) -> ms.DataStatistics:
    """Data of power ∝ f⁻², mean power 1/4 over the frequencies but zero."""
    radius = grid.radius(factors={axis.name: 1.0 for axis in grid.axes})
    power = radius.clamp(min=0.5 / max(grid.shape)) ** -2.0
    power = 0.25 * power / grid.mean(power)
    image = mean * torch.linspace(-1, 1, grid.numel, dtype=torch.float64).reshape(1, *grid.shape)
    return ms.DataStatistics(image, power[None], grid, 1)


def make(grid, spectrum, schedule, mean=0.0, modulation=None) -> ms.GaussianDenoiser:
    process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid).double(), modulation)
    return ms.GaussianDenoiser(process, gaussian_data(grid, mean))


def recursion(denoiser: ms.GaussianDenoiser, steps: int) -> Recursion:
    process, schedule = denoiser.process, denoiser.process.schedule
    times = ms.time_steps(schedule, steps)
    alpha, sigma = (value.numpy() for value in schedule.alpha_sigma(times))
    if process.modulation is not None:
        signal, noise = (factor.flatten(1).numpy() for factor in process.modulation(times, process.grid))
        alpha, sigma = alpha[:, None] * signal, sigma[:, None] * noise
    C, W = denoiser.statistics.power[0].flatten().numpy(), process.covariance.power().flatten().numpy()
    return Recursion(alpha, sigma, C, W, schedule.path)


def deviation_from_recursion(sampler: Sampler, denoiser: ms.GaussianDenoiser) -> float:
    """Largest difference between the spectra of samples and the recursion, over the largest value."""
    process, grid, steps, seeds = denoiser.process, denoiser.process.grid, 9, [3, 4]
    shape = (2, 1, *grid.shape)
    weights = RECURSIONS[sampler](recursion(denoiser, steps))
    sources = [process.prior(shape, seeds)]
    sources += [process.noise(shape, [derive(seed, "step", i) for seed in seeds]) for i in range(steps)]
    expected = sum(
        half_spectrum(source, grid) * torch.from_numpy(row).reshape(grid.half_shape)
        for source, row in zip(sources, weights, strict=True)
    )
    samples = half_spectrum(ms.sample(denoiser, sampler, shape, steps, seeds), grid)
    return float((samples - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_sampler_equals_its_recursion_at_every_frequency(sampler):
    for schedule, (grid, spectrum) in product(SCHEDULES, zip(GRIDS, SPECTRA, strict=True)):
        denoiser = make(grid, SPECTRA[spectrum], SCHEDULES[schedule])
        assert deviation_from_recursion(sampler, denoiser) < 1e-10, (schedule, grid.shape, spectrum)


@pytest.mark.parametrize("sampler", [s for s in RECURSIONS if not isinstance(s, ms.Euler | ms.UniPC)], ids=str)
def test_sampler_equals_its_recursion_with_coefficients_per_frequency(sampler):
    for name, modulation in MODULATIONS.items():
        denoiser = make(GRIDS[2], ms.Flat(), SCHEDULES["preserving"], modulation=modulation)
        assert deviation_from_recursion(sampler, denoiser) < 1e-9, name


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_sampler_generates_the_mean(sampler):
    """E[x_s] is linear in x_T, so the mean of antithetic starts is the mean of the law."""
    grid = GRIDS[2]
    for schedule in SCHEDULES.values():
        denoiser = make(grid, SPECTRA["power law"], schedule, mean=0.8)
        mean, noise = denoiser.statistics.mean[None], denoiser.process.prior((1, 1, *grid.shape), [1])
        center, end = (schedule.alpha_sigma(torch.full((1,), t, dtype=torch.float64))[0] * mean for t in (1.0, 0.0))
        runs = [ms.sample(denoiser, sampler, mean.shape, 100, [1], initial=center + sign * noise) for sign in (1, -1)]
        assert float(((runs[0] + runs[1]) / 2 - end).abs().max()) < 0.01, schedule


def band_errors_db(power: torch.Tensor, statistics: ms.DataStatistics, bands: int = 6) -> np.ndarray:
    """Power over that of the data, in dB, in bands of about equal numbers of frequencies."""
    grid = statistics.grid
    sums = [(p * grid.multiplicity).flatten()[grid.radius().flatten().argsort()] for p in (power, statistics.power[0])]
    return np.array([10 * math.log10(a.sum() / b.sum()) for a, b in zip(*(x.chunk(bands) for x in sums), strict=True)])


def largest_error_db(x: torch.Tensor, statistics: ms.DataStatistics) -> float:
    power = half_spectrum(x, statistics.grid).abs().square().mean(0)[0]
    return float(np.abs(band_errors_db(power, statistics)).max())


def power_of_law(sampler: Sampler, denoiser: ms.GaussianDenoiser, steps: int) -> torch.Tensor:
    """Power of what the recursion, which the sampler equals, generates, without Monte Carlo."""
    weights, process = RECURSIONS[sampler](recursion(denoiser, steps)), denoiser.process
    start = process.schedule.alpha_sigma(torch.ones(1))[1].numpy() ** 2
    gain = torch.from_numpy(start * weights[0] ** 2 + (weights[1:] ** 2).sum(0))
    return process.covariance.power() * gain.reshape(process.grid.half_shape)


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_sampler_generates_the_spectrum_of_the_data(sampler):
    odd, even = ms.Grid.of(height=15, width=16), ms.Grid.of(height=32, width=32)
    for grid, spectrum in [*product([odd], FULL_SUPPORT), (even, "power law")]:
        denoiser = make(grid, SPECTRA[spectrum], ms.CosineSchedule())
        errors = band_errors_db(power_of_law(sampler, denoiser, 256), denoiser.statistics)
        assert np.abs(errors).max() < 0.5, (grid.shape, spectrum, errors)


@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.DPMSolver(), ms.DDIM(eta=1.0), ms.DPMSolver(sde=True)], ids=str)
def test_samples_have_the_spectrum_of_the_law(sampler):
    """Power of samples within 4 standard errors of the closed form, in every band."""
    grid, count, parts = ms.Grid.of(time=48), 256, torch.arange(25).chunk(6)
    for name, spectrum in FULL_SUPPORT.items():
        denoiser = make(grid, spectrum, ms.CosineSchedule())
        law = power_of_law(sampler, denoiser, 24) * grid.multiplicity
        samples = ms.sample(denoiser, sampler, (count, 1, 48), 24, range(count))
        power = half_spectrum(samples, grid).abs().square()[:, 0] * grid.multiplicity
        each = torch.stack([power[:, part].sum(1) for part in parts], dim=1)
        expected = torch.stack([law[part].sum() for part in parts])
        assert bool(((each.mean(0) - expected).abs() < 4 * each.std(0) / math.sqrt(count)).all()), name


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_sampler_with_white_noise_misses_the_spectrum_by_more_than_3_db(sampler, monkeypatch):
    """A white prior with deterministic samplers, and white noise in each step of stochastic ones."""
    stochastic, shape = sampler in STOCHASTIC, (128, 1, 48)
    denoiser = make(ms.Grid.of(time=48), ms.PowerLaw(-1.0 if stochastic else -0.5), ms.CosineSchedule())
    white = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), denoiser.process.grid).double())
    initial = (denoiser.process if stochastic else white).prior(shape, range(128))
    monkeypatch.setattr(denoiser.process, "noise", white.noise)
    samples = ms.sample(denoiser, sampler, shape, 64, range(128), initial=initial)
    assert largest_error_db(samples, denoiser.statistics) > 3


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_stochastic_sampler_refuses_to_step_without_noise(sampler):
    denoiser, x = make(ms.Grid.of(time=8), ms.Flat(), ms.CosineSchedule()), torch.zeros(1, 1, 8, dtype=torch.float64)

    def point(t: float) -> Point:
        time = torch.tensor([t], dtype=torch.float64)
        return Point(time, denoiser.process.coefficients(time, x))

    model = Model(lambda x, at: denoiser(x, at.t), point, denoiser.process, 10)
    with pytest.raises(ValueError, match="needs noise"):
        sampler.step(SamplerState(x, point(0.5)), point(0.4), model, None)


@pytest.mark.parametrize(
    ("sampler", "factor"),
    [(ms.DDIM(), 2), (ms.Euler(), 2), (ms.Heun(), 4), (ms.DPMSolver(), 4), (ms.UniPC(), 8)],
    ids=str,
)
def test_sampler_has_its_order_of_convergence(sampler, factor):
    """The error against the exact flow of Gaussian data from σ_max to σ_min falls by `factor` at each halving.

    UniPC-2 is of third order, because its corrector adds one (arXiv 2302.04867, Theorem 3.1).
    """
    grid, schedule = ms.Grid.of(time=32), ms.KarrasSchedule()
    for name, spectrum in FULL_SUPPORT.items():
        denoiser = make(grid, spectrum, schedule)
        start = denoiser.process.prior((1, 1, 32), [0])
        C, W = denoiser.statistics.power, denoiser.process.covariance.power()
        shrinkage = ((C + schedule.sigma_min**2 * W) / (C + schedule.sigma_max**2 * W)).sqrt()
        errors = []
        for steps in (64, 128, 256):
            samples = ms.sample(denoiser, sampler, start.shape, steps, [0], initial=start)
            errors.append(float((half_spectrum(samples, grid) - half_spectrum(start, grid) * shrinkage).norm()))
        ratios = [errors[0] / errors[1], errors[1] / errors[2]]
        assert all(abs(ratio / factor - 1) < 0.15 for ratio in ratios), (name, errors, ratios)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_sample_depends_on_its_seed_only(sampler):
    torch.manual_seed(0)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), ms.Grid.of(height=8, width=8)))
    network = ms.networks.UNet(channels=1, dimensions=2, width=16, multipliers=(1, 2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    denoiser = ms.Denoiser(network, process).double()
    batch = ms.sample(denoiser, sampler, (16, 1, 8, 8), 4, range(16))
    alone = ms.sample(denoiser, sampler, (1, 1, 8, 8), 4, [7])
    torch.testing.assert_close(alone[0], batch[7], atol=1e-10, rtol=1e-10)
    assert float((batch[7] - batch[8]).abs().max()) > 0.1


@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS)
@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.DPMSolver(), ms.UniPC()], ids=str)
def test_sampler_generates_the_spectrum_with_coefficients_per_frequency(sampler, modulation):
    denoiser = make(ms.Grid.of(time=32), ms.Flat(), ms.CosineSchedule(), modulation=modulation)
    samples = ms.sample(denoiser, sampler, (128, 1, 32), 256, range(128))
    # Standard error of the first band: about 0.3 dB.
    assert largest_error_db(samples, denoiser.statistics) < 1.0


def test_euler_and_heun_refuse_coefficients_per_frequency():
    denoiser = make(ms.Grid.of(time=8), ms.Flat(), ms.CosineSchedule(), modulation=MODULATIONS["blur"])
    for sampler in (ms.Euler(), ms.Heun()):
        with pytest.raises(ValueError, match="scalar coefficients"):
            ms.sample(denoiser, sampler, (1, 1, 8), 3, [0])


def test_time_steps_are_even_in_their_spacing():
    schedule = ms.KarrasSchedule()
    in_time = ms.time_steps(schedule, 18)
    torch.testing.assert_close(ms.time_steps(schedule, 18, "karras"), in_time, atol=1e-9, rtol=0)
    log_snr = ms.CosineSchedule().log_snr(ms.time_steps(ms.CosineSchedule(), 10, "log_snr"))
    torch.testing.assert_close(log_snr.diff(), torch.full((10,), 4.0, dtype=torch.float64), atol=1e-6, rtol=0)
    assert ms.time_steps(schedule, 3, start=0.5)[0] == 0.5
    for bad in ({"steps": 0}, {"steps": 3, "start": 0.0}, {"steps": 3, "spacing": "even"}):
        with pytest.raises(ValueError, match=r"step|starts|spacing"):
            ms.time_steps(schedule, **bad)


def test_sample_starts_from_a_noised_datum_and_reports_every_step():
    denoiser = make(ms.Grid.of(time=8), ms.Flat(), ms.CosineSchedule())
    x0, t = torch.ones(2, 1, 8, dtype=torch.float64), torch.tensor([0.01, 0.01], dtype=torch.float64)
    noised = denoiser.process.add_noise(x0, t, denoiser.process.noise(x0.shape, [0, 1]))
    times = ms.time_steps(denoiser.process.schedule, 4, start=0.01)
    reports = []

    def report(step, steps, x, estimate):
        reports.append((step, steps, tuple(x.shape), tuple(estimate.shape)))

    samples = ms.sample(denoiser, ms.DDIM(), x0.shape, 4, [0, 1], times=times, initial=noised, callback=report)
    assert reports == [(i + 1, 4, (2, 1, 8), (2, 1, 8)) for i in range(4)]
    assert float((samples - x0).abs().max()) < 0.1
    with pytest.raises(ValueError, match="two decreasing times"):
        ms.sample(denoiser, ms.DDIM(), x0.shape, 4, [0, 1], times=times.flip(0))
    with pytest.raises(ValueError, match="2 seeds"):
        ms.sample(denoiser, ms.DDIM(), x0.shape, 4, [0])


def test_sample_refuses_times_between_which_the_log_snr_is_constant():
    schedule = ms.TabulatedSchedule((40.0, 30.0, 0.0, -30.0, -40.0))
    denoiser = make(ms.Grid.of(time=8), ms.Flat(), schedule)
    with pytest.raises(ValueError, match="widen"):
        ms.sample(denoiser, ms.DPMSolver(), (1, 1, 8), 8, [0])
    wide = make(ms.Grid.of(time=8), ms.Flat(), ms.TabulatedSchedule(schedule.log_snrs, log_snr_range=(-40, 40)))
    assert bool(torch.isfinite(ms.sample(wide, ms.DPMSolver(), (1, 1, 8), 8, [0])).all())
