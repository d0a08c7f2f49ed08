"""Likelihoods equal densities in closed form: of dense Gaussians and of a mixture of two."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
from tests.helpers import dense
from tests.helpers.networks import Estimate, labelled_denoiser
from tests.helpers.stationary import draw_data

GRIDS = {
    "1-D odd": ms.Grid.of(time=5),
    "1-D even": ms.Grid.of(time=6),
    "2-D mixed": ms.Grid.of(height=3, width=2),
    "3-D mixed": ms.Grid.of(frame=2, height=2, width=3),
}
SCHEDULES = {"cosine": ms.CosineSchedule(), "karras": ms.KarrasSchedule(), "flow": ms.FlowSchedule()}
NOISES = ["white", "power law", "data power"]
TOLERANCE = 1e-3
"""Bits per dimension between the likelihood and the density; the prior at t = 1 is not quite the law of the noise."""


def data_power(grid: ms.Grid) -> np.ndarray:
    return 0.05 + 0.5 / (1 + 30 * dense.radius(grid) ** 2)


def gaussian(grid: ms.Grid, noise: str, schedule: ms.Schedule, channels: int = 1) -> ms.GaussianDenoiser:
    mean = dense.tensor(0.3 * np.cos(np.arange(grid.numel)).reshape(grid.shape))
    power = dense.tensor(dense.half(grid, data_power(grid)))
    powers = torch.stack([power * (1 + channel) for channel in range(channels)])
    statistics = ms.DataStatistics(torch.stack([mean] * channels), powers, grid, 1000)
    spectrum = {"white": ms.Flat(), "power law": ms.PowerLaw(-0.5), "data power": statistics.spectrum()}[noise]
    covariance = ms.SpectralCovariance(spectrum, grid).double()
    return ms.GaussianDenoiser(ms.Process(schedule, covariance), statistics)


def dense_density(denoiser: ms.GaussianDenoiser, x: Tensor) -> np.ndarray:
    """Log-density of x at t = 0 by determinants and inverses of full matrices, in nats."""
    statistics, grid, schedule = denoiser.statistics, denoiser.statistics.grid, denoiser.process.schedule
    a, b = (float(each) for each in schedule.alpha_sigma(torch.zeros((), dtype=torch.float64)))
    noise = dense.operator(grid.full(denoiser.process.covariance.power()).numpy())
    total = np.zeros(len(x))
    for channel in range(len(statistics.mean)):
        matrix = a**2 * dense.operator(grid.full(statistics.power[channel]).numpy()) + b**2 * noise
        away = dense.flat(x[:, channel] - a * statistics.mean[channel], grid)
        norm = np.einsum("bi,ij,bj->b", away, np.linalg.inv(matrix), away)
        total -= (grid.numel * math.log(2 * math.pi) + np.linalg.slogdet(matrix)[1] + norm) / 2
    return total


def bits(difference: object, denoiser: ms.GaussianDenoiser) -> float:
    return float(np.abs(np.asarray(difference)).max()) / denoiser.statistics.mean.numel() / math.log(2)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_log_likelihood_of_gaussian_data_is_exact(schedule, noise):
    """By the exact trace, within 1e-3 bits per dimension, for a prior about the mean and one about zero."""
    for name, grid in GRIDS.items():
        denoiser = gaussian(grid, noise, schedule)
        x, mean = draw_data(denoiser.statistics, 4), denoiser.statistics.mean
        for data in (x, x.float()):  # computed in float64
            exact = ms.log_likelihood(denoiser, data, steps=32, probes=None, mean=mean)
            assert exact.dtype == torch.float64
            assert bits(exact.numpy() - dense_density(denoiser, x), denoiser) < TOLERANCE, name
    if schedule.path != "exploding":  # which keeps the mean at t = 1
        about_zero = ms.log_likelihood(denoiser, x, steps=32, probes=None)
        assert bits(about_zero.numpy() - dense_density(denoiser, x), denoiser) < TOLERANCE


@pytest.mark.parametrize("noise", NOISES)
def test_log_likelihood_by_one_probe_with_statistics_is_exact_on_gaussian_data(noise):
    """Nothing is left to estimate, so that one probe serves grids too large for the exact trace."""
    for shape in ((16, 16), (9, 12), (4, 6, 5)):
        grid = ms.Grid.of(**dict(zip("tyx"[-len(shape) :], shape, strict=True)))
        denoiser = gaussian(grid, noise, ms.CosineSchedule(), channels=2)
        x, statistics = draw_data(denoiser.statistics, 3), denoiser.statistics
        probed = ms.log_likelihood(denoiser, x, steps=25, seeds=[0, 1, 2], statistics=statistics, mean=statistics.mean)
        assert bits(probed.numpy() - dense_density(denoiser, x), denoiser) < TOLERANCE, shape


class Mixture:
    """The exact denoiser of two Gaussians `N(m_i, C_i)` with powers C_i, by full matrices."""

    def __init__(self, grid: ms.Grid, schedule: ms.Schedule, exponent: float) -> None:
        covariance = ms.SpectralCovariance(ms.PowerLaw(exponent, corner=0.1), grid).double()
        self.process = process = ms.Process(schedule, covariance)
        self.means = torch.stack([torch.full((grid.numel,), 1.0), torch.linspace(-2, 0, grid.numel)]).double()
        self.weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
        self.powers = [data_power(grid), 0.02 + 0.3 * dense.radius(grid)]
        self.data = torch.stack([dense.tensor(dense.operator(power)) for power in self.powers])
        self.noise = dense.tensor(dense.operator(grid.full(process.covariance.power()).numpy()))

    def components(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Log of weight times density of each component at x `(batch, n)`, and its posterior mean."""
        logs, means = [], []
        for weight, mean, data in zip(self.weights, self.means, self.data, strict=True):
            matrix = a**2 * data + b**2 * self.noise
            away = x - a * mean
            solved = torch.linalg.solve(matrix, away.T).T
            size = torch.logdet(2 * math.pi * matrix)
            logs.append(weight.log() - (size + (away * solved).sum(1)) / 2)
            means.append(mean + a * solved @ data)
        return torch.stack(logs), torch.stack(means)

    def __call__(self, x_t: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        a, b = self.process.schedule.alpha_sigma(t[0].double())
        logs, means = self.components(x_t.flatten(1), a, b)
        return (torch.softmax(logs, 0)[..., None] * means).sum(0).reshape(x_t.shape)

    def power(self) -> np.ndarray:
        """Power about the mean of the mixture: within the components, and between them."""
        apart = (self.means - (self.weights[:, None] * self.means).sum(0)).reshape(2, *self.process.grid.shape).numpy()
        between = np.abs(np.fft.fftn(apart, axes=tuple(range(1, apart.ndim)), norm="ortho")) ** 2
        return sum(w * (p + b) for w, p, b in zip(self.weights.numpy(), self.powers, between, strict=True))

    def density(self, x: Tensor) -> Tensor:
        a, b = self.process.schedule.alpha_sigma(torch.zeros((), dtype=torch.float64))
        return torch.logsumexp(self.components(x.flatten(1), a, b)[0], 0)


@pytest.mark.parametrize("exponent", [0.0, -0.5, 0.5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_log_likelihood_of_a_mixture_is_exact(name, exponent):
    """Each schedule with each noise; each of both in one dimension and in two."""
    schedule = ms.KarrasSchedule(sigma_max=400) if name == "karras" else SCHEDULES[name]
    one_axis = (list(SCHEDULES).index(name) + int(2 * exponent)) % 2
    grid = ms.Grid.of(time=4) if one_axis else ms.Grid.of(height=2, width=3)
    model = Mixture(grid, schedule, exponent)
    x = model.means.repeat(4, 1).reshape(8, 1, *grid.shape) + 0.4 * dense.random(8, 1, *grid.shape)
    mean = (model.weights[:, None] * model.means).sum(0).reshape(1, *grid.shape)
    exact = ms.log_likelihood(model, x, steps=100, probes=None, mean=mean)
    assert float((exact - model.density(x)).abs().max()) / grid.numel / math.log(2) < TOLERANCE


@pytest.mark.parametrize("exponent", [0.0, -0.8])
def test_log_likelihood_by_probes_has_less_variance_with_statistics(exponent):
    """Unbiased where the Jacobian is not a filter; four probes halve the standard deviation."""
    grid = ms.Grid.of(height=2, width=3)
    model = Mixture(grid, ms.CosineSchedule(), exponent)
    x = 0.4 * dense.random(1, 1, *grid.shape).expand(300, 1, *grid.shape)
    statistics = dense.stationary(model.power(), grid)
    exact = float(ms.log_likelihood(model, x[:1], steps=25, probes=None))
    spreads = []
    for given_statistics in (None, statistics):
        many = ms.log_likelihood(model, x, steps=25, seeds=range(300), statistics=given_statistics)
        assert abs(float(many.mean()) - exact) < 4 * float(many.std()) / math.sqrt(300)
        spreads.append(float(many.std()))
    assert spreads[1] < spreads[0]
    several = ms.log_likelihood(model, x, steps=25, seeds=range(300), probes=4)
    assert float(several.std()) == pytest.approx(spreads[0] / 2, rel=0.2)


def test_log_likelihood_of_an_item_depends_on_its_own_seed_and_condition():
    denoiser = labelled_denoiser(ms.Grid.of(height=8, width=8)).double()
    x, labels = dense.random(3, 1, 8, 8), torch.tensor([0, 1, 2])
    with torch.inference_mode():  # as sampling is run in
        batch = ms.log_likelihood(denoiser, x, steps=4, seeds=[5, 6, 7], condition=labels.clone())
    alone = ms.log_likelihood(denoiser, x[1:2], steps=4, seeds=[6], condition=labels[1:2])
    torch.testing.assert_close(batch[1:2].clone(), alone, rtol=1e-10, atol=0)
    other = ms.log_likelihood(denoiser, x[1:2], steps=4, seeds=[6], condition=labels[:1])
    assert float((alone - other).abs()) > 1e-6
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_bits_per_dimension_of_a_standard_normal():
    """A standard normal has log2 √(2πe) bits per dimension in expectation; one nat is log2 e bits."""
    nats = torch.tensor([-8 * 0.5 * math.log(2 * math.pi * math.e)], dtype=torch.float64)
    assert float(ms.bits_per_dimension(nats, 8)) == pytest.approx(2.0470956, abs=1e-6)
    with pytest.raises(ValueError, match="at least one dimension"):
        ms.bits_per_dimension(nats, 0)


def test_log_likelihood_refuses_what_has_no_density_and_impossible_counts():
    grid, x = ms.Grid.of(time=8), dense.random(2, 1, 8)

    white = ms.SpectralCovariance(ms.Flat(), grid)
    two_channels = ms.DataStatistics(torch.zeros(2, 8), torch.ones(2, 5), grid, 10)
    for message, covariance, modulation, options in (
        ("no density", ms.SpectralCovariance(ms.Band(0.2, 0.9, "nyquist"), grid), None, {}),
        ("padded", ms.PaddedCovariance(ms.Flat(), grid, {"time": 4}), None, {}),
        ("scalar coefficients", white, ms.Blur(1.0), {}),
        ("2 seeds", white, None, {"seeds": [1]}),
        ("at least one step", white, None, {"steps": 0}),
        ("at least one step and one probe", white, None, {"probes": 0}),
        ("statistics have 2 channels, but the data have 1", white, None, {"statistics": two_channels}),
    ):
        model = Estimate(ms.Process(ms.CosineSchedule(), covariance, modulation))
        with pytest.raises(ValueError, match=message):
            ms.log_likelihood(model, x, **({"steps": 2, "seeds": [1, 2]} | options))
