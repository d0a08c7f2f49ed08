"""Noise that differs between channels is its dense matrix: drawn, in samplers, scores and likelihoods."""

import math

import pytest
import torch
from safetensors.torch import save_file

import multisagd as ms
from multisagd.analysis.design import spectral_ends
from multisagd.analysis.transfer import transfer_function
from multisagd.channel_covariance import ChannelCovariance, ChannelPower
from multisagd.channel_spectra import CrossTable, DataChannels, PerChannel
from multisagd.cross_spectra import channel_basis, cross_spectrum, explained, measure_cross, shrunk
from multisagd.modulation import NoiseFloor
from multisagd.seeds import derive
from multisagd.statistics import hermitian
from multisagd.terminal import terminal_snr
from tests.helpers import dense
from tests.helpers.channels import (
    FORMS,
    Given,
    dense_matrix,
    draw,
    random_basis,
    random_covariance,
    random_power,
    statistics_of,
)
from tests.helpers.gaussian import RECURSIONS, Recursion
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import half_spectrum

PLANE = ms.Grid.of(y=5, x=6)
SMALL = ms.Grid.of(x=5)
forms = pytest.mark.parametrize("form", FORMS)


@pytest.mark.parametrize("channels", [1, 2, 3])
@forms
def test_channel_covariance_equals_its_dense_matrix(form, channels):
    """All operations, to 1e-10, in one to three dimensions of odd and even sizes."""
    for name in ("1-D even", "1-D odd", "1-D pair", "2-D odd", "2-D even odd", "2-D one column", "3-D mixed"):
        grid = dense.GRIDS[name]
        covariance = random_covariance(form, channels, grid)
        n = channels * grid.numel
        sigma = dense_matrix(covariance.matrix(), grid)
        values, vectors = torch.linalg.eigh(sigma)
        x = dense.random(4, channels, *grid.shape, seed=9)
        for operation, exponent in (("color", 0.5), ("whiten", -0.5), ("apply", 1), ("solve", -1), ("project", 0)):
            expected = x.flatten(1) @ (vectors * values**exponent) @ vectors.T
            torch.testing.assert_close(getattr(covariance, operation)(x).flatten(1), expected, atol=1e-10, rtol=1e-10)
        norm = torch.einsum("bi,ij,bj->b", x.flatten(1), torch.linalg.inv(sigma), x.flatten(1))
        torch.testing.assert_close(covariance.mahalanobis(x), norm, rtol=1e-10, atol=1e-10)
        assert float(covariance.logdet()) == pytest.approx(float(torch.logdet(sigma)), abs=1e-9)
        of_channels = sigma.diagonal().reshape(channels, grid.numel).mean(1)
        torch.testing.assert_close(grid.mean(covariance.power()), of_channels, atol=1e-10, rtol=1e-10)
        assert float(sigma.trace()) == pytest.approx(n)


