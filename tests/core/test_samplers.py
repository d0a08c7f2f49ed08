"""Samplers equal closed forms: the exact denoiser of Gaussian data makes every one of them linear."""

from itertools import product

import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.transfer import transfer_function
from multisagd.samplers import Model, Point, SamplerState
from multisagd.seeds import derive
from tests.helpers import dense
from tests.helpers.gaussian import RECURSIONS, recursion_of
from tests.helpers.networks import Estimate, labelled_denoiser
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import half_spectrum, random_statistics

GRIDS = [ms.Grid.of(time=7), ms.Grid.of(time=8), ms.Grid.of(height=6, width=5), ms.Grid.of(frame=3, height=4, width=4)]
SPECTRA = {
    "white": ms.Flat(),
    "power law": ms.PowerLaw(exponent=-0.5),
    "two bands": ms.TwoBand(weights=(0.7, 0.3)),
    "singular": ms.Band(0.2, 0.9, "nyquist"),
}
SCHEDULES = {
    "preserving": ms.CosineSchedule(log_snr_range=(-12, 12)),
    "exploding": ms.KarrasSchedule(sigma_max=10),
    "flow": ms.FlowSchedule(log_snr_range=(-12, 12)),
}
MODULATIONS = {
    "blur": ms.Blur(length=1.5, floor=0.05),
    "changing colour": ms.ColorShift(early=ms.PowerLaw(0.5), late=ms.PowerLaw(-0.5)),
}
DETERMINISTIC = [ms.DDIM(), ms.Euler(), ms.Heun(), ms.DPMSolver(), ms.UniPC()]
PLANE = GRIDS[2]
STOCHASTIC = [ms.DDIM(eta=1.0), ms.Ancestral(), ms.Heun(churn=20), ms.DPMSolver(sde=True)]


def make(grid, spectrum, schedule, modulation=None) -> ms.GaussianDenoiser:
    """Of data of power ∝ f⁻², mean power 1/4."""
    power = grid.radius(factors=dict.fromkeys(grid.names, 1.0)).clamp(min=0.5 / max(grid.shape)) ** -2.0
    zero = torch.zeros(1, *grid.shape, dtype=torch.float64)
    process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid).double(), modulation)
    return ms.GaussianDenoiser(process, ms.DataStatistics(zero, 0.25 * (power / grid.mean(power))[None], grid, 1))


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_sampler_equals_its_recursion_at_every_frequency(sampler):
    """The spectra of samples, within 1e-9 of their largest value."""
    cases = [(*each, None) for each in product(SCHEDULES, zip(GRIDS, SPECTRA, strict=True))]
    if not isinstance(sampler, ms.Euler):  # coefficients per frequency
        cases += [("preserving", (PLANE, "white"), modulation) for modulation in MODULATIONS.values()]
    for schedule, (grid, spectrum), modulation in cases:
        denoiser = make(grid, SPECTRA[spectrum], SCHEDULES[schedule], modulation=modulation)
        process, shape, seeds = denoiser.process, (2, 1, *grid.shape), [3, 4]
        weights = RECURSIONS[sampler](recursion_of(process, denoiser.statistics, ms.time_steps(process.schedule, 9)))
        noises = (process.noise(shape, [derive(seed, "step", i) for seed in seeds]) for i in range(9))
        expected = sum(
            half_spectrum(source, grid) * torch.from_numpy(row).reshape(grid.half_shape)
            for source, row in zip((process.prior(shape, seeds), *noises), weights, strict=True)
        )
        samples = half_spectrum(ms.sample(denoiser, sampler, shape, 9, seeds), grid)
        error = float((samples - expected).abs().max() / expected.abs().max())
        assert error < (1e-10 if modulation is None else 1e-9), (schedule, spectrum, modulation)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_sampler_with_a_white_prior_misses_the_spectrum_by_more_than_3_db(sampler):
    """Where the right prior misses it by less than 0.5 dB, both in closed form."""
    denoiser = make(ms.Grid.of(time=48), ms.PowerLaw(-0.5), ms.CosineSchedule())
    times = ms.time_steps(denoiser.process.schedule, 128, "log_snr")
    transfer = transfer_function(sampler, denoiser.process, times, denoiser.statistics)
    white = transfer.prior / denoiser.process.covariance.power() * transfer.noise_gain**2
    errors = [float(10 * (power / denoiser.statistics.power).log10().abs().max()) for power in (transfer.power, white)]
    assert errors[0] < 0.5
    assert errors[1] > 3


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_stochastic_sampler_refuses_to_step_without_noise(sampler):
    denoiser, x = make(ms.Grid.of(time=8), ms.Flat(), ms.CosineSchedule()), torch.zeros(1, 1, 8, dtype=torch.float64)
    here, there = (torch.tensor([t], dtype=torch.float64) for t in (0.5, 0.4))

    def point(t: Tensor) -> Point:
        return Point(t, denoiser.process.coefficients(t, x))

    model = Model(lambda x, at: denoiser(x, at.t), point, denoiser.process, 10)
    with pytest.raises(ValueError, match="needs noise"):
        sampler.step(SamplerState(x, point(here)), point(there), model, None)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_sample_depends_on_its_seed_only(sampler):
    denoiser = labelled_denoiser(ms.Grid.of(height=8, width=8)).double()
    batch = ms.sample(denoiser, sampler, (16, 1, 8, 8), 4, range(16))
    torch.testing.assert_close(ms.sample(denoiser, sampler, (1, 1, 8, 8), 4, [7])[0], batch[7], atol=1e-10, rtol=1e-10)
    assert float((batch[7] - batch[8]).abs().max()) > 0.1


