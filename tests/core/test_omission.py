"""Omission, projection and restoration against the exact denoiser of Gaussian data and brute force on a mixture."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from multisagd import (
    DDIM,
    Band,
    Corruption,
    CosineSchedule,
    DataStatistics,
    Denoiser,
    DPMSolver,
    Flat,
    FlowSchedule,
    GaussianDenoiser,
    Grid,
    KarrasSchedule,
    NoiseFloor,
    Outside,
    PaddedCovariance,
    PowerLaw,
    Process,
    ProjectedDenoiser,
    RestoringDenoiser,
    Schedule,
    SpectralCovariance,
    UniPC,
    sample,
)
from multisagd.covariance import to_half_spectrum
from multisagd.finishing import finish, residual_power
from multisagd.restoration import clean_power
from tests.helpers import dense

GRIDS = [Grid.of(time=15), Grid.of(height=6, width=8), Grid.of(frame=3, height=4, width=5)]
SCHEDULES = [CosineSchedule(), KarrasSchedule(), FlowSchedule()]
TIMES = torch.tensor([0.02, 0.4, 0.95], dtype=torch.float64)
BAND = Band(0.2, 0.4)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)


class Linear(nn.Module):
    """A network that answers with a fixed multiple of what it is given, and keeps what that was."""

    def __init__(self, factor: float = 0.0) -> None:
        super().__init__()
        self.factor = factor
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        self.asked.append(x)
        return self.factor * x


class Projection(nn.Module):
    """A network that predicts no noise where there is none."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.covariance = process.covariance

    def forward(self, x: Tensor, log_snr: Tensor, condition: Tensor | None) -> Tensor:
        return 0.4 * self.covariance.project(x)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def clean_statistics(grid: Grid) -> DataStatistics:
    power = torch.stack([grid.even(each) for each in torch.exp(random(2, *grid.half_shape, seed=1))])
    return DataStatistics(0.3 * random(2, *grid.shape, seed=2), power, grid, 10)


def corrupted_statistics(grid: Grid, corruption: Corruption) -> DataStatistics:
    clean = clean_statistics(grid)
    return DataStatistics(clean.mean, clean.power + corruption.power(), grid, 10)


def draw(grid: Grid, count: int, seed: int = 0) -> Tensor:
    """Gaussian data of the clean statistics, `(count, 2, *grid)`."""
    clean = clean_statistics(grid)
    white = random(count, 2, *grid.shape, seed=100 + seed)
    half = to_half_spectrum(white, grid.dimensions) * clean.power.sqrt()
    return clean.mean + torch.fft.irfftn(half, s=grid.shape, dim=tuple(range(-grid.dimensions, 0)))


def unseen(grid: Grid, schedule: Schedule, network: nn.Module, level: float = 1.5) -> RestoringDenoiser:
    corruption = Corruption(BAND, grid, level)
    process = Process(schedule, SpectralCovariance(Outside(BAND), grid)).double()
    return RestoringDenoiser(network, process, corruption, corrupted_statistics(grid, corruption))


def floored(
    grid: Grid, schedule: Schedule, network: nn.Module, level: float = 1.5, margin: float = 0.7
) -> RestoringDenoiser:
    corruption = Corruption(BAND, grid, level)
    covariance = SpectralCovariance(PowerLaw(-0.4, corner=0.1), grid)
    process = Process(schedule, covariance, NoiseFloor(schedule, covariance, corruption, margin)).double()
    return RestoringDenoiser(network, process, corruption, corrupted_statistics(grid, corruption))


def in_band(x: Tensor, grid: Grid) -> Tensor:
    return to_half_spectrum(x, grid.dimensions)[..., Corruption(BAND, grid).power() > 0]


