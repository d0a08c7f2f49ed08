"""Corruption is found and removed as dense matrices do; omission and restoration agree with the exact denoiser."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import multisagd as ms
from multisagd import Band, Corruption, DataStatistics, Grid, Outside, SpectralCovariance
from multisagd.analysis.excess import estimate_corruption, excess_power, fitted_power
from multisagd.covariance import to_half_spectrum
from multisagd.finishing import finish, residual_power
from multisagd.gaussian_restoration import MAX_NUMBERS, GaussianRestoration
from multisagd.restoration import clean_power
from tests.helpers import dense
from tests.helpers.networks import Affine
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import draw_data, random_statistics

GRIDS = [Grid.of(time=15), Grid.of(height=6, width=8), Grid.of(frame=3, height=4, width=5)]
COSINE = ms.CosineSchedule()
SCHEDULES = [COSINE, ms.KarrasSchedule(), ms.FlowSchedule()]
TIMES = torch.tensor([0.02, 0.4, 0.95], dtype=torch.float64)
SEEDS = [1, 2, 3]
BAND = Band(0.2, 0.4)
COLORED = ms.PowerLaw(-0.4, corner=0.1)
grids = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.dimensions}d")
schedules = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
IMAGE = Grid.of(height=16, width=15)


@pytest.mark.parametrize("scale", ["std", "bins"])
@pytest.mark.parametrize("name", [name for name, grid in dense.GRIDS.items() if min(grid.shape) > 2])
def test_corruption_noise_has_the_covariance_of_its_dense_matrix(name: str, scale: str) -> None:
    grid, low, high, level = dense.GRIDS[name], 0.2, 0.45, 0.7
    corruption = Corruption(Band(low, high), grid, level, scale)
    inside = dense.ring(grid, low - 1e-9, high + 1e-9)
    per_bin = level**2 * (inside / inside.mean() if scale == "std" else inside)
    np.testing.assert_allclose(corruption.power().numpy(), dense.half(grid, per_bin), atol=1e-12)
    # Every sample of the grid then has the variance that stands on the diagonal of the dense covariance.
    variance = dense.operator(per_bin)[0, 0]
    assert variance == pytest.approx(corruption.std**2, rel=1e-12)
    drawn = corruption.noise((1, 1, *grid.shape), [7])
    torch.testing.assert_close(drawn, corruption.std * corruption.covariance.sample([7]))


def test_corruption_noise_depends_on_its_seed_and_may_be_shared_by_channels() -> None:
    grid = Grid.of(height=8, width=7)
    apart, shared = (Corruption(Band(0.2, 0.4), grid, 0.5, shared=shared) for shared in (False, True))
    x0 = torch.zeros(4, 3, 8, 7)
    together = apart.corrupt(x0, [5, 6, 7, 8])
    assert torch.equal(together[1:2], apart.corrupt(x0[:1], [6]))
    assert not torch.allclose(together[:, 0], together[:, 2])
    noise = shared.noise((4, 3, 8, 7), range(4))
    assert torch.equal(noise[:, 0], noise[:, 2])


def measured(grid: Grid, count: int, seed: int, corruption: Corruption | None = None) -> DataStatistics:
    """Statistics of coloured Gaussian data of two channels, corrupted or not."""
    covariance = SpectralCovariance(ms.PowerLaw(-1.0, corner=0.1, axes=grid.names[-1:]), grid)
    x0 = 0.6 * covariance.sample(range(seed, seed + count), 2)
    if corruption is not None:
        x0 = corruption.corrupt(x0, range(10**6 + seed, 10**6 + seed + count))
    return DataStatistics.measure([x0], grid)


@pytest.mark.parametrize(
    ("grid", "spectrum"),
    [
        (Grid.of(time=(200, 1 / 1000, "s")), Outside(ms.HarmonicStop(100.0, width=10.0, axis="time", harmonics=3))),
        (IMAGE, BAND),
        (Grid.of(height=12, width=12), ms.Streaks(90.0, 30.0) * Band(0.2, 0.8)),
        (Grid.of(frame=(8, 1 / 8, "s"), height=6, width=6), ms.Spots({"frame": 2.0}, 0.4)),
    ],
    ids=["hum", "band", "rain", "flicker"],
)
def test_estimate_corruption_finds_band_and_level_given_clean_data(grid: Grid, spectrum: ms.Spectrum) -> None:
    made = Corruption(spectrum, grid, 0.5)
    estimate = estimate_corruption(measured(grid, 2000, 7000, made), measured(grid, 2000, 0))
    assert torch.equal(estimate.power() > 0, made.power() > 0)
    # The level is the root of a difference of mean powers, each known to 3 % or so.
    assert estimate.std == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(
    "spectrum", [Band(0.3, 0.36), ms.Spots({"height": 0.25, "width": 0.125}, 0.03)], ids=["band", "moiré"]
)
def test_estimate_corruption_without_clean_data_fits_a_power_law(spectrum: ms.Spectrum) -> None:
    grid = Grid.of(height=32, width=32)
    natural = SpectralCovariance(ms.PowerLaw(-1.0, corner=0.03), grid)
    made = Corruption(spectrum, grid, 0.5)
    x0 = made.corrupt(0.6 * natural.sample(range(1500)), range(5000, 6500))
    data = DataStatistics.measure([x0], grid)
    error = 10 * (fitted_power(data) / (0.36 * natural.power())).log10()
    assert float(error[(grid.radius() > 0.03) & (grid.radius() < 0.5)].abs().max()) < 1.5
    estimate = estimate_corruption(data)
    assert torch.equal(estimate.power() > 0, made.power() > 0)
    assert estimate.std == pytest.approx(0.5, rel=0.1)


def test_excess_power_does_not_count_equal_channels_as_more_data() -> None:
    grid = Grid.of(height=8, width=8)
    for start in range(0, 10_000, 1000):
        one, other = (
            DataStatistics.measure([SpectralCovariance(ms.Flat(), grid).sample(seeds).expand(200, 3, 8, 8)], grid)
            for seeds in (range(start, start + 200), range(start + 500, start + 700))
        )
        assert not (excess_power(one, other.power.mean(0), 4.0, 200) > 0).any()


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_outside_is_the_complement_of_the_support(sizes: list[int], seed: int) -> None:
    grid = Grid.of(**dict(zip("abc", sizes, strict=False)))
    power = dense.random(*grid.half_shape, seed=seed).clamp(min=0)
    power.flatten()[0] = 1.0
    table = ms.Table(power, grid)
    inner, outer = (grid.even(each.power(grid)) for each in (table, Outside(table)))
    assert torch.equal((inner > 0) ^ (outer > 0), torch.ones_like(inner, dtype=torch.bool))
    assert torch.equal(outer, Outside(table * 7.0 + 0.0).power(grid))


def test_corruption_is_kept_in_a_file_for_grids_of_any_size(tmp_path: Path) -> None:
    grid, path = Grid.of(time=(64, 0.01, "s")), tmp_path / "band.safetensors"
    made = Corruption(Band(10.0, 20.0), grid, 0.5)
    made.save(path)
    torch.testing.assert_close(Corruption.load(path, grid).power(), made.power(), rtol=1e-12, atol=0)
    assert Corruption.load(path, grid.resize((128,))).std == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match="axes"):
        Corruption.load(path, Grid.of(width=64))
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is not a corruption"):
        Corruption.load(path, grid)


def test_corruption_and_its_estimate_refuse_what_makes_no_sense() -> None:
    grid = Grid.of(time=8)
    lines = [measured(Grid.of(x=size), 20, 0) for size in (8, 9)]
    assert_refused(
        *(("level", partial(Corruption, ms.Flat(), grid, level)) for level in (0.0, -1.0, math.inf, math.nan)),
        ("std or bins", lambda: Corruption(ms.Flat(), grid, 1.0, "decibels")),
        ("nothing to omit", lambda: Outside(Band(0.6, 0.7)).power(grid)),
        ("no corruption is", lambda: estimate_corruption(measured(IMAGE, 2000, 7000), measured(IMAGE, 2000, 0))),
        ("cannot be compared", lambda: estimate_corruption(*lines)),
    )


SMALL = Grid.of(height=6, width=7)
WIDE = Band(0.2, 0.45)


def draw(grid: Grid, count: int, seed: int = 0, channels: int = 2) -> tuple[Tensor, Tensor]:
    """Gaussian data that are not stationary, `(count, channels, *grid)`, and their covariance matrix."""
    numbers = channels * grid.numel
    factor = dense.random(numbers, numbers // 2, seed=7) / numbers**0.5
    white = dense.random(count, numbers // 2, seed=100 + seed)
    return (white @ factor.T + 0.5).reshape(count, channels, *grid.shape), factor @ factor.T


@pytest.mark.parametrize(
    "grid", [Grid.of(time=9), Grid.of(height=4, width=5), Grid.of(frame=2, height=3, width=4)], ids=["1d", "2d", "3d"]
)
def test_gaussian_restoration_conditions_the_dense_gaussian_in_its_band(grid: Grid) -> None:
    corruption, count = Corruption(WIDE, grid, 0.8), 40000
    clean, covariance = draw(grid, count)
    corrupted = corruption.corrupt(clean, range(count))
    fitted = GaussianRestoration.fit(corrupted.split(5000), corruption)
    # The dense covariance of the corruption, from the full spectrum, one block a channel.
    inside = dense.ring(grid, 0.2 - 1e-9, 0.45 + 1e-9)
    noise = torch.from_numpy(np.kron(np.eye(2), dense.operator(0.8**2 * inside / inside.mean())))
    gain = covariance @ torch.linalg.pinv(covariance + noise, hermitian=True, rtol=1e-9)
    x = corruption.corrupt(draw(grid, 2000, seed=1)[0], range(10**6, 10**6 + 2000))
    restored, expected = fitted.restore(x), (x - 0.5).flatten(1) @ gain.T + 0.5
    # The fit knows the covariance to about 1/√40000 of it in every direction.
    error = (restored.flatten(1) - expected).square().mean().sqrt() / (x - 0.5).square().mean().sqrt()
    assert float(error) < 0.05
    left = float((covariance - gain @ covariance).diagonal().sum())
    assert float(fitted.root.square().sum()) == pytest.approx(left, rel=0.1, abs=0.05)
    assert fitted.risk == pytest.approx(left / float(noise.diagonal().sum()), rel=0.25, abs=0.01)
    # A sample has the power that the mean lacks, and outside of the band neither changes anything.
    sample = fitted.restore(x, range(2000))
    power = float((sample - restored).square().flatten(1).sum(1).mean())
    assert power == pytest.approx(float(fitted.root.square().sum()), rel=0.1)
    for moved in (restored - x, sample - x):
        torch.testing.assert_close(moved, corruption.covariance.project(moved), rtol=0, atol=1e-9)


def test_gaussian_restoration_does_not_follow_the_noise_of_few_data() -> None:
    """With fewer data than numbers the covariance is singular."""
    grid = Grid.of(height=8, width=8)
    corruption = Corruption(Band(0.2, 0.3), grid, 1.0)
    clean, _ = draw(grid, 540, channels=1)
    x = corruption.corrupt(clean, range(540))
    restored = GaussianRestoration.fit([x[:40]], corruption).restore(x[40:])
    assert (restored - clean[40:]).square().mean() < (x - clean)[40:].square().mean() / 3


def test_gaussian_restoration_handles_corruption_shared_by_channels_only_as_such() -> None:
    shared, count = Corruption(WIDE, SMALL, 1.0, shared=True), 5000
    clean, _ = draw(SMALL, count)
    x = shared.corrupt(clean, range(count))
    restored = GaussianRestoration.fit([x], shared).restore(x)
    assert (restored - clean).square().mean() < 0.5 * (x - clean).square().mean()
    with pytest.raises(ValueError, match="whether the channels share it"):
        GaussianRestoration.fit([x], Corruption(WIDE, SMALL, 1.0))


def test_gaussian_restoration_is_kept_in_a_file(tmp_path: Path) -> None:
    grid, path = Grid.of(height=4, width=5), tmp_path / "fit.safetensors"
    corruption = Corruption(WIDE, grid)
    x = corruption.corrupt(draw(grid, 100)[0], range(100))
    fitted = GaussianRestoration.fit([x], corruption)
    fitted.save(path)
    again = GaussianRestoration.load(path)
    assert torch.equal(again.restore(x, range(100)), fitted.restore(x, range(100)))
    assert (again.grid, again.risk) == (fitted.grid, fitted.risk)


def test_gaussian_restoration_refuses_files_with_other_contents(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="is not a restoration"):
        GaussianRestoration.load(path)
    save_file({"mean": torch.zeros(1, 4)}, path)
    with pytest.raises(ValueError, match="not a restoration file of format"):
        GaussianRestoration.load(path)
    described = '{"format_version": 1, "risk": 0.1, "axes": [{"name": "time", "size": 4}]}'
    for shape in ((4, 5), (3, 4)):
        tensors = {"mean": torch.zeros(1, 4), "gain": torch.zeros(shape), "root": torch.zeros(4, 2)}
        save_file(tensors, path, metadata={"restoration": described})
        with pytest.raises(ValueError, match="do not match"):
            GaussianRestoration.load(path)


def test_gaussian_restoration_refuses_unusable_data() -> None:
    corruption, large = (Corruption(Band(0.1, 0.3), Grid.of(time=size)) for size in (16, MAX_NUMBERS + 1))
    fit, nan = GaussianRestoration.fit, torch.full((9, 1, 16), float("nan"))
    assert_refused(
        ("requires at least 4 examples, got 3", lambda: fit([torch.zeros(3, 1, 16)], corruption)),
        ("expected finite data", lambda: fit([torch.zeros(9, 1, 15)], corruption)),
        ("expected finite data", lambda: fit([nan], corruption)),
        ("not a generator", lambda: fit((nan for _ in range(2)), corruption)),
        ("would not fit into memory", lambda: fit([torch.zeros(9, 1, MAX_NUMBERS + 1)], large)),
        (
            "this restoration is for shape",
            lambda: fit([dense.random(9, 1, 16)], corruption).restore(torch.zeros(2, 1, 15)),
        ),
    )


def process_of(grid: Grid, spectrum: ms.Spectrum, schedule: ms.Schedule = COSINE) -> ms.Process:
    return ms.Process(schedule, SpectralCovariance(spectrum, grid)).double()


def restoring(process: ms.Process, network: nn.Module, corruption: Corruption, **options) -> ms.RestoringDenoiser:
    clean = random_statistics(process.grid)
    corrupted = DataStatistics(clean.mean, clean.power + corruption.power(), process.grid, 10)
    return ms.RestoringDenoiser(network, process, corruption, corrupted, **options)


def unseen(grid: Grid, schedule: ms.Schedule, network: nn.Module, **options) -> ms.RestoringDenoiser:
    """Restoration with no noise in the corrupted band."""
    return restoring(process_of(grid, Outside(BAND), schedule), network, Corruption(BAND, grid, 1.5), **options)


def floored(
    grid: Grid, schedule: ms.Schedule, network: nn.Module, level: float = 1.5, margin: float = 0.7, **options
) -> ms.RestoringDenoiser:
    """Restoration with more noise than corruption in the band."""
    corruption, covariance = Corruption(BAND, grid, level), SpectralCovariance(COLORED, grid)
    process = ms.Process(schedule, covariance, ms.NoiseFloor(schedule, covariance, corruption, margin)).double()
    return restoring(process, network, corruption, **options)


both = pytest.mark.parametrize("make", [floored, unseen])


def in_band(x: Tensor, grid: Grid) -> Tensor:
    return to_half_spectrum(x, grid.dimensions)[..., Corruption(BAND, grid).power() > 0]


@grids
def test_projected_denoiser_is_blind_where_there_is_no_noise_and_returns_the_mean(grid) -> None:
    process, network, statistics = process_of(grid, Outside(BAND)), Affine(0.3), random_statistics(grid)
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
    process, network = process_of(grid, Outside(BAND)), Affine(0.3)
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
    corruption, covariance = Corruption(BAND, grid, 0.8), SpectralCovariance(COLORED, grid)
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
    power, without = (DataStatistics.measure([each], grid).power for each in (finished, finish(denoiser, x_t)))
    torch.testing.assert_close(power[:, inside], clean[:, inside], rtol=0.1, atol=0)
    assert bool((without[:, inside] < power[:, inside]).all())


def test_restoration_refuses_impossible_settings_and_keeps_some_clean_power() -> None:
    measured, at_band = torch.tensor([5.0, 4.0, 0.0, 3.0]), torch.tensor([0.0, 4.5, 0.0, 2.0])
    assert clean_power(measured, at_band).tolist() == pytest.approx([5.0, 4.5e-3, 0.0, 1.0])
    grid = Grid.of(time=16)
    corruption, shared = Corruption(BAND, grid), Corruption(BAND, grid, shared=True)
    white, gapped = (SpectralCovariance(spectrum, grid) for spectrum in (ms.Flat(), Outside(BAND)))
    padded = ms.PaddedCovariance(ms.Flat(), grid, {"time": 4})

    def build(covariance=gapped, its_corruption=corruption, modulation=None, **options) -> ms.RestoringDenoiser:
        return restoring(ms.Process(COSINE, covariance, modulation), Affine(), its_corruption, **options)

    build(gapped, shared)
    denoiser = build()
    process, foreign = denoiser.process, Corruption(BAND, Grid.of(time=17))
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
