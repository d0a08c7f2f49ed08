"""Recommend noise and steps for a dataset, and explain the choice in words.

The discretisation error alone would always favour noise shaped like the data (`joint`). Here noise is shaped only as
much as the error at the given number of steps requires, within what a network can resolve, and only if the data are
still hidden by the noise at the start. White noise is the first candidate.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch

from multisagd.analysis.design import ENDS, DesignedSteps, Objective, design_schedule, objective_value
from multisagd.analysis.joint import FLOOR
from multisagd.analysis.transfer import transfer_function
from multisagd.covariance import SpectralCovariance
from multisagd.multistep import DPMSolver
from multisagd.process import Process
from multisagd.samplers import Sampler
from multisagd.schedule import Schedule
from multisagd.spectrum import Flat, Spectrum
from multisagd.statistics import DataStatistics
from multisagd.terminal import terminal_snr

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidates: exponents of the data's power; 0 is white noise."""
CAUTION = (
    "This counts only the discretisation error of Gaussian data. A trained network may do worse with such noise, as in "
    "docs/results.md: train it with white noise, too, and compare."
)
"""Printed with every recommendation of noise that is not white."""


@dataclass(frozen=True)
class Limits:
    """Thresholds for the recommendation.

    `error`: discretisation error, as a fraction of the data's standard deviation, below which a trained network's own
    errors dominate.
    `gain`: minimum factor by which shaping must reduce the error of white noise.
    `conditioning`: maximum ratio of the largest to the smallest noise power, in decibels.
    `terminal_snr`: maximum signal-to-noise ratio at the start of sampling, in the worst frequency band.
    """

    error: float = 0.1
    gain: float = 1.25
    conditioning: float = 40.0
    terminal_snr: float = 0.01


@dataclass(frozen=True)
class Candidate:
    """Noise whose spectrum is the data's power raised to `exponent`, the steps designed for it, and its properties.

    `error` is the 2-Wasserstein distance, errors of the mean included, divided by the data's standard deviation; the
    others are as in `Limits`.
    """

    exponent: float
    spectrum: Spectrum
    steps: DesignedSteps
    error: float
    conditioning: float
    terminal_snr: float

    @property
    def name(self) -> str:
        """Return a description of the noise in words."""
        if self.exponent == 0:
            return "white noise"
        return f"noise shaped by the data's power raised to {self.exponent:g}"

    def objection(self, limits: Limits) -> str | None:
        """Return the reason why the candidate is omitted, or None if it is usable."""
        if self.conditioning > limits.conditioning:
            return f"its power spans {self.conditioning:.1f} dB, more than the {limits.conditioning:g} allowed"
        # By default steps begin where the strongest frequency has this ratio, so the comparison allows for rounding.
        if self.terminal_snr > 1.01 * limits.terminal_snr:
            return (
                f"at the start of sampling a band has a signal-to-noise ratio of {self.terminal_snr:.2g}, more "
                f"than {limits.terminal_snr:g}: the design must begin with more noise"
            )
        return None


@dataclass(frozen=True)
class Recommendation:
    """The chosen candidate, all candidates, and the reasons in order of importance."""

    chosen: Candidate
    candidates: tuple[Candidate, ...]
    reasons: tuple[str, ...]


def recommend(
    statistics: DataStatistics,
    schedule: Schedule,
    steps: int,
    objective: Objective = "w2",
    *,
    sampler: Sampler | None = None,
    limits: Limits | None = None,
    ends: tuple[float, float] = ENDS,
    restarts: int = 3,
    seed: int = 0,
) -> Recommendation:
    """Return the recommended training noise for sampling in `steps` steps of a sampler (by default `DPMSolver`).

    It is the whitest noise whose error is below `limits.error`. If no noise has such a small error, it is the noise
    with the smallest error, or white noise if that is hardly worse (`limits.gain`). Networks are not considered: for
    Fashion-MNIST and spoken digits, noise that is recommended for DDIM, which has larger errors, gave worse samples of
    DPM-Solver than white noise (docs/results.md).

    Raises:
        ValueError: If the arguments are invalid for `design_schedule`.
    """
    limits, sampler = limits or Limits(), sampler or DPMSolver()
    candidates = tuple(
        _candidate(exponent, statistics, schedule, steps, objective, sampler, ends, restarts, seed)
        for exponent in EXPONENTS
    )
    white, reasons = candidates[0], []
    reasons.append(
        f"In {steps} steps designed for it, white noise has a discretisation error of {white.error:.1%} of the data's "
        f"standard deviation (for Gaussian data)."
    )
    usable = [white]
    for candidate in candidates[1:]:
        objection = candidate.objection(limits)
        if objection is None:
            usable.append(candidate)
        else:
            reasons.append(f"{_sentence(candidate.name)} is omitted: {objection}.")
    good = [candidate for candidate in usable if candidate.error <= limits.error]
    best = min(usable, key=lambda each: each.error)
    if good:
        recommended = good[0]
        reasons.append(
            f"{_sentence(recommended.name)} is the whitest with an error below {limits.error:.0%} "
            f"({recommended.error:.1%}): a trained network's own error is about as large, so shaping further would "
            "gain little."
        )
    elif white.error < limits.gain * best.error:
        recommended = white
        reasons.append(
            f"No noise brings the error below {limits.error:.0%}, and {best.name}, the best with {best.error:.1%}, is "
            f"not {limits.gain:g} times better: white noise is kept, since it is the easiest to learn."
        )
    else:
        recommended = best
        reasons.append(
            f"No noise brings the error below {limits.error:.0%}; {best.name} comes closest with {best.error:.1%}, "
            f"{white.error / best.error:.2g} times better than white noise."
        )
    if recommended is not white:
        reasons.append(CAUTION)
    if objection := white.objection(limits):
        reasons.append(f"Check the start of sampling with any noise: with white noise, {objection}.")
    return Recommendation(recommended, candidates, tuple(reasons))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _candidate(
    exponent: float,
    statistics: DataStatistics,
    schedule: Schedule,
    steps: int,
    objective: Objective,
    sampler: Sampler,
    ends: tuple[float, float],
    restarts: int,
    seed: int,
) -> Candidate:
    spectrum = Flat() if exponent == 0 else statistics.spectrum(FLOOR) ** exponent
    process = Process(schedule, SpectralCovariance(spectrum, statistics.grid))
    designed = design_schedule(
        statistics, process, steps, objective, sampler=sampler, ends=ends, restarts=restarts, seed=seed
    )
    power = process.covariance.power()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the result contains the values it warns about
        bands = terminal_snr(process, statistics, time=float(designed.times(schedule)[0]))
    scale = statistics.grid.mean(statistics.power).sum() * statistics.grid.numel
    return Candidate(
        exponent,
        spectrum,
        designed,
        _error(statistics, process, designed, sampler) / math.sqrt(float(scale)),
        10 * math.log10(float(power.max() / power.min())),
        max(band.snr for band in bands),
    )


def _error(statistics: DataStatistics, process: Process, designed: DesignedSteps, sampler: Sampler) -> float:
    with torch.no_grad():
        transfer = transfer_function(sampler, process, designed.times(process.schedule), statistics)
        return float(objective_value(transfer, "w2"))
