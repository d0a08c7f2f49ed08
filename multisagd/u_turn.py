"""U-turns: noise a datum up to some time and go back, which yields another one that is more or less like it.

What survives a turn at T_u tells which features of the data belong to which noise level (arXiv 2308.07421); up to some
time it gives the class of the datum back, and later another.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multisagd.inputs import as_data
from multisagd.process import Process
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser, Callback, Spacing, sample, time_steps
from multisagd.seeds import derive, one_each
from multisagd.statistics import DataStatistics


def u_turn(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    x0: Tensor,
    time: float,
    steps: int,
    seeds: Sequence[int],
    condition: Tensor | None = None,
    *,
    spacing: Spacing = "time",
    callback: Callback | None = None,
) -> Tensor:
    """Return what becomes of data x0 `(batch, channels, *grid)` noised to `time` in (0, 1] and sampled from there.

    One seed per item draws both the noise on the way up and that of a stochastic sampler on the way down. `condition`
    is that of the way down.

    Raises:
        ValueError: if there is not one seed per item, or the time lies outside (0, 1].
    """
    process, x0 = denoiser.process, as_data(x0)
    times = time_steps(process.schedule, steps, spacing, time)
    up = process.noise(x0.shape, [derive(seed, "u-turn") for seed in one_each(seeds, len(x0))]).to(x0)
    noised = process.add_noise(x0, times[:1], up)
    return sample(
        denoiser, sampler, x0.shape, steps, seeds, condition, times=times, initial=noised, callback=callback
    )  # fmt: skip


def u_turn_correlation(
    process: Process, statistics: DataStatistics, time: float, *, stochastic: bool = False
) -> Tensor:
    """Return the correlation of Gaussian data with what an exact U-turn makes of them, `(channels, *half_shape)`.

    Per frequency `ρ = a √C/√(a²C + V)` for the flow, and its square for a reverse SDE, which forgets on both ways. Both
    ends have the data's law.
    """
    shape = statistics.grid.shape
    at = process.coefficients(time, statistics.mean[None])
    signal = at.a**2 * statistics.power[None]
    total = signal + at.b**2 * process.covariance.power(shape)
    share = torch.where(total > 0, signal / torch.where(total > 0, total, 1.0), 1.0)[0]
    return share if stochastic else share.sqrt()
