"""Samplers against closed forms: the exact denoiser of Gaussian data makes every one of them linear."""

import math

import numpy as np
import pytest
import torch

import multisagd as ms
from multisagd.seeds import derive
from tests.helpers.gaussian import Recursion

GRIDS = {
    "1-D odd": ms.Grid.of(time=7),
    "1-D even": ms.Grid.of(time=8),
    "2-D mixed": ms.Grid.of(height=6, width=5),
    "3-D mixed": ms.Grid.of(frame=3, height=4, width=4),
}
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


def make(grid: ms.Grid, spectrum: ms.Spectrum, schedule: ms.Schedule, mean: float = 0.0) -> ms.GaussianDenoiser:
    covariance = ms.SpectralCovariance(spectrum, grid).double()
    return ms.GaussianDenoiser(ms.Process(schedule, covariance), gaussian_data(grid, mean))


def recursion(denoiser: ms.GaussianDenoiser, steps: int) -> Recursion:
    schedule = denoiser.process.schedule
    alpha, sigma = (value.numpy() for value in schedule.alpha_sigma(ms.time_steps(schedule, steps)))
    C, W = denoiser.statistics.power[0].flatten().numpy(), denoiser.process.covariance.power().flatten().numpy()
    return Recursion(alpha, sigma, C, W, schedule.path)


def transform(x: torch.Tensor, grid: ms.Grid) -> torch.Tensor:
    return torch.fft.rfftn(x, dim=tuple(range(-grid.dimensions, 0)), norm="ortho")


@pytest.mark.parametrize(("grid", "spectrum"), list(zip(GRIDS.values(), SPECTRA.values(), strict=True)), ids=GRIDS)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_equals_its_recursion_per_frequency(sampler, schedule, spectrum, grid):
    denoiser, steps, seeds = make(grid, spectrum, schedule), 9, [3, 4]
    process, shape = denoiser.process, (2, 1, *grid.shape)
    weights = RECURSIONS[sampler](recursion(denoiser, steps))
    sources = [process.prior(shape, seeds)]
    sources += [process.noise(shape, [derive(seed, "step", i) for seed in seeds]) for i in range(steps)]
    expected = sum(
        transform(source, grid) * torch.from_numpy(row).reshape(grid.half_shape)
        for source, row in zip(sources, weights, strict=True)
    )
    drawn = ms.sample(denoiser, sampler, shape, steps, seeds)
    scale = expected.abs().max()
    torch.testing.assert_close(transform(drawn, grid), expected, atol=1e-10 * float(scale), rtol=0)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_generates_the_mean(sampler, schedule):
    # E[x_s] is linear in x_T, so the mean of antithetic starts is the mean of the law.
    grid = GRIDS["2-D mixed"]
    denoiser = make(grid, SPECTRA["power law"], schedule, mean=0.8)
    mean, noise = denoiser.statistics.mean[None], denoiser.process.prior((1, 1, *grid.shape), [1])
    center, end = (schedule.alpha_sigma(torch.full((1,), t, dtype=torch.float64))[0] * mean for t in (1.0, 0.0))
    runs = [ms.sample(denoiser, sampler, mean.shape, 100, [1], initial=center + sign * noise) for sign in (1, -1)]
    torch.testing.assert_close((runs[0] + runs[1]) / 2, end, atol=0.01, rtol=0)


def band_errors_db(power: torch.Tensor, statistics: ms.DataStatistics, bands: int = 6) -> np.ndarray:
    """Power over that of the data, in dB, in bands of about equal numbers of frequencies."""
    grid = statistics.grid
    sums = [(p * grid.multiplicity).flatten()[grid.radius().flatten().argsort()] for p in (power, statistics.power[0])]
    return np.array([10 * math.log10(a.sum() / b.sum()) for a, b in zip(*(x.chunk(bands) for x in sums), strict=True)])


def spectrum_error_db(x: torch.Tensor, statistics: ms.DataStatistics) -> np.ndarray:
    return band_errors_db(transform(x, statistics.grid).abs().square().mean(0)[0], statistics)


FULL_SUPPORT = {name: SPECTRA[name] for name in ("white", "power law", "two bands")}


