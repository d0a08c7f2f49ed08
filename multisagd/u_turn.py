"""Take U-turns: add noise to an example up to some time, and sample back to a more or less similar example.

The features that survive a U-turn at a given time show which features belong to which noise level (arXiv 2308.07421).
At small times the class of the example is preserved; at large times it may change.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multisagd.condition import AnyCondition
from multisagd.inputs import as_data
from multisagd.process import Process
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser, Callback, Spacing, sample, time_steps
from multisagd.seeds import checked_seeds, derive
from multisagd.statistics import DataStatistics


def u_turn(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    x0: Tensor,
    time: float,
    steps: int,
    seeds: Sequence[int],
    condition: AnyCondition = None,
    *,
    spacing: Spacing = "time",
    callback: Callback | None = None,
) -> Tensor:
    """Add noise to data x0 `(batch, channels, *grid)` up to `time` in (0, 1], and sample back, in the shape of x0.

    One seed per item determines both the added noise and the noise of a stochastic sampler. Sampling uses `condition`.

    Raises:
        ValueError: If there is not one seed per item, or the time is not in (0, 1].
    """
    process, x0 = denoiser.process, as_data(x0)
    times = time_steps(process.schedule, steps, spacing, time)
    up = process.noise(x0.shape, [derive(seed, "u-turn") for seed in checked_seeds(seeds, len(x0))]).to(x0)
    noisy = process.add_noise(x0, times[:1], up)
    return sample(
        denoiser, sampler, x0.shape, steps, seeds, condition, times=times, initial=noisy, callback=callback
    )  # fmt: skip


def u_turn_correlation(
    process: Process, statistics: DataStatistics, time: float, *, stochastic: bool = False
) -> Tensor:
    """Return the correlation in [0, 1] of Gaussian data before and after an exact U-turn, `(channels, *half_shape)`.

    At each frequency it is `ρ = a √C/√(a²C + V)` for the flow, and ρ² for a reverse SDE, which loses information in
    both directions. Both ends have the data's distribution.
    """
    shape = statistics.grid.shape
    at = process.coefficients(time, statistics.mean[None])
    signal = at.a**2 * statistics.power[None]
    total = signal + at.b**2 * process.covariance.power(shape)
    fraction = torch.where(total > 0, signal / torch.where(total > 0, total, 1.0), 1.0)[0]
    return fraction if stochastic else fraction.sqrt()
