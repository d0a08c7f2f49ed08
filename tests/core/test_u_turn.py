"""U-turns of Gaussian data: the law is kept, and what is left of the start is known in closed form."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import multisagd as ms
from tests.helpers import dense

GRIDS = {"1-D": ms.Grid.of(time=9), "2-D": ms.Grid.of(height=4, width=6), "3-D": ms.Grid.of(frame=2, height=3, width=4)}
COUNT = 1500


def made(grid: ms.Grid, spectrum: ms.Spectrum) -> tuple[ms.GaussianDenoiser, torch.Tensor]:
    power = 0.05 + 1 / (1 + 40 * dense.radius(grid) ** 2)
    statistics = dense.stationary(power, grid, np.linspace(-1, 1, grid.numel).reshape(grid.shape))
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-14, 14)), ms.SpectralCovariance(spectrum, grid).double())
    dims = tuple(range(-grid.dimensions, 0))
    white = torch.fft.rfftn(dense.random(COUNT, 1, *grid.shape), dim=dims)
    x0 = torch.fft.irfftn(white * statistics.power.sqrt(), s=grid.shape, dim=dims) + statistics.mean
    return ms.GaussianDenoiser(process, statistics), x0


@pytest.mark.parametrize("time", [0.1, 0.4, 0.8])
@pytest.mark.parametrize("spectrum", [ms.Flat(), ms.PowerLaw(-0.5, corner=0.05)], ids=["white", "coloured"])
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("kind", ["exact flow", "flow", "reverse SDE"])
def test_law_is_kept_and_correlation_falls(kind, grid, spectrum, time):
    """Power and correlation at every frequency within 4.5 standard errors, and what so many steps miss."""
    denoiser, x0 = made(grid, spectrum)
    statistics, process = denoiser.statistics, denoiser.process
    sampler, steps = {
        "exact flow": (ms.GaussianIntegrator(statistics), 1),
        "flow": (ms.DPMSolver(), 30),
        "reverse SDE": (ms.DPMSolver(sde=True), 60),
    }[kind]
    turned = ms.u_turn(denoiser, sampler, x0, time, steps, range(COUNT), spacing="log_snr")
    dims = tuple(range(-grid.dimensions, 0))
    before, after = (torch.fft.rfftn(x - statistics.mean, dim=dims, norm="ortho")[:, 0] for x in (x0, turned))
    power = after.abs().square().mean(0)
    assert float((power / statistics.power[0] - 1).abs().max()) < 0.03 + 4.5 * math.sqrt(2 / COUNT)
    found = (before.conj() * after).real.mean(0) / (before.abs().square().mean(0) * power).sqrt()
    expected = ms.u_turn_correlation(process, statistics, time, stochastic=kind == "reverse SDE")[0]
    error = (1 - expected**2) / math.sqrt(COUNT)
    assert bool(((found - expected).abs() < 0.01 + 4.5 * error).all())


def test_correlation_is_that_of_the_formula_and_falls_with_time():
    """`a²C/(a²C + b²W)` with the numbers of the cosine schedule, and its root."""
    grid = GRIDS["2-D"]
    denoiser, _ = made(grid, ms.PowerLaw(-0.5, corner=0.05))
    C, W = denoiser.statistics.power, denoiser.process.covariance.power()
    share = math.cos(math.pi * 0.15) ** 2 * C / (math.cos(math.pi * 0.15) ** 2 * C + math.sin(math.pi * 0.15) ** 2 * W)
    for stochastic, expected in ((True, share), (False, share.sqrt())):
        found = ms.u_turn_correlation(denoiser.process, denoiser.statistics, 0.3, stochastic=stochastic)
        torch.testing.assert_close(found, expected)
    times = [ms.u_turn_correlation(denoiser.process, denoiser.statistics, t) for t in (0.1, 0.5, 0.9, 1.0)]
    assert all(bool((after < before).all()) for before, after in pairwise(times))
    assert float(times[-1].max()) < 0.01


def test_an_item_depends_on_its_own_seed():
    denoiser, x0 = made(GRIDS["1-D"], ms.PowerLaw(-0.5))
    batch = ms.u_turn(denoiser, ms.DDIM(eta=1.0), x0[:4], 0.5, 5, [3, 4, 5, 6])
    alone = ms.u_turn(denoiser, ms.DDIM(eta=1.0), x0[2:3], 0.5, 5, [5])
    torch.testing.assert_close(batch[2:3], alone)
    other = ms.u_turn(denoiser, ms.DDIM(eta=1.0), x0[2:3], 0.5, 5, [6])
    assert float((other - alone).abs().max()) > 0.01
    with pytest.raises(ValueError, match="starts at a time"):
        ms.u_turn(denoiser, ms.DDIM(), x0[:1], 1.5, 5, [1])
