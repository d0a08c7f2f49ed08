"""Steps and noise designed for what is looked at, on as few of its frequencies as make that quick."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from multisagd import DDIM, DataStatistics, Process, SpectralCovariance
from multisagd.analysis.design import ENDS, DesignedSteps, design_schedule, objective_value, spectral_ends
from multisagd.analysis.recommend import Recommendation, recommend
from multisagd.analysis.transfer import transfer_function
from multisagd.schedule import CosineSchedule
from recipes.explorer.examples import Example

MOST_FREQUENCIES = 4096


@dataclass(frozen=True, eq=False)
class Designed:
    """Designed steps, and the rising log-SNRs and errors of them and of what they compare with, by name.

    Errors are the 2-Wasserstein distance as a share of the data's deviation, of DDIM on Gaussian data.
    """

    steps: DesignedSteps
    log_snrs: dict[str, list[float]]
    errors: dict[str, float]


def thinned(statistics: DataStatistics) -> DataStatistics:
    """Return statistics of one channel, their mean, on a smaller grid of the same spacing: at fewer frequencies.

    The range of frequencies stays, and with it the law at each; only what is slower than the smaller grid is long goes.
    """
    grid = statistics.grid
    shape = list(grid.shape)
    while math.prod(shape) > MOST_FREQUENCIES:
        longest = max(range(len(shape)), key=lambda place: shape[place])
        shape[longest] = -(-shape[longest] // 2)
    power, mean = statistics.power.mean(0, keepdim=True), statistics.mean.mean(0, keepdim=True)
    averaged = DataStatistics(mean, power, grid, statistics.count)
    smaller = grid.resize(shape)
    return DataStatistics(averaged.mean_on(shape), averaged.power_on(shape), smaller, statistics.count)


def design(example: Example, process: Process, steps: int) -> Designed:
    """Return steps that make DDIM err least on Gaussian data of the example's spectrum, under a process.

    They are compared with equal steps of the process's own schedule and of the cosine schedule.

    Raises:
        ValueError: if the data have no power where there is noise.
    """
    statistics, small = _small(example, process)
    found = design_schedule(statistics, small, steps, ends=spectral_ends(statistics, small), restarts=1)
    reach = small.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    between = torch.tensor([max(ENDS[0], reach[0]), min(ENDS[1], reach[1])], dtype=torch.float64)
    compared = {"designed": torch.tensor(found.log_snrs, dtype=torch.float64)}
    for name, schedule in (("cosine", CosineSchedule()), ("chosen schedule", small.schedule)):
        if name == "cosine" or schedule != CosineSchedule():
            first, last = schedule.time(between)
            even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            compared[name] = schedule.log_snr(torch.lerp(first, last, even))
    errors = {}
    for name, log_snrs in compared.items():
        with torch.no_grad():
            transfer = transfer_function(DDIM(), small, small.schedule.time(log_snrs), statistics)
            scale = math.sqrt(float(transfer.total(transfer.spectra.data)))
            errors[name] = float(objective_value(transfer, "w2")) / scale
    return Designed(found, {name: each.tolist() for name, each in compared.items()}, errors)


def recommended(example: Example, process: Process, steps: int) -> Recommendation:
    """Return which noise to train with for sampling in so many steps, and why.

    Raises:
        ValueError: as `recommend` does.
    """
    statistics, small = _small(example, process)
    return recommend(statistics, process.schedule, steps, ends=spectral_ends(statistics, small), restarts=1)


def _small(example: Example, process: Process) -> tuple[DataStatistics, Process]:
    statistics = thinned(example.statistics)
    return statistics, Process(process.schedule, SpectralCovariance(process.covariance.spectrum, statistics.grid))
