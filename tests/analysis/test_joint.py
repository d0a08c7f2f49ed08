"""Joint design and recommendation beat designs of their parts, and are right in cases with a known answer."""

import pytest
import torch

import multisagd as ms
from multisagd.analysis.design import design_schedule, objective_value
from multisagd.analysis.joint import FLOOR, design_joint
from multisagd.analysis.recommend import Limits, recommend
from multisagd.analysis.transfer import transfer_function

COSINE, WHITE = ms.CosineSchedule(), ms.Flat()
SOUND, IMAGE = ms.Grid.of(time=(25, 0.1, "s")), ms.Grid.of(height=8, width=9)
CLIP = ms.Grid.of(frame=(4, 0.1, "s"), height=5, width=6)


def steep(grid: ms.Grid = IMAGE, exponent: float = -2.0) -> ms.DataStatistics:
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes}).clone()
    radius[(0,) * grid.dimensions] = 0.5 / max(grid.shape)
    power = radius**exponent
    return ms.DataStatistics(torch.zeros(1, *grid.shape).double(), (0.25 * power / grid.mean(power))[None], grid, 10)


def process_of(statistics: ms.DataStatistics, spectrum: ms.Spectrum = WHITE) -> ms.Process:
    return ms.Process(COSINE, ms.SpectralCovariance(spectrum, statistics.grid))


@pytest.mark.parametrize("grid", [SOUND, IMAGE, CLIP], ids=lambda grid: "x".join(map(str, grid.shape)))
def test_design_joint_beats_white_noise_and_keeps_its_promise(grid: ms.Grid) -> None:
    statistics = steep(grid)
    white = design_schedule(statistics, process_of(statistics), 4, restarts=3)
    for family in ("data_power", "power_law", "bands"):
        joint = design_joint(statistics, process_of(statistics), 4, family=family)
        assert joint.steps.value < white.value, family
        process = process_of(statistics, joint.spectrum)
        transfer = transfer_function(ms.DDIM(), process, joint.steps.times(process.schedule), statistics)
        assert float(objective_value(transfer, "w2")) == pytest.approx(joint.steps.value, rel=1e-6), family
        assert float(grid.mean(process.covariance.power())) == pytest.approx(1), family


def test_design_joint_finds_the_first_power_of_the_data() -> None:
    """Then all frequencies have one log-SNR, and one schedule is best for all."""
    assert design_joint(steep(), process_of(steep()), 4).parameters[0] == pytest.approx(1, abs=1e-3)


def test_design_joint_and_recommend_choose_white_noise_for_white_data() -> None:
    statistics = steep(exponent=0.0)
    joint = design_joint(statistics, process_of(statistics), 4, family="power_law")
    assert joint.parameters[0] == pytest.approx(0, abs=1e-3)
    advice = recommend(statistics, COSINE, 4)
    assert advice.chosen.exponent == 0
    assert any("white noise" in reason.lower() for reason in advice.reasons)
    assert not any("more noise" in reason for reason in advice.reasons)


def test_recommend_prefers_white_noise_with_enough_steps() -> None:
    statistics = steep(ms.Grid.of(time=64), exponent=-2.5)
    few, many = (recommend(statistics, COSINE, steps, restarts=1) for steps in (12, 24))
    assert few.chosen.exponent > 0
    assert many.chosen.exponent == 0
    errors = [candidate.error for candidate in few.candidates]
    assert errors == sorted(errors, reverse=True)


def test_recommend_leaves_candidates_beyond_the_limits_out() -> None:
    limited = recommend(steep(), COSINE, 4, restarts=1, limits=Limits(conditioning=1.0))
    assert limited.chosen.exponent == 0
    assert sum("dB" in reason for reason in limited.reasons) == 4
    starts = recommend(steep(), COSINE, 4, restarts=1, ends=(-2.0, 9.0))
    assert starts.chosen.exponent == 0
    assert "more noise" in starts.reasons[-1]


def test_design_joint_gives_noise_to_frequencies_without_data() -> None:
    grid = ms.Grid.of(time=8)
    power = torch.tensor([[1.0, 0.5, 0.2, 0.0, 0.0]], dtype=torch.float64)
    statistics = ms.DataStatistics(torch.zeros(1, 8).double(), power, grid, 10)
    assert float(statistics.spectrum(FLOOR).values.min()) == pytest.approx(1e-6)
    assert bool((design_joint(statistics, process_of(statistics), 3).spectrum.power(grid) > 0).all())


def test_design_joint_refuses_an_unknown_family() -> None:
    with pytest.raises(ValueError, match="choose data_power, power_law, bands"):
        design_joint(steep(), process_of(steep()), 3, family="other")