@grids
def test_projection_is_blind_where_there_is_no_noise_and_says_the_mean(grid: Grid) -> None:
    process = Process(CosineSchedule(), SpectralCovariance(Outside(BAND), grid)).double()
    network, statistics = Linear(0.3), clean_statistics(grid)
    denoiser = ProjectedDenoiser(network, process, statistics=statistics)
    x, other = random(3, 2, *grid.shape), random(3, 2, *grid.shape, seed=5)
    moved = x + other - process.covariance.project(other)
    torch.testing.assert_close(denoiser(moved, TIMES), denoiser(x, TIMES), rtol=0, atol=1e-12)
    assert float(in_band(network.asked[0], grid).abs().max()) < 1e-12
    off = in_band(denoiser(x, TIMES) - statistics.mean, grid)
    assert float(off.abs().max()) < 1e-12
    error = denoiser.error(x, TIMES, process.noise(x.shape, [1, 2, 3]).double())
    assert float(in_band(error, grid).abs().max()) < 1e-12
    assert float(error.abs().max()) > 0.1


@grids
def test_the_papers_omission_sees_the_band_and_keeps_it(grid: Grid) -> None:
    process = Process(CosineSchedule(), SpectralCovariance(Outside(BAND), grid)).double()
    network, statistics = Linear(0.3), clean_statistics(grid)
    denoiser = ProjectedDenoiser(network, process, statistics=statistics, blind=False)
    x0, noise = random(3, 2, *grid.shape), process.noise((3, 2, *grid.shape), [1, 2, 3]).double()
    x_t = process.add_noise(x0, TIMES, noise)
    # Of a datum that is noised nowhere in the band, the estimate is exact there; in sampling, zero stays zero.
    torch.testing.assert_close(in_band(denoiser(x_t, TIMES), grid), in_band(x0, grid), rtol=0, atol=1e-8)
    assert float(in_band(network.asked[0], grid).abs().max()) > 0.1
    made = sample(denoiser, DDIM(), (2, 2, *grid.shape), 5, [1, 2])
    assert float(in_band(made, grid).abs().max()) < 1e-5
    # The same as predicting noise by a network that has learned that there is none.
    by_noise = Denoiser(Projection(process), process, prediction="noise", statistics=statistics)
    ours = ProjectedDenoiser(Projection(process), process, prediction="noise", statistics=statistics, blind=False)
    torch.testing.assert_close(ours(x_t, TIMES), by_noise(x_t, TIMES), rtol=0, atol=1e-8)
    torch.testing.assert_close(ours.loss(x0, TIMES, [1, 2, 3]), by_noise.loss(x0, TIMES, [1, 2, 3]))


@grids
@schedules
@pytest.mark.parametrize("preconditioning", ["none", "karras", "spectral"])
def test_projection_with_noise_everywhere_is_no_other_denoiser(
    grid: Grid, schedule: Schedule, preconditioning: str
) -> None:
    process = Process(schedule, SpectralCovariance(PowerLaw(-0.4, corner=0.1), grid)).double()
    arguments = {"preconditioning": preconditioning, "statistics": clean_statistics(grid)}
    ours = ProjectedDenoiser(Linear(0.3), process, **arguments)  # type: ignore[arg-type]
    theirs = Denoiser(Linear(0.3), process, **arguments)  # type: ignore[arg-type]
    x = random(3, 2, *grid.shape)
    torch.testing.assert_close(ours(x, TIMES), theirs(x, TIMES), rtol=0, atol=1e-9)
    torch.testing.assert_close(ours.loss(x, TIMES, [1, 2, 3]), theirs.loss(x, TIMES, [1, 2, 3]), rtol=1e-9, atol=0)


@grids
@schedules
@pytest.mark.parametrize("margin", [0.3, 2.0])
def test_the_floor_is_the_formula_on_the_full_spectrum(grid: Grid, schedule: Schedule, margin: float) -> None:
    corruption = Corruption(BAND, grid, 0.8)
    covariance = SpectralCovariance(PowerLaw(-0.4, corner=0.1), grid)
    process = Process(schedule, covariance, NoiseFloor(schedule, covariance, corruption, margin)).double()
    at = process.coefficients(TIMES, torch.empty(3, 1, *grid.shape, dtype=torch.float64))
    alpha, sigma = (each.numpy() for each in schedule.alpha_sigma(TIMES))
    W = np.maximum(dense.radius(grid), 0.1) ** -0.8
    W /= W.mean()
    inside = ((dense.radius(grid) >= 0.2 - 1e-9) & (dense.radius(grid) <= 0.4 + 1e-9)).astype(float)
    c2 = 0.8**2 * inside / inside.mean()
    for i in range(3):
        expected = np.maximum(sigma[i] ** 2 * W, (1 + margin) * alpha[i] ** 2 * c2)
        found = (at.b[i, 0] ** 2 * covariance.power()).numpy()
        np.testing.assert_allclose(found, dense.half(grid, expected), rtol=1e-9)
        np.testing.assert_allclose(at.a[i].numpy(), alpha[i], rtol=1e-12)


