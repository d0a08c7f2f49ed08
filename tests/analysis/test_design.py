"""Transfer functions equal recursions, samples and dense matrices; designs by them beat brute force and baselines."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.baselines import baselines, trajectory_regular
from multisagd.analysis.dense import DenseLaw, dense_transfer
from multisagd.analysis.design import (
    ENDS,
    DesignedSteps,
    design_schedule,
    objective_value,
    on_smaller_grid,
    spectral_ends,
)
from multisagd.analysis.joint import FLOOR, design_joint
from multisagd.analysis.octaves import octave_log_snrs
from multisagd.analysis.profiles import radial_profile
from multisagd.analysis.recommend import CAUTION, Limits, recommend
from multisagd.analysis.transfer import error_budget, transfer_function
from tests.helpers import dense
from tests.helpers.gaussian import RECURSIONS, recursion_of
from tests.helpers.networks import DenseDenoiser
from tests.helpers.refusals import assert_refused
from tests.helpers.stationary import half_spectrum, random_statistics

WHITE, COSINE, DDIM = ms.Flat(), ms.CosineSchedule(), ms.DDIM()
COLORED = ms.PowerLaw(exponent=-0.5, corner=1 / 32)
SMALL, SQUARE = (ms.Grid.of(height=size, width=size) for size in (8, 16))
GRIDS = [ms.Grid.of(time=9), ms.Grid.of(height=5, width=6), ms.Grid.of(frame=3, height=4, width=5)]
SPECTRA = [ms.Flat(), ms.PowerLaw(exponent=-0.7, corner=0.1), ms.PowerLaw(exponent=0.4, corner=0.05)]
SCHEDULES = [ms.CosineSchedule(), ms.KarrasSchedule(), ms.FlowSchedule()]
DETERMINISTIC = [ms.DDIM(), ms.Euler(), ms.Heun(), ms.DPMSolver(), ms.DPMSolver(order=1), ms.UniPC()]
STOCHASTIC = [
    *(ms.DDIM(eta=0.6), ms.Ancestral(), ms.Ancestral(variance="forward")),
    *(ms.DPMSolver(sde=True), ms.Euler(churn=3), ms.Heun(churn=3)),
]


def statistics_of(grid: ms.Grid, seed: int = 1, channels: int = 2) -> ms.DataStatistics:
    return random_statistics(grid, seed, channels, spread=3.0)


def process_on(grid: ms.Grid, schedule=SCHEDULES[0], spectrum=SPECTRA[1], modulation=None) -> ms.Process:
    return ms.Process(schedule, ms.SpectralCovariance(spectrum, grid), modulation).double()


def times(steps: int) -> Tensor:
    """Uneven, and starting below 1."""
    return torch.linspace(0.97, 0.02, steps + 1, dtype=torch.float64) ** 1.3


def sample(denoiser, sampler, initial: Tensor, start: Tensor, seeds=None) -> Tensor:
    seeds = seeds or range(len(initial))
    return ms.sample(denoiser, sampler, initial.shape, len(start) - 1, seeds, times=start, initial=initial)


@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_transfer_function_maps_starts_to_the_samples_of_deterministic_samplers(sampler) -> None:
    """From any start, and from one at the mean, on each grid with each schedule and noise."""
    for grid, schedule, spectrum in zip(GRIDS, SCHEDULES, SPECTRA, strict=True):
        statistics, process = statistics_of(grid), process_on(grid, schedule, spectrum)
        denoiser, alpha = ms.GaussianDenoiser(process, statistics), schedule.alpha_sigma(times(6)[0])[0]
        x = 3 * dense.random(2, 2, *grid.shape, seed=2)
        for initial, at_mean in ((x, False), (x + alpha * statistics.mean, True)):
            transfer = transfer_function(sampler, process, times(6), statistics, start_at_mean=at_mean)
            mean = transfer.mean_gain * half_spectrum(statistics.mean, grid)
            expected = transfer.noise_gain * half_spectrum(x, grid) + mean
            samples = half_spectrum(sample(denoiser, sampler, initial, times(6)), grid)
            torch.testing.assert_close(samples, expected, rtol=1e-10, atol=1e-10)
            assert not bool(transfer.injected.any())


@pytest.mark.parametrize("sampler", RECURSIONS, ids=str)
def test_transfer_function_has_the_gain_and_power_of_the_recursion(sampler) -> None:
    """The recursions of the papers, one weight for the start and for each step's noise, also under blur."""
    cases = [(*each, None) for each in zip(GRIDS, SCHEDULES, SPECTRA, strict=True)]
    if not isinstance(sampler, ms.Euler):
        cases.append((GRIDS[1], SCHEDULES[0], SPECTRA[1], ms.Blur(length=1.5)))
    start = torch.linspace(1, 0.02, 8, dtype=torch.float64)
    for grid, schedule, spectrum, modulation in cases:
        statistics, process = statistics_of(grid, 5, channels=1), process_on(grid, schedule, spectrum, modulation)
        recursion = recursion_of(process, statistics, start)
        weights = RECURSIONS[sampler](recursion)
        transfer = transfer_function(sampler, process, start, statistics)
        power = recursion.W * (recursion.sigma[0] ** 2 * weights[0] ** 2 + (weights[1:] ** 2).sum(0))
        for ours, theirs in ((transfer.noise_gain, weights[0]), (transfer.power, power)):
            np.testing.assert_allclose(ours[0].flatten().numpy(), theirs, rtol=1e-8, atol=1e-10, err_msg=str(schedule))


