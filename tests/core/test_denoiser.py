"""Denoisers: every parametrisation is an estimate of x0, and its targets and preconditioning are exact."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from multisagd.data_spectra import DataPower
from multisagd.weighting import PerFrequency
from tests.helpers import dense
from tests.helpers.networks import Affine
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import random_statistics

GRID = ms.Grid.of(y=4, x=5)
GRIDS = [ms.Grid.of(x=9), GRID, ms.Grid.of(t=3, y=4, x=6)]
SHAPE = (3, 2, *GRID.shape)
KINDS = ["x0", "noise", "v", "flow", "karras"]
SCHEDULES = [ms.CosineSchedule(), ms.KarrasSchedule(), ms.FlowSchedule(), ms.LinearSchedule(shift=2.0)]
MODULATIONS = {"scalar": None, "blur": ms.Blur(1.0), "colour shift": ms.ColorShift(ms.PowerLaw(0.3), ms.Flat())}
MEAN = dense.random(2, *GRID.shape, seed=9)
STATISTICS = ms.DataStatistics(MEAN, torch.full((2, *GRID.half_shape), 0.6**2, dtype=torch.float64), GRID, 100)
X0, SEEDS = dense.random(*SHAPE), [1, 2, 3]
TIMES = torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)


class Network(nn.Module):
    """A network that is a function of its input and the log-SNR, and keeps its arguments."""

    def __init__(self, function=lambda x, log_snr: torch.zeros_like(x)) -> None:
        super().__init__()
        self.function = function
        self.calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def forward(self, x, log_snr, condition):
        self.calls.append((x, log_snr, condition))
        return self.function(x, log_snr)


def curved(x: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
    return torch.tanh(0.7 * x + 0.1 * log_snr.reshape(-1, 1, 1, 1))


def process(schedule=None, modulation=None, spectrum=None) -> ms.Process:
    covariance = ms.SpectralCovariance(spectrum or ms.PowerLaw(-0.5), GRID).double()
    return ms.Process(schedule or ms.CosineSchedule(), covariance, modulation)


def build(kind: str, p: ms.Process, network: nn.Module, statistics: ms.DataStatistics | None = None) -> ms.Denoiser:
    option = {"preconditioning": kind} if kind == "karras" else {"prediction": kind}
    return ms.Denoiser(network, p, statistics=statistics, **option)


def target(kind: str, p: ms.Process, signal: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, sigma_data: float):
    """The exact output of the network, from the definitions, in frequency; the signal is about the mean."""
    at = p.coefficients(t, signal)
    s, e = p.to_basis(signal), p.to_basis(noise)
    if kind == "karras":
        # 2206.00364, Eq. 8 solved for F, with a in front of the data.
        y = at.a * s + at.b * e
        c_skip = at.a * sigma_data**2 / (at.a**2 * sigma_data**2 + at.b**2)
        c_out = at.b * sigma_data / (at.a**2 * sigma_data**2 + at.b**2).sqrt()
        value = (s - c_skip * y) / c_out
    else:
        a_dot, b_dot = p.schedule.tangent(at.a, at.b)
        value = {"x0": s, "noise": e, "v": at.a * e - at.b * s, "flow": a_dot * s + b_dot * e}[kind]
    return p.from_basis(value + torch.zeros_like(s), signal.shape)


@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_whose_network_hits_its_target_gives_x0_and_no_loss(kind, modulation):
    t = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    for schedule, statistics in itertools.product(SCHEDULES, (None, STATISTICS)):
        p = process(schedule, modulation)
        noise = p.noise(SHAPE, SEEDS)
        signal, sigma_data = (X0, 0.5) if statistics is None else (X0 - MEAN, 0.6)
        output = target(kind, p, signal, noise, t, sigma_data)
        network = Network(lambda x, log_snr, output=output: output)
        denoiser = build(kind, p, network, statistics)
        at = p.coefficients(t, X0)
        worst = max(1.0, float((at.b / at.a).max()))
        torch.testing.assert_close(denoiser(p.add_noise(X0, t, noise), t), X0, rtol=1e-10, atol=1e-10 * worst)
        for metric in ("euclidean", "mahalanobis"):
            loss = denoiser.loss(X0, t, SEEDS, metric=metric)
            assert loss.shape == (3,)
            assert loss.abs().max() < 1e-18 * worst**2, (schedule, metric)
        # Training and sampling must show the network one and the same input.
        (sampled, log_snr, _), (trained, _, _), _ = network.calls
        torch.testing.assert_close(sampled, trained, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(log_snr, p.schedule.log_snr(t))


@pytest.mark.parametrize("kind", KINDS)
def test_loss_weightings_weigh_the_error_of_x0(kind):
    """Whatever is predicted, a named weighting is the same function of the error of x0."""
    for modulation, metric in itertools.product(MODULATIONS.values(), ("euclidean", "mahalanobis")):
        p = process(modulation=modulation)
        denoiser = build(kind, p, Network(curved), STATISTICS)
        error = denoiser(p.add_noise(X0, TIMES, p.noise(SHAPE, SEEDS)), TIMES) - X0
        square = (p.covariance.whiten(error) if metric == "mahalanobis" else error).square().mean((1, 2, 3))
        snr = p.schedule.log_snr(TIMES).exp()
        weights = {
            ms.MinSNR(): snr.clamp(max=5),
            ms.KarrasWeighting(): snr + 1 / 0.36,
            ms.SigmoidWeighting(): snr / (1 + snr * np.exp(-2)),
        }
        for weighting, weight in weights.items():
            loss = denoiser.loss(X0, TIMES, SEEDS, metric=metric, weighting=weighting)
            torch.testing.assert_close(loss, weight * square, rtol=1e-9, atol=1e-12)


def test_loss_is_by_default_the_mean_square_error_of_the_prediction_of_each_seed():
    p = process()
    noise = p.noise(SHAPE, SEEDS)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    denoiser = build("noise", p, Network(lambda x, log_snr: curved(scale * x, log_snr)))
    plain = denoiser.network(p.add_noise(X0, TIMES, noise), p.schedule.log_snr(TIMES), None) - noise
    loss = denoiser.loss(X0, TIMES, SEEDS)
    torch.testing.assert_close(loss, plain.square().mean((1, 2, 3)))
    assert torch.equal(loss, denoiser.loss(X0, TIMES, SEEDS))
    torch.testing.assert_close(denoiser.loss(X0[1:2], TIMES[1:2], [2])[0], loss[1])
    mask = torch.ones(3, 1, *GRID.shape, dtype=torch.bool)
    mask[..., 3:] = False
    masked = denoiser.loss(X0, TIMES, SEEDS, mask=mask)
    torch.testing.assert_close(masked, plain[..., :3].square().mean((1, 2, 3)))
    masked.mean().backward()
    assert scale.grad.abs() > 0


def test_karras_preconditioning_is_the_published_one():
    """2206.00364, Table 1, with its σ_data = 0.5; its own weighting makes the loss uniform."""
    p = process(ms.KarrasSchedule(), spectrum=ms.Flat())
    output = dense.random(*SHAPE, seed=3)
    network = Network(lambda x, log_snr: output)
    denoiser = build("karras", p, network)
    x, t = 5 * X0, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = p.schedule.alpha_sigma(t)[1].reshape(3, 1, 1, 1)
    c_skip = 0.25 / (sigma**2 + 0.25)
    c_out = sigma * 0.5 / (0.25 + sigma**2).sqrt()
    torch.testing.assert_close(denoiser(x, t), c_skip * x + c_out * output)
    torch.testing.assert_close(network.calls[0][0], x / (sigma**2 + 0.25).sqrt())
    # With a in front of data of variance 0.36 about their mean, the input has unit variance on every schedule.
    for schedule in SCHEDULES:
        network, (a, b) = Network(), (each.reshape(3, 1, 1, 1) for each in schedule.alpha_sigma(t))
        build("karras", process(schedule, spectrum=ms.Flat()), network, STATISTICS)(x, t)
        torch.testing.assert_close(network.calls[0][0], (x - a * MEAN) / (0.36 * a**2 + b**2).sqrt())
    centred = build("karras", process(ms.KarrasSchedule()), Network(curved), STATISTICS)
    torch.testing.assert_close(centred.loss(X0, t, SEEDS, weighting=ms.KarrasWeighting()), centred.loss(X0, t, SEEDS))


@pytest.mark.parametrize("kind", KINDS)
def test_error_in_float32_keeps_its_digits_at_both_ends(kind):
    """The target as the quotient (x0 - skip·x)/out would lose every digit at low noise."""
    p32 = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID))
    t = torch.tensor([0.0, 1e-4, 1.0], dtype=torch.float64)
    x0 = X0.float()
    noise = p32.noise(SHAPE, SEEDS)
    exact = build(kind, process(), Network(), STATISTICS).error(x0.double(), t, noise.double())
    narrow = build(kind, p32, Network(), STATISTICS).error(x0, t.float().double(), noise)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_denoiser_statistics_move_with_the_data_and_serve_other_grids(kind):
    """Data and mean shifted together: the network must not notice."""
    shift = dense.random(2, *GRID.shape, seed=11)
    moved = ms.DataStatistics(MEAN + shift, STATISTICS.power, GRID, 100)
    here, there = (build(kind, process(), Network(curved), statistics) for statistics in (STATISTICS, moved))
    torch.testing.assert_close(here.loss(X0, TIMES, SEEDS), there.loss(X0 + shift, TIMES, SEEDS))
    x = dense.random(2, 2, 7, 6)
    assert here(x, torch.tensor([0.3, 0.6])).shape == x.shape


def test_denoiser_passes_the_condition_to_the_network():
    network, labels = Network(), torch.tensor([1, 2, 0])
    denoiser = build("v", process(), network)
    denoiser(X0, TIMES, labels)
    denoiser.loss(X0, TIMES, SEEDS, condition=labels)
    assert all(condition is labels for _, _, condition in network.calls)


def test_denoiser_can_be_copied_and_unwraps_outputs_of_diffusers_models():
    networks = Network(lambda x, _: 0.5 * x), Network(lambda x, _: SimpleNamespace(sample=0.5 * x))
    ours, theirs = (build("v", process(), network) for network in networks)
    assert torch.equal(ours(X0, TIMES), theirs(X0, TIMES))
    assert torch.equal(copy.deepcopy(ours)(X0, TIMES), ours(X0, TIMES))


def test_loss_works_under_autocast_and_compile():
    p = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID))
    convolve = nn.Conv2d(2, 2, 3, padding=1)
    denoiser = ms.Denoiser(Network(lambda x, _: convolve(x)), p)
    x0, t = X0.float(), TIMES.float()
    expected = denoiser.loss(x0, t, SEEDS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = denoiser.loss(x0, t, SEEDS)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    compiled = torch.compile(denoiser.loss, backend="eager")
    torch.testing.assert_close(compiled(x0, t, SEEDS), expected)


RED = ms.PowerLaw(exponent=-0.6, corner=0.1)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda each: type(each).__name__)


def spectral_denoiser(grid=GRID, schedule=SCHEDULES[0], spectrum=RED, output=0.0, modulation=None) -> ms.Denoiser:
    process = ms.Process(schedule, ms.SpectralCovariance(spectrum, grid), modulation).double()
    statistics = random_statistics(grid)
    return ms.Denoiser(Affine(offset=output), process, preconditioning="spectral", statistics=statistics)


def data(grid=GRID, seed=0) -> Tensor:
    return dense.random(3, 2, *grid.shape, seed=seed)


def matrix(power: Tensor, grid: ms.Grid) -> Tensor:
    return dense.tensor(dense.operator(grid.full(power).numpy()))


@grids
@schedules
def test_spectral_preconditioning_is_the_formula_on_dense_matrices(grid, schedule) -> None:
    """D = μ + S(x - aμ) + O F(I(x - aμ)), with matrix functions of K and Σ from their eigenvalues."""
    output, x = data(grid, 3), data(grid, 4)
    for spectrum in (ms.Flat(), RED):
        denoiser = spectral_denoiser(grid, schedule, spectrum, output)
        result, noise = denoiser(x, TIMES), denoiser.process.covariance.power()
        for item, t in enumerate(TIMES):
            a, b = schedule.alpha_sigma(t)
            for channel, power in enumerate(denoiser.statistics.power):
                total = a**2 * power + b**2 * noise
                skip, into = matrix(a * power / total, grid), matrix(total**-0.5, grid)
                out = matrix((power * b**2 * noise / total).sqrt(), grid)
                mean = denoiser.statistics.mean[channel].flatten()
                y = x[item, channel].flatten() - a * mean
                expected = mean + skip @ y + out @ output[item, channel].flatten()
                torch.testing.assert_close(result[item, channel].flatten(), expected, rtol=1e-9, atol=1e-9)
                network_input = denoiser.network.inputs[0][item, channel].flatten()
                torch.testing.assert_close(network_input, into @ y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("modulation", [None, ms.Blur(length=1.0)], ids=["scalar", "blur"])
@grids
def test_spectral_preconditioning_of_a_zero_network_is_the_wiener_filter(grid, modulation) -> None:
    denoiser, x = spectral_denoiser(grid, modulation=modulation), data(grid)
    oracle = ms.GaussianDenoiser(denoiser.process, denoiser.statistics)
    torch.testing.assert_close(denoiser(x, TIMES), oracle(x, TIMES))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        result = denoiser.float()(x.to(dtype), TIMES)
        assert result.dtype == dtype
        torch.testing.assert_close(result.double(), oracle(x.to(dtype).double(), TIMES), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("spectrum", [ms.Flat(), RED, ms.Band(0.0, 0.3)], ids=str)
def test_x0_error_turns_errors_of_the_output_into_errors_of_the_estimate(spectrum) -> None:
    """Also where the spectrum is empty: there the datum is known, and nothing is to be learned."""
    denoiser, x0 = spectral_denoiser(spectrum=spectrum, output=data(seed=7)), data()
    noise = denoiser.process.noise(x0.shape, [1, 2, 3])
    estimate = denoiser(denoiser.process.add_noise(x0, TIMES, noise), TIMES)
    error = denoiser.error(x0, TIMES, noise)
    assert bool(torch.isfinite(error).all())
    torch.testing.assert_close(denoiser.x0_error(error, TIMES), estimate - x0, rtol=1e-8, atol=1e-8)


def test_weigh_applies_each_metric_and_weighting() -> None:
    """Whitened is the plain error of the output; Euclidean that of x0, as large on the whole."""
    grid = GRIDS[2]
    denoiser, x0 = spectral_denoiser(grid, output=data(grid, 8)), data(grid)
    error = denoiser.error(x0, TIMES, denoiser.process.noise(x0.shape, [1, 2, 3]))
    torch.testing.assert_close(denoiser.weigh(error, TIMES, metric="whitened"), error.square().flatten(1).mean(1))
    x0_error = denoiser.x0_error(error, TIMES).square().flatten(1).mean(1)
    # Errors of unit power everywhere come out as they are.
    white, t = dense.random(400, 2, *grid.shape, seed=9), TIMES[1].expand(400)
    assert float(denoiser.weigh(white, t).mean()) == pytest.approx(1, abs=0.02)
    scale = denoiser.x0_error(white, t).square().mean()
    torch.testing.assert_close(denoiser.weigh(error, TIMES)[1], x0_error[1] / scale, rtol=0.05, atol=0)
    snr = denoiser.process.schedule.log_snr(TIMES).exp().clamp(max=5)
    torch.testing.assert_close(denoiser.weigh(error, TIMES, weighting=ms.MinSNR()), x0_error * snr)


def test_denoiser_refuses_impossible_settings() -> None:
    constant = ms.DataStatistics(MEAN, torch.zeros(2, *GRID.half_shape), GRID, 1)
    spectral = spectral_denoiser()
    process, statistics = spectral.process, spectral.statistics
    padded = ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), GRID, {"x": 3}))
    karras = ms.Denoiser(Affine(), process, preconditioning="karras", statistics=statistics)
    options = {"preconditioning": "spectral"}
    assert_refused(
        ("choose x0, noise, v or flow", lambda: ms.Denoiser(Affine(), process, prediction="score")),
        ("choose none, karras or spectral", lambda: ms.Denoiser(Affine(), process, preconditioning="edm")),
        ("omit prediction", lambda: ms.Denoiser(Affine(), process, preconditioning="karras", prediction="v")),
        ("more than one example", lambda: ms.Denoiser(Affine(), process, statistics=constant)),
        ("needs the statistics", lambda: ms.Denoiser(Affine(), process, **options)),
        ("remove the padding", lambda: ms.Denoiser(Affine(), padded, statistics=statistics, **options)),
        ("whitened metric", lambda: karras.weigh(data(), TIMES, metric="whitened")),
        ("uniform weighting", lambda: spectral.weigh(data(), TIMES, metric="whitened", weighting=ms.MinSNR())),
        ("floor must be from 0 to 120 dB", lambda: ms.Denoiser(Affine(), process, statistics=statistics, floor=150)),
    )


@pytest.mark.parametrize(("floor", "error"), [(None, 0.01), (100.0, 0.01), (60.0, None)])
def test_spectral_preconditioning_estimates_what_is_above_its_floor(floor: float | None, error: float | None) -> None:
    """Without a network, it is the Wiener filter of data over 93 dB, also in float32, where noise is faint."""
    grid = ms.Grid.of(y=15, x=16)
    decibels = -93 * grid.radius() / grid.radius().max()
    statistics = ms.DataStatistics(torch.zeros(1, *grid.shape).double(), 25 * 10 ** (decibels[None] / 10), grid, 100)
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-20, 28)), ms.SpectralCovariance(ms.Flat(), grid))
    denoiser = ms.Denoiser(Affine(), process, preconditioning="spectral", statistics=statistics, floor=floor)
    t = process.schedule.time(torch.tensor(16.0, dtype=torch.float64)).expand(64)
    x = torch.fft.irfft2(statistics.power.sqrt() * torch.fft.rfft2(dense.random(64, 1, 15, 16)), s=(15, 16))
    x_t = process.add_noise(x.float(), t, process.noise(x.shape, range(64)))
    estimates = [each(x_t, t).double() for each in (denoiser, ms.GaussianDenoiser(process, statistics))]
    made, right = (torch.fft.rfft2(each)[..., decibels < -85].abs().square().mean() for each in estimates)
    if error is None:
        assert made > 10 * right
    else:
        assert float(made / right) == pytest.approx(1, abs=error)


def dual(parts: tuple[Tensor, Tensor, Tensor | float], kind: str, p: ms.Process, statistics: ms.DataStatistics):
    """A dual denoiser whose network outputs these parts, and a denoiser whose network outputs the first of them."""
    option = {"preconditioning": kind} if kind in ("karras", "spectral") else {"prediction": kind}
    prediction, direct, logit = parts
    output = torch.cat([prediction, direct, torch.as_tensor(logit).expand_as(direct)], 1)
    made = ms.DualDenoiser(Network(lambda x, log_snr: output), p, statistics=statistics, **option)
    return made, ms.Denoiser(Network(lambda x, log_snr: prediction), p, statistics=statistics, **option)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
@pytest.mark.parametrize("kind", ["noise", "v", "flow", "karras", "spectral"])
def test_dual_denoiser_mixes_two_estimates_of_x0_at_every_point(kind, grid):
    covariance = ms.SpectralCovariance(ms.PowerLaw(-0.5), grid).double()
    statistics, shape = random_statistics(grid, 2), (3, 2, *grid.shape)
    prediction, direct, x_t, logit = (dense.random(*shape, seed=seed) for seed in range(4))
    for modulation in MODULATIONS.values() if kind == "v" else (None,):
        p = ms.Process(ms.CosineSchedule(), covariance, modulation)
        estimate = statistics.mean + direct
        for extreme in (-80.0, 80.0):
            mixed, plain = dual((prediction, direct, extreme), kind, p, statistics)
            expected = plain(x_t, TIMES) if extreme < 0 else estimate
            torch.testing.assert_close(mixed(x_t, TIMES), expected, rtol=1e-9, atol=1e-9)
        mixed, plain = dual((prediction, direct, logit), kind, p, statistics)
        still = mixed(x_t, torch.zeros(3, dtype=torch.float64))
        torch.testing.assert_close(still, plain(x_t, torch.zeros(3, dtype=torch.float64)), rtol=0, atol=1e-2)
        if kind == "v" and modulation is None:
            sigma = p.schedule.alpha_sigma(TIMES)[1].reshape(-1, *(1,) * (1 + grid.dimensions))
            weight = sigma * logit.exp() / (1 + sigma * logit.exp())
            expected = (1 - weight) * plain(x_t, TIMES) + weight * estimate
            torch.testing.assert_close(mixed(x_t, TIMES), expected, rtol=1e-9, atol=1e-9)


def test_dual_denoiser_has_no_loss_if_its_direct_estimate_is_right():
    parts = (torch.zeros_like(X0), X0 - MEAN, 80.0)
    for metric in ("euclidean", "mahalanobis"):
        loss = dual(parts, "v", process(), STATISTICS)[0].loss(X0, TIMES, SEEDS, metric=metric)
        assert loss.abs().max() < 1e-18
    assert_refused(
        ("must return 6 channels for 2, got 2", lambda: ms.DualDenoiser(Network(), process())(X0, TIMES)),
        ("both outputs would be x0", lambda: ms.DualDenoiser(Network(), process(), "x0")),
    )


@pytest.mark.parametrize(
    ("modulation", "preconditioning", "weighting", "padding"),
    [
        (None, "spectral", ms.MinSNR(), {}),
        (None, "karras", PerFrequency(ms.SigmoidWeighting()), {}),
        (ms.Blur(1.0), "none", ms.UniformWeighting(), {}),
        (ms.Prefilter(ms.PowerLaw(-0.2)), "none", ms.UniformWeighting(), {}),
        (None, "none", ms.UniformWeighting(), {"x": 3}),
    ],
)
def test_denoiser_of_data_of_another_size_equals_one_made_for_it(modulation, preconditioning, weighting, padding):
    """Data of several sizes are trained with one process: loss, noise and samples are those of a process of each."""
    other = GRID.resize((6, 7))
    statistics, x0 = random_statistics(GRID, channels=2), dense.random(3, 2, *other.shape)
    mask = torch.ones(3, 1, *other.shape, dtype=torch.bool)
    mask[0, :, 4:] = False

    def made_for(grid: ms.Grid, spectrum: ms.Spectrum) -> ms.Denoiser:
        covariance = ms.PaddedCovariance(spectrum, grid, padding) if padding else ms.SpectralCovariance(spectrum, grid)
        process = ms.Process(ms.CosineSchedule(), covariance.double(), modulation)
        own = statistics.at(grid)
        denoiser = ms.Denoiser(Network(curved), process, preconditioning=preconditioning, statistics=own)
        denoiser.sigma_data = statistics.sigma_data  # one number for all sizes
        return denoiser

    for spectrum in (ms.PowerLaw(-0.5), DataPower(statistics)):
        results = []
        for denoiser in (made_for(GRID, spectrum), made_for(other, spectrum)):
            loss = denoiser.loss(x0, TIMES, SEEDS, mask=mask, weighting=weighting)
            drawn = ms.sample(denoiser, ms.DDIM(), x0.shape, 3, SEEDS)
            results.append((loss, drawn))
        torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)
