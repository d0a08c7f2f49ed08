"""Design of steps: against another optimiser, brute force, the reference numbers, and its own promises."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from multisagd import (
    DDIM,
    Band,
    CosineSchedule,
    DataStatistics,
    DPMSolver,
    Flat,
    FlowSchedule,
    GaussianDenoiser,
    Grid,
    Heun,
    KarrasSchedule,
    PowerLaw,
    Process,
    SpectralCovariance,
    sample,
)
from multisagd.analysis.baselines import baselines, trajectory_regular
from multisagd.analysis.design import (
    ENDS,
    DesignedSteps,
    Objective,
    design_schedule,
    objective_value,
    on_fewer_frequencies,
    spectral_ends,
)
from multisagd.analysis.transfer import transfer_function
from multisagd.samplers import Sampler
from multisagd.schedule import Schedule
from multisagd.spectrum import Spectrum

FLAT, COSINE = Flat(), CosineSchedule()


def image_like(size: int = 16, exponent: float = -2.0, mean: bool = False) -> DataStatistics:
    grid = Grid.of(height=size, width=size)
    radius = grid.radius().clone()
    radius[0, 0] = 1 / (2 * size)
    power = radius**exponent
    power = 0.25 * power / grid.mean(power)
    center = torch.full((1, size, size), 0.3, dtype=torch.float64) if mean else torch.zeros(1, size, size)
    return DataStatistics(center.double(), power[None], grid, 100)


def process_of(statistics: DataStatistics, spectrum: Spectrum = FLAT, schedule: Schedule = COSINE) -> Process:
    return Process(schedule, SpectralCovariance(spectrum, statistics.grid))


def value(statistics: DataStatistics, process: Process, log_snrs: Tensor, objective: Objective = "w2") -> float:
    times = process.schedule.time(log_snrs)
    return float(objective_value(transfer_function(DDIM(), process, times, statistics), objective))


@pytest.mark.parametrize("objective", ["w2", "kl", "l1"])
@pytest.mark.parametrize("spectrum", [Flat(), PowerLaw(exponent=-0.5, corner=1 / 32)], ids=str)
def test_a_design_is_no_worse_than_any_baseline_within_its_ends(objective: Objective, spectrum: Spectrum) -> None:
    statistics = image_like(mean=True)
    process = process_of(statistics, spectrum)
    designed = design_schedule(statistics, process, 6, objective, restarts=3)
    assert designed.value == pytest.approx(value(statistics, process, torch.tensor(designed.log_snrs), objective))
    assert designed.log_snrs[0] == pytest.approx(ENDS[0])
    assert designed.log_snrs[-1] == pytest.approx(ENDS[1])
    for name, log_snrs in {**baselines(6), "regular": trajectory_regular(statistics, process, 6)}.items():
        if name not in ("linear", "karras"):  # these keep their own ends
            assert designed.value <= value(statistics, process, log_snrs, objective) + 1e-9, name


@pytest.mark.parametrize("objective", ["w2", "kl"])
def test_sequential_quadratic_programming_finds_the_same(objective: Objective) -> None:
    statistics = image_like()
    process = process_of(statistics)
    one, other = (
        design_schedule(statistics, process, 5, objective, restarts=3, method=method)
        for method in ("L-BFGS-B", "SLSQP")
    )  # type: ignore[arg-type]
    assert one.value == pytest.approx(other.value, rel=1e-4)


def test_brute_force_finds_nothing_better() -> None:
    """Three steps: two free log-SNRs on a fine lattice."""
    statistics = image_like(8)
    process = process_of(statistics)
    designed = design_schedule(statistics, process, 3)
    lattice = torch.linspace(-9, 9, 46, dtype=torch.float64).tolist()
    best = min(
        value(statistics, process, torch.tensor([ENDS[0], *pair, ENDS[1]]))
        for pair in itertools.combinations(lattice, 2)
    )
    assert designed.value <= best
    assert designed.value > 0.97 * best


def test_free_ends_are_no_worse_than_pinned_ones() -> None:
    statistics = image_like()
    process = process_of(statistics)
    pinned, free = (design_schedule(statistics, process, 5, free_ends=free, restarts=3) for free in (False, True))
    assert free.value <= pinned.value + 1e-9
    assert ENDS[0] < free.log_snrs[0] < free.log_snrs[-1] < ENDS[1]


@pytest.mark.parametrize("sampler", [Heun(), DPMSolver()], ids=str)
def test_a_design_is_for_a_sampler(sampler: Sampler) -> None:
    """It beats the design for another sampler, at what its own sampler generates."""
    statistics = image_like()
    process = process_of(statistics)
    own = design_schedule(statistics, process, 5, sampler=sampler, restarts=3)
    foreign = design_schedule(statistics, process, 5, sampler=DDIM(), restarts=3)
    results = [
        float(objective_value(transfer_function(sampler, process, each.times(process.schedule), statistics), "w2"))
        for each in (own, foreign)
    ]
    assert results[0] < results[1]


@pytest.mark.parametrize("schedule", [CosineSchedule(), KarrasSchedule(), FlowSchedule(shift=2.0)])
def test_designed_steps_serve_any_schedule_that_reaches_them(schedule: Schedule) -> None:
    """What DDIM makes of log-SNRs is the same on every path, but for the scale of the last level."""
    statistics = image_like()
    designed = design_schedule(statistics, process_of(statistics), 5, ends=(-8.0, 8.0), restarts=1)

    def amplitude(process: Process) -> Tensor:
        times = designed.times(process.schedule)
        torch.testing.assert_close(
            process.schedule.log_snr(times), torch.tensor(designed.log_snrs, dtype=torch.float64), rtol=0, atol=1e-6
        )
        return (
            transfer_function(DDIM(), process, times, statistics).power.sqrt()
            / process.schedule.alpha_sigma(times)[0][-1]
        )

    torch.testing.assert_close(
        amplitude(process_of(statistics, schedule=schedule)), amplitude(process_of(statistics)), rtol=1e-6, atol=0
    )


def test_samples_have_the_error_that_was_designed() -> None:
    """Monte Carlo: 2,000 samples of the oracle through `sample`, their power per ring within 6 standard errors."""
    statistics = image_like()
    process = process_of(statistics, PowerLaw(exponent=-0.5, corner=1 / 32)).double()
    times = design_schedule(statistics, process, 5).times(process.schedule)
    count = 2000
    drawn = sample(GaussianDenoiser(process, statistics), DDIM(), (count, 1, 16, 16), 5, range(count), times=times)
    power = torch.fft.rfftn(drawn, dim=(-2, -1), norm="ortho").abs().square().mean(0)
    expected = transfer_function(DDIM(), process, times, statistics).power
    for low, _, weight in statistics.grid.bands(6):
        measured, known = float((power * weight).sum()), float((expected * weight).sum())
        assert measured == pytest.approx(known, rel=6 * math.sqrt(2 / count / float(weight.sum()) * 3)), low


def test_a_design_is_the_same_for_the_same_seed() -> None:
    statistics = image_like(8)
    process = process_of(statistics)
    assert design_schedule(statistics, process, 4, restarts=4, seed=3) == design_schedule(
        statistics, process, 4, restarts=4, seed=3
    )


def test_steps_survive_a_file(tmp_path: Path) -> None:
    designed = DesignedSteps((-3.0, 0.125, 4.0), "w2", "DDIM(eta=0.0)", 0.5)
    designed.save(tmp_path / "steps.json")
    assert DesignedSteps.load(tmp_path / "steps.json") == designed
    assert designed.steps == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "multisagd steps 1"}', '{"format": "other"}', "\x00",
    '{"format": "multisagd steps 1", "log_snrs": [1, 0], "objective": "w2", "sampler": "", "value": 1}',
    '{"format": "multisagd steps 1", "log_snrs": [0, NaN], "objective": "w2", "sampler": "", "value": 1}'])  # fmt: skip
def test_other_files_are_refused_by_name(tmp_path: Path, content: str) -> None:
    (tmp_path / "steps.json").write_text(content)
    with pytest.raises(ValueError, match=r"steps\.json is not a file of designed steps"):
        DesignedSteps.load(tmp_path / "steps.json")


def test_impossible_designs_are_refused() -> None:
    statistics = image_like(8)
    process = process_of(statistics)
    with pytest.raises(ValueError, match="at least one step"):
        design_schedule(statistics, process, 0)
    with pytest.raises(ValueError, match="ends that rise"):
        design_schedule(statistics, process, 3, ends=(2.0, 1.0))
    with pytest.raises(ValueError, match="choose w2, kl, l1"):
        design_schedule(statistics, process, 3, "w3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="candidates"):
        trajectory_regular(statistics, process, 50, candidates=40)
    with pytest.raises(ValueError, match="design steps between its ends"):
        DesignedSteps((-9.0, 12.0), "w2", "", 0.0).times(KarrasSchedule(sigma_min=0.01))


@pytest.mark.parametrize("ends", [ENDS, (-4.0, 4.0), (-12.0, 3.0)])
@pytest.mark.parametrize("steps", [1, 5, 12, 50, 100])
def test_every_baseline_can_be_followed(ends: tuple[float, float], steps: int) -> None:
    for name, log_snrs in baselines(steps, ends).items():
        assert len(log_snrs) == steps + 1, name
        assert bool((log_snrs.diff() > 0).all()), name


def test_what_gets_no_noise_does_not_count() -> None:
    """The mean and zero frequency, left out of the noise, move neither the ends nor dynamic programming's steps."""
    statistics = image_like(8)
    loud = DataStatistics(statistics.mean + 3, statistics.power, statistics.grid, 10)
    process = process_of(statistics, Band(0.1, 2.0))
    assert not process.covariance.power()[0, 0]
    assert spectral_ends(loud, process) == spectral_ends(statistics, process)
    found = trajectory_regular(loud, process, 5)
    assert bool((found.diff() > 0).all())
    empty = statistics.power.clone()
    empty[:, 0, 0] = 0
    without = DataStatistics(statistics.mean, empty, statistics.grid, 10)
    torch.testing.assert_close(trajectory_regular(without, process, 5), found)
    with pytest.raises(ValueError, match="no power where there is noise"):
        spectral_ends(DataStatistics(statistics.mean, 0 * statistics.power, statistics.grid, 10), process)


