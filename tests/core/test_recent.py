"""What is computed once is bounded, shared by threads, empty in copies, and on the CPU under any default device."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from multisagd.recent import MAX_VALUES, Recent
from tests.helpers.every_spectrum import EXAMPLES, GRID, WAVEFORM
from tests.helpers.networks import Affine


def test_recent_drops_the_longest_unused():
    made: list[str] = []
    recent: Recent[str] = Recent(2)

    def get(key: str) -> str:
        return recent.get(key, lambda: made.append(key) or key.upper())

    assert [get(key) for key in "abacaab"] == list("ABACAAB")
    assert made == ["a", "b", "c", "b"]
    assert len(recent) == 2


def test_recent_keeps_none_but_not_failures():
    recent: Recent[int | None] = Recent()
    assert recent.get("none", lambda: None) is None
    assert recent.get("none", lambda: 1) is None
    with pytest.raises(ZeroDivisionError):
        recent.get("bad", lambda: 1 // 0)
    assert recent.get("bad", lambda: 2) == 2


def test_recent_is_empty_in_copies_and_pickles():
    recent: Recent[int] = Recent(3)
    recent.get(0, lambda: 1)
    for other in (copy.deepcopy(recent), pickle.loads(pickle.dumps(recent))):
        assert len(other) == 0
        assert other.maximum == 3
        assert other.get(0, lambda: 2) == 2


def test_recent_is_shared_by_threads():
    recent: Recent[int] = Recent(4)
    with ThreadPoolExecutor(8) as pool:
        values = list(pool.map(lambda i: recent.get(i % 9, lambda: i % 9), range(20000)))
    assert values == [i % 9 for i in range(20000)]
    assert len(recent) == 4


def test_recent_bounds_what_every_object_keeps_for_many_shapes():
    """One of every kind of object that keeps something per shape, drawn, coloured and trained on many shapes."""
    spectrum, grid = ms.PowerLaw(-0.5), ms.Grid.of(x=16)
    covariance = ms.SpectralCovariance(spectrum, grid)
    padded = ms.PaddedCovariance(spectrum, grid, {"x": 4})
    corruption = ms.Corruption(ms.Band(0.2, 0.5), grid, 0.2)
    floor = ms.NoiseFloor(ms.CosineSchedule(), covariance, corruption)
    shift, filtered = ms.ColorShift(ms.Flat(), spectrum), ms.Prefilter(spectrum)
    power = torch.ones(1, *grid.half_shape, dtype=torch.float64)
    statistics = ms.DataStatistics(torch.zeros(1, 16, dtype=torch.float64), power, grid, 10)
    process = ms.Process(ms.CosineSchedule(), covariance)
    spectral = ms.Denoiser(Affine(), process, preconditioning="spectral", statistics=statistics)
    restoring = ms.RestoringDenoiser(Affine(), ms.Process(process.schedule, covariance, floor), corruption, statistics)
    for size in range(16, 18 + MAX_VALUES):
        x0 = covariance.sample([size], grid_shape=(size,))
        covariance.solve(covariance.apply(covariance.whiten(covariance.project(x0))))
        padded.sample([size], grid_shape=(size,))
        corruption.corrupt(x0, [size])
        for modulation in (floor, shift, filtered):
            modulation(torch.tensor([0.5]), grid.resize((size,)))
        for denoiser in (spectral, restoring):
            denoiser.loss(x0, 0.5, [1])
            denoiser(x0, 0.5)
    for thing in (covariance, padded, padded.drawn, corruption.covariance, floor, shift, filtered, spectral, restoring):
        kept = [value for value in vars(thing).values() if isinstance(value, Recent)]
        assert kept, thing
        assert any(len(each) == MAX_VALUES for each in kept) or isinstance(thing, ms.PaddedCovariance)
        assert all(len(each) <= MAX_VALUES for each in kept), thing
        # Nothing else grows with the number of shapes.
        assert all(len(value) <= MAX_VALUES for value in vars(thing).values() if isinstance(value, dict | list)), thing


def test_recent_values_made_in_inference_serve_training():
    grid = ms.Grid.of(x=16)
    for modulation in (None, ms.ColorShift(ms.PowerLaw(0.5), ms.Flat()), ms.Prefilter(ms.PowerLaw(0.5))):
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid), modulation)
        network, x0 = ms.networks.UNet(channels=1, dimensions=1, width=8, multipliers=(1,)), torch.ones(1, 1, 16)
        denoiser = ms.Denoiser(network, process)
        with torch.inference_mode():
            ms.sample(denoiser, ms.DDIM(), (1, 1, 16), 2, [0])
        x0.requires_grad_()
        denoiser.loss(x0, 0.5, [0], metric="mahalanobis").sum().backward()
        assert x0.grad is not None, modulation


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
    "padded": lambda: ms.PaddedCovariance(ms.PowerLaw(-0.5).on(*SPATIAL), GRID, {"frame": 2}).power(),
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