@grids
@schedules
def test_corrupted_data_get_only_the_noise_that_they_lack(grid: Grid, schedule: Schedule) -> None:
    denoiser = floored(grid, schedule, Linear())
    count = 4000
    noise = denoiser.process.noise((count, 2, *grid.shape), range(count)).double()
    x0 = torch.zeros(count, 2, *grid.shape, dtype=torch.float64)
    corrupted = denoiser.corruption.corrupt(x0, range(count, 2 * count))
    t = torch.full((count,), 0.3, dtype=torch.float64)
    x_t, _ = denoiser.noised(corrupted, t, noise)
    at = denoiser.process.coefficients(t[:1], x_t)
    expected = (at.b**2 * denoiser.process.covariance.power())[0, 0]
    found = to_half_spectrum(x_t, grid.dimensions).abs().square().mean((0, 1)) / grid.numel
    # 8,000 numbers per frequency: relative standard error at most √(2/8000) = 1.6 %; 5 of them.
    torch.testing.assert_close(found, expected, rtol=0.08, atol=0)


@grids
@schedules
def test_with_nothing_to_add_the_estimate_in_the_band_is_that_of_the_clean_oracle(
    grid: Grid, schedule: Schedule
) -> None:
    denoiser = floored(grid, schedule, Linear())
    oracle = GaussianDenoiser(denoiser.process, clean_statistics(grid))
    x = random(3, 2, *grid.shape)
    ours, theirs = (in_band(each(x, TIMES), grid) for each in (denoiser, oracle))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)


@grids
@schedules
@pytest.mark.parametrize("way", [floored, unseen])
def test_the_target_has_no_bias(grid: Grid, schedule: Schedule, way) -> None:  # type: ignore[no-untyped-def]
    """In the band, what the target has beyond the clean datum is orthogonal to everything that the network sees."""
    denoiser, count = way(grid, schedule, Linear()), 8000
    clean = draw(grid, count)
    corrupted = denoiser.corruption.corrupt(clean, range(count))
    noise = denoiser.process.noise(clean.shape, range(count, 2 * count)).double()
    for time in (0.02, 0.5):
        t = torch.full((count,), time, dtype=torch.float64)
        x_t, target = denoiser.noised(corrupted, t, noise)
        beyond = to_half_spectrum(target - clean, grid.dimensions)
        seen = to_half_spectrum(x_t - denoiser.process.covariance.project(torch.zeros_like(x_t)), grid.dimensions)
        known = denoiser.band(denoiser.process.coefficients(t[:1], clean), clean)
        inside = (known.corruption > 0).expand(1, *grid.half_shape)[0]
        seen = seen * known.seen.expand(1, *grid.half_shape)[0]
        product = (beyond * seen.conj()).real
        error = product.mean(0) / (product.std(0) / math.sqrt(count)).clamp(min=1e-12)
        assert float(error[:, inside].abs().max()) < 5
        # Its size is what the weights of the loss take it to be.
        size = beyond.abs().square().mean((0, 1)) / grid.numel
        expected = known.target_variance.expand(1, 1, *grid.half_shape)[0, 0]
        # 16,000 numbers per frequency: a relative standard error of at most 1.1 %; 5 of them and the correlation.
        torch.testing.assert_close(size[inside], expected[inside], rtol=0.1, atol=0)


