"""The forward processes for the selected settings, noisy data, designed steps, and recommended noise.

White and shaped noise are filtered from the same random numbers, so that two outputs differ only in the spectrum. For
speed, steps and noise are designed for a smaller grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from multisagd import DataStatistics, DPMSolver, Flat, Process, SpectralCovariance, seeds
from multisagd.analysis import design
from multisagd.analysis.recommend import Recommendation, recommend
from multisagd.analysis.transfer import transfer_function
from multisagd.schedule import CosineSchedule
from recipes.config.build import Builder
from recipes.config.groups import of_choice
from recipes.explorer.configuration import Settings, build_spectrum
from recipes.explorer.media import Example
from recipes.runs.schedules import build_schedule

SAMPLER = DPMSolver()
"""For which steps are designed and noise is recommended: the default of `multisagd design`, too."""
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Noise levels shown side by side."""
SCHEDULES = ("cosine", "linear", "sigmoid", "flow", "karras")
MAX_FREQUENCIES = 4096


def build_process(settings: Settings, example: Example, group: Mapping[str, Any]) -> Process:
    """Build the process whose noise has the spectrum of the configuration `group`.

    Raises RecipeError if the spectrum is invalid, or ValueError if it has no power on the grid.
    """
    schedule = of_choice("schedule", settings.schedule) | {"shift": settings.shift}
    covariance = SpectralCovariance(build_spectrum(group, example), example.grid)
    return Process(build_schedule(schedule, Builder(), example.statistics, covariance), covariance)


@dataclass(frozen=True, eq=False)
class Pair:
    """One example under two forward processes with the same schedule, and the noise of each, `(channels, *grid)`."""

    example: Example
    processes: Mapping[str, Process]
    noises: Mapping[str, Tensor]

    @classmethod
    def of(cls, example: Example, settings: Settings, group: Mapping[str, Any]) -> Self:
        """Build the processes "white" and "shaped", and draw noise from `settings.seed`.

        Raises the same errors as `build_process`.
        """
        shaped = build_process(settings, example, group)
        white = Process(shaped.schedule, SpectralCovariance(Flat(), example.grid))
        processes = {"white": white, "shaped": shaped}
        shape, drawn = (1, *example.x0.shape), [seeds.derive(settings.seed, "explore")]
        return cls(example, processes, {name: each.noise(shape, drawn)[0] for name, each in processes.items()})

    def noise_media(self) -> dict[str, Any]:
        """Return both noises as media, scaled to the standard deviation of the data."""
        sigma, modality = self.example.statistics.sigma_data, self.example.modality
        return {name: modality.decode(sigma * noise) for name, noise in self.noises.items()}

    def noisy_example(self, name: str, time: float) -> Tensor:
        """Return the example with noise at a time, `(channels, *grid)`, scaled to the range of the data."""
        t = torch.tensor([time], dtype=torch.float64)
        return self.processes[name].in_range(self.example.x0[None], t, self.noises[name][None])[0]

    def media_at(self, time: float) -> dict[str, Any]:
        """Return the example with noise at a time, under both processes, as media."""
        return {name: self.example.modality.decode(self.noisy_example(name, time)) for name in self.processes}


@dataclass(frozen=True, eq=False)
class Designed:
    """Designed steps, and for them and for the baselines, by name, the increasing log-SNRs and the error.

    The error is the sampler's 2-Wasserstein distance on Gaussian data, relative to the data's standard deviation.
    """

    steps: design.DesignedSteps
    log_snrs: dict[str, list[float]]
    errors: dict[str, float]


def design_steps(example: Example, process: Process, steps: int) -> Designed:
    """Return the steps that minimise the sampler's error on Gaussian data with the example's spectrum.

    The baselines are equal steps of the process's schedule and of the cosine schedule. Raises ValueError if there is
    noise at frequencies without data power.
    """
    statistics, small = _small(example, process)
    ends = design.spectral_ends(statistics, small)
    best = design.design_schedule(statistics, small, steps, sampler=SAMPLER, ends=ends, restarts=1)
    between = small.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).clamp(*design.ENDS)
    compared = {"designed": torch.tensor(best.log_snrs, dtype=torch.float64)}
    for name, schedule in (("cosine", CosineSchedule()), ("chosen schedule", small.schedule)):
        if name == "cosine" or schedule != CosineSchedule():
            first, last = schedule.time(between)
            even = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            compared[name] = schedule.log_snr(torch.lerp(first, last, even))
    errors = {}
    for name, log_snrs in compared.items():
        with torch.no_grad():
            transfer = transfer_function(SAMPLER, small, small.schedule.time(log_snrs), statistics)
            errors[name] = design.errors(transfer)["relative"]
    return Designed(best, {name: each.tolist() for name, each in compared.items()}, errors)


def recommend_noise(example: Example, process: Process, steps: int) -> Recommendation:
    """Return a recommendation of noise for sampling in this number of steps, with its reasons.

    Raises the same errors as `recommend`.
    """
    statistics, small = _small(example, process)
    ends = design.spectral_ends(statistics, small)
    return recommend(statistics, process.schedule, steps, sampler=SAMPLER, ends=ends, restarts=1)


def _small(example: Example, process: Process) -> tuple[DataStatistics, Process]:
    """Return the statistics and the process on a grid of at most `MAX_FREQUENCIES` frequencies."""
    statistics, covariance = design.on_smaller_grid(example.statistics, MAX_FREQUENCIES), process.covariance
    assert isinstance(covariance, SpectralCovariance)  # the explorer builds no other
    return statistics, Process(process.schedule, SpectralCovariance(covariance.spectrum, statistics.grid))
