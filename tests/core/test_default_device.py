"""Values computed once, on the CPU, stay there and are the same under another default device."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import multisagd as ms
from multisagd.analysis.baselines import baselines
from multisagd.analysis.design import design_schedule
from multisagd.analysis.excess import estimate_corruption
from multisagd.analysis.joint import design_joint
from multisagd.analysis.profiles import axis_profile, radial_profile
from multisagd.analysis.transfer import transfer_function
from multisagd.integrations.discrete import DiscreteSchedule
from multisagd.spectrum import even_power
from tests.helpers.every_spectrum import EXAMPLES, GRID, WAVEFORM

DATA = torch.randn((20, 1, 4, 6, 5), generator=torch.Generator().manual_seed(0))
STATISTICS = ms.DataStatistics.measure([DATA], GRID)
LOUD = ms.DataStatistics.measure([DATA * 3], GRID)
COVARIANCE = ms.SpectralCovariance(ms.Flat(), GRID)
PROCESS = ms.Process(ms.CosineSchedule(), COVARIANCE)
SPATIAL = ("height", "width")
TIMES = ms.time_steps(PROCESS.schedule, 3)
CORRUPTION = ms.Corruption(ms.Band(0.2, 0.5).on(*SPATIAL), GRID, 0.1)


class Plain(ms.Spectrum):
    """A spectrum written without a thought of devices."""

    def power(self, grid: ms.Grid) -> Tensor:
        return torch.linspace(1, 2, grid.half_shape[-1]).expand(grid.half_shape) + torch.zeros(grid.half_shape)


SPECTRA = [
    *(spectrum for name, spectrum in EXAMPLES.items() if name != "HarmonicStop"),
    ms.Autoregressive(0.5, axis="frame") ** 0.5 * ms.Flat() + 0.1,
    Plain(),
]
SMALL = GRID.resize((6, 4, 8))

CALLS: dict[str, Callable[[], Any]] = {
    "spectra": lambda: [ms.SpectralCovariance(spectrum, GRID).power() for spectrum in SPECTRA],
    "spectra on another grid": lambda: [ms.SpectralCovariance(each, GRID).power(SMALL.shape) for each in SPECTRA],
    "harmonics": lambda: ms.SpectralCovariance(EXAMPLES["HarmonicStop"], WAVEFORM).power(),
    "even": lambda: even_power(EXAMPLES["VelocityTuned"], SMALL),
    "spectrum": lambda: EXAMPLES["Band"].power(GRID),
    "padded": lambda: ms.PaddedCovariance(ms.PowerLaw(-0.5).on(*SPATIAL), GRID, {"frame": 2}).power(),
    "frequencies": lambda: GRID.frequencies("height"),
    "radius": lambda: GRID.radius(SPATIAL),
    "multiplicity": lambda: GRID.multiplicity,
    "bands": lambda: GRID.bands(3)[1][2],
    "schedule": lambda: DiscreteSchedule(steps=10).alpha_sigma(0.5)[0],
    "designed": lambda: ms.TabulatedSchedule((10.0, -10.0)).log_snr(0.3),
    "time steps": lambda: ms.time_steps(ms.CosineSchedule(), 4, "karras"),
    "strata": lambda: ms.stratified_uniform(0, 1, 8),
    "measured": lambda: ms.DataStatistics.measure([DATA], GRID).power,
    "merged": lambda: ms.DataStatistics.merge([STATISTICS, STATISTICS]).mean,
    "on another grid": lambda: STATISTICS.power_on((6, 4, 8)),
    "transfer": lambda: transfer_function(ms.Ancestral(), PROCESS, TIMES, STATISTICS).power,
    "design": lambda: torch.tensor(design_schedule(STATISTICS, PROCESS, 2, restarts=1).log_snrs, device="cpu"),
    "joint": lambda: torch.tensor(
        design_joint(STATISTICS, PROCESS, 2, restarts=1).steps.log_snrs, device="cpu"
    ),
    "baselines": lambda: baselines(3)["log-SNR"],
    "corruption": lambda: estimate_corruption(LOUD, STATISTICS, errors=1.0).power(),
    "profile": lambda: axis_profile(STATISTICS.power[0], GRID, "height").power,
    "rings of a profile": lambda: radial_profile(STATISTICS.power[0], GRID.resize(GRID.shape)).power,
    "kernel": lambda: ms.Filtered.of_kernel(torch.ones((1, 3, 3), device="cpu"), GRID).transfer,
    "left": lambda: torch.tensor([each.snr for each in ms.terminal_snr(PROCESS, STATISTICS)], device="cpu"),
    "U-turn": lambda: ms.u_turn_correlation(PROCESS, STATISTICS, 0.5),
    "modulation": lambda: ms.ColorShift(ms.Flat(), EXAMPLES["VelocityTuned"])(0.5, GRID)[1],
    "restored": lambda: ms.GaussianRestoration.fit([DATA.double()], CORRUPTION).mean,
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_values_computed_once_stay_on_the_cpu_under_another_default_device(name):
    expected = CALLS[name]()
    with torch.device("meta"):  # a device from which nothing can be read
        results = CALLS[name]()
    for result, value in zip(results, expected, strict=True) if isinstance(expected, list) else [(results, expected)]:
        assert result.device.type == "cpu"
        assert torch.equal(result, value)