@pytest.mark.parametrize(
    "grid", [ms.Grid.of(height=15, width=16), ms.Grid.of(height=32, width=32)], ids=["odd", "even"]
)
@pytest.mark.parametrize("spectrum", FULL_SUPPORT.values(), ids=FULL_SUPPORT)
@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_law_is_the_spectrum_of_the_data(sampler, spectrum, grid):
    """The recursion, which the sampler equals, gives the power of what is generated without Monte Carlo."""
    denoiser = make(grid, spectrum, ms.CosineSchedule())
    weights, W = RECURSIONS[sampler](recursion(denoiser, 256)), denoiser.process.covariance.power().flatten()
    start = denoiser.process.schedule.alpha_sigma(torch.ones(1))[1] ** 2
    generated = W * torch.from_numpy(start.numpy() * weights[0] ** 2 + (weights[1:] ** 2).sum(0))
    errors = band_errors_db(generated.reshape(grid.half_shape), denoiser.statistics)
    assert np.abs(errors).max() < 0.5, errors


@pytest.mark.parametrize("spectrum", FULL_SUPPORT.values(), ids=FULL_SUPPORT)
@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.DPMSolver(), ms.DDIM(eta=1.0), ms.DPMSolver(sde=True)], ids=str)
def test_samples_have_the_spectrum_of_the_law(sampler, spectrum):
    """Power of drawn samples within 4 standard errors of the closed form, in every band."""
    denoiser, count = make(ms.Grid.of(time=48), spectrum, ms.CosineSchedule()), 256
    weights, W = RECURSIONS[sampler](recursion(denoiser, 24)), denoiser.process.covariance.power()
    start = denoiser.process.schedule.alpha_sigma(torch.ones(1))[1] ** 2
    law = W * torch.from_numpy(start.numpy() * weights[0] ** 2 + (weights[1:] ** 2).sum(0))
    drawn = ms.sample(denoiser, sampler, (count, 1, 48), 24, range(count))
    grid = denoiser.process.grid
    power = transform(drawn, grid).abs().square()[:, 0]
    each = torch.stack([(power * grid.multiplicity)[:, part].sum(1) for part in torch.arange(25).chunk(6)], dim=1)
    expected = torch.stack([(law * grid.multiplicity)[part].sum() for part in torch.arange(25).chunk(6)])
    standard_error = each.std(0) / math.sqrt(count)
    assert bool(((each.mean(0) - expected).abs() < 4 * standard_error).all())


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_a_white_prior_fails_with_deterministic_samplers(sampler):
    denoiser = make(ms.Grid.of(time=48), SPECTRA["power law"], ms.CosineSchedule())
    white = ms.SpectralCovariance(ms.Flat(), denoiser.process.grid).double().sample(range(128))
    drawn = ms.sample(denoiser, sampler, (128, 1, 48), 64, range(128), initial=white)
    assert np.abs(spectrum_error_db(drawn, denoiser.statistics)).max() > 3


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_white_injected_noise_fails_with_stochastic_samplers(sampler, monkeypatch):
    denoiser = make(ms.Grid.of(time=48), ms.PowerLaw(exponent=-1.0), ms.CosineSchedule())
    white = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), denoiser.process.grid).double())
    initial = denoiser.process.prior((128, 1, 48), range(128))
    monkeypatch.setattr(denoiser.process, "noise", white.noise)
    drawn = ms.sample(denoiser, sampler, (128, 1, 48), 64, range(128), initial=initial)
    assert np.abs(spectrum_error_db(drawn, denoiser.statistics)).max() > 3


