"""Design the log-SNRs that a sampler visits, from the data's spectrum (arXiv 2502.00180, Section 5).

The error of sampling in a few steps is known in closed form (`transfer`), so it can be minimised over the steps before
training. It can also be minimised for a trained network, since a network conditioned on log-SNR accepts any steps. The
steps in log-SNR are fractions of the whole range, given by a softmax of free parameters; L-BFGS minimises the error in
float64 from several starts.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from multisagd.analysis.search import Method, Search, minimise
from multisagd.analysis.transfer import Spectra, Transfer, follow
from multisagd.channel_covariance import ChannelCovariance, signal_to_noise
from multisagd.files import read_json
from multisagd.process import Process
from multisagd.samplers import DDIM, Sampler
from multisagd.schedule import Schedule
from multisagd.statistics import ROUNDING, DataStatistics

Objective = Literal["w2", "kl", "l1"]
FORMAT = "multisagd steps 1"


def objective_value(transfer: Transfer, objective: Objective) -> Tensor:
    """Return the error of a transfer function, a scalar: the sum over frequencies and channels.

    `w2` is the 2-Wasserstein distance of the two Gaussian distributions (the distance, not its square), `kl` the
    Kullback-Leibler divergence from the data, `l1` the absolute error of the power.

    Raises:
        ValueError: If the objective is unknown.
    """
    if objective == "w2":
        return transfer.total(transfer.wasserstein()).sqrt()
    if objective == "kl":
        return transfer.total(transfer.kl())
    if objective == "l1":
        return transfer.total(transfer.absolute_error())
    raise ValueError(f"unknown objective {objective!r}; choose {', '.join(get_args(Objective))}")


def errors(transfer: Transfer) -> dict[str, float]:
    """Return the value of every objective, and W2 divided by the data's standard deviation (`relative`)."""
    values = {each: float(objective_value(transfer, each)) for each in get_args(Objective)}
    scale = math.sqrt(float(transfer.total(transfer.spectra.data)))
    return {**values, "relative": values["w2"] / scale if scale else math.inf}


@dataclass(frozen=True)
class DesignedSteps:
    """The increasing log-SNRs that a sampler visits, and the `value` that the objective reaches with them.

    Raises:
        ValueError: If there are fewer than two log-SNRs, or they are not finite and increasing.
    """

    log_snrs: tuple[float, ...]
    objective: str
    sampler: str
    value: float

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip(self.log_snrs, self.log_snrs[1:], strict=False))
        if len(self.log_snrs) < 2 or not increasing or not all(math.isfinite(each) for each in self.log_snrs):
            raise ValueError("designed steps need at least two finite, increasing log-SNRs")

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.log_snrs) - 1

    def times(self, schedule: Schedule) -> Tensor:
        """Return the decreasing times `(steps + 1,)` at which a schedule has these log-SNRs, for `sample`.

        Raises:
            ValueError: If the schedule does not reach these log-SNRs.
        """
        designed = torch.tensor(self.log_snrs, dtype=torch.float64, device="cpu")
        times = schedule.time(designed)
        reached = schedule.log_snr(times)
        if not torch.allclose(reached, designed, atol=1e-3):
            raise ValueError(
                f"the steps go from log-SNR {self.log_snrs[0]:.2f} to {self.log_snrs[-1]:.2f}, but this schedule "
                f"goes from {float(schedule.log_snr(1.0)):.2f} to {float(schedule.log_snr(0.0)):.2f}: design steps "
                "within the schedule's range"
            )
        return times

    def save(self, path: str | Path) -> None:
        """Write the steps as JSON."""
        Path(path).write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> DesignedSteps:
        """Read steps written by `save`.

        Raises:
            ValueError: If the file does not contain designed steps.
        """
        try:
            content = read_json(path)
            if content.pop("format") != FORMAT:
                raise ValueError("unknown format")
            return cls(**{**content, "log_snrs": tuple(float(each) for each in content["log_snrs"])})
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path} is not a file of designed steps: {error}") from error


IGNORED = 1e-6
"""Power relative to that of the strongest frequency as which rounding errors count, so that steps are not placed at
their log-SNRs."""
ENDS = (-math.log(1e4 - 1), math.log(1e4 - 1))
"""Default ends of a design: ᾱ = 1e-4, where noise hides the data, and ᾱ = 0.9999, where it is invisible."""


def spectral_ends(statistics: DataStatistics, process: Process, fraction: float = 0.01) -> tuple[float, float]:
    """Return the range of log-SNRs that matters for these data, within the range of the process's schedule.

    Without that limit it is the range of `wanted_ends`, which also raises the errors.
    """
    first, last = wanted_ends(statistics, process, fraction)
    limits = process.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu")).tolist()
    return max(first, limits[0]), min(last, limits[1])


