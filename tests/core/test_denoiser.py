"""Denoisers: every parametrisation is an estimate of x0, its targets are exact, and the oracle is the truth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from tests.helpers import dense

GRID = ms.Grid.of(y=4, x=5)
SHAPE = (3, 2, *GRID.shape)
KINDS = ["x0", "noise", "v", "flow", "karras"]
SCHEDULES = [ms.CosineSchedule(), ms.KarrasSchedule(), ms.FlowSchedule(), ms.LinearSchedule(shift=2.0)]
MODULATIONS = {"scalar": None, "blur": ms.Blur(1.0), "colour shift": ms.ColorShift(ms.PowerLaw(0.3), ms.Flat())}
MEAN = dense.random(2, *GRID.shape, seed=9)
STATISTICS = ms.DataStatistics(MEAN, torch.full((2, *GRID.half_shape), 0.6**2, dtype=torch.float64), GRID, 100)


class Told(nn.Module):
    """A network that answers what it was told, and remembers what it was asked."""

    def __init__(self, answer: torch.Tensor | None = None) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []

    def forward(self, x, log_snr, condition):
        self.asked.append((x, log_snr, condition))
        return torch.zeros_like(x) if self.answer is None else self.answer


class Linear(nn.Module):
    """A small network that is wrong in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x, log_snr, condition):
        return torch.tanh(self.scale * x + 0.1 * log_snr.reshape(-1, *(1,) * (x.dim() - 1)))


def process(schedule=None, modulation=None, spectrum=None) -> ms.Process:
    covariance = ms.SpectralCovariance(spectrum or ms.PowerLaw(-0.5), GRID).double()
    return ms.Process(schedule or ms.CosineSchedule(), covariance, modulation)


def build(kind: str, p: ms.Process, network: nn.Module, statistics: ms.DataStatistics | None = None) -> ms.Denoiser:
    if kind == "karras":
        return ms.Denoiser(network, p, preconditioning="karras", statistics=statistics)
    return ms.Denoiser(network, p, prediction=kind, statistics=statistics)


def target(kind: str, p: ms.Process, signal: torch.Tensor, noise: torch.Tensor, t: torch.Tensor, sigma_data: float):
    """What the network should say, from the definitions, in frequency; the signal is about the mean."""
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistics", [None, STATISTICS], ids=["plain", "centred"])
@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS.keys())
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_a_network_that_hits_its_target_gives_x0_and_no_loss(kind, statistics, modulation, schedule):
    p = process(schedule, modulation)
    x0, t, seeds = dense.random(*SHAPE), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), [1, 2, 3]
    noise = p.noise(SHAPE, seeds)
    signal = x0 if statistics is None else x0 - MEAN
    sigma_data = 0.5 if statistics is None else 0.6
    network = Told(target(kind, p, signal, noise, t, sigma_data))
    denoiser = build(kind, p, network, statistics)
    x_t = p.add_noise(x0, t, noise)
    ratio = p.coefficients(t, x0)
    worst = float((ratio.b / ratio.a).max())
    torch.testing.assert_close(denoiser(x_t, t), x0, rtol=1e-10, atol=1e-10 * max(1.0, worst))
    for metric in ("euclidean", "mahalanobis"):
        loss = denoiser.loss(x0, t, seeds, metric=metric)
        assert loss.shape == (3,)
        assert loss.abs().max() < 1e-18 * max(1.0, worst) ** 2
    # Training and sampling must show the network one and the same input.
    (sampled, log_snr, _), (trained, _, _), _ = network.asked
    torch.testing.assert_close(sampled, trained, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_snr, p.schedule.log_snr(t))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", ["min_snr", "karras", "sigmoid"])
@pytest.mark.parametrize("metric", ["euclidean", "mahalanobis"])
@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS.keys())
def test_weighted_losses_are_errors_of_x0(kind, weighting, metric, modulation):
    """Whatever is predicted, a named weighting is the same function of the error of x0."""
    p = process(modulation=modulation)
    denoiser = build(kind, p, Linear(), STATISTICS)
    x0, t, seeds = dense.random(*SHAPE), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64), [1, 2, 3]
    error = denoiser(p.add_noise(x0, t, p.noise(SHAPE, seeds)), t) - x0
    snr = p.schedule.log_snr(t).exp()
    weight = {
        "min_snr": snr.clamp(max=5),
        "karras": snr + 1 / 0.36,
        "sigmoid": snr / (1 + torch.exp(snr.log() - 2)),
    }[weighting]
    expected = weight * (p.covariance.whiten(error) if metric == "mahalanobis" else error).square().mean((1, 2, 3))
    loss = denoiser.loss(x0, t, seeds, metric=metric, weighting=weighting)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)