@forms
def test_channel_covariance_draws_its_root_times_the_seeds_white_noise(form):
    covariance = random_covariance(form, 3, PLANE)
    white = torch.stack([torch.randn(3, *PLANE.shape, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
                         for s in (3, 4)])  # fmt: skip
    assert torch.equal(covariance.sample([3, 4], 3), covariance.color(white))
    torch.testing.assert_close(covariance.sample([4], (3,))[0], covariance.sample([3, 4], 3)[1], atol=1e-12, rtol=0)
    single = covariance.float().sample([3], 3)
    assert single.dtype == torch.float32


def test_channel_covariance_of_one_channel_equals_one_spectrum():
    spectrum = ms.PowerLaw(-0.4)
    one = ms.SpectralCovariance(spectrum, PLANE).double()
    table = statistics_of(ChannelPower(spectrum.power(PLANE)[None]), PLANE)
    x = dense.random(2, 1, *PLANE.shape)
    for each in (PerChannel((spectrum,)), CrossTable(table), DataChannels(table, "basis"), DataChannels(table, "full")):
        several = ChannelCovariance(each, PLANE).double()
        for operation in ("color", "whiten", "apply", "solve", "project"):
            torch.testing.assert_close(getattr(several, operation)(x), getattr(one, operation)(x), atol=1e-11, rtol=0)
        assert float(several.logdet()) == pytest.approx(float(one.logdet(channels=several.channels)))
        torch.testing.assert_close(several.sample([1], 1), one.sample([1], 1), atol=1e-11, rtol=0)


def test_rotating_components_of_equal_spectra_changes_nothing():
    power, x = random_power(1, PLANE).expand(3, -1, -1), dense.random(2, 3, *PLANE.shape)
    plain = ChannelCovariance(Given(ChannelPower(power)), PLANE).double()
    for form in ("basis", "full"):
        turned = ChannelCovariance(Given(ChannelPower(power, random_basis(form, 3, PLANE))), PLANE).double()
        torch.testing.assert_close(turned.color(x), plain.color(x), atol=1e-12, rtol=0)
    white = ChannelCovariance(PerChannel((ms.Flat(),) * 3, basis=((0, 1, 0), (0, 0, 1), (1, 0, 0))), PLANE)
    drawn = torch.stack([torch.randn(3, *PLANE.shape, generator=torch.Generator().manual_seed(5))])
    assert torch.equal(white.sample([5], 3), drawn)


def test_per_channel_scales_each_spectrum_to_its_level():
    covariance = ChannelCovariance(PerChannel((ms.PowerLaw(-1.0), ms.Flat()), levels=(3.0, 1.0)), PLANE)
    torch.testing.assert_close(PLANE.mean(covariance.power()), torch.tensor([1.5, 0.5]).double())
    assert covariance.power((7, 3)).shape == (2, 7, 2)
    turned = PerChannel((ms.PowerLaw(-1.0), ms.Flat()), (3.0, 1.0), basis=((0.6, -0.8), (0.8, 0.6)))
    power = ChannelCovariance(turned, PLANE).power()
    torch.testing.assert_close(power[0], 0.36 * covariance.power()[0] + 0.64 * covariance.power()[1])


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_sampler_equals_its_recursion_in_every_component(sampler):
    """With the exact denoiser of data that have the same components as the noise, within 1e-10."""
    for form in FORMS:
        covariance, schedule = random_covariance(form, 2, PLANE), ms.CosineSchedule(log_snr_range=(-12, 12))
        noise = covariance.components()
        data = ChannelPower(0.25 * random_power(2, PLANE, seed=7), noise.basis)
        process, shape, seeds, steps = ms.Process(schedule, covariance), (2, 2, *PLANE.shape), [3, 4], 6
        denoiser = ms.GaussianDenoiser(process, statistics_of(data, PLANE))
        times = ms.time_steps(schedule, steps)
        alpha, sigma = (each.numpy() for each in schedule.alpha_sigma(times))
        powers = (each.power.flatten().numpy() for each in (data, noise))
        weights = torch.from_numpy(RECURSIONS[sampler](Recursion(alpha, sigma, *powers, "preserving")))
        weights = weights.reshape(-1, 2, *PLANE.half_shape)
        noises = [process.noise(shape, [derive(seed, "step", i) for seed in seeds]) for i in range(steps)]
        basis = torch.eye(2).double() if noise.basis is None else noise.basis
        basis = basis.reshape(2, 2, *(basis.shape[2:] or (1, 1))).to(torch.complex128)
        sources = torch.stack([half_spectrum(each, PLANE) for each in (process.prior(shape, seeds), *noises)])
        of_components = torch.einsum("ja...,sbj...->sba...", basis.conj(), sources)
        expected = torch.einsum("ia...,sa...,sba...->bi...", basis, weights.to(basis.dtype), of_components)
        samples = half_spectrum(ms.sample(denoiser, sampler, shape, steps, seeds), PLANE)
        assert float((samples - expected).abs().max() / expected.abs().max()) < 1e-10, form


@forms
def test_score_is_the_gradient_of_the_dense_density(form):
    covariance = random_covariance(form, 2, SMALL)
    process = ms.Process(ms.CosineSchedule(), covariance)
    x0, noise = dense.random(3, 2, 5), dense.random(3, 2, 5, seed=1)
    x_t, t = process.add_noise(x0, 0.4, noise), 0.4
    b = float(process.coefficients(t, x0).b)
    expected = -(b * noise).flatten(1) @ torch.linalg.inv(b**2 * dense_matrix(covariance.matrix(), SMALL))
    score = process.from_x0(x0, x_t, t, "score")
    torch.testing.assert_close(score.flatten(1), expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(process.to_x0(score, x_t, t, "score"), x0, atol=1e-9, rtol=1e-9)


@forms
def test_log_likelihood_of_gaussian_data_is_exact(form):
    """By the exact trace, and by probes that are unbiased with and without statistics of the data."""
    covariance = random_covariance(form, 2, SMALL)
    data = statistics_of(random_covariance("full", 2, SMALL, seed=5).components(), SMALL, dense.random(2, 5, seed=3))
    denoiser = ms.GaussianDenoiser(ms.Process(ms.CosineSchedule(), covariance), data)
    x = draw(data, 3)
    exact = ms.log_likelihood(denoiser, x, steps=32, probes=None, mean=data.mean)
    a, b = (float(each) for each in denoiser.process.schedule.alpha_sigma(torch.zeros((), dtype=torch.float64)))
    matrix = a**2 * dense_matrix(data.cross, SMALL) + b**2 * dense_matrix(covariance.matrix(), SMALL)
    away = (x - a * data.mean).flatten(1)
    norm = torch.einsum("bi,ij,bj->b", away, torch.linalg.inv(matrix), away)
    density = -(10 * math.log(2 * math.pi) + torch.logdet(matrix) + norm) / 2
    assert float((exact - density).abs().max()) / 10 / math.log(2) < 1e-3
    many = x[:1].expand(64, -1, -1)
    for statistics in (None, data):
        guesses = ms.log_likelihood(
            denoiser, many, steps=12, seeds=range(64), probes=1, mean=data.mean, statistics=statistics
        )
        error = float(guesses.std()) / 8
        assert abs(float(guesses.mean() - exact[0])) < 4 * error + 2e-3


def test_gaussian_denoiser_is_the_dense_conditional_mean():
    """Of correlated data, with noise of all forms, also the same in every channel, and in modulated processes."""
    data = statistics_of(random_covariance("full", 2, SMALL, seed=5).components(), SMALL, dense.random(2, 5, seed=3))
    x_t = dense.random(3, 2, 5, seed=8)
    signal = dense_matrix(data.cross, SMALL)
    blur = ms.Blur(length=1.5, floor=0.05)
    shared = ms.SpectralCovariance(ms.PowerLaw(-0.5), SMALL).double()
    for covariance in (shared, *(random_covariance(form, 2, SMALL) for form in FORMS)):
        unit = torch.eye(2).double()[..., None]
        matrix = covariance.matrix() if isinstance(covariance, ChannelCovariance) else unit * covariance.power()
        for modulation in (None, blur):
            process = ms.Process(ms.CosineSchedule(), covariance, modulation)
            at = process.coefficients(0.4, x_t)
            a, b = (
                torch.eye(10).double() * each.flatten()
                if modulation is None
                else dense_matrix(unit.to(torch.complex128) * each[0, 0], SMALL)
                for each in (at.a, at.b)
            )
            total = a @ signal @ a.T + b @ dense_matrix(matrix, SMALL) @ b.T
            away = (x_t.flatten(1) - data.mean.flatten() @ a.T) @ torch.linalg.inv(total) @ a @ signal
            estimate = ms.GaussianDenoiser(process, data)(x_t, 0.4)
            expected = data.mean + away.reshape(3, 2, 5)
            torch.testing.assert_close(estimate, expected, atol=1e-10, rtol=1e-10)


class Zero(torch.nn.Module):
    def forward(self, x, log_snr, condition):
        return torch.zeros_like(x)


@forms
def test_spectral_preconditioning_is_the_wiener_filter_of_components(form):
    """For data with the components of the noise, also with repeated powers, whose vectors are not unique."""
    for repeated in (False, True):
        covariance = random_covariance(form, 3, PLANE)
        if repeated:
            power = covariance.components().power.clone()
            power[1] = power[0]
            covariance = ChannelCovariance(Given(ChannelPower(power, covariance.components().basis)), PLANE).double()
        noise = covariance.components()
        data = ChannelPower(random_power(3, PLANE, seed=7), noise.basis)
        statistics = statistics_of(data, PLANE, dense.random(3, *PLANE.shape))
        process = ms.Process(ms.CosineSchedule(), covariance)
        denoiser = ms.Denoiser(Zero(), process, preconditioning="spectral", statistics=statistics)
        x_t, x0, eps = (dense.random(3, 3, *PLANE.shape, seed=seed) for seed in (5, 6, 7))
        torch.testing.assert_close(covariance.power_in_components(statistics, PLANE.shape), data.power)
        expected = ms.GaussianDenoiser(process, statistics)(x_t, 0.6)
        torch.testing.assert_close(denoiser(x_t, 0.6), expected, atol=1e-9, rtol=0)
        # The error of the network's output is that of x0, in units of c_out.
        error = denoiser.error(x0, 0.6, eps)
        wrong = denoiser(process.add_noise(x0, 0.6, eps), 0.6) - x0
        torch.testing.assert_close(denoiser.x0_error(error, 0.6), wrong, atol=1e-8, rtol=0)
        sampled = ms.sample(denoiser, ms.GaussianIntegrator(statistics), (2, 3, *PLANE.shape), 2, [0, 1])
        more = ms.sample(denoiser, ms.GaussianIntegrator(statistics), (2, 3, *PLANE.shape), 7, [0, 1])
        torch.testing.assert_close(sampled, more, atol=1e-8, rtol=0)


def test_spectral_preconditioning_gives_input_and_target_unit_variance():
    """With measured data and correlated noise: on average over data, at any time."""
    statistics = statistics_of(random_covariance("full", 2, SMALL, seed=5).components(), SMALL)
    covariance = ChannelCovariance(DataChannels(statistics, "full", 0.5), SMALL).double()
    process = ms.Process(ms.CosineSchedule(), covariance)
    seen = []

    class Keep(torch.nn.Module):
        def forward(self, x, log_snr, condition):
            seen.append(x)
            return torch.zeros_like(x)

    denoiser = ms.Denoiser(Keep(), process, preconditioning="spectral", statistics=statistics)
    x0, noise = draw(statistics, 4000), covariance.sample(range(4000), 2)
    for t in (0.2, 0.7):
        target = denoiser.error(x0, t, noise)
        for each in (seen[-1], target):
            torch.testing.assert_close(each.var((0, 2)), torch.ones(2).double(), atol=0.05, rtol=0)


def test_transfer_function_of_noise_per_channel_has_the_power_of_each():
    covariance = random_covariance("each", 2, PLANE)
    statistics = ms.DataStatistics(dense.random(2, *PLANE.shape), random_power(2, PLANE, seed=7), PLANE, 100)
    process = ms.Process(ms.CosineSchedule(), covariance)
    transfer = transfer_function(ms.DDIM(), process, ms.time_steps(process.schedule, 400), statistics)
    torch.testing.assert_close(transfer.power, statistics.power, rtol=0.1, atol=0)


def test_mixed_channels_have_the_log_snrs_of_their_components():
    """Rotating data and noise alike does not change the ends of sampling."""
    data, noise = random_power(2, PLANE, seed=7), random_power(2, PLANE)
    ends = []
    for turn in (None, random_basis("basis", 2, PLANE)):
        statistics = statistics_of(ChannelPower(data, turn), PLANE)
        covariance = ChannelCovariance(Given(ChannelPower(noise, turn)), PLANE)
        ends.append(spectral_ends(statistics, ms.Process(ms.CosineSchedule(log_snr_range=(-30, 30)), covariance)))
    assert ends[0] == pytest.approx(ends[1])


def test_terminal_snr_is_that_of_the_channel_with_least_noise():
    statistics = ms.DataStatistics(torch.zeros(2, 8).double(), torch.ones(2, 5).double(), ms.Grid.of(x=8), 10)
    covariance = ChannelCovariance(PerChannel((ms.Flat(), ms.Flat()), (1.9, 0.1)), statistics.grid)
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-6, 6)), covariance)
    with pytest.warns(UserWarning, match="signal remains"):
        bands = terminal_snr(process, statistics)
    assert bands[0].snr == pytest.approx(math.exp(-6) / 0.1, rel=1e-6)