def stationary_law(statistics: ms.DataStatistics) -> DenseLaw:
    power = statistics.grid.full(statistics.power[0]).numpy()
    return DenseLaw(statistics.mean[0].flatten(), dense.tensor(dense.operator(power)))


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, *STOCHASTIC], ids=str)
def test_dense_transfer_equals_the_transfer_function_on_stationary_data(sampler) -> None:
    for grid in GRIDS:
        statistics, process = statistics_of(grid, 9, channels=1), process_on(grid)
        data = stationary_law(statistics)
        law = dense_transfer(sampler, process, times(4), data)
        transfer = transfer_function(sampler, process, times(4), statistics)
        expected = dense.tensor(dense.operator(grid.full(transfer.power[0]).numpy()))
        torch.testing.assert_close(law.covariance, expected, rtol=1e-9, atol=1e-9)
        spectrum = transfer.mean_gain * half_spectrum(statistics.mean, grid)
        mean = torch.fft.irfftn(spectrum[0], s=grid.shape, norm="ortho")
        torch.testing.assert_close(law.mean, mean.flatten(), rtol=1e-9, atol=1e-9)
        assert law.wasserstein(data) == pytest.approx(float(transfer.total(transfer.wasserstein()).sqrt()), rel=1e-6)


@pytest.mark.parametrize("sampler", [ms.Heun(), ms.Ancestral()], ids=str)
def test_dense_transfer_predicts_samples_of_data_that_are_not_stationary(sampler) -> None:
    """Monte Carlo of the sampler with a dense optimal denoiser: 20,000 samples, within 6 standard errors."""
    grid, count, root = ms.Grid.of(time=6), 20000, dense.random(6, 6)
    process = process_on(grid, spectrum=ms.PowerLaw(exponent=-0.5, corner=0.1))
    data = DenseLaw(torch.arange(6.0).double(), root @ root.T + 0.1 * torch.eye(6, dtype=torch.float64))
    initial = process.schedule.alpha_sigma(times(5)[0])[1] * process.noise((count, 1, 6), range(count))
    noise = process.covariance.apply(torch.eye(6, dtype=torch.float64))
    denoiser = DenseDenoiser(process, data.covariance, noise, data.mean)
    samples = sample(denoiser, sampler, initial, times(5))[:, 0]
    law = dense_transfer(sampler, process, times(5), data)
    scale = law.covariance.diagonal().sqrt()
    assert float(((samples.mean(0) - law.mean) / scale).abs().max()) < 6 / math.sqrt(count)
    assert float(((samples.T.cov() - law.covariance) / scale / scale[:, None]).abs().max()) < 6 * math.sqrt(2 / count)


def test_error_budget_adds_up() -> None:
    grid = GRIDS[1]
    statistics, process = statistics_of(grid, 10), process_on(grid, spectrum=ms.Flat())
    transfer = transfer_function(ms.DDIM(), process, times(5), statistics)
    budget = error_budget(transfer, grid, bands=4)
    assert sum(band.fraction for band in budget) == pytest.approx(1)
    assert budget[0].power == pytest.approx(float(transfer.power[:, 0, 0].sum() / statistics.power[:, 0, 0].sum()))


