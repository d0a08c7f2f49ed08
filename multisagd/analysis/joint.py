"""Design the noise spectrum and the steps jointly.

In the Gaussian model, the discretisation error decreases as the noise spectrum approaches that of the data: with
`W ∝ C` every frequency has the same log-SNR at every time. Effects outside the model limit how far to go: a network
must then resolve noise powers that differ as much as the data's do, and where noise is weak at t = 1, part of the data
remains. So the optimum of the model (`design_joint`) may differ from the recommendation (`recommend`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from multisagd.analysis.design import ENDS, DesignedSteps, Objective, objective_value
from multisagd.analysis.search import Search, minimise
from multisagd.analysis.transfer import Spectra, follow
from multisagd.grid import Grid
from multisagd.process import Process
from multisagd.radial import PowerLaw, Rings
from multisagd.samplers import DDIM, Sampler
from multisagd.spectrum import Spectrum
from multisagd.statistics import DataStatistics

FLOOR = 60.0
"""Minimum power of noise shaped like the data, in decibels below the largest power (`DataStatistics.spectrum`)."""

Family = Literal["data_power", "power_law", "bands"]


@dataclass(frozen=True)
class JointDesign:
    """The designed steps and spectrum; `parameters` are the parameters of the family.

    `data_power`: the exponent of the data's power. `power_law`: the exponent of the amplitude, as in `PowerLaw`.
    `bands`: the power at zero frequency and in rings of equal width (`Rings`), with a mean of one.
    """

    steps: DesignedSteps
    spectrum: Spectrum
    family: Family
    parameters: tuple[float, ...]


def design_joint(
    statistics: DataStatistics,
    process: Process,
    steps: int,
    objective: Objective = "w2",
    family: Family = "data_power",
    *,
    sampler: Sampler | None = None,
    ends: tuple[float, float] = ENDS,
    bands: int = 8,
    restarts: int = 3,
    seed: int = 0,
) -> JointDesign:
    """Return the log-SNRs and the spectrum of a family that best generate Gaussian data with these statistics.

    The spectrum keeps a mean power of one. The covariance of `process` is not used.

    Raises:
        ValueError: If the family is unknown, or the other arguments are invalid for `design_schedule`.
    """
    if family not in get_args(Family):
        raise ValueError(f"unknown family {family!r}; choose {', '.join(get_args(Family))}")
    sampler = DDIM() if sampler is None else sampler
    search = Search.over(process, steps, ends, False, restarts, seed)
    fixed = Spectra.of(statistics, process)
    grid = statistics.grid
    like = torch.empty((1, 1, *grid.shape), dtype=torch.float64, device="cpu")
    shape, count = _family(family, statistics, bands)

    def noise(free: Tensor) -> Tensor:
        power = shape(free)
        return (power / grid.mean(power))[None]

    def value(free: Tensor) -> Tensor:
        times = process.schedule.time(search.log_snrs(free[count:]))
        return objective_value(
            follow(sampler, process, times, replace(fixed, noise=noise(free[:count])), like), objective
        )

    white = torch.zeros(count, dtype=torch.float64, device="cpu")
    starts = [torch.cat([white, each]) for each in search.starts()]
    best = minimise(value, starts)
    with torch.no_grad():
        designed = DesignedSteps(
            tuple(search.log_snrs(best[count:]).tolist()), objective, str(sampler), float(value(best))
        )
    spectrum, parameters = _described(family, best[:count], statistics)
    return JointDesign(designed, spectrum, family, parameters)


def _family(family: Family, statistics: DataStatistics, bands: int) -> tuple[Callable[[Tensor], Tensor], int]:
    """Return the power of a family as a function of its free parameters (zero for white noise), and their number."""
    grid = statistics.grid
    if family == "data_power":
        logs = statistics.spectrum(FLOOR).values.log()
        return lambda free: (free[0] * logs).exp(), 1
    if family == "power_law":
        logs = _radius(grid).log()
        return lambda free: (2 * free[0] * logs).exp(), 1
    # On a small grid a ring may contain no frequency; its level then has no effect.
    rings = torch.stack([Rings(tuple(unit)).power(grid) for unit in torch.eye(bands + 1, device="cpu").tolist()])
    return lambda free: torch.einsum("r,r...->...", free.exp(), rings), bands + 1


def _described(family: Family, free: Tensor, statistics: DataStatistics) -> tuple[Spectrum, tuple[float, ...]]:
    """Return the spectrum given by free parameters, and the parameters that describe it."""
    exponent = float(free[0])
    if family == "data_power":
        return statistics.spectrum(FLOOR) ** exponent, (exponent,)
    if family == "power_law":
        return PowerLaw(exponent=exponent, factors=_cycles_per_sample(statistics.grid)), (exponent,)
    rings = Rings(tuple(free.exp().tolist()))
    mean = float(statistics.grid.mean(rings.power(statistics.grid)))
    rings = Rings(tuple(level / mean for level in rings.levels))
    return rings, rings.levels


def _cycles_per_sample(grid: Grid) -> dict[str, float]:
    return {axis.name: axis.spacing for axis in grid.axes}


def _radius(grid: Grid) -> Tensor:
    """Return the radial frequency in cycles per sample, clamped to at least the corner frequency of a power law."""
    factors = _cycles_per_sample(grid)
    return grid.radius(factors=factors).clamp(min=grid.corner(factors=factors))