def test_uniform_is_the_plain_error_of_what_is_predicted():
    p = process()
    x0, t, seeds = dense.random(*SHAPE), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64), [1, 2, 3]
    denoiser = build("noise", p, Linear())
    x_t = p.add_noise(x0, t, p.noise(SHAPE, seeds))
    plain = (denoiser.network(x_t, p.schedule.log_snr(t), None) - p.noise(SHAPE, seeds)).square().mean((1, 2, 3))
    torch.testing.assert_close(denoiser.loss(x0, t, seeds), plain)


def test_karras_weighting_of_karras_is_uniform():
    p = process(ms.KarrasSchedule())
    denoiser = build("karras", p, Linear(), STATISTICS)
    x0, t = dense.random(*SHAPE), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    torch.testing.assert_close(denoiser.loss(x0, t, [1, 2, 3], weighting="karras"), denoiser.loss(x0, t, [1, 2, 3]))


def test_karras_is_the_published_preconditioning():
    """2206.00364, Table 1, with its σ_data = 0.5."""
    p = process(ms.KarrasSchedule(), spectrum=ms.Flat())
    network = Told(dense.random(*SHAPE, seed=3))
    denoiser = build("karras", p, network)
    x, t = 5 * dense.random(*SHAPE), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    sigma = p.schedule.alpha_sigma(t)[1].reshape(3, 1, 1, 1)
    c_skip = 0.25 / (sigma**2 + 0.25)
    c_out = sigma * 0.5 / (0.25 + sigma**2).sqrt()
    c_in = 1 / (sigma**2 + 0.25).sqrt()
    torch.testing.assert_close(denoiser(x, t), c_skip * x + c_out * network.answer)
    torch.testing.assert_close(network.asked[0][0], c_in * x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_karras_input_and_target_have_unit_variance(schedule):
    p = process(schedule, spectrum=ms.Flat())
    network = Told()
    denoiser = build("karras", p, network, STATISTICS)
    count = 2000
    x0 = MEAN + 0.6 * dense.random(count, 2, *GRID.shape, seed=5)
    t = torch.linspace(0.02, 0.98, count, dtype=torch.float64)
    error = denoiser.error(x0, t, p.noise(x0.shape, range(count)))
    assert network.asked[0][0].square().mean().item() == pytest.approx(1, abs=0.02)
    assert error.square().mean().item() == pytest.approx(1, abs=0.02)
    assert abs(network.asked[0][0].mean().item()) < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_float32_keeps_its_digits_at_both_ends(kind):
    """The target as the quotient (x0 - skip·x)/out would lose every digit at low noise."""
    p32 = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID))
    t = torch.tensor([0.0, 1e-4, 1.0], dtype=torch.float64)
    x0 = dense.random(*SHAPE).float()
    noise = p32.noise(SHAPE, [1, 2, 3])
    exact = build(kind, process(), Told(), STATISTICS).error(x0.double(), t, noise.double())
    narrow = build(kind, p32, Told(), STATISTICS).error(x0, t.float().double(), noise)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), exact, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_statistics_serve_other_grid_sizes(kind):
    p = process()
    denoiser = build(kind, p, Linear(), STATISTICS)
    x = dense.random(2, 2, 7, 6)
    assert denoiser(x, torch.tensor([0.3, 0.6])).shape == x.shape


def test_centring_moves_with_the_data():
    """Data and mean shifted together: the network must not notice."""
    p = process()
    shift = dense.random(2, *GRID.shape, seed=11)
    moved = ms.DataStatistics(MEAN + shift, STATISTICS.power, GRID, 100)
    x0, t = dense.random(*SHAPE), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    for kind in KINDS:
        here, there = (build(kind, p, Linear(), s) for s in (STATISTICS, moved))
        torch.testing.assert_close(here.loss(x0, t, [1, 2, 3]), there.loss(x0 + shift, t, [1, 2, 3]))


def test_the_condition_reaches_the_network():
    network = Told()
    denoiser = build("v", process(), network)
    labels = torch.tensor([1, 2, 0])
    denoiser(dense.random(*SHAPE), torch.tensor([0.1, 0.2, 0.3]), labels)
    denoiser.loss(dense.random(*SHAPE), torch.tensor([0.1, 0.2, 0.3]), [1, 2, 3], condition=labels)
    assert network.asked[0][2] is labels
    assert network.asked[1][2] is labels


def test_outputs_of_diffusers_models_are_unwrapped():
    class Wrapped(nn.Module):
        def forward(self, x, log_snr, condition):
            return SimpleNamespace(sample=0.5 * x)

    class Plain(nn.Module):
        def forward(self, x, log_snr, condition):
            return 0.5 * x

    x, t = dense.random(*SHAPE), torch.tensor([0.2, 0.5, 0.8])
    ours, theirs = (build("v", process(), network)(x, t) for network in (Plain(), Wrapped()))
    assert torch.equal(ours, theirs)