@grids
@pytest.mark.parametrize("way", [floored, unseen])
@pytest.mark.parametrize("preconditioning", ["none", "karras"])
def test_errors_are_those_of_the_estimate_from_the_target(grid: Grid, way, preconditioning: str) -> None:  # type: ignore[no-untyped-def]
    made = way(grid, CosineSchedule(), Linear(0.3))
    denoiser = RestoringDenoiser(
        made.network, made.process, made.corruption, made.statistics, preconditioning=preconditioning  # type: ignore[arg-type]
    )  # fmt: skip
    x0, noise = random(3, 2, *grid.shape), denoiser.process.noise((3, 2, *grid.shape), [1, 2, 3]).double()
    x_t, target = denoiser.noised(x0, TIMES, noise)
    at = denoiser.process.coefficients(TIMES, x0)
    known, out = denoiser.band(at, x0), denoiser.preconditioning_at(at, x0).c_out
    weight = (known.clean / (known.clean + known.target_variance)).sqrt()
    error = to_half_spectrum(denoiser(x_t, TIMES) - target, grid.dimensions) * weight / out
    found = to_half_spectrum(denoiser.error(x0, TIMES, noise), grid.dimensions)
    # Outside the band of an unseen corruption the target is the datum, from which the error follows for any noise.
    torch.testing.assert_close(found, error, rtol=0, atol=1e-8)


def test_tweedie_twice_on_a_mixture() -> None:
    """E[x' | x_t] turned into E[x0 | x_t], and the mean of the target, by brute force on a law that is not Gaussian."""
    points, shares = torch.tensor([-1.3, 0.2, 2.0]), torch.tensor([0.3, 0.5, 0.2])
    a, c, added = 0.8, 0.9, 0.6
    V = a**2 * c**2 + added
    for x_t in (-1.5, 0.1, 1.7):
        posterior = shares * torch.exp(-((x_t - a * points) ** 2) / (2 * V))
        posterior = posterior / posterior.sum()
        exact = float((posterior * points).sum())
        # x' given x0 and x_t: of the noise in x_t the share a²c²/V is the corruption's.
        noisy = points + a * c**2 / V * (x_t - a * points)
        assert (V * float((posterior * noisy).sum()) - a * c**2 * x_t) / added == pytest.approx(exact, abs=1e-6)
        target = noisy - a * c**2 / added * (x_t - a * noisy)
        assert float((posterior * target).sum()) == pytest.approx(exact, abs=1e-6)


