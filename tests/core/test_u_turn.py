"""U-turns of Gaussian data keep the law, and what is left of the start is known in closed form."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense
from tests.helpers.stationary import draw_data, half_spectrum

GRIDS = {"1-D": ms.Grid.of(time=9), "2-D": ms.Grid.of(height=4, width=6), "3-D": ms.Grid.of(frame=2, height=3, width=4)}
WHITE, COLORED = ms.Flat(), ms.PowerLaw(-0.5, corner=0.05)
COUNT = 1500


def make(grid: ms.Grid, spectrum: ms.Spectrum) -> ms.GaussianDenoiser:
    power = 0.05 + 1 / (1 + 40 * dense.radius(grid) ** 2)
    statistics = dense.stationary(power, grid, np.linspace(-1, 1, grid.numel).reshape(grid.shape))
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-14, 14)), ms.SpectralCovariance(spectrum, grid).double())
    return ms.GaussianDenoiser(process, statistics)


@pytest.mark.parametrize(
    ("kind", "grid", "spectrum", "time"),
    [
        ("exact flow", "1-D", WHITE, 0.1),
        ("exact flow", "2-D", COLORED, 0.4),
        ("exact flow", "3-D", WHITE, 0.8),
        ("flow", "1-D", COLORED, 0.4),
        ("flow", "2-D", WHITE, 0.8),
        ("flow", "3-D", COLORED, 0.1),
        ("reverse SDE", "1-D", COLORED, 0.8),
        ("reverse SDE", "2-D", WHITE, 0.1),
        ("reverse SDE", "3-D", COLORED, 0.4),
        ("reverse SDE", "3-D", WHITE, 0.4),
    ],
    ids=str,
)
def test_u_turn_keeps_the_law_and_has_the_known_correlation(kind, grid, spectrum, time):
    """Power and correlation at every frequency within 4.5 standard errors, and what so many steps miss."""
    grid = GRIDS[grid]
    denoiser = make(grid, spectrum)
    statistics, process, x0 = denoiser.statistics, denoiser.process, draw_data(denoiser.statistics, COUNT)
    sampler, steps = {
        "exact flow": (ms.GaussianIntegrator(statistics), 1),
        "flow": (ms.DPMSolver(), 30),
        "reverse SDE": (ms.DPMSolver(sde=True), 60),
    }[kind]
    turned = ms.u_turn(denoiser, sampler, x0, time, steps, range(COUNT), spacing="log_snr")
    before, after = (half_spectrum(x - statistics.mean, grid)[:, 0] for x in (x0, turned))
    power = after.abs().square().mean(0)
    assert float((power / statistics.power[0] - 1).abs().max()) < 0.03 + 4.5 * math.sqrt(2 / COUNT)
    correlation = (before.conj() * after).real.mean(0) / (before.abs().square().mean(0) * power).sqrt()
    expected = ms.u_turn_correlation(process, statistics, time, stochastic=kind == "reverse SDE")[0]
    error = (1 - expected**2) / math.sqrt(COUNT)
    assert bool(((correlation - expected).abs() < 0.01 + 4.5 * error).all())


def test_u_turn_correlation_is_its_formula_and_falls_with_time():
    """`a²C/(a²C + b²W)` with the numbers of the cosine schedule, and its root."""
    denoiser = make(GRIDS["2-D"], COLORED)
    process, statistics = denoiser.process, denoiser.statistics
    C, W = statistics.power, process.covariance.power()
    share = math.cos(math.pi * 0.15) ** 2 * C / (math.cos(math.pi * 0.15) ** 2 * C + math.sin(math.pi * 0.15) ** 2 * W)
    for stochastic, expected in ((True, share), (False, share.sqrt())):
        correlation = ms.u_turn_correlation(process, statistics, 0.3, stochastic=stochastic)
        torch.testing.assert_close(correlation, expected)
    times = [ms.u_turn_correlation(process, statistics, t) for t in (0.1, 0.5, 0.9, 1.0)]
    assert all(bool((after < before).all()) for before, after in pairwise(times))
    assert float(times[-1].max()) < 0.01


def test_u_turn_of_an_item_depends_on_its_own_seed():
    denoiser = make(GRIDS["1-D"], ms.PowerLaw(-0.5))
    x0, sampler = draw_data(denoiser.statistics, 4), ms.DDIM(eta=1.0)
    batch = ms.u_turn(denoiser, sampler, x0, 0.5, 5, [3, 4, 5, 6])
    alone, other = (ms.u_turn(denoiser, sampler, x0[2:3], 0.5, 5, [seed]) for seed in (5, 6))
    torch.testing.assert_close(batch[2:3], alone)
    assert float((other - alone).abs().max()) > 0.01
    with pytest.raises(ValueError, match="must start at a time"):
        ms.u_turn(denoiser, ms.DDIM(), x0[:1], 1.5, 5, [1])