def test_dynamic_programming_finds_the_least_sum() -> None:
    """Against every path of three steps through eight candidates, errors of single steps computed by the transfer."""
    statistics = image_like(8)
    process = process_of(statistics)
    found = trajectory_regular(statistics, process, 3, candidates=8)
    nodes = torch.linspace(*ENDS, 8, dtype=torch.float64)

    def step_error(first: float, last: float) -> float:
        log_snrs = torch.tensor([first, last], dtype=torch.float64)
        alpha, sigma = process.schedule.from_log_snr(log_snrs)
        power = statistics.power
        exact = (alpha[:, None, None] ** 2 * power + sigma[:, None, None] ** 2).sqrt()
        transfer = transfer_function(DDIM(), process, process.schedule.time(log_snrs), statistics)
        return math.sqrt(float(transfer.total((transfer.noise_gain * exact[0] - exact[1]) ** 2)))

    paths = [(0, *pair, 7) for pair in itertools.combinations(range(1, 7), 2)]
    sums = [sum(step_error(float(nodes[a]), float(nodes[b])) for a, b in itertools.pairwise(path)) for path in paths]
    best = paths[sums.index(min(sums))]
    torch.testing.assert_close(found, nodes[list(best)])


def test_fewer_frequencies_keep_the_power_at_those_that_stay() -> None:
    grid = Grid.of(height=128, width=96)
    power = PowerLaw(-1.0, corner=0.05).power(grid)
    statistics = DataStatistics(torch.full((2, 128, 96), 0.3).double(), torch.stack([power, 3 * power]), grid, 1)
    fewer = on_fewer_frequencies(statistics, 4096)
    assert fewer.grid.shape == (64, 48)
    torch.testing.assert_close(fewer.power[0, :32, :24], 2 * power[:64:2, :48:2])
    torch.testing.assert_close(fewer.mean, torch.full((1, 64, 48), 0.3).double())