def test_mask_and_gradients():
    p = process()
    denoiser = build("v", p, Linear())
    x0, t = dense.random(*SHAPE), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    mask = torch.ones(3, 1, *GRID.shape, dtype=torch.bool)
    mask[..., 3:] = False
    whole, cut = denoiser.loss(x0, t, [1, 2, 3]), denoiser.loss(x0, t, [1, 2, 3], mask=mask)
    error = denoiser.error(x0, t, p.noise(SHAPE, [1, 2, 3]))
    torch.testing.assert_close(cut, error[..., :3].square().mean((1, 2, 3)))
    torch.testing.assert_close(whole, error.square().mean((1, 2, 3)))
    cut.mean().backward()
    assert denoiser.network.scale.grad.abs() > 0


def test_the_loss_is_a_function_of_seeds():
    denoiser = build("v", process(), Linear())
    x0, t = dense.random(*SHAPE), torch.tensor([0.3, 0.5, 0.7], dtype=torch.float64)
    first, again = denoiser.loss(x0, t, [1, 2, 3]), denoiser.loss(x0, t, [1, 2, 3])
    assert torch.equal(first, again)
    alone = denoiser.loss(x0[1:2], t[1:2], [2])
    torch.testing.assert_close(alone[0], first[1])


def test_under_autocast_and_compile():
    p = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), GRID))
    network = nn.Conv2d(2, 2, 3, padding=1)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, log_snr, condition):
            return self.network(x)

    denoiser = ms.Denoiser(Net(), p)
    x0, t = dense.random(*SHAPE).float(), torch.tensor([0.3, 0.5, 0.7])
    expected = denoiser.loss(x0, t, [1, 2, 3])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = denoiser.loss(x0, t, [1, 2, 3])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    compiled = torch.compile(denoiser.loss, backend="eager")
    torch.testing.assert_close(compiled(x0, t, [1, 2, 3]), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction": "score"}, "choose x0, noise, v or flow"),
        ({"prediction": "epsilon"}, "choose x0, noise, v or flow"),
        ({"preconditioning": "edm"}, "choose none, karras or spectral"),
        ({"preconditioning": "karras", "prediction": "v"}, "leave out prediction"),
        (
            {"statistics": ms.DataStatistics(MEAN, torch.zeros(2, *GRID.half_shape), GRID, 1)},
            "more than one datum",
        ),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ms.Denoiser(Told(), process(), **options)


@pytest.mark.parametrize("modulation", MODULATIONS.values(), ids=MODULATIONS.keys())
@pytest.mark.parametrize("spectrum", [ms.PowerLaw(-0.5), ms.Band(0.15, 0.5)], ids=["full", "band"])
def test_the_oracle_is_gaussian_conditioning(modulation, spectrum):
    """E[x0|x_t] from the joint covariance of (x0, x_t), as dense matrices."""
    p = process(modulation=modulation, spectrum=spectrum)
    C = 0.3 * (dense.radius(GRID) + 0.1) ** -1.5
    mean = dense.random(*GRID.shape, seed=2).numpy()
    oracle = ms.GaussianDenoiser(p, dense.stationary(C, GRID, mean))
    x_t, t = dense.random(2, 1, *GRID.shape), torch.tensor([0.3, 0.9], dtype=torch.float64)
    ours = oracle(x_t, t)
    at = p.coefficients(t, x_t)
    W = GRID.full(p.covariance.power()).numpy()
    for item in range(2):
        a, b = (v[item, 0].expand(GRID.half_shape if modulation else (1, 1)) for v in (at.a, at.b))
        a, b = (GRID.full(v).numpy() if modulation else np.full(GRID.shape, float(v)) for v in (a, b))
        S0, A, S = dense.operator(C), dense.operator(a), dense.operator(b**2 * W)
        gain = S0 @ A.T @ np.linalg.inv(A @ S0 @ A.T + S)
        flat = mean.ravel()
        expected = flat + gain @ (dense.flat(x_t[item, 0], GRID) - A @ flat)
        np.testing.assert_allclose(dense.flat(ours[item, 0], GRID), expected, atol=1e-10)


def test_the_oracle_minimises_the_loss():
    """Any other gain does worse, on Gaussian data drawn from the same law."""
    p = process(spectrum=ms.PowerLaw(-0.4))
    data = ms.SpectralCovariance(ms.PowerLaw(-1.0), GRID).double()
    statistics = dense.stationary(GRID.full(data.power()).numpy(), GRID)
    oracle = ms.GaussianDenoiser(p, statistics)
    x0, t = data.sample(range(3000)), torch.full((3000,), 0.5, dtype=torch.float64)
    x_t = p.add_noise(x0, t, p.noise(x0.shape, range(5000, 8000)))
    estimate = oracle(x_t, t)
    best = (estimate - x0).square().mean()
    a, b = (float(v) for v in p.schedule.alpha_sigma(t[:1]))
    C, V = data.power(), b**2 * p.covariance.power()
    assert best.item() == pytest.approx(float(GRID.mean(C * V / (a**2 * C + V))), rel=0.03)
    for other in (0.95, 1.05):
        assert (other * estimate - x0).square().mean() > best