def test_time_steps_are_even_in_their_spacing():
    schedule = ms.KarrasSchedule()
    in_time = ms.time_steps(schedule, 18)
    torch.testing.assert_close(ms.time_steps(schedule, 18, "karras"), in_time, atol=1e-9, rtol=0)
    log_snr = ms.CosineSchedule().log_snr(ms.time_steps(ms.CosineSchedule(), 10, "log_snr"))
    torch.testing.assert_close(log_snr.diff(), torch.full((10,), 4.0, dtype=torch.float64), atol=1e-6, rtol=0)
    assert ms.time_steps(schedule, 3, start=0.5)[0] == 0.5


def test_time_steps_between_ends_spend_all_but_the_last_there():
    schedule = ms.CosineSchedule()
    times = ms.time_steps(schedule, 10, "log_snr", ends=(-6, 12))
    expected = torch.linspace(-6, 12, 10, dtype=torch.float64)
    torch.testing.assert_close(schedule.log_snr(times[:-1]), expected, atol=1e-6, rtol=0)
    assert times[-1] == 0
    karras = schedule.log_snr(ms.time_steps(schedule, 10, "karras", ends=(-6, 12))[:-1])
    torch.testing.assert_close(
        (-karras / 14).exp().diff().diff(), torch.zeros(8, dtype=torch.float64), atol=1e-6, rtol=0
    )
    assert float(schedule.log_snr(ms.time_steps(schedule, 10, "log_snr", 0.5, (-6, 12))[0])) == pytest.approx(
        0, abs=1e-6
    )
    assert ms.time_steps(schedule, 1, "log_snr", ends=(-6, 12)).shape == (2,)
    whole = schedule.log_snr(ms.time_steps(schedule, 10, "log_snr", ends=(-6, 99)))
    assert len(whole) == 11
    torch.testing.assert_close(whole.diff(), torch.full((10,), 2.6, dtype=torch.float64), rtol=0, atol=1e-6)


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


RED = ms.PowerLaw(exponent=-0.6, corner=0.1)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_gaussian_integrator_is_exact_on_gaussian_data_in_any_number_of_steps(schedule: ms.Schedule) -> None:
    """Each deviation from the mean grows as the standard deviation of its frequency does, the flow's own solution."""
    for grid, spectrum, steps in product(GRIDS, (ms.Flat(), RED), (1, 7)):
        statistics, initial = random_statistics(grid), dense.random(2, 2, *grid.shape, seed=2)
        process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid)).double()
        times = torch.linspace(0.95, 0.03, steps + 1, dtype=torch.float64)
        oracle, sampler = ms.GaussianDenoiser(process, statistics), ms.GaussianIntegrator(statistics)
        drawn = ms.sample(oracle, sampler, initial.shape, steps, [0, 1], times=times, initial=initial)
        (a, a_s), (b, b_s) = (each[[0, -1]] for each in process.schedule.alpha_sigma(times))
        noise, dims = process.covariance.power(), tuple(range(-grid.dimensions, 0))
        growth = ((a_s**2 * statistics.power + b_s**2 * noise) / (a**2 * statistics.power + b**2 * noise)).sqrt()
        deviation = half_spectrum(initial - a * statistics.mean, grid) * growth
        expected = a_s * statistics.mean + torch.fft.irfftn(deviation, s=grid.shape, dim=dims, norm="ortho")
        torch.testing.assert_close(drawn, expected, rtol=1e-8, atol=1e-8)