def test_kl_is_zero_without_data_and_noise_and_infinite_with_noise_only() -> None:
    grid = ms.Grid.of(time=8)
    power = statistics_of(grid, 13, channels=1).power
    power[:, 0] = 0
    statistics = ms.DataStatistics(torch.zeros(1, 8, dtype=torch.float64), power, grid, 10)
    silent, white = (process_on(grid, spectrum=each) for each in (ms.Band(0.1, 1.0), ms.Flat()))
    assert not silent.covariance.power()[0]
    divergence = transfer_function(ms.DDIM(), silent, times(4), statistics).kl()
    assert divergence[0, 0] == 0
    assert bool(divergence.isfinite().all())
    assert transfer_function(ms.DDIM(), white, times(4), statistics).kl()[0, 0] == math.inf


def test_transfer_function_refuses_what_has_none() -> None:
    grid, start = ms.Grid.of(time=8), times(3)
    statistics, process = statistics_of(grid, 12), process_on(grid)
    integrator = ms.GaussianIntegrator(statistics)
    padded = ms.Process(ms.CosineSchedule(), ms.PaddedCovariance(ms.Flat(), grid, {"time": 12}))
    large, other = (process_on(each) for each in (ms.Grid.of(time=2000), ms.Grid.of(width=8)))
    law, large_law = (DenseLaw(torch.zeros(n), torch.eye(n)) for n in (8, 2000))
    assert_refused(
        ("remove the padding", lambda: transfer_function(DDIM, padded, start, statistics)),
        ("is incompatible", lambda: transfer_function(DDIM, other, start, statistics)),
        ("two times, in decreasing order", lambda: transfer_function(DDIM, process, start.flip(0), statistics)),
        ("nothing to analyse or design", lambda: transfer_function(integrator, process, start, statistics)),
        ("nothing to analyse or design", lambda: dense_transfer(integrator, process, start, law)),
        ("up to 1024", lambda: dense_transfer(DDIM, large, start, large_law)),
    )


def image_like(grid: ms.Grid = SQUARE, exponent: float = -2.0, mean: float = 0.0) -> ms.DataStatistics:
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes}).clone()
    radius[(0,) * grid.dimensions] = 0.5 / max(grid.shape)
    power = radius**exponent
    image = torch.full((1, *grid.shape), mean, dtype=torch.float64)
    return ms.DataStatistics(image, (0.25 * power / grid.mean(power))[None], grid, 100)


def process_of(statistics: ms.DataStatistics, spectrum=WHITE, schedule=COSINE) -> ms.Process:
    return ms.Process(schedule, ms.SpectralCovariance(spectrum, statistics.grid))


def value(statistics, process, log_snrs, objective="w2", sampler=DDIM) -> float:
    times = process.schedule.time(torch.as_tensor(log_snrs, dtype=torch.float64))
    return float(objective_value(transfer_function(sampler, process, times, statistics), objective))


@pytest.mark.parametrize(
    ("objective", "spectrum", "sampler"),
    [("w2", WHITE, DDIM), ("w2", COLORED, ms.Heun()), ("kl", WHITE, ms.DPMSolver()), ("l1", COLORED, DDIM)],
    ids=str,
)
def test_design_schedule_is_no_worse_than_any_baseline_within_its_ends(objective, spectrum, sampler) -> None:
    statistics = image_like(mean=0.3)
    process = process_of(statistics, spectrum)
    designed = design_schedule(statistics, process, 6, objective, sampler=sampler, restarts=3)
    assert designed.value == pytest.approx(value(statistics, process, designed.log_snrs, objective, sampler))
    assert (designed.log_snrs[0], designed.log_snrs[-1]) == pytest.approx(ENDS)
    for name, log_snrs in {**baselines(6), "regular": trajectory_regular(statistics, process, 6)}.items():
        if name not in ("linear", "karras"):  # these keep their own ends
            assert designed.value <= value(statistics, process, log_snrs, objective, sampler) + 1e-9, name


def test_design_schedule_is_as_good_as_brute_force_and_repeats_for_the_same_seed() -> None:
    """Three steps: two free log-SNRs on a fine lattice."""
    statistics = image_like(SMALL)
    process = process_of(statistics)
    designed = design_schedule(statistics, process, 3)
    lattice = torch.linspace(-9, 9, 46, dtype=torch.float64).tolist()
    pairs = itertools.combinations(lattice, 2)
    best = min(value(statistics, process, [ENDS[0], *pair, ENDS[1]]) for pair in pairs)
    assert 0.97 * best < designed.value <= best
    one, other = (design_schedule(statistics, process, 4, restarts=4, seed=3) for _ in range(2))
    assert one == other