@pytest.mark.parametrize("spectrum", FULL_SUPPORT.values(), ids=FULL_SUPPORT)
@pytest.mark.parametrize(
    ("sampler", "factor"),
    [(ms.DDIM(), 2), (ms.Euler(), 2), (ms.Heun(), 4), (ms.DPMSolver(), 4), (ms.UniPC(), 8)],
    ids=str,
)
def test_order_of_convergence(sampler, factor, spectrum):
    """The error against the exact flow of Gaussian data from σ_max to σ_min falls by `factor` at each halving.

    UniPC-2 is of third order, because its corrector adds one (arXiv 2302.04867, Theorem 3.1).
    """
    grid, schedule = ms.Grid.of(time=32), ms.KarrasSchedule()
    denoiser = make(grid, spectrum, schedule)
    process, statistics = denoiser.process, denoiser.statistics
    start = process.prior((1, 1, 32), [0])
    C, W = statistics.power, process.covariance.power()
    exact = transform(start, grid) * ((C + schedule.sigma_min**2 * W) / (C + schedule.sigma_max**2 * W)).sqrt()
    errors = []
    for steps in (64, 128, 256):
        drawn = ms.sample(denoiser, sampler, start.shape, steps, [0], initial=start)
        errors.append(float((transform(drawn, grid) - exact).norm()))
    ratios = [errors[0] / errors[1], errors[1] / errors[2]]
    assert all(abs(ratio / factor - 1) < 0.15 for ratio in ratios), (errors, ratios)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_commutes_with_whitening(sampler, schedule, grid):
    """Coloured noise with full support is white noise on whitened data (theory §2)."""
    colored = make(grid, SPECTRA["power law"], schedule)
    covariance, statistics = colored.process.covariance, colored.statistics
    white_process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), grid).double())
    whitened = ms.DataStatistics(statistics.mean, statistics.power / covariance.power(), grid, 1)
    white = ms.GaussianDenoiser(white_process, whitened)
    shape, seeds = (2, 1, *grid.shape), [5, 6]
    # The same seeds draw the same white noise, coloured by one process and not by the other.
    drawn = covariance.whiten(ms.sample(colored, sampler, shape, 11, seeds))
    torch.testing.assert_close(drawn, ms.sample(white, sampler, shape, 11, seeds), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_a_sample_depends_on_its_seed_only(sampler):
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


@pytest.mark.parametrize("sampler", STOCHASTIC, ids=str)
def test_refuses_to_step_without_noise(sampler):
    grid = ms.Grid.of(time=8)
    denoiser = make(grid, ms.Flat(), ms.CosineSchedule())
    x, process = torch.zeros(1, 1, 8, dtype=torch.float64), denoiser.process
    from multisagd.samplers import Model, Point, SamplerState

    def point(t):
        return Point(t, process.coefficients(t, x))

    model = Model(lambda x, at: denoiser(x, at.t), point, process, 10)
    t = torch.tensor([0.5, 0.4], dtype=torch.float64)
    with pytest.raises(ValueError, match="needs noise"):
        sampler.step(SamplerState(x, point(t[:1])), point(t[1:]), model, None)


MODULATIONS = {
    "blur": ms.Blur(length=1.5, floor=0.05),
    "changing colour": ms.ColorShift(early=ms.PowerLaw(0.5), late=ms.PowerLaw(-0.5)),
}


@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS)
@pytest.mark.parametrize("sampler", [s for s in RECURSIONS if not isinstance(s, ms.Euler | ms.UniPC)], ids=str)
def test_coefficients_per_frequency_equal_their_recursion(sampler, modulation):
    grid, schedule, steps, seeds = GRIDS["2-D mixed"], SCHEDULES["preserving"], 9, [3, 4]
    process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), grid).double(), modulation)
    denoiser, shape = ms.GaussianDenoiser(process, gaussian_data(grid)), (2, 1, *grid.shape)
    times = ms.time_steps(schedule, steps)
    signal, noise = (factor.flatten(1).numpy() for factor in modulation(times, grid))
    scalar = recursion(denoiser, steps)
    weights = RECURSIONS[sampler](
        Recursion(scalar.alpha[:, None] * signal, scalar.sigma[:, None] * noise, scalar.C, scalar.W)
    )
    sources = [process.prior(shape, seeds)]
    sources += [process.noise(shape, [derive(seed, "step", i) for seed in seeds]) for i in range(steps)]
    expected = sum(
        transform(source, grid) * torch.from_numpy(row).reshape(grid.half_shape)
        for source, row in zip(sources, weights, strict=True)
    )
    drawn = transform(ms.sample(denoiser, sampler, shape, steps, seeds), grid)
    torch.testing.assert_close(drawn, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS)