def curved_model(spectrum: ms.Spectrum) -> tuple[Estimate, ms.DataStatistics, Tensor]:
    """A denoiser that is not linear (the Wiener filter, pulled to ±1), the statistics it is of, and a start."""
    statistics, initial = random_statistics(PLANE), dense.random(2, 2, *PLANE.shape, seed=2)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, PLANE)).double()
    oracle = ms.GaussianDenoiser(process, statistics)
    return Estimate(process, lambda x, t: oracle(x, t) + 0.3 * torch.tanh(2 * oracle(x, t))), statistics, initial


def test_gaussian_integrator_converges_at_first_order_on_other_data() -> None:
    denoiser, statistics, initial = curved_model(RED)

    def drawn(sampler: ms.samplers.Sampler, steps: int) -> Tensor:
        times = torch.linspace(0.95, 0.05, steps + 1, dtype=torch.float64)
        return ms.sample(denoiser, sampler, initial.shape, steps, range(2), times=times, initial=initial)

    exact = drawn(ms.Heun(), 400)
    errors = [float((drawn(ms.GaussianIntegrator(statistics), steps) - exact).abs().mean()) for steps in (16, 32, 64)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.2)


def test_gaussian_integrator_without_variance_is_ddim() -> None:
    denoiser, statistics, initial = curved_model(ms.Flat())
    constant = ms.DataStatistics(statistics.mean, 1e-10 * statistics.power, statistics.grid, 10)
    times = torch.linspace(0.9, 0.2, 5, dtype=torch.float64)
    one, other = (
        ms.sample(denoiser, sampler, initial.shape, 4, [0, 1], times=times, initial=initial)
        for sampler in (ms.DDIM(), ms.GaussianIntegrator(constant))
    )
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_samplers_refuse_what_they_cannot_follow() -> None:
    line, plain, log_snrs = ms.Grid.of(time=8), ms.CosineSchedule(), (40.0, 30.0, 0.0, -30.0, -40.0)
    oracle, blurred = (make(line, ms.Flat(), plain, modulation=each) for each in (None, MODULATIONS["blur"]))
    short, wide = (ms.TabulatedSchedule(log_snrs, log_snr_range=(-ends, ends)) for ends in (20, 40))
    statistics, white = random_statistics(line, channels=1), ms.SpectralCovariance(ms.Flat(), line)

    def sample(denoiser=oracle, sampler=DETERMINISTIC[0], steps=8, seeds=(0,), channels=1, **options) -> Tensor:
        return ms.sample(denoiser, sampler, (1, channels, 8), steps, seeds, **options)

    def integrate(covariance=white, modulation=None, channels=1) -> Tensor:
        process = ms.Process(plain, covariance, modulation).double()
        return sample(Estimate(process), ms.GaussianIntegrator(statistics), channels=channels)

    assert bool(sample(make(line, ms.Flat(), wide), ms.DPMSolver()).isfinite().all())
    assert_refused(
        ("widen", lambda: sample(make(line, ms.Flat(), short), ms.DPMSolver())),
        ("scalar coefficients", lambda: sample(blurred, ms.Euler())),
        ("scalar coefficients", lambda: sample(blurred, ms.Heun())),
        ("two times, in decreasing order", lambda: sample(times=torch.tensor([0.1, 0.2]), steps=1)),
        ("1 seeds", lambda: sample(seeds=(0, 1))),
        ("step", lambda: ms.time_steps(plain, 0)),
        ("must start", lambda: ms.time_steps(plain, 3, start=0.0)),
        ("spacing", lambda: ms.time_steps(plain, 3, "even")),
        ("equal in time", lambda: ms.time_steps(plain, 3, ends=(-6, 12))),
        ("two increasing log-SNRs", lambda: ms.time_steps(plain, 3, "log_snr", ends=(12, -6))),
        ("two increasing log-SNRs", lambda: ms.time_steps(plain, 3, "log_snr", ends=(30, 40))),
        ("scalar coefficients", lambda: integrate(modulation=ms.Blur(length=1.0))),
        ("every frequency", lambda: integrate(ms.SpectralCovariance(ms.Band(0.0, 0.3), line))),
        ("1 channels", lambda: integrate(channels=3)),
    )
