"""Compute baselines for a designed schedule: log-SNRs of common schedules, and of steps found by dynamic programming.

The common schedules depend only on the number of steps. Dynamic programming also uses the spectra: it minimises the sum
of the errors of single steps (the criterion of arXiv 2405.11326, but on trajectories of Gaussian data instead of a
trained network), whereas a design minimises the error at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from multisagd.analysis.design import ENDS
from multisagd.analysis.transfer import Spectra, Transfer, transfer_function
from multisagd.process import Process
from multisagd.samplers import Sampler
from multisagd.schedule import CosineSchedule, FlowSchedule, KarrasSchedule, Schedule, SigmoidSchedule
from multisagd.statistics import DataStatistics


def baselines(steps: int, ends: tuple[float, float] = ENDS) -> dict[str, Tensor]:
    """Return the increasing log-SNRs `(steps + 1,)`, float64, of the usual schedules by name.

    Schedules that end at infinite log-SNRs (sigmoid, flow matching) run between `ends`. The outermost log-SNRs of the
    cosine schedule are clamped to `ends`, as is usual; if more of them lie outside, it runs between `ends` too. The
    Karras and linear schedules keep their own ends.
    """
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")

    def between(schedule: Schedule) -> Tensor:
        first, last = schedule.time(torch.tensor(ends, dtype=torch.float64, device="cpu"))
        return schedule.log_snr(torch.lerp(last, first, even))

    cosine = CosineSchedule(offset=0.008).log_snr(even).clamp(*ends)
    return {
        "cosine": cosine if bool((cosine.diff() > 0).all()) else between(CosineSchedule(offset=0.008)),
        "linear": _discrete_linear(steps),
        "sigmoid": between(SigmoidSchedule()),
        "karras": KarrasSchedule().log_snr(even),
        "flow": between(FlowSchedule()),
        "flow, shift 3": between(FlowSchedule(shift=3.0)),
        "log-SNR": torch.linspace(*ends, steps + 1, dtype=torch.float64, device="cpu"),
    }


def transfers(
    log_snrs: Mapping[str, Tensor], sampler: Sampler, process: Process, statistics: DataStatistics
) -> dict[str, Transfer]:
    """Return a sampler's transfer function for each named sequence of log-SNRs `(steps + 1,)`.

    Sequences that leave the range of the process's schedule, or do not increase strictly, are omitted. For example, a
    schedule of 1,000 discrete levels allows at most 1,000 steps.
    """
    low, high = process.schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64, device="cpu"))
    results = {}
    for name, each in log_snrs.items():
        if bool((each.diff() > 0).all() & (each[0] >= low - 1e-6) & (each[-1] <= high + 1e-6)):
            with torch.no_grad():
                results[name] = transfer_function(sampler, process, process.schedule.time(each), statistics)
    return results


def _discrete_linear(steps: int) -> Tensor:
    """Return the log-SNRs of evenly spaced levels among DDPM's 1,000; even its least noisy level contains noise."""
    log_alpha = torch.log1p(-torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64, device="cpu")).cumsum(0)
    indices = torch.linspace(999, 0, steps + 1, dtype=torch.float64, device="cpu").round().long()
    kept = log_alpha[indices]
    return kept - torch.log(-torch.expm1(kept))


def trajectory_regular(
    statistics: DataStatistics, process: Process, steps: int, ends: tuple[float, float] = ENDS, candidates: int = 200
) -> Tensor:
    """Return increasing log-SNRs `(steps + 1,)` that minimise the summed errors of single DDIM steps.

    A single step starts on the exact trajectory, `x - aμ ∝ √(a²C + V)`, and its error is the distance from that
    trajectory at the end of the step: the root of the sum of squares over all frequencies (arXiv 2405.11326, Section 4,
    with the trajectories of Gaussian data).

    Raises:
        ValueError: If `candidates` does not exceed `steps`.
    """
    if steps >= candidates:
        raise ValueError(f"{steps} steps require more than {steps} candidates, got {candidates}")
    spectra = Spectra.of(statistics, process)
    # Keep only frequencies with both noise and data, to save memory: tensors have candidates × frequencies elements.
    both = ((spectra.data > 0) & (spectra.noise > 0)).expand(statistics.power.shape)
    data, noise, weight = (
        each.expand(statistics.power.shape)[both] for each in (spectra.data, spectra.noise, spectra.weight)
    )
    log_snr = torch.linspace(*ends, candidates, dtype=torch.float64, device="cpu")
    a, b = (each[:, None] for each in process.schedule.from_log_snr(log_snr))
    total = a**2 * data + b**2 * noise
    cost = torch.full((candidates, candidates), torch.inf, dtype=torch.float64, device="cpu")
    for i in range(candidates - 1):
        ratio = b[i + 1 :] / b[i]
        gain = ratio + (a[i + 1 :] - ratio * a[i]) * a[i] * data / total[i]
        missed = (gain * total[i].sqrt() - total[i + 1 :].sqrt()) ** 2
        cost[i, i + 1 :] = (missed * weight).sum(1).sqrt()
    minimum, predecessors = cost[0], []
    for _ in range(steps - 1):
        # The cheapest path from the first candidate to j with one more step, minimised over the previous candidate i.
        minimum, predecessor = (minimum[:, None] + cost).min(0)
        predecessors.append(predecessor)
    path = [candidates - 1]
    for predecessor in reversed(predecessors):
        path.append(int(predecessor[path[-1]]))
    return log_snr[[0, *reversed(path)]]