def test_measured_cross_power_recovers_what_was_planted():
    """From 4,000 examples, within four standard errors: 1/√4000 of the powers."""
    planted = statistics_of(random_covariance("full", 3, PLANE).components(), PLANE, dense.random(3, *PLANE.shape))
    x = draw(planted, 4000, seed=2)
    measured = measure_cross(x.split(500), ms.DataStatistics.measure(x.split(500), PLANE))
    scale = (planted.power[:, None] * planted.power).sqrt()
    error = ((measured.cross - planted.cross).abs() / scale).amax()
    assert float(error) < 6 / math.sqrt(4000)
    noise = ChannelCovariance(DataChannels(measured, "full"), PLANE).matrix()
    wanted = planted.cross / PLANE.mean(planted.power).mean()
    assert float(((noise - wanted).abs() / scale * PLANE.mean(planted.power).mean()).max()) < 0.15


def test_shrinking_is_closer_to_the_truth_than_few_examples_and_positive_definite():
    """A coherency that is the same at all frequencies, from 8 examples; much data are hardly changed."""
    grid = ms.Grid.of(y=8, x=8)
    matrix = torch.tensor([[1.0, 0.7, 0.0], [0.7, 1.0, 0.2], [0.0, 0.2, 1.0]], dtype=torch.complex128)
    planted = statistics_of(ChannelPower.of_matrix(matrix.reshape(3, 3, 1, 1).expand(3, 3, *grid.half_shape)), grid)
    x = draw(planted, 4000, seed=2)
    for count, factor in ((8, 0.5), (4000, 1.001)):
        raw = cross_spectrum([x[:count]], ms.DataStatistics.measure([x[:count]], grid))
        estimate = shrunk(hermitian(raw, grid), grid, count)
        off = 1 - torch.eye(3).double()
        errors = [float((grid.mean((each - planted.cross).abs().square()) * off).sum()) for each in (estimate, raw)]
        assert errors[0] < factor * errors[1], count
        assert float(ChannelPower.of_matrix(estimate).power.min()) > 0
        torch.testing.assert_close(estimate.diagonal().real, raw.diagonal().real)
        torch.testing.assert_close(hermitian(estimate, grid), estimate)