def wanted_ends(statistics: DataStatistics, process: Process, fraction: float = 0.01) -> tuple[float, float]:
    """Return the range of log-SNRs that matters for these data under the noise of the process, for any schedule.

    At the first log-SNR, the strongest frequency, including the mean, has a signal-to-noise ratio of `fraction`; at the
    last, the noise-to-signal ratio of the weakest frequency is `fraction`. A frequency more than 120 dB below the
    strongest has no power but rounding errors, and counts as 60 dB below it. Frequencies without noise do not matter.

    Raises:
        ValueError: If the process is incompatible with the statistics (see `Spectra.of`), or the data have no power
            where there is noise.
    """
    quiet, loud = ratio_range(statistics, process)
    return math.log(fraction / loud), -math.log(fraction * quiet)


def ratio_range(statistics: DataStatistics, process: Process) -> tuple[float, float]:
    """Return the ratios of the power of data and noise, at log-SNR 0, of the weakest and of the strongest frequency.

    The strongest one includes the mean. Frequencies are treated, and errors raised, as in `wanted_ends`.
    """
    covariance = process.covariance
    if isinstance(covariance, ChannelCovariance) and covariance.mixed:
        ratio, with_mean = _mixed_ratios(statistics, covariance)
    else:
        spectra = Spectra.of(statistics, process)
        used = (spectra.noise > 0).expand_as(spectra.data)
        noise = torch.where(spectra.noise > 0, spectra.noise, 1.0)
        ratio, with_mean = ((power / noise)[used] for power in (spectra.data, spectra.data + spectra.mean))
    quiet = float(torch.where(ratio > ROUNDING * ratio.max(), ratio, IGNORED * ratio.max()).min())
    if quiet <= 0:
        raise ValueError(
            "the data have no power where there is noise, so no range of log-SNRs can be derived from their spectrum"
        )
    return quiet, float(with_mean.max())


def _mixed_ratios(statistics: DataStatistics, covariance: ChannelCovariance) -> tuple[Tensor, Tensor]:
    """Return the ratios of data to noise, without and with the mean, of all combinations of channels that have noise.

    Data whose cross power was not measured are taken as independent between channels.
    """
    grid, data = statistics.grid, statistics.cross
    if data is None:
        data = torch.diag_embed(statistics.power.movedim(0, -1)).movedim((-2, -1), (0, 1)).to(torch.complex128)
    mean = torch.fft.rfftn(statistics.mean, dim=tuple(range(-grid.dimensions, 0)), norm="ortho")
    found = [signal_to_noise(covariance, each, grid.shape) for each in (data, data + mean[:, None] * mean.conj())]
    return found[0][0][found[0][1]], found[1][0][found[1][1]]


def on_smaller_grid(statistics: DataStatistics, maximum: int) -> DataStatistics:
    """Average the statistics over channels and reduce them to a smaller grid of the same spacing, for a faster design.

    The range of frequencies and the distribution at each frequency do not change; only periods longer than the smaller
    grid are lost.

    Args:
        statistics: mean `(channels, *grid)` and power `(channels, *half_shape)` of the data.
        maximum: maximum number of samples of the smaller grid; the longest axis is halved until it fits.

    Returns:
        Mean `(1, *smaller)` and power `(1, *smaller_half_shape)`, in the units of `statistics`.
    """
    grid = statistics.grid
    shape = list(grid.shape)
    while math.prod(shape) > maximum:
        longest = shape.index(max(shape))
        shape[longest] = -(-shape[longest] // 2)
    power, mean = statistics.power.mean(0, keepdim=True), statistics.mean.mean(0, keepdim=True)
    averaged = DataStatistics(mean, power, grid, statistics.count)
    return DataStatistics(averaged.mean_on(shape), averaged.power_on(shape), grid.resize(shape), statistics.count)


def design_schedule(
    statistics: DataStatistics,
    process: Process,
    steps: int,
    objective: Objective = "w2",
    *,
    sampler: Sampler | None = None,
    ends: tuple[float, float] = ENDS,
    free_ends: bool = False,
    restarts: int = 6,
    seed: int = 0,
    method: Method = "L-BFGS-B",
) -> DesignedSteps:
    """Return the log-SNRs with which a sampler (DDIM by default) best generates Gaussian data with these statistics.

    `ends` are the first and last log-SNR, clamped to the range of the process's schedule; with `free_ends` they are
    only bounds, and the design may begin later and end earlier. The result is the best of the minima that are reached
    from `restarts` starting points: steps of equal size in log-SNR, in the cosine schedule's time and in Karras'
    measure, then random ones drawn from `seed`. The objective need not be convex, so more restarts may find a better
    minimum.

    Raises:
        ValueError: If `steps` or `restarts` is less than 1, the objective is unknown, or the ends are not increasing.
    """
    sampler = DDIM() if sampler is None else sampler
    search = Search.over(process, steps, ends, free_ends, restarts, seed)
    spectra = Spectra.of(statistics, process)
    like = torch.empty((1, 1, *statistics.grid.shape), dtype=torch.float64, device="cpu")

    def value(free: Tensor) -> Tensor:
        times = process.schedule.time(search.log_snrs(free))
        return objective_value(follow(sampler, process, times, spectra, like), objective)

    best = minimise(value, search.starts(), method)
    with torch.no_grad():
        return DesignedSteps(tuple(search.log_snrs(best).tolist()), objective, str(sampler), float(value(best)))
