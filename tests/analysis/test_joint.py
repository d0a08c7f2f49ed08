"""Joint design and recommendation: against designs of their parts, and in cases with a known answer."""

import pytest
import torch

from multisagd import CosineSchedule, DataStatistics, Flat, Grid, Process, SpectralCovariance
from multisagd.analysis.design import design_schedule, objective_value
from multisagd.analysis.joint import FLOOR, Family, design_joint
from multisagd.analysis.recommend import Limits, recommend
from multisagd.analysis.transfer import transfer_function
from multisagd.samplers import DDIM


def steep(grid: Grid, exponent: float = -2.0) -> DataStatistics:
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes}).clone()
    radius[(0,) * grid.dimensions] = 0.5 / max(grid.shape)
    power = radius**exponent
    return DataStatistics(torch.zeros(1, *grid.shape).double(), (0.25 * power / grid.mean(power))[None], grid, 10)


def white_process(statistics: DataStatistics) -> Process:
    return Process(CosineSchedule(), SpectralCovariance(Flat(), statistics.grid))


GRIDS = [Grid.of(time=(25, 0.1, "s")), Grid.of(height=8, width=9), Grid.of(frame=(4, 0.1, "s"), height=5, width=6)]


@pytest.mark.parametrize("family", ["data_power", "power_law", "bands"])
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: "x".join(map(str, grid.shape)))
def test_a_joint_design_beats_white_noise_and_keeps_what_it_promises(grid: Grid, family: Family) -> None:
    statistics = steep(grid)
    white = design_schedule(statistics, white_process(statistics), 4, restarts=3)
    joint = design_joint(statistics, white_process(statistics), 4, family=family)
    assert joint.steps.value < white.value
    process = Process(CosineSchedule(), SpectralCovariance(joint.spectrum, grid))
    transfer = transfer_function(DDIM(), process, joint.steps.times(process.schedule), statistics)
    assert float(objective_value(transfer, "w2")) == pytest.approx(joint.steps.value, rel=1e-6)
    assert float(grid.mean(process.covariance.power())) == pytest.approx(1)


def test_the_best_power_of_the_data_is_one() -> None:
    """Then all frequencies have one log-SNR, and one schedule is best for all."""
    joint = design_joint(steep(GRIDS[1]), white_process(steep(GRIDS[1])), 4)
    assert joint.parameters[0] == pytest.approx(1, abs=1e-3)


def test_white_data_get_white_noise() -> None:
    statistics = steep(GRIDS[1], exponent=0.0)
    joint = design_joint(statistics, white_process(statistics), 4, family="power_law")
    assert joint.parameters[0] == pytest.approx(0, abs=1e-3)
    found = recommend(statistics, CosineSchedule(), 4)
    assert found.chosen.exponent == 0
    assert any("white noise" in reason.lower() for reason in found.reasons)
    assert not any("more noise" in reason for reason in found.reasons)


def test_enough_steps_make_white_noise_good_enough() -> None:
    statistics = steep(Grid.of(time=64), exponent=-2.5)
    few, many = (recommend(statistics, CosineSchedule(), steps, restarts=1) for steps in (12, 24))
    assert few.chosen.exponent > 0
    assert many.chosen.exponent == 0
    errors = [candidate.error for candidate in few.candidates]
    assert errors == sorted(errors, reverse=True)


def test_limits_leave_candidates_out() -> None:
    statistics = steep(GRIDS[1])
    found = recommend(statistics, CosineSchedule(), 4, restarts=1, limits=Limits(conditioning=1.0))
    assert found.chosen.exponent == 0
    assert sum("dB" in reason for reason in found.reasons) == 4
    starts = recommend(statistics, CosineSchedule(), 4, restarts=1, ends=(-2.0, 9.0))
    assert starts.chosen.exponent == 0
    assert "more noise" in starts.reasons[-1]


def test_frequencies_without_data_still_get_noise() -> None:
    grid = Grid.of(time=8)
    power = torch.tensor([[1.0, 0.5, 0.2, 0.0, 0.0]], dtype=torch.float64)
    statistics = DataStatistics(torch.zeros(1, 8).double(), power, grid, 10)
    assert float(statistics.spectrum(FLOOR).values.min()) == pytest.approx(1e-6)
    joint = design_joint(statistics, white_process(statistics), 3)
    assert bool((joint.spectrum.power(grid) > 0).all())


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="choose data_power, power_law, bands"):
        design_joint(steep(GRIDS[0]), white_process(steep(GRIDS[0])), 3, family="other")  # type: ignore[arg-type]