def test_shrinking_keeps_a_direction_that_examples_show():
    """Velocities without divergence: their coherence is 1, of either sign, and vanishes on the average of a ring."""
    grid = ms.Grid.of(y=8, x=8)
    y, x = (grid.frequencies(name).expand(grid.half_shape) for name in grid.names)
    square = (y**2 + x**2).clamp(min=1e-9)
    flow = torch.stack([torch.stack([y * y, -x * y]), torch.stack([-x * y, x * x])]) / square
    isotropic = 0.1 * torch.eye(2).double()[..., None, None]
    planted = statistics_of(ChannelPower.of_matrix(hermitian((flow + isotropic).to(torch.complex128), grid)), grid)
    drawn = draw(planted, 500)
    estimate = shrunk(cross_spectrum([drawn], ms.DataStatistics.measure([drawn], grid)), grid, 500)
    assert float((estimate - planted.cross).abs().max()) < 0.25
    assert float(planted.cross[0, 1].abs().max()) > 0.45


def test_channel_basis_is_the_planted_rotation():
    basis, grid = random_basis("basis", 3, PLANE), PLANE
    powers = torch.stack([level * grid.even(torch.rand(grid.half_shape).double() + 0.5) for level in (9.0, 3.0, 1.0)])
    statistics = statistics_of(ChannelPower(powers, basis), grid)
    found = channel_basis(statistics.cross, grid)
    torch.testing.assert_close((found.T @ basis).abs(), torch.eye(3).double(), atol=1e-9, rtol=0)
    assert explained(statistics.cross, found, grid) == pytest.approx(1)
    assert explained(statistics.cross, torch.eye(3).double(), grid) == pytest.approx(0)
    covariance = ChannelCovariance(DataChannels(statistics, "basis"), grid)
    torch.testing.assert_close(covariance.matrix(), statistics.cross.real / grid.mean(statistics.power).mean())


