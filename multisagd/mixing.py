"""Sample repeatedly from temporally consistent noise: low frequencies from a re-noised sample, new noise elsewhere.

A video sampled from independent noise may flicker, because noisy clips in training keep a trace of the clip in their
lowest frequencies, and pure noise does not. FreeInit (arXiv 2312.07537) samples a clip, adds noise again, keeps the low
frequencies of the result, replaces the others with new noise, and samples once more. Three differences here ensure that
sampling starts from the distribution seen in training. The paper's mask L weighs amplitudes, and the sum loses variance
where `L² + (1-L)² < 1`; here L is a fraction of power. The paper adds the first noise again, which is correlated with
the sample made from it; here the noise is new. The paper goes back to t = 1, where usual schedules leave nothing of the
clip; here sampling restarts at a log-SNR at which some of it is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from multisagd.condition import AnyCondition
from multisagd.covariance import from_half_spectrum, to_half_spectrum
from multisagd.grid import Grid
from multisagd.inputs import as_data
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser, Callback, Spacing, sample, time_steps
from multisagd.seeds import derive
from multisagd.spectrum import Spectrum, even_power


def power_fraction(low_pass: Spectrum, grid: Grid) -> Tensor:
    """Return the power of `low_pass` on a grid, `(*half_shape,)`: a fraction in [0, 1], float64.

    Raises:
        ValueError: If the power is outside [0, 1] at some frequency, or cannot be evaluated on this grid.
    """
    fraction = even_power(low_pass, grid)
    if not bool(((fraction >= 0) & (fraction <= 1)).all()):
        raise ValueError(f"{low_pass} is not a fraction of power: it must lie between 0 and 1 at every frequency")
    return fraction


def mix_noise(low: Tensor, high: Tensor, low_pass: Spectrum, grid: Grid) -> Tensor:
    """Return `F⁻¹(√L · F low + √(1-L) · F high)` for fields `(..., *grid)`; L is the power of `low_pass`.

    If `low` and `high` are independent and have the same covariance (diagonal in frequency), so has the result.

    Raises:
        ValueError: If the power of `low_pass` is outside [0, 1] at some frequency, or the shapes do not match.
    """
    if low.shape != high.shape:
        raise ValueError(
            f"expected two noise tensors of the same shape, got {tuple(low.shape)} and {tuple(high.shape)}"
        )
    shape = tuple(low.shape[-grid.dimensions :])
    fraction = power_fraction(low_pass, grid.resize(shape))
    low, high = as_data(low), as_data(high)
    fraction = fraction.to(low.device, torch.promote_types(low.dtype, torch.float32))
    halves = (to_half_spectrum(field, grid.dimensions) for field in (low, high))
    mixed = next(halves) * fraction.sqrt() + next(halves) * (1 - fraction).sqrt()
    return from_half_spectrum(mixed, shape).to(low.dtype)


@dataclass(frozen=True)
class Refinement:
    """Settings of repeated sampling, which keeps the last sample's frequencies in `low_pass`, re-noised to `log_snr`.

    If the schedule ends above `log_snr`, sampling restarts at t = 1. At -6, signal is visible at frequencies whose data
    power is at least 400 times the noise's: the layout of a clip, but no detail.

    Raises:
        ValueError: If the number of iterations is negative.
    """

    low_pass: Spectrum
    iterations: int = 1
    log_snr: float = -6.0

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations must be at least 0, got {self.iterations}")


def sample_refined(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    shape: Sequence[int],
    steps: int,
    seeds: Sequence[int],
    refinement: Refinement,
    condition: AnyCondition = None,
    *,
    spacing: Spacing = "time",
    times: Tensor | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Draw samples as `sample` does, and resample them `refinement.iterations` times with the same number of steps.

    Each sample depends on its seed only. `callback` is called in every round. The result has shape `shape`.

    Raises:
        ValueError: If the arguments are invalid for `sample` or `mix_noise`, or samples are refined, but the noise
            follows the condition of each item.
    """
    process = denoiser.process
    if refinement.iterations and process.covariance.item_wise:
        process.covariance.require_diagonal("refinement")
    x0 = sample(denoiser, sampler, shape, steps, seeds, condition, spacing=spacing, times=times, callback=callback)
    start = process.schedule.time(torch.tensor([refinement.log_snr], dtype=torch.float64, device="cpu")).clamp(max=1.0)
    later = time_steps(process.schedule, steps, spacing, float(start))
    for iteration in range(refinement.iterations):
        fresh, low = ([derive(int(seed), stream, iteration) for seed in seeds] for stream in ("refine", "refine/low"))
        noisy = process.add_noise(x0, later[:1], process.noise(shape, low).to(x0))
        other = process.add_noise(torch.zeros_like(x0), later[:1], process.noise(shape, fresh).to(x0))
        initial = mix_noise(noisy, other, refinement.low_pass, process.grid)
        x0 = sample(
            denoiser, sampler, shape, steps, fresh, condition, times=later, initial=initial, callback=callback
        )  # fmt: skip
    return x0
