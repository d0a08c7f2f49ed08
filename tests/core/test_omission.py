"""Omission, projection and restoration agree with the exact denoiser of Gaussian data and with Monte Carlo."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from multisagd.covariance import to_half_spectrum
from multisagd.finishing import finish, residual_power
from multisagd.restoration import clean_power
from tests.helpers import dense
from tests.helpers.networks import Affine
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import draw_data, random_statistics

GRIDS = [ms.Grid.of(time=15), ms.Grid.of(height=6, width=8), ms.Grid.of(frame=3, height=4, width=5)]
COSINE = ms.CosineSchedule()
SCHEDULES = [COSINE, ms.KarrasSchedule(), ms.FlowSchedule()]
TIMES = torch.tensor([0.02, 0.4, 0.95], dtype=torch.float64)
SEEDS = [1, 2, 3]
BAND = ms.Band(0.2, 0.4)
COLORED = ms.PowerLaw(-0.4, corner=0.1)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


def process_of(grid: ms.Grid, spectrum: ms.Spectrum, schedule: ms.Schedule = COSINE) -> ms.Process:
    return ms.Process(schedule, ms.SpectralCovariance(spectrum, grid)).double()


def restoring(process: ms.Process, network: nn.Module, corruption: ms.Corruption, **options) -> ms.RestoringDenoiser:
    clean = random_statistics(process.grid)
    corrupted = ms.DataStatistics(clean.mean, clean.power + corruption.power(), process.grid, 10)
    return ms.RestoringDenoiser(network, process, corruption, corrupted, **options)


def unseen(grid: ms.Grid, schedule: ms.Schedule, network: nn.Module, **options) -> ms.RestoringDenoiser:
    """Restoration with no noise in the corrupted band."""
    return restoring(process_of(grid, ms.Outside(BAND), schedule), network, ms.Corruption(BAND, grid, 1.5), **options)


def floored(
    grid: ms.Grid, schedule: ms.Schedule, network: nn.Module, level: float = 1.5, margin: float = 0.7, **options
) -> ms.RestoringDenoiser:
    """Restoration with more noise than corruption in the band."""
    corruption, covariance = ms.Corruption(BAND, grid, level), ms.SpectralCovariance(COLORED, grid)
    process = ms.Process(schedule, covariance, ms.NoiseFloor(schedule, covariance, corruption, margin)).double()
    return restoring(process, network, corruption, **options)


both = pytest.mark.parametrize("make", [floored, unseen])


def in_band(x: Tensor, grid: ms.Grid) -> Tensor:
    return to_half_spectrum(x, grid.dimensions)[..., ms.Corruption(BAND, grid).power() > 0]


@grids
def test_projected_denoiser_is_blind_where_there_is_no_noise_and_returns_the_mean(grid) -> None:
    process, network, statistics = process_of(grid, ms.Outside(BAND)), Affine(0.3), random_statistics(grid)
    denoiser = ms.ProjectedDenoiser(network, process, statistics=statistics)
    x, other = dense.random(3, 2, *grid.shape), dense.random(3, 2, *grid.shape, seed=5)
    moved = x + other - process.covariance.project(other)
    torch.testing.assert_close(denoiser(moved, TIMES), denoiser(x, TIMES), rtol=0, atol=1e-12)
    error = denoiser.error(x, TIMES, process.noise(x.shape, SEEDS).double())
    assert float(error.abs().max()) > 0.1
    for empty in (network.inputs[0], denoiser(x, TIMES) - statistics.mean, error):
        assert float(in_band(empty, grid).abs().max()) < 1e-12


@grids
def test_projected_denoiser_that_is_not_blind_sees_the_band_and_keeps_it(grid) -> None:
    process, network = process_of(grid, ms.Outside(BAND)), Affine(0.3)
    options = {"statistics": random_statistics(grid)}
    denoiser = ms.ProjectedDenoiser(network, process, blind=False, **options)
    x0, noise = dense.random(3, 2, *grid.shape), process.noise((3, 2, *grid.shape), SEEDS).double()
    x_t = process.add_noise(x0, TIMES, noise)
    # Of a datum without noise in the band, the estimate is exact there; in sampling, zero stays zero.
    torch.testing.assert_close(in_band(denoiser(x_t, TIMES), grid), in_band(x0, grid), rtol=0, atol=1e-8)
    assert float(in_band(network.inputs[0], grid).abs().max()) > 0.1
    samples = ms.sample(denoiser, ms.DDIM(), (2, 2, *grid.shape), 5, [1, 2])
    assert float(in_band(samples, grid).abs().max()) < 1e-5
    # The same as predicting noise with a network that has learned that there is none.
    options |= {"network": lambda x, *_: 0.4 * process.covariance.project(x), "process": process, "prediction": "noise"}
    by_noise, ours = ms.Denoiser(**options), ms.ProjectedDenoiser(blind=False, **options)
    torch.testing.assert_close(ours(x_t, TIMES), by_noise(x_t, TIMES), rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.loss(x0, TIMES, SEEDS), by_noise.loss(x0, TIMES, SEEDS))


@grids
@schedules
def test_projected_denoiser_equals_denoiser_with_noise_everywhere(grid, schedule) -> None:
    process, x = process_of(grid, COLORED, schedule), dense.random(3, 2, *grid.shape)
    for preconditioning in ("none", "karras", "spectral"):
        options = {"preconditioning": preconditioning, "statistics": random_statistics(grid)}
        ours, theirs = (each(Affine(0.3), process, **options) for each in (ms.ProjectedDenoiser, ms.Denoiser))
        torch.testing.assert_close(ours(x, TIMES), theirs(x, TIMES), rtol=0, atol=1e-9)
        torch.testing.assert_close(ours.loss(x, TIMES, SEEDS), theirs.loss(x, TIMES, SEEDS), rtol=1e-9, atol=0)


@grids
@schedules
def test_noise_floor_is_the_formula_on_the_full_spectrum(grid, schedule) -> None:
    corruption, covariance = ms.Corruption(BAND, grid, 0.8), ms.SpectralCovariance(COLORED, grid)
    alpha, sigma = (each.numpy() for each in schedule.alpha_sigma(TIMES))
    W = np.maximum(dense.radius(grid), 0.1) ** -0.8
    W /= W.mean()
    inside = ((dense.radius(grid) >= 0.2 - 1e-9) & (dense.radius(grid) <= 0.4 + 1e-9)).astype(float)
    c2 = 0.8**2 * inside / inside.mean()
    for margin in (0.3, 2.0):
        process = ms.Process(schedule, covariance, ms.NoiseFloor(schedule, covariance, corruption, margin)).double()
        at = process.coefficients(TIMES, torch.empty(3, 1, *grid.shape, dtype=torch.float64))
        for i in range(3):
            expected = np.maximum(sigma[i] ** 2 * W, (1 + margin) * alpha[i] ** 2 * c2)
            power = (at.b[i, 0] ** 2 * covariance.power()).numpy()
            np.testing.assert_allclose(power, dense.half(grid, expected), rtol=1e-9)
            np.testing.assert_allclose(at.a[i].numpy(), alpha[i], rtol=1e-12)


@grids
@schedules
def test_restoring_denoiser_with_a_network_of_zero_is_the_clean_oracle_in_the_band(grid, schedule) -> None:
    denoiser, x = floored(grid, schedule, Affine()), dense.random(3, 2, *grid.shape)
    oracle = ms.GaussianDenoiser(denoiser.process, random_statistics(grid))
    ours, theirs = (in_band(each(x, TIMES), grid) for each in (denoiser, oracle))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@both
@pytest.mark.parametrize(("grid", "schedule"), list(zip(GRIDS, SCHEDULES, strict=True)), ids=["1d", "2d", "3d"])
def test_restoring_denoiser_has_a_target_without_bias(grid, schedule, make) -> None:
    """In the band, what the target has beyond the clean datum is orthogonal to everything that the network sees."""
    denoiser, count = make(grid, schedule, Affine()), 8000
    clean = draw_data(random_statistics(grid), count, seed=100)
    corrupted = denoiser.corruption.corrupt(clean, range(count))
    noise = denoiser.process.noise(clean.shape, range(count, 2 * count)).double()
    for time in (0.02, 0.5):
        t = torch.full((count,), time, dtype=torch.float64)
        x_t, target = denoiser.training_pair(corrupted, t, noise)
        beyond = to_half_spectrum(target - clean, grid.dimensions)
        known = denoiser.band(denoiser.process.coefficients(t[:1], clean), clean)
        inside = (known.corruption > 0).expand(1, *grid.half_shape)[0]
        seen = to_half_spectrum(x_t, grid.dimensions) * known.seen.expand(1, *grid.half_shape)[0]
        product = (beyond * seen.conj()).real
        error = product.mean(0) / (product.std(0) / math.sqrt(count)).clamp(min=1e-12)
        assert float(error[:, inside].abs().max()) < 5, time
        if make is floored:  # corrupted data are given only the noise that they lack
            at = denoiser.process.coefficients(t[:1], clean)
            given, known_clean = (to_half_spectrum(each, grid.dimensions) for each in (x_t, clean))
            power = (given - at.a * known_clean).abs().square().mean((0, 1)) / grid.numel
            expected = (at.b**2 * denoiser.process.covariance.power())[0, 0]
            torch.testing.assert_close(power, expected, rtol=0.08, atol=0)  # 5 standard errors of 16,000 numbers
        # Its size is what the weights of the loss take it to be.
        size = beyond.abs().square().mean((0, 1)) / grid.numel
        expected = known.target_variance.expand(1, 1, *grid.half_shape)[0, 0]
        # 16,000 numbers per frequency: a relative standard error of at most 1.1 %; 5 of them and the correlation.
        torch.testing.assert_close(size[inside], expected[inside], rtol=0.1, atol=0)


@grids
@both
@pytest.mark.parametrize("preconditioning", ["none", "karras"])
def test_restoring_denoiser_has_the_errors_of_the_estimate_from_the_target(grid, make, preconditioning) -> None:
    denoiser = make(grid, COSINE, Affine(0.3), preconditioning=preconditioning)
    x0, noise = dense.random(3, 2, *grid.shape), denoiser.process.noise((3, 2, *grid.shape), SEEDS).double()
    x_t, target = denoiser.training_pair(x0, TIMES, noise)
    at = denoiser.process.coefficients(TIMES, x0)
    known, out = denoiser.band(at, x0), denoiser.preconditioning_at(at, x0).c_out
    weight = (known.clean / (known.clean + known.target_variance)).sqrt()
    expected = to_half_spectrum(denoiser(x_t, TIMES) - target, grid.dimensions) * weight / out
    error = to_half_spectrum(denoiser.error(x0, TIMES, noise), grid.dimensions)
    # Outside the band of an unseen corruption the target is the datum, from which the error follows for any noise.
    torch.testing.assert_close(error, expected, rtol=0, atol=1e-8)


@grids
@both
def test_finish_replaces_the_band_of_finite_samples_by_the_estimate(grid, make) -> None:
    denoiser, shape = make(grid, COSINE, Affine(0.1)), (3, 2, *grid.shape)
    for sampler in (ms.DDIM(), ms.DDIM(eta=1.0), ms.DPMSolver(), ms.UniPC()):
        if make is floored and isinstance(sampler, ms.UniPC):
            with pytest.raises(ValueError, match="constant noise level"):
                ms.sample(denoiser, sampler, shape, 12, SEEDS)
            continue
        x = ms.sample(denoiser, sampler, shape, 12, SEEDS)
        assert bool(x.isfinite().all()), sampler
        finished = finish(denoiser, x)
        estimate = denoiser(x, torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(in_band(finished, grid), in_band(estimate, grid), rtol=0, atol=1e-5)
        change = finished - x
        torch.testing.assert_close(change, denoiser.corruption.covariance.project(change), rtol=0, atol=1e-5)


@grids
def test_residual_power_is_what_the_conditional_mean_lacks(grid) -> None:
    denoiser, count, statistics = floored(grid, COSINE, Affine(), level=1.0), 8000, random_statistics(grid)
    corrupted = denoiser.corruption.corrupt(draw_data(statistics, count, seed=100), range(count))
    residual = residual_power(denoiser, [(part, None) for part in corrupted.split(1000)], seed=3)
    clean, at = statistics.power, denoiser.process.coefficients(torch.zeros(1), corrupted[:1])
    noise = (at.b**2 * denoiser.process.covariance.power())[0, 0]
    inside = denoiser.corruption.power() > 0
    expected = torch.where(inside, clean * noise / (at.a.flatten()[0] ** 2 * clean + noise), 0.0)
    total = expected + denoiser.band(at, corrupted[:1]).target_variance[0, 0]
    # Mean squares of 8,000: a standard error of at most 1.6 % of the target's own noise with the residual; 5 of them.
    assert float(((residual - expected).abs() / total.clamp(min=1e-9))[:, inside].max()) < 0.08
    assert float(residual[:, ~inside].abs().max()) == 0
    # Added by finish, it brings samples to the power of clean data in the band.
    t = torch.zeros(count, dtype=torch.float64)
    x_t, _ = denoiser.training_pair(corrupted, t, denoiser.process.noise(corrupted.shape, range(count)).double())
    finished = finish(denoiser, x_t, residual=expected, seeds=range(count))
    power, without = (ms.DataStatistics.measure([each], grid).power for each in (finished, finish(denoiser, x_t)))
    torch.testing.assert_close(power[:, inside], clean[:, inside], rtol=0.1, atol=0)
    assert bool((without[:, inside] < power[:, inside]).all())


def test_restoration_refuses_impossible_settings_and_keeps_some_clean_power() -> None:
    measured, at_band = torch.tensor([5.0, 4.0, 0.0, 3.0]), torch.tensor([0.0, 4.5, 0.0, 2.0])
    assert clean_power(measured, at_band).tolist() == pytest.approx([5.0, 4.5e-3, 0.0, 1.0])
    grid = ms.Grid.of(time=16)
    corruption, shared = ms.Corruption(BAND, grid), ms.Corruption(BAND, grid, shared=True)
    white, gapped = (ms.SpectralCovariance(spectrum, grid) for spectrum in (ms.Flat(), ms.Outside(BAND)))
    padded = ms.PaddedCovariance(ms.Flat(), grid, {"time": 4})

    def build(covariance=gapped, its_corruption=corruption, modulation=None, **options) -> ms.RestoringDenoiser:
        return restoring(ms.Process(COSINE, covariance, modulation), Affine(), its_corruption, **options)

    build(gapped, shared)
    denoiser = build()
    process, foreign = denoiser.process, ms.Corruption(BAND, ms.Grid.of(time=17))
    x0, t = torch.zeros(1, 2, 16), torch.ones(1)
    assert_refused(
        ("must have no power", lambda: build(white)),
        ("needs noise wherever the corruption has power", lambda: ms.NoiseFloor(COSINE, gapped, corruption)),
        ("margin", lambda: ms.NoiseFloor(COSINE, white, corruption, margin=0.0)),
        ("on different grids", lambda: ms.RestoringDenoiser(Affine(), process, foreign, denoiser.statistics)),
        ("none or karras", lambda: build(preconditioning="spectral")),
        ("one seed for each", lambda: finish(denoiser, torch.zeros(2, 2, 16), residual=torch.zeros(2, 9))),
        ("ignores frequencies", lambda: denoiser.loss(x0, t, [0], metric="mahalanobis")),
        ("corrupted data", lambda: denoiser.loss(x0, t, [0], penalty=object())),
        ("remove the padding", lambda: ms.ProjectedDenoiser(Affine(), ms.Process(COSINE, padded))),
        ("remove the padding", lambda: build(padded)),
        ("remove the padding", lambda: ms.NoiseFloor(COSINE, padded, corruption)),
        ("corruption that channels share", lambda: build(white, shared, ms.NoiseFloor(COSINE, white, shared))),
        ("no data", lambda: residual_power(denoiser, [])),
    )