@forms
def test_data_channels_follow_the_exponent_the_floor_and_other_sizes(form):
    grid = ms.Grid.of(y=8, x=6)
    statistics = statistics_of(random_covariance("full", 2, grid).components(), grid)
    plain, half = (DataChannels(statistics, form, exponent).channel_power(grid) for exponent in (1.0, 0.5))
    torch.testing.assert_close(half.power, plain.power.sqrt())
    floored = DataChannels(statistics, form, floor=6.0).channel_power(grid)
    assert float(floored.power.min()) == pytest.approx(float(plain.power.max()) * 10**-0.6)
    other = grid.resize((5, 9))
    covariance = ChannelCovariance(DataChannels(statistics, form), grid)
    x = dense.random(2, 2, 5, 9)
    matrix = dense_matrix(covariance.matrix((5, 9)), other)
    torch.testing.assert_close(covariance.double().apply(x).flatten(1), x.flatten(1) @ matrix, atol=1e-10, rtol=1e-10)


def test_statistics_keep_their_cross_power_in_files_and_when_merged(tmp_path):
    x = dense.random(9, 2, 6, 5) + dense.random(9, 1, 6, 5, seed=1)
    grid = ms.Grid.of(y=6, x=5)
    measured = measure_cross([x], ms.DataStatistics.measure([x], grid))
    measured.save(tmp_path / "statistics.safetensors")
    loaded = ms.DataStatistics.load(tmp_path / "statistics.safetensors")
    assert torch.equal(loaded.cross, measured.cross)
    parts = [measure_cross([each], ms.DataStatistics.measure([each], grid)) for each in (x[:4], x[4:])]
    torch.testing.assert_close(ms.DataStatistics.merge(parts).cross, measured.cross)
    assert ms.DataStatistics.merge([*parts, ms.DataStatistics.measure([x], grid)]).cross is None
    plain = ms.DataStatistics.measure([x], grid)
    cross, power = measured.cross, measured.power
    wrong = cross.clone()
    wrong[0, 1] *= 3
    wrong[1, 0] *= 3
    tensors, metadata = measured.stored()
    save_file({**tensors, "cross": torch.zeros(2, 2, 6, 3)}, tmp_path / "short.safetensors", metadata=metadata)
    save_file(
        {**tensors, "cross": torch.view_as_real(wrong).contiguous()}, tmp_path / "wrong.safetensors", metadata=metadata
    )
    assert_refused(
        ("contradicts", lambda: ms.DataStatistics(plain.mean, power, grid, 9, wrong)),
        ("shape", lambda: ms.DataStatistics(plain.mean, power, grid, 9, cross[:, :, :3])),
        ("has shape", lambda: ms.DataStatistics.load(tmp_path / "short.safetensors")),
        ("contradicts", lambda: ms.DataStatistics.load(tmp_path / "wrong.safetensors")),
    )


