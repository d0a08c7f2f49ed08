"""Noise that follows the condition of each item: dense matrices, laws of samplers, likelihoods, rules and refusals."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.transfer import transfer_function
from multisagd.covariance_rules import interpolated
from multisagd.integrations.scheduled import ScheduledDenoiser
from multisagd.seeds import derive
from tests.helpers import dense
from tests.helpers.gaussian import RECURSIONS
from tests.helpers.items import ItemOracle, Planted, conditioned, matrices, planted, recursion_of_item
from tests.helpers.networks import Affine, Estimate
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import half_spectrum, random_statistics

LINE, PLANE = ms.Grid.of(time=8), ms.Grid.of(height=4, width=5)
SCHEDULES = {
    "preserving": ms.CosineSchedule(log_snr_range=(-12, 12)),
    "exploding": ms.KarrasSchedule(sigma_max=10),
    "flow": ms.FlowSchedule(log_snr_range=(-12, 12)),
}


def powers(grid: ms.Grid, name: str) -> np.ndarray:
    """Two powers on the full spectrum, with levels of their own."""
    formula = dense.SPECTRA[name][1](grid)
    return np.stack([2.0 * formula, 0.3 * formula**2])


@pytest.mark.parametrize("grid", dense.GRIDS.values(), ids=dense.GRIDS)
def test_item_covariance_equals_dense_matrices(grid):
    """Each operation of two items within 1e-10 of the matrix `E F⁻¹ diag(W) F E`, or a factor of it, or its inverse."""
    n, eye = grid.numel, torch.eye(grid.numel, dtype=torch.float64)
    unit = eye.reshape(1, n, *grid.shape).expand(2, n, *grid.shape)
    envelopes = (0.8 * dense.random(2, 1, *grid.shape)).exp()
    for name, with_envelope in (("power law", True), ("oriented", True), ("power law", False), (None, True)):
        power = np.ones((2, *grid.shape)) if name is None else powers(grid, name)
        half = None if name is None else dense.tensor(dense.half(grid, power))[:, None]
        covariance = ms.ItemCovariance(grid, envelopes if with_envelope else None, half)
        results = {
            key: getattr(covariance, key)(unit)
            for key in ("color", "whiten", "whiten_transposed", "apply", "solve", "project")
        }
        x = dense.random(2, 3, *grid.shape, seed=5)
        norms, logdets = covariance.mahalanobis(x), covariance.logdet(grid.shape, channels=3)
        for item in range(2):
            scale = np.diag(envelopes[item].flatten().numpy()) if with_envelope else np.eye(n)
            root = scale @ dense.operator(np.sqrt(power[item]))
            inverse = np.linalg.inv(root)
            expected = {
                "color": root,
                "whiten": inverse,
                "whiten_transposed": inverse.T,
                "apply": root @ root.T,
                "solve": inverse.T @ inverse,
                "project": np.eye(n),
            }
            for key, matrix in expected.items():
                columns = dense.flat(results[key][item], grid).T
                assert np.abs(columns - matrix).max() < 1e-10 * max(1, np.abs(matrix).max()), (name, key)
            flat = dense.flat(x[item], grid)
            norm = np.einsum("ci,ij,cj->", flat, expected["solve"], flat)
            assert float(norms[item]) == pytest.approx(norm, rel=1e-10)
            assert float(logdets[item]) == pytest.approx(3 * np.linalg.slogdet(root @ root.T)[1], rel=1e-10, abs=1e-9)


def test_item_covariance_with_channels_of_their_own_and_frequencies_without_power():
    """`whiten` and `project` are inverses over the range, and each channel has its envelope."""
    power = dense.tensor(dense.half(PLANE, powers(PLANE, "band")))[:, None]
    envelope = (0.5 * dense.random(2, 3, *PLANE.shape)).exp()
    covariance = ms.ItemCovariance(PLANE, envelope, power)
    x = dense.random(2, 3, *PLANE.shape, seed=3)
    noise = covariance.color(x)
    torch.testing.assert_close(covariance.project(noise), noise, atol=1e-10, rtol=0)
    torch.testing.assert_close(covariance.color(covariance.whiten(x)), covariance.project(x), atol=1e-10, rtol=0)
    norm = (noise * covariance.solve(noise)).flatten(1).sum(1)
    torch.testing.assert_close(covariance.mahalanobis(noise), norm)
    one = ms.ItemCovariance(PLANE, envelope[:, 1:2], power)
    torch.testing.assert_close(one.color(x[:, 1:2]), noise[:, 1:2], atol=1e-12, rtol=0)
    full = ms.ItemCovariance(PLANE, envelope)
    each = sum(ms.ItemCovariance(PLANE, envelope[:, c : c + 1]).logdet() for c in range(3))
    torch.testing.assert_close(full.logdet(channels=3), each)
    assert_refused(("no determinant", covariance.logdet), ("a power spectrum needs", covariance.power))


def test_item_covariance_sample_has_its_covariance():
    """Of 40,000 draws, within 5 % of the largest entry: more than 5 standard errors."""
    process = conditioned(LINE).bound(planted(LINE), (2, 40000, 8))
    noise = process.noise((2, 40000, 8), [0, 1])
    for item, matrix in enumerate(matrices(process.covariance, process.covariance.item_power)):
        estimate = (noise[item].T @ noise[item] / 40000).numpy()
        assert np.abs(estimate - matrix).max() < 0.05 * matrix.max()


def test_items_of_a_batch_do_not_depend_on_each_other():
    condition, process = planted(PLANE, batch=3), conditioned(PLANE)
    together = process.bound(condition, (3, 1, *PLANE.shape)).noise((3, 1, *PLANE.shape), [4, 5, 6])
    alone = process.bound(ms.Condition(dense=condition.dense[1:2]), (1, 1, *PLANE.shape))
    torch.testing.assert_close(alone.noise((1, 1, *PLANE.shape), [5])[0], together[1], rtol=1e-12, atol=1e-12)
    assert float((together[1] - together[2]).abs().max()) > 0.1


def test_bound_is_the_process_itself_unless_its_noise_follows_the_condition():
    condition = planted(LINE)
    for covariance in (
        ms.SpectralCovariance(ms.PowerLaw(-0.5), LINE), ms.PaddedCovariance(ms.Flat(), LINE, {"time": 2}),
    ):  # fmt: skip
        process = ms.Process(ms.CosineSchedule(), covariance)
        denoiser = ms.Denoiser(Affine(), process)
        assert process.bound(condition, (2, 1, 8)) is process
        assert denoiser.bound(None, (2, 1, 8)) is denoiser
    denoiser = ms.Denoiser(Affine(), conditioned(LINE))
    bound = denoiser.bound(condition, (2, 1, 8))
    assert isinstance(denoiser.process.covariance, ms.ConditionedCovariance)
    assert bound.network is denoiser.network
    assert bound.process.bound(None, (2, 1, 8)) is bound.process


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_sampler_equals_its_recursion_for_each_item(sampler):
    """Per frequency of `F E⁻¹ x`, within 1e-10 of the largest value, with the exact denoiser of Gaussian data."""
    for schedule, grid in zip(SCHEDULES.values(), (LINE, PLANE, ms.Grid.of(frame=3, height=2, width=4)), strict=True):
        power = (0.05 + grid.radius(factors=dict.fromkeys(grid.names, 1.0)).square()) ** -1.0
        oracle, condition = ItemOracle(conditioned(grid, schedule), 0.02 * power), planted(grid)
        shape, seeds = (2, 1, *grid.shape), [3, 4]
        process = oracle.process.bound(condition, shape)
        covariance, times = process.covariance, ms.time_steps(schedule, 7)
        noises = (process.noise(shape, [derive(seed, "step", i) for seed in seeds]) for i in range(7))
        sources = [half_spectrum(each / covariance.envelope, grid) for each in (process.prior(shape, seeds), *noises)]
        samples = ms.sample(oracle, sampler, shape, 7, seeds, condition)
        drawn = half_spectrum(samples / covariance.envelope, grid)
        for item in range(2):
            weights = RECURSIONS[sampler](recursion_of_item(oracle, covariance, item, times))
            rows = (torch.from_numpy(row).reshape(grid.half_shape) for row in weights)
            expected = sum(source[item] * row for source, row in zip(sources, rows, strict=True))
            assert float((drawn[item] - expected).abs().max() / expected.abs().max()) < 1e-10


def dense_density(oracle: ItemOracle, condition: ms.Condition, x: Tensor) -> Tensor:
    """Log-density of x at t = 0 by full matrices, in nats."""
    covariance = oracle.process.bound(condition, x.shape).covariance
    a, b = (float(each) for each in oracle.process.schedule.alpha_sigma(torch.zeros((), dtype=torch.float64)))
    data, noise = matrices(covariance, oracle.data_power(covariance)), matrices(covariance, covariance.item_power)
    result = []
    for item, (C, S) in enumerate(zip(data, noise, strict=True)):
        matrix = torch.from_numpy(a**2 * C + b**2 * S)
        law = torch.distributions.MultivariateNormal(torch.zeros(len(C), dtype=torch.float64), matrix)
        result.append(law.log_prob(x[item].flatten()))
    return torch.stack(result)


@pytest.mark.parametrize("grid", [ms.Grid.of(time=6), ms.Grid.of(height=3, width=2)], ids=str)
def test_log_likelihood_under_item_noise_is_exact_on_gaussian_data(grid):
    """Within 1e-3 bits per dimension; random probes, of which one is exact if data and noise are alike, agree."""
    condition, x = planted(grid), dense.random(2, 1, *grid.shape)
    power = (0.1 + grid.radius(factors=dict.fromkeys(grid.names, 1.0)).square()) ** -1.0
    for oracle in (ItemOracle(conditioned(grid), power), ItemOracle(conditioned(grid), None)):
        exact = ms.log_likelihood(oracle, x, steps=32, probes=None, condition=condition)
        error = (exact - dense_density(oracle, condition, x)).abs().max() / grid.numel / math.log(2)
        assert float(error) < 1e-3
    statistics = random_statistics(grid, channels=1)  # which item-wise noise does not use
    probed = ms.log_likelihood(oracle, x, steps=32, seeds=[0, 1], condition=condition, statistics=statistics)
    torch.testing.assert_close(probed, exact, rtol=1e-9, atol=1e-9)


def test_score_under_item_noise_is_that_of_the_dense_covariance():
    condition, process = planted(PLANE), conditioned(PLANE)
    x0, t = dense.random(2, 1, *PLANE.shape), torch.tensor([0.3, 0.7], dtype=torch.float64)
    bound = process.bound(condition, x0.shape)
    noise = bound.noise(x0.shape, [0, 1])
    x_t = bound.add_noise(x0, t, noise)
    score = bound.from_x0(x0, x_t, t, "score")
    sigma = bound.schedule.alpha_sigma(t)[1]
    for item, matrix in enumerate(matrices(bound.covariance, bound.covariance.item_power)):
        expected = -np.linalg.solve(matrix, noise[item].flatten().numpy()) / float(sigma[item])
        np.testing.assert_allclose(score[item].flatten().numpy(), expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(bound.to_x0(score, x_t, t, "score"), x0, rtol=1e-8, atol=1e-8)


def test_loss_follows_the_condition_that_the_denoiser_is_bound_to():
    """Also if the network gets a dropped one; the Mahalanobis metric whitens by the covariance of each item."""
    condition, x0 = planted(PLANE), dense.random(2, 1, *PLANE.shape)
    dropped = ms.Condition(dense=torch.full_like(condition.dense, torch.nan))
    denoiser = ms.Denoiser(Affine(), conditioned(PLANE), prediction="noise")
    bound = denoiser.bound(condition, x0.shape)
    noise = bound.process.noise(x0.shape, [0, 1])
    whitened = bound.process.covariance.whiten(noise).square().flatten(1).mean(1)
    for metric, expected in (("euclidean", noise.square().flatten(1).mean(1)), ("mahalanobis", whitened)):
        for each, given in ((bound, dropped), (denoiser, condition)):
            torch.testing.assert_close(each.loss(x0, 0.5, [0, 1], given, metric=metric), expected)
    with pytest.raises(ValueError, match="bind the denoiser before"):
        denoiser.loss(x0, 0.5, [0, 1], dropped)


def test_guidance_keeps_the_covariance_of_each_item():
    """The estimate without a condition is of the same noise: guidance towards itself changes nothing."""
    condition, shape = planted(LINE), (2, 1, 8)
    condition = condition._replace(labels=torch.tensor([0, 1]))
    denoiser = Estimate(conditioned(LINE), lambda x, t: 0.9 * torch.tanh(x))
    plain, guided = (
        ms.sample(each, ms.DDIM(eta=1.0), shape, 4, [0, 1], condition)
        for each in (denoiser, ms.ClassifierFree(denoiser, 3.0))
    )
    torch.testing.assert_close(guided, plain)


def test_variations_start_from_the_noise_of_each_item():
    condition, x0 = planted(LINE), dense.random(2, 1, 8)
    denoiser = Estimate(conditioned(LINE), lambda x, t: x0)
    times = ms.time_steps(denoiser.process.schedule, 4)
    process = denoiser.process.bound(condition, x0.shape)
    noisy = process.add_noise(x0, times[2], process.noise(x0.shape, [derive(seed, "u-turn") for seed in (0, 1)]))
    expected = ms.sample(denoiser, ms.Ancestral(), x0.shape, 2, [0, 1], condition, times=times[2:], initial=noisy)
    varied = ms.vary(denoiser, ms.Ancestral(), x0, 0.5, times, [0, 1], condition)
    torch.testing.assert_close(varied, expected)
    turned = ms.u_turn(denoiser, ms.Ancestral(), x0, 0.5, 2, [0, 1], condition)
    torch.testing.assert_close(turned, expected)


def test_dps_corrects_by_the_covariance_of_each_item():
    """The correction is `(b²/a) Σ Jᵀ Hᵀ S⁻¹ (y - H D)`; here J is 1/2 and S is the mean square of the error."""
    condition, x = planted(PLANE), dense.random(2, 1, *PLANE.shape)
    process, y = conditioned(PLANE), dense.random(2, 1, *PLANE.shape, seed=9)
    known = torch.ones(1, 1, *PLANE.shape, dtype=torch.bool)
    guided = ms.DPS(Estimate(process, lambda x, t: x / 2), ms.Masked(known, PLANE), y, 0.1, interval=None)
    t = torch.full((2,), 0.4, dtype=torch.float64)
    at, residual = process.coefficients(t, x), y - x / 2
    moved = residual / residual.square().flatten(1).mean(1).reshape(2, 1, 1, 1) / 2
    bound = process.bound(condition, x.shape)
    expected = x / 2 + at.b**2 / at.a * bound.covariance.apply(moved)
    torch.testing.assert_close(guided(x, t, condition), expected)


def test_item_noise_is_refused_where_it_has_no_meaning():
    process, condition = conditioned(LINE), planted(LINE)
    covariance, statistics = process.covariance, random_statistics(LINE, channels=1)
    bound = process.bound(condition, (2, 1, 8))
    unknown = condition.dense.index_fill(0, torch.tensor([1]), torch.nan)
    follows = "follows the condition of each item"
    estimate = Estimate(process)
    known = ms.Masked(torch.ones(1, 1, 8, dtype=torch.bool), LINE)
    one, data = (1, 1, 8), torch.zeros(2, 1, 8)
    assert_refused(
        ("no sample before", lambda: process.noise(one, [0])),
        ("no whiten before", lambda: covariance.whiten(data)),
        ("no logdet before", covariance.logdet),
        ("no power before", covariance.power),
        ("there is none", lambda: process.bound(None, one)),
        ("there is none", lambda: ms.sample(estimate, ms.DDIM(), one, 2, [0])),
        ("each of 3 items, got 2", lambda: process.bound(condition, (3, 1, 8))),
        ("nothing is known", lambda: process.bound(ms.Condition(dense=unknown), (2, 1, 8))),
        ("3 seeds", lambda: bound.noise((3, 1, 8), [0, 1, 2])),
        ("grid of", lambda: bound.noise((2, 1, 9), [0, 1])),
        ("expected shape", lambda: bound.covariance.whiten(data[:1])),
        (follows, lambda: ms.Process(ms.CosineSchedule(), covariance, ms.Blur(1.0))),
        (follows, lambda: ms.Denoiser(Affine(), process, preconditioning="spectral", statistics=statistics)),
        (follows, lambda: ms.GaussianDenoiser(bound, statistics)),
        (follows, lambda: ms.ProjectedDenoiser(Affine(), process)),
        (follows, lambda: ms.PiGDM(estimate, known, data, 0.1, statistics)),
        (follows, lambda: ms.GaussianIntegrator(statistics).check(process)),
        (follows, lambda: transfer_function(ms.DDIM(), process, torch.tensor([1.0, 0.0]), statistics)),
        (follows, lambda: ms.sample_refined(estimate, ms.DDIM(), one, 2, [0], ms.Refinement(ms.Flat()))),
        ("before the condition is known", lambda: ms.terminal_snr(process, statistics)),
        (follows, lambda: ScheduledDenoiser(estimate, None)),
        ("an envelope or a power", lambda: ms.ItemCovariance(LINE)),
        ("expected envelope of shape", lambda: ms.ItemCovariance(LINE, torch.ones(2, 1, 7))),
        ("above 0", lambda: ms.ItemCovariance(LINE, torch.zeros(2, 1, 8))),
        ("at least 0", lambda: ms.ItemCovariance(LINE, power=torch.full((2, 1, 5), -1.0))),
    )


def test_spectrum_of_a_conditioned_covariance_multiplies_the_power_of_the_rule():
    spectrum, condition = ms.PowerLaw(-0.5), planted(LINE)
    envelope, power = Planted()(condition.dense, LINE)
    bound = ms.ConditionedCovariance(Planted(), LINE, spectrum).double().bound(condition, (2, 1, 8))
    product = power * ms.SpectralCovariance(spectrum, LINE).power()
    # The level is that of the envelope, whatever the spectrum.
    expected = product * (LINE.mean(power) / LINE.mean(product)).reshape(2, -1, 1)
    torch.testing.assert_close(bound.item_power, expected)
    torch.testing.assert_close(bound.envelope, envelope)


@pytest.mark.parametrize("position", [0.0, 0.5, 1.0])
def test_interpolated_is_linear_along_every_axis(position):
    grid, coarse = ms.Grid.of(height=12, width=6), dense.random(2, 1, 4, 6)
    ours = interpolated(coarse, grid, position)
    centres = 3 * np.arange(4) + 2 * position  # in samples of the fine grid
    for item, column in np.ndindex(2, 6):
        expected = np.interp(np.arange(12), centres, coarse[item, 0, :, column].numpy())
        np.testing.assert_allclose(ours[item, 0, :, column].numpy(), expected, atol=1e-12)
    circle = ms.Grid((ms.Axis("angle", 12, periodic=True),))
    turned = interpolated(coarse[..., 0], circle, position)
    np.testing.assert_allclose(
        interpolated(coarse[..., 0].roll(1, -1), circle, position), turned.roll(3, -1), atol=1e-12
    )


def test_envelope_rules_follow_the_mean_power_of_the_channels():
    dense_ = torch.tensor([[[0.0, -1.0, -9.0], [-0.5, -1.0, torch.nan]]], dtype=torch.float64)
    grid = ms.Grid.of(time=3)
    rule = ms.DecibelEnvelope(decibels_per_unit=20.0, reference=0.5, floor=60.0, unknown=-9.0)
    envelope, power = rule(dense_, grid)
    assert power is None
    decibels = 10 * math.log10((10**-1.0 + 10**-2.0) / 2)
    expected = torch.tensor([[decibels, -30.0, -60.0]], dtype=torch.float64)
    torch.testing.assert_close(20 * envelope[0].log10(), expected)
    amplitudes = torch.tensor([[[3.0, -0.1, 0.0], [4.0, 0.1, 0.0]]], dtype=torch.float64)
    envelope, _ = ms.AmplitudeEnvelope(reference=0.5, floor=40.0)(amplitudes, grid)
    torch.testing.assert_close(envelope[0, 0], torch.tensor([math.sqrt(12.5) * 2, 0.2, 0.01], dtype=torch.float64))


def test_band_spectrum_has_the_level_of_each_band_at_its_frequency():
    grid = ms.Grid.of(time=(16, 1 / 16, "s"))  # 0 to 8 Hz
    levels = torch.tensor([[-10.0, 0.0, -90.0]], dtype=torch.float64)
    bands = levels[..., None].expand(1, 3, 4)
    envelope, power = ms.BandSpectrum((1.0, 3.0, 7.0), floor=50.0)(bands, grid)
    assert envelope is None
    expected = np.interp(np.arange(9), [1, 3, 7], [-10, 0, -50])
    np.testing.assert_allclose(10 * power[0, 0].log10().numpy(), expected, atol=1e-9)
    even = ms.BandSpectrum()(bands, grid)[1]
    np.testing.assert_allclose(10 * even[0, 0].log10().numpy(), np.interp(np.arange(9), [0, 4, 8], [-10, 0, -40]))
    video = ms.Grid.of(frame=5, width=6)
    along = ms.BandSpectrum((0.0, 0.4), axis="frame")(bands[:, :2, :, None], video)[1]
    assert along.shape == (1, 1, 5, 4)
    np.testing.assert_allclose(10 * along[0, 0, :, 0].log10().numpy(), [-10, -5, 0, 0, -5], atol=1e-9)
    both = ms.EnvelopeAndSpectrum(ms.DecibelEnvelope(), ms.BandSpectrum())(bands, grid)
    torch.testing.assert_close(grid.mean(both[1]), torch.ones(1, 1, dtype=torch.float64))
    torch.testing.assert_close(both[0], ms.DecibelEnvelope()(bands, grid)[0])


def test_rules_refuse_impossible_settings_and_conditions():
    bands, plane = torch.zeros(1, 3, 4), ms.Grid.of(height=4, width=4)
    nan = torch.full((1, 1, 8), torch.nan)
    assert_refused(
        ("decibels_per_unit must be positive", lambda: ms.DecibelEnvelope(decibels_per_unit=0)),
        ("reference must be a finite", lambda: ms.DecibelEnvelope(reference=math.nan)),
        ("reference must be a positive", lambda: ms.AmplitudeEnvelope(reference=0)),
        ("floor must be from 0", lambda: ms.AmplitudeEnvelope(floor=-1)),
        ("floor must be from 0", lambda: ms.BandSpectrum(floor=200)),
        ("position must be", lambda: ms.DecibelEnvelope(position=1.5)),
        ("frequencies must be", lambda: ms.BandSpectrum((2.0, 1.0))),
        ("3 channels, but 2", lambda: ms.BandSpectrum((1.0, 2.0))(bands, LINE)),
        ("name the axis", lambda: ms.BandSpectrum()(bands[..., None], plane)),
        ("no axis 'time'", lambda: ms.BandSpectrum(axis="time")(bands[..., None], plane)),
        ("covariance.unknown", lambda: ms.DecibelEnvelope()(nan, LINE)),
        ("must not be finer", lambda: ms.DecibelEnvelope()(torch.zeros(1, 1, 9), LINE)),
        ("gives none", lambda: ms.EnvelopeAndSpectrum(ms.BandSpectrum(), ms.BandSpectrum())(bands, LINE)),
    )