@grids
@pytest.mark.parametrize("sampler", [DDIM(), DDIM(eta=1.0), DPMSolver(), UniPC()], ids=str)
@pytest.mark.parametrize("way", [floored, unseen])
def test_samples_are_finite_and_finished_by_the_estimate(grid: Grid, sampler, way) -> None:  # type: ignore[no-untyped-def]
    denoiser = way(grid, CosineSchedule(), Linear(0.1))
    if way is floored and isinstance(sampler, UniPC):
        with pytest.raises(ValueError, match="constant noise level"):
            sample(denoiser, sampler, (3, 2, *grid.shape), 12, [1, 2, 3])
        return
    x = sample(denoiser, sampler, (3, 2, *grid.shape), 12, [1, 2, 3])
    assert bool(x.isfinite().all())
    done = finish(denoiser, x)
    estimate = denoiser(x, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(in_band(done, grid), in_band(estimate, grid), rtol=0, atol=1e-5)
    outside = denoiser.corruption.covariance.project(done - x)
    torch.testing.assert_close(done - x, outside, rtol=0, atol=1e-5)


@grids
def test_the_residual_is_what_the_conditional_mean_lacks(grid: Grid) -> None:
    denoiser, count = floored(grid, CosineSchedule(), Linear(), level=1.0), 8000
    corrupted = denoiser.corruption.corrupt(draw(grid, count), range(count))
    residual = residual_power(denoiser, [(part, None) for part in corrupted.split(1000)], seed=3)
    clean, at = clean_statistics(grid).power, denoiser.process.coefficients(torch.zeros(1), corrupted[:1])
    noise = (at.b**2 * denoiser.process.covariance.power())[0, 0]
    inside = denoiser.corruption.power() > 0
    expected = torch.where(inside, clean * noise / (at.a.flatten()[0] ** 2 * clean + noise), 0.0)
    total = expected + denoiser.band(at, corrupted[:1]).target_variance[0, 0]
    # Mean squares of 8,000: a standard error of at most 1.6 % of the target's own noise with the residual; 5 of them.
    assert float(((residual - expected).abs() / total.clamp(min=1e-9))[:, inside].max()) < 0.08
    assert float(residual[:, ~inside].abs().max()) == 0
    # Given back, it brings samples to the power of clean data in the band.
    t = torch.zeros(count, dtype=torch.float64)
    x_t, _ = denoiser.noised(corrupted, t, denoiser.process.noise(corrupted.shape, range(count)).double())
    done = finish(denoiser, x_t, residual=expected, seeds=range(count))
    power = DataStatistics.measure([done], grid).power
    torch.testing.assert_close(power[:, inside], clean[:, inside], rtol=0.1, atol=0)
    without = DataStatistics.measure([finish(denoiser, x_t)], grid).power
    assert bool((without[:, inside] < power[:, inside]).all())


def test_clean_power_never_vanishes_below_the_corruption() -> None:
    measured, corruption = torch.tensor([5.0, 4.0, 0.0, 3.0]), torch.tensor([0.0, 4.5, 0.0, 2.0])
    assert clean_power(measured, corruption).tolist() == pytest.approx([5.0, 4.5e-3, 0.0, 1.0])


def test_what_cannot_work_is_refused() -> None:
    grid, schedule = Grid.of(time=16), CosineSchedule()
    corruption = Corruption(BAND, grid)
    white, gapped = (SpectralCovariance(spectrum, grid) for spectrum in (Flat(), Outside(BAND)))
    statistics = corrupted_statistics(grid, corruption)
    with pytest.raises(ValueError, match="must be empty"):
        RestoringDenoiser(Linear(), Process(schedule, white), corruption, statistics)
    with pytest.raises(ValueError, match="needs noise wherever the corruption is"):
        NoiseFloor(schedule, gapped, corruption)
    with pytest.raises(ValueError, match="margin"):
        NoiseFloor(schedule, white, corruption, margin=0.0)
    with pytest.raises(ValueError, match="on different grids"):
        RestoringDenoiser(Linear(), Process(schedule, gapped), Corruption(BAND, Grid.of(time=17)), statistics)
    with pytest.raises(ValueError, match="none or karras"):
        RestoringDenoiser(
            Linear(), Process(schedule, gapped), corruption, statistics, preconditioning="spectral"
        )  # fmt: skip
    denoiser = RestoringDenoiser(Linear(), Process(schedule, gapped).double(), corruption, statistics)
    with pytest.raises(ValueError, match="one seed for each"):
        finish(denoiser, torch.zeros(2, 2, 16), residual=torch.zeros(2, 9))
    for bad, message in (({"metric": "mahalanobis"}, "ignores frequencies"), ({"penalty": object()}, "corrupted data")):
        with pytest.raises(ValueError, match=message):
            denoiser.loss(torch.zeros(1, 2, 16), torch.ones(1), [0], **bad)  # type: ignore[arg-type]
    padded = PaddedCovariance(Flat(), grid, {"time": 4})
    for build in (
        lambda: ProjectedDenoiser(Linear(), Process(schedule, padded)),
        lambda: RestoringDenoiser(Linear(), Process(schedule, padded), corruption, statistics),
        lambda: NoiseFloor(schedule, padded, corruption),
    ):
        with pytest.raises(ValueError, match="leave out the padding"):
            build()
    shared = Corruption(BAND, grid, shared=True)
    with pytest.raises(ValueError, match="channels do not share"):
        RestoringDenoiser(Linear(), Process(schedule, white, NoiseFloor(schedule, white, shared)), shared, statistics)
    RestoringDenoiser(Linear(), Process(schedule, gapped), shared, statistics)
    with pytest.raises(ValueError, match="no data"):
        residual_power(denoiser, [])