def test_channel_noise_is_refused_where_it_has_no_meaning():
    grid, grey = PLANE, dense.random(50, 1, *PLANE.shape).expand(-1, 3, -1, -1)
    statistics = measure_cross([grey], ms.DataStatistics.measure([grey], grid))
    many = statistics_of(ChannelPower(torch.ones(9, *grid.half_shape).double()), grid)
    plain = ms.DataStatistics.measure([grey], grid)
    mixed = ms.Process(ms.CosineSchedule(), random_covariance("full", 3, grid))
    each = ms.Process(ms.CosineSchedule(), random_covariance("each", 3, grid))
    corruption = ms.Corruption(ms.Band(0.1, 0.3), grid, 0.1)
    masked = [(grey, torch.arange(6) < 4)]
    assert_refused(
        ("depend on each other.*spectrum.floor", lambda: ChannelCovariance(DataChannels(statistics, "full"), grid)),
        ("limited to 8 channels, but the data have 9", lambda: DataChannels(many, "full")),
        ("was not measured", lambda: DataChannels(plain, "basis")),
        ("3 examples do not determine", lambda: measure_cross([grey[:3]], ms.DataStatistics.measure([grey[:3]], grid))),
        ("padded data", lambda: measure_cross(masked, plain)),
        ("has 3 channels.*got \\(2, 2, 5, 6\\)", lambda: each.covariance.color(torch.zeros(2, 2, *grid.shape))),
        ("every channel its own noise", lambda: ms.SpectralCovariance(PerChannel((ms.Flat(),)), grid)),
        ("every channel its own noise", lambda: (PerChannel((ms.Flat(),)) + 1.0).power(grid)),
        ("orthonormal", lambda: PerChannel((ms.Flat(),) * 2, basis=((1, 1), (0, 1)))),
        ("2 spectra, but 1 levels", lambda: PerChannel((ms.Flat(),) * 2, levels=(1,))),
        ("no power", lambda: ChannelCovariance(PerChannel((ms.Flat(0),)), grid)),
        ("floor", lambda: DataChannels(statistics, floor=-1)),
        ("without cross power", lambda: ms.GaussianDenoiser(mixed, plain)),
        ("transfer function", lambda: transfer_function(ms.DDIM(), mixed, torch.tensor([1.0, 0.0]), plain)),
        ("noise floor", lambda: NoiseFloor(each.schedule, each.covariance, corruption)),
        ("U-turn", lambda: ms.u_turn_correlation(mixed, plain, 0.5)),
    )  # fmt: skip
    floored = ChannelCovariance(DataChannels(statistics, "full", floor=40), grid)
    assert bool(floored.support().all())


