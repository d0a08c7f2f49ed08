"""Take U-turns: add noise to an example up to some time, and sample back to a more or less similar example.

The features that survive a U-turn at a given time show which features belong to which noise level (arXiv 2308.07421).
At small times the class of the example is preserved; at large times it may change. `vary` does the same with a part of
given sampling steps, as programs that turn images into images do (SDEdit, arXiv 2108.01073).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multisagd.channel_covariance import check_unmixed
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
    x0, times = as_data(x0), time_steps(denoiser.process.schedule, steps, spacing, time)
    noisy = noised(denoiser.process.bound(condition, x0.shape), x0, times[:1], seeds)
    return sample(
        denoiser, sampler, x0.shape, steps, seeds, condition, times=times, initial=noisy, callback=callback
    )  # fmt: skip


def vary(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    x0: Tensor,
    strength: float,
    times: Tensor,
    seeds: Sequence[int],
    condition: AnyCondition = None,
    *,
    callback: Callback | None = None,
) -> Tensor:
    """Draw variations of data x0 `(batch, channels, *grid)`, in the shape of x0, by the last ones of the steps `times`.

    `strength` is the fraction of the steps that are taken; see `last_steps`. x0 with the noise of the first of their
    times is where they start. With a strength of 1, they start from noise alone, and x0 only determines the shape: the
    result is that of `sample`. One seed per item determines all of its noise.

    Raises:
        ValueError: If there is not one seed per item, or the strength takes no step or is above 1.
    """
    x0, left = as_data(x0), last_steps(times, strength)
    process = denoiser.process.bound(condition, x0.shape)
    initial = None if strength == 1 else noised(process, x0, left[:1], seeds)
    return sample(
        denoiser, sampler, x0.shape, len(left) - 1, seeds, condition, times=left, initial=initial, callback=callback
    )  # fmt: skip


def last_steps(times: Tensor, strength: float) -> Tensor:
    """Return the times `(taken + 1,)` of the last fraction `strength` of the steps between `times` `(steps + 1,)`.

    The number of steps taken is `strength * steps`, rounded to the nearest integer.

    Raises:
        ValueError: If the strength is not in (0, 1], or so small that no step is taken.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be a fraction of the steps, above 0 and at most 1, got {strength:g}")
    steps = len(times) - 1
    taken = round(strength * steps)
    if taken < 1:
        raise ValueError(f"strength={strength:g} takes none of {steps} steps: increase the strength or the steps")
    return times[steps - taken :]


def noised(process: Process, x0: Tensor, time: Tensor, seeds: Sequence[int]) -> Tensor:
    """Return data x0 `(batch, channels, *grid)` with the noise of a time `(1,)`, in the shape and units of x0.

    The noise of each item depends on its seed only, and is independent of the noise of sampling with that seed.

    Raises:
        ValueError: If there is not one seed per item.
    """
    drawn = process.noise(x0.shape, [derive(seed, "u-turn") for seed in checked_seeds(seeds, len(x0))]).to(x0)
    return process.add_noise(x0, time, drawn)


def u_turn_correlation(
    process: Process, statistics: DataStatistics, time: float, *, stochastic: bool = False
) -> Tensor:
    """Return the correlation in [0, 1] of Gaussian data before and after an exact U-turn, `(channels, *half_shape)`.

    At each frequency it is `ρ = a √C/√(a²C + V)` for the flow, and ρ² for a reverse SDE, which loses information in
    both directions. Both ends have the data's distribution.

    Raises:
        ValueError: If the noise is correlated between channels, or not diagonal in frequency.
    """
    process.covariance.require_diagonal("the correlation after a U-turn")
    check_unmixed(process.covariance, "the correlation after a U-turn")
    shape = statistics.grid.shape
    at = process.coefficients(time, statistics.mean[None])
    signal = at.a**2 * statistics.power[None]
    total = signal + at.b**2 * process.covariance.power(shape)
    fraction = torch.where(total > 0, signal / torch.where(total > 0, total, 1.0), 1.0)[0]
    return fraction if stochastic else fraction.sqrt()
