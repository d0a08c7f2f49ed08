"""A calibrated sampler has the power of the forward process after every step, and items stay independent."""

import math

import pytest
import torch

import multisagd as ms
from multisagd.calibration import calibrate
from tests.core.test_samplers import GRIDS, MODULATIONS, PLANE, SCHEDULES, SPECTRA, make
from tests.helpers.networks import Estimate, labelled_denoiser

SEEDS = list(range(20))


def ring_power(x: torch.Tensor, grid: ms.Grid) -> list[float]:
    """The mean power of x (batch, 1, *grid) in rings one bin wide along the longest axis, frequency by frequency."""
    power = torch.fft.fftn(x[:, 0], dim=tuple(range(1, x.dim() - 1)), norm="ortho").abs().square().mean(0)
    top = 0.5 * math.sqrt(grid.dimensions)
    count, rings = max(1, round(top * max(grid.shape))), dict[int, list[float]]()
    for place in torch.cartesian_prod(*(torch.arange(n) for n in grid.shape)).reshape(-1, grid.dimensions).tolist():
        radius = math.sqrt(sum((min(k, n - k) / n) ** 2 for k, n in zip(place, grid.shape, strict=True)))
        ring = 0 if radius < 1e-9 else 1 + min(count - 1, int(radius / top * count - 1e-9))
        rings.setdefault(ring, []).append(float(power[tuple(place)]))
    return [sum(each) / len(each) for _, each in sorted(rings.items())]


def expected_power(denoiser: ms.GaussianDenoiser, t: torch.Tensor) -> list[float]:
    grid, process = denoiser.process.grid, denoiser.process
    at = process.coefficients(t.reshape(1), torch.empty(1, 1, *grid.shape, dtype=torch.float64))
    power = at.a[0, 0] ** 2 * denoiser.statistics.power[0] + at.b[0, 0] ** 2 * process.covariance.power()
    # The square root of a full spectrum is the amplitude of one field with this power.
    return ring_power(torch.fft.ifftn(grid.full(power).sqrt(), norm="ortho")[None, None], grid)


@pytest.mark.parametrize("sampler", [ms.DDIM(), ms.DPMSolver(sde=True), ms.UniPC()], ids=str)
def test_calibrated_states_have_the_power_of_the_forward_process(sampler):
    cases = [(schedule, *each, None) for schedule in SCHEDULES for each in zip(GRIDS, SPECTRA, strict=True)]
    cases += [("preserving", PLANE, "white", modulation) for modulation in MODULATIONS.values()]
    for schedule, grid, spectrum, modulation in cases:
        denoiser = make(grid, SPECTRA[spectrum], SCHEDULES[schedule], modulation)
        times, states = ms.time_steps(denoiser.process.schedule, 3), list[torch.Tensor]()
        calibrated = calibrate(sampler, denoiser, denoiser.statistics, times, SEEDS, batch=7)
        shape = (len(SEEDS), 1, *grid.shape)
        ms.sample(denoiser, calibrated, shape, 3, SEEDS, times=times, callback=lambda *a, s=states: s.append(a[2]))
        for x, t in zip(states, times[1:], strict=True):
            ours, wanted = ring_power(x, grid), expected_power(denoiser, t)
            assert ours == pytest.approx(wanted, rel=1e-6), (schedule, grid, spectrum, float(t))
        plain = ms.sample(denoiser, sampler, shape, 3, SEEDS, times=times)
        assert ring_power(plain, grid) != pytest.approx(wanted, rel=0.02)


def test_sampler_without_error_is_hardly_changed():
    denoiser = make(PLANE, ms.PowerLaw(-0.5), SCHEDULES["preserving"])
    times, count = ms.time_steps(denoiser.process.schedule, 100, "log_snr"), 500
    calibrated = calibrate(ms.DPMSolver(), denoiser, denoiser.statistics, times, range(count))
    rings = torch.bincount(ms.analysis.profiles.ring_indices(PLANE).flatten(), PLANE.multiplicity.flatten().double())
    product = calibrated.gains.log().sum(0)[0]
    # The logarithm of a ring's amplitude has the deviation 1 / √(2 n), here with the number of real values as n.
    assert bool((product.abs() < 4 / (2 * count * rings).sqrt() + 5e-3).all()), product


def test_items_do_not_depend_on_the_batch():
    denoiser = make(PLANE, ms.Flat(), SCHEDULES["preserving"])
    times = ms.time_steps(denoiser.process.schedule, 4)
    calibrated = calibrate(ms.DPMSolver(sde=True), denoiser, denoiser.statistics, times, SEEDS)
    together, alone = (
        ms.sample(denoiser, calibrated, (len(seeds), 1, *PLANE.shape), 4, seeds, times=times)
        for seeds in ([5, 6, 7], [6])
    )
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-12)
    assert str(calibrated) == f"{ms.DPMSolver(sde=True)}, calibrated"


def test_conditions_are_divided_like_the_states():
    denoiser = labelled_denoiser(PLANE)
    statistics = ms.DataStatistics.measure([torch.randn(9, 1, *PLANE.shape)], PLANE)
    times, labels = ms.time_steps(denoiser.process.schedule, 2), torch.arange(8) % 3
    whole, parts, none = (
        calibrate(ms.DDIM(), denoiser, statistics, times, range(8), condition, batch=batch).gains
        for condition, batch in ((labels, 8), (labels, 3), (None, 8))
    )
    torch.testing.assert_close(whole, parts)
    assert not torch.allclose(whole, none)


def test_other_steps_and_grids_are_refused():
    denoiser = make(PLANE, ms.Flat(), SCHEDULES["preserving"])
    times = ms.time_steps(denoiser.process.schedule, 4)
    calibrated = calibrate(ms.DDIM(), denoiser, denoiser.statistics, times, SEEDS)
    with pytest.raises(ValueError, match="calibrated for 4 steps, got 5"):
        ms.sample(denoiser, calibrated, (1, 1, *PLANE.shape), 5, [0])
    with pytest.raises(ValueError, match="calibrated for 1 channels on"):
        ms.sample(denoiser, calibrated, (1, 2, *PLANE.shape), 4, [0], times=times)
    follows = ms.Process(SCHEDULES["preserving"], ms.ConditionedCovariance(ms.DecibelEnvelope(), PLANE))
    with pytest.raises(ValueError, match="it follows their conditions"):
        calibrate(ms.DDIM(), Estimate(follows), denoiser.statistics, times, SEEDS)
    with pytest.raises(ValueError, match="the statistics have the grid"):
        calibrate(ms.DDIM(), denoiser, make(GRIDS[3], ms.Flat(), SCHEDULES["flow"]).statistics, times, SEEDS)