@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.DPMSolver(), ms.UniPC()], ids=str)
def test_coefficients_per_frequency_generate_the_spectrum(sampler, modulation):
    grid = ms.Grid.of(time=32)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid).double(), modulation)
    denoiser = ms.GaussianDenoiser(process, gaussian_data(grid))
    drawn = ms.sample(denoiser, sampler, (128, 1, 32), 256, range(128))
    # Standard error of the first band: about 0.3 dB.
    assert np.abs(spectrum_error_db(drawn, denoiser.statistics)).max() < 1.0


def test_euler_refuses_coefficients_per_frequency():
    grid = ms.Grid.of(time=8)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Flat(), grid), MODULATIONS["blur"])
    denoiser = ms.GaussianDenoiser(process, gaussian_data(grid))
    with pytest.raises(ValueError, match="scalar coefficients"):
        ms.sample(denoiser, ms.Heun(), (1, 1, 8), 3, [0])


def test_time_spacings():
    schedule = ms.KarrasSchedule()
    in_time = ms.time_steps(schedule, 18)
    torch.testing.assert_close(ms.time_steps(schedule, 18, "karras"), in_time, atol=1e-9, rtol=0)
    log_snr = ms.CosineSchedule().log_snr(ms.time_steps(ms.CosineSchedule(), 10, "log_snr"))
    torch.testing.assert_close(log_snr.diff(), torch.full((10,), 4.0, dtype=torch.float64), atol=1e-6, rtol=0)
    assert ms.time_steps(schedule, 3, start=0.5)[0] == 0.5
    for bad in ({"steps": 0}, {"steps": 3, "start": 0.0}, {"steps": 3, "spacing": "even"}):
        with pytest.raises(ValueError, match=r"step|starts|spacing"):
            ms.time_steps(schedule, **bad)


def test_sampling_goes_on_from_a_noised_datum_and_reports():
    denoiser = make(ms.Grid.of(time=8), ms.Flat(), ms.CosineSchedule())
    x0 = torch.ones(2, 1, 8, dtype=torch.float64)
    t = torch.tensor([0.01, 0.01], dtype=torch.float64)
    noised = denoiser.process.add_noise(x0, t, denoiser.process.noise(x0.shape, [0, 1]))
    times = ms.time_steps(denoiser.process.schedule, 4, start=0.01)
    seen = []
    drawn = ms.sample(
        denoiser, ms.DDIM(), x0.shape, 4, [0, 1], times=times, initial=noised,
        callback=lambda step, steps, x, estimate: seen.append((step, steps, tuple(x.shape), tuple(estimate.shape))),
    )  # fmt: skip
    assert seen == [(i + 1, 4, (2, 1, 8), (2, 1, 8)) for i in range(4)]
    assert float((drawn - x0).abs().max()) < 0.1
    with pytest.raises(ValueError, match="two descending times"):
        ms.sample(denoiser, ms.DDIM(), x0.shape, 4, [0, 1], times=times.flip(0))
    with pytest.raises(ValueError, match="2 seeds"):
        ms.sample(denoiser, ms.DDIM(), x0.shape, 4, [0])


def test_refuses_times_between_which_the_log_snr_does_not_move():
    schedule = ms.TabulatedSchedule((40.0, 30.0, 0.0, -30.0, -40.0))
    denoiser = make(ms.Grid.of(time=8), ms.Flat(), schedule)
    with pytest.raises(ValueError, match="widen"):
        ms.sample(denoiser, ms.DPMSolver(), (1, 1, 8), 8, [0])
    wide = make(ms.Grid.of(time=8), ms.Flat(), ms.TabulatedSchedule(schedule.log_snrs, log_snr_range=(-40, 40)))
    assert bool(torch.isfinite(ms.sample(wide, ms.DPMSolver(), (1, 1, 8), 8, [0])).all())


def test_what_sampling_in_inference_mode_keeps_serves_training():
    torch.manual_seed(0)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), ms.Grid.of(time=8)))
    network = ms.networks.UNet(channels=1, dimensions=1, width=8, multipliers=(1,))
    statistics = gaussian_data(ms.Grid.of(time=8))
    denoiser = ms.Denoiser(network, process, statistics=statistics)
    with torch.inference_mode():
        ms.sample(denoiser, ms.DDIM(), (1, 1, 8), 2, [0])
    denoiser.loss(torch.zeros(1, 1, 8), torch.rand(1), [0], metric="mahalanobis").sum().backward()