def test_design_schedule_is_no_worse_with_free_ends_and_the_same_by_sequential_quadratic_programming() -> None:
    statistics = image_like()
    pinned, free, other = (
        design_schedule(statistics, process_of(statistics), 5, restarts=3, **options)
        for options in ({}, {"free_ends": True}, {"method": "SLSQP"})
    )
    assert pinned.value == pytest.approx(other.value, rel=1e-4)
    assert free.value <= pinned.value + 1e-9
    assert ENDS[0] < free.log_snrs[0] < free.log_snrs[-1] < ENDS[1]


def test_designed_steps_serve_any_schedule_that_reaches_them() -> None:
    designed = DesignedSteps((-8.0, -3.0, 0.125, 8.0), "w2", "DDIM(eta=0.0)", 0.5)
    for schedule in (COSINE, ms.KarrasSchedule(), ms.FlowSchedule(shift=2.0)):
        expected = torch.tensor(designed.log_snrs, dtype=torch.float64)
        torch.testing.assert_close(schedule.log_snr(designed.times(schedule)), expected, rtol=0, atol=1e-6)


def test_designed_steps_survive_a_file(tmp_path: Path) -> None:
    designed = DesignedSteps((-3.0, 0.125, 4.0), "w2", "DDIM(eta=0.0)", 0.5)
    designed.save(tmp_path / "steps.json")
    assert DesignedSteps.load(tmp_path / "steps.json") == designed
    assert designed.steps == 2


FORMAT = '{"format": "multisagd steps 1"'
BAD_FILES = {
    "empty": "",
    "list": "[]",
    "no keys": "{}",
    "format only": FORMAT + "}",
    "other format": '{"format": "other"}',
    "binary": "\x00",
    "falling": FORMAT + ', "log_snrs": [1, 0], "objective": "w2", "sampler": "", "value": 1}',
    "NaN": FORMAT + ', "log_snrs": [0, NaN], "objective": "w2", "sampler": "", "value": 1}',
}


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_designed_steps_refuse_other_files_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "steps.json").write_text(content)
    with pytest.raises(ValueError, match=r"steps\.json is not a file of designed steps"):
        DesignedSteps.load(tmp_path / "steps.json")


def test_design_refuses_impossible_settings() -> None:
    statistics = image_like(SMALL)
    process, few = process_of(statistics), DesignedSteps((-9.0, 12.0), "w2", "", 0.0)
    assert_refused(
        ("at least one step", lambda: design_schedule(statistics, process, 0)),
        ("ends of a design must increase", lambda: design_schedule(statistics, process, 3, ends=(2.0, 1.0))),
        ("choose w2, kl, l1", lambda: design_schedule(statistics, process, 3, "w3")),
        ("choose data_power, power_law, bands", lambda: design_joint(statistics, process, 3, family="other")),
        ("candidates", lambda: trajectory_regular(statistics, process, 50, candidates=40)),
        ("design steps within the schedule's range", lambda: few.times(ms.KarrasSchedule(sigma_min=0.01))),
    )


@pytest.mark.parametrize("ends", [ENDS, (-4.0, 4.0), (-12.0, 3.0)])
def test_baselines_rise_for_any_number_of_steps(ends: tuple[float, float]) -> None:
    for steps in (1, 5, 12, 50, 100):
        for name, log_snrs in baselines(steps, ends).items():
            assert len(log_snrs) == steps + 1, (name, steps)
            assert bool((log_snrs.diff() > 0).all()), (name, steps)


def test_design_ignores_frequencies_without_noise() -> None:
    """The mean and zero frequency, left out of the noise, move neither the ends nor dynamic programming's steps."""
    statistics = image_like(SMALL)

    def changed(mean: Tensor, power: Tensor) -> ms.DataStatistics:
        return ms.DataStatistics(mean, power, statistics.grid, 10)

    process, loud = process_of(statistics, ms.Band(0.1, 2.0)), changed(statistics.mean + 3, statistics.power)
    assert not process.covariance.power()[0, 0]
    assert spectral_ends(loud, process) == spectral_ends(statistics, process)
    steps = trajectory_regular(loud, process, 5)
    assert bool((steps.diff() > 0).all())
    empty = statistics.power.clone()
    empty[:, 0, 0] = 0
    torch.testing.assert_close(trajectory_regular(changed(statistics.mean, empty), process, 5), steps)
    with pytest.raises(ValueError, match="no power where there is noise"):
        spectral_ends(changed(statistics.mean, 0 * statistics.power), process)