def test_weak_components_are_seen_in_mixed_channels():
    """At t = 1, the noise of a weak component must hide the data in it; and its floor is that of components."""
    basis, levels = ((0.6, -0.8), (0.8, 0.6)), (2.0 - 1e-3, 1e-3)
    process = ms.Process(
        ms.CosineSchedule(log_snr_range=(-8, 12)),
        ChannelCovariance(PerChannel((ms.Flat(), ms.Flat()), levels, basis), PLANE),
    )
    power = torch.ones(2, *PLANE.half_shape, dtype=torch.float64)
    power[0, 1, 1] = 1e-8
    cross = torch.diag_embed(power.movedim(0, -1)).movedim((-2, -1), (0, 1)).to(torch.complex128)
    zero = torch.zeros(2, *PLANE.shape, dtype=torch.float64)
    white = ms.DataStatistics(zero, torch.ones_like(power), PLANE, 1)
    with pytest.warns(UserWarning, match="signal remains"):
        bands = terminal_snr(process, white)
    assert max(band.snr for band in bands) == pytest.approx(math.exp(-8) / 1e-3, rel=1e-6)
    # At one frequency the first channel has no power: its components have 0.64 and 0.36 of that of the other channel.
    statistics = ms.DataStatistics(zero, power, PLANE, 1, cross)
    denoiser = ms.Denoiser(torch.nn.Identity(), process, preconditioning="spectral", statistics=statistics)
    assert (statistics.dynamic_range, denoiser.floor) == (pytest.approx(80), 60.0)