@pytest.mark.parametrize("grid", [SQUARE, ms.Grid.of(time=63)])
def test_spectral_ends_reach_the_quietest_frequency_but_not_rounding_errors(grid: ms.Grid) -> None:
    """Power over 93 dB: at the ends, noise is below every frequency, so that even ten steps draw all of them."""
    steep = image_like(grid)
    decibels = 10 * steep.power.log10()
    span = 93 / float(decibels.max() - decibels.min())
    statistics = ms.DataStatistics(steep.mean, 10 ** (decibels * span / 10), grid, 100)
    process = process_of(statistics, schedule=ms.CosineSchedule(log_snr_range=(-20, 28)))
    ends = spectral_ends(statistics, process, 0.05)
    assert ends[1] == pytest.approx(-math.log(0.05 * float(statistics.power.min())))
    times = ms.time_steps(process.schedule, 10, "log_snr", ends=ends)
    drawn = transfer_function(ms.DPMSolver(), process, times, statistics)
    errors = 10 * (drawn.power / drawn.spectra.data).log10()
    assert float(errors.abs().max()) < 2
    # A frequency that only rounding errors fill moves no step beyond those of 60 dB.
    power = statistics.power.clone()
    power[power < 1e-5 * power.max()] = 1e-16 * power.max()
    empty = ms.DataStatistics(statistics.mean, power, grid, 100)
    assert spectral_ends(empty, process, 0.05)[1] == pytest.approx(-math.log(0.05e-6 * float(power.max())))


@pytest.mark.parametrize("grid", [ms.Grid.of(time=128), ms.Grid.of(y=64, x=63), ms.Grid.of(t=15, y=16, x=16)])
def test_octave_log_snrs_are_where_noise_has_the_power_of_the_data(grid: ms.Grid) -> None:
    """Even in log-SNR for a power law, zero for noise like the data, and no further than rounding errors."""
    radius = grid.radius().double()
    power = torch.where(radius > 0, radius.clamp(min=1e-9) ** -3.0, 0.0)[None]
    statistics = ms.DataStatistics(torch.zeros(1, *grid.shape).double(), power, grid, 100)
    found = torch.tensor(octave_log_snrs(statistics, process_of(statistics), 9))
    low, high = radius[radius > 0].min(), radius.max()
    expected = torch.linspace(3 * float(low.log()), 3 * float(high.log()), 9)
    torch.testing.assert_close(found, expected, rtol=0, atol=1)  # rings have a width
    alike = octave_log_snrs(statistics, process_of(statistics, statistics.spectrum()), 9)
    scale = float(grid.mean(power))
    torch.testing.assert_close(torch.tensor(alike), torch.full((9,), -math.log(scale)), rtol=0, atol=1e-6)
    empty = ms.DataStatistics(statistics.mean, torch.where(radius > high / 2, 1e-16, 1.0)[None] * power, grid, 100)
    strongest = float(radial_profile(power[0], grid).power[1:].max())
    assert octave_log_snrs(empty, process_of(statistics))[-1] == pytest.approx(6 * math.log(10) - math.log(strongest))
    with pytest.raises(ValueError, match="no power where there is noise"):
        octave_log_snrs(ms.DataStatistics(statistics.mean, 0 * power, grid, 100), process_of(statistics))


def test_trajectory_regular_finds_the_least_sum_of_errors() -> None:
    """Against every path of three steps through eight candidates, errors of single steps computed by the transfer."""
    statistics = image_like(SMALL)
    process = process_of(statistics)
    nodes = torch.linspace(*ENDS, 8, dtype=torch.float64)

    def step_error(first: int, last: int) -> float:
        log_snrs = nodes[[first, last]]
        alpha, sigma = (each[:, None, None] for each in process.schedule.from_log_snr(log_snrs))
        exact = (alpha**2 * statistics.power + sigma**2).sqrt()
        transfer = transfer_function(DDIM, process, process.schedule.time(log_snrs), statistics)
        return math.sqrt(float(transfer.total((transfer.noise_gain * exact[0] - exact[1]) ** 2)))

    paths = [[0, *pair, 7] for pair in itertools.combinations(range(1, 7), 2)]
    best = min(paths, key=lambda path: sum(step_error(*step) for step in itertools.pairwise(path)))
    torch.testing.assert_close(trajectory_regular(statistics, process, 3, candidates=8), nodes[best])


def test_on_smaller_grid_keeps_the_power_at_its_frequencies() -> None:
    grid = ms.Grid.of(height=128, width=96)
    power = ms.PowerLaw(-1.0, corner=0.05).power(grid)
    statistics = ms.DataStatistics(torch.full((2, 128, 96), 0.3).double(), torch.stack([power, 3 * power]), grid, 1)
    fewer = on_smaller_grid(statistics, 4096)
    assert fewer.grid.shape == (64, 48)
    torch.testing.assert_close(fewer.power[0, :32, :24], 2 * power[:64:2, :48:2])
    torch.testing.assert_close(fewer.mean, torch.full((1, 64, 48), 0.3).double())


SOUND, IMAGE = ms.Grid.of(time=(25, 0.1, "s")), ms.Grid.of(height=8, width=9)
CLIP = ms.Grid.of(frame=(4, 0.1, "s"), height=5, width=6)


@pytest.mark.parametrize("grid", [SOUND, IMAGE, CLIP], ids=lambda grid: "x".join(map(str, grid.shape)))
def test_design_joint_beats_white_noise_and_keeps_its_promise(grid: ms.Grid) -> None:
    statistics = image_like(grid)
    white = design_schedule(statistics, process_of(statistics), 4, restarts=3)
    for family in ("data_power", "power_law", "bands"):
        joint = design_joint(statistics, process_of(statistics), 4, family=family)
        assert joint.steps.value < white.value, family
        process = process_of(statistics, joint.spectrum)
        transfer = transfer_function(ms.DDIM(), process, joint.steps.times(process.schedule), statistics)
        assert float(objective_value(transfer, "w2")) == pytest.approx(joint.steps.value, rel=1e-6), family
        assert float(grid.mean(process.covariance.power())) == pytest.approx(1), family


def test_design_joint_and_recommend_choose_the_power_of_the_data_and_white_noise_for_white_data() -> None:
    # With the first power of the data all frequencies have one log-SNR, and one schedule is best for all.
    assert design_joint(image_like(IMAGE), process_of(image_like(IMAGE)), 4).parameters[0] == pytest.approx(1, abs=1e-3)
    statistics = image_like(IMAGE, exponent=0.0)
    joint = design_joint(statistics, process_of(statistics), 4, family="power_law")
    assert joint.parameters[0] == pytest.approx(0, abs=1e-3)
    advice = recommend(statistics, COSINE, 4)
    assert advice.chosen.exponent == 0
    assert any("white noise" in reason.lower() for reason in advice.reasons)
    assert not any("more noise" in reason for reason in advice.reasons)


def test_recommend_prefers_white_noise_with_enough_steps() -> None:
    statistics = image_like(ms.Grid.of(time=64), exponent=-2.5)
    few, many = (recommend(statistics, COSINE, steps, restarts=1, sampler=ms.DDIM()) for steps in (12, 24))
    assert few.chosen.exponent > 0
    assert many.chosen.exponent == 0
    assert [CAUTION in each.reasons for each in (few, many)] == [True, False]
    errors = [candidate.error for candidate in few.candidates]
    assert errors == sorted(errors, reverse=True)
    # DPM-Solver, the default, makes smaller errors, so fewer steps suffice for white noise.
    assert recommend(statistics, COSINE, 12, restarts=1).chosen.exponent == 0


def test_recommend_leaves_candidates_beyond_the_limits_out() -> None:
    limited = recommend(image_like(IMAGE), COSINE, 4, restarts=1, limits=Limits(conditioning=1.0))
    assert limited.chosen.exponent == 0
    assert sum("dB" in reason for reason in limited.reasons) == 4
    starts = recommend(image_like(IMAGE), COSINE, 4, restarts=1, ends=(-2.0, 9.0))
    assert starts.chosen.exponent == 0
    assert "more noise" in starts.reasons[-1]


def test_design_joint_gives_noise_to_frequencies_without_data() -> None:
    grid = ms.Grid.of(time=8)
    power = torch.tensor([[1.0, 0.5, 0.2, 0.0, 0.0]], dtype=torch.float64)
    statistics = ms.DataStatistics(torch.zeros(1, 8).double(), power, grid, 10)
    assert float(statistics.spectrum(FLOOR).values.min()) == pytest.approx(1e-6)
    assert bool((design_joint(statistics, process_of(statistics), 3).spectrum.power(grid) > 0).all())
