"""Initial noise that agrees over time: low frequencies from one noise, the rest from another.

A video sampled from independent noise often flickers, because training leaves a trace of the clip in the lowest
frequencies of its noisiest states. FreeInit (arXiv 2312.07537) samples a clip, adds noise again up to t = 1, keeps the
low frequencies of that, replaces the rest, and samples once more. Its mask L weighs amplitudes, so the sum loses
variance wherever `L² + (1-L)² < 1`; here L is a share of power, and the sum of two noises is noise of the same law.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multisagd.covariance import from_half_spectrum, to_half_spectrum
from multisagd.grid import Grid
from multisagd.samplers import Sampler
from multisagd.sampling import AnyDenoiser, sample
from multisagd.seeds import derive
from multisagd.spectrum import Spectrum


def mix_noise(low: Tensor, high: Tensor, low_pass: Spectrum, grid: Grid) -> Tensor:
    """Return `F⁻¹(√L · F low + √(1-L) · F high)` for fields `(..., *grid)`, L the power of `low_pass` in [0, 1].

    For independent `low` and `high` of one covariance (diagonal in frequency), the result has that covariance.

    Raises:
        ValueError: if `low_pass` leaves [0, 1], or the shapes do not fit.
    """
    if low.shape != high.shape:
        raise ValueError(f"expected two noises of one shape, got {tuple(low.shape)} and {tuple(high.shape)}")
    shape = tuple(low.shape[-grid.dimensions :])
    share = low_pass.power(grid.resize(shape))
    share = grid.resize(shape).even(share)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError(f"{low_pass} is no share of power: it must lie between 0 and 1 at every frequency")
    share = share.to(low.device, torch.promote_types(low.dtype, torch.float32))
    halves = (to_half_spectrum(field, grid.dimensions) for field in (low, high))
    mixed = next(halves) * share.sqrt() + next(halves) * (1 - share).sqrt()
    return from_half_spectrum(mixed, shape).to(low.dtype)


@dataclass(frozen=True)
class Refinement:
    """How often to sample again from noise whose part in `low_pass` comes from the last sample (arXiv 2312.07537).

    Raises:
        ValueError: for a negative number of iterations.
    """

    low_pass: Spectrum
    iterations: int = 1

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"iterations is at least 0, got {self.iterations}")


def sample_refined(
    denoiser: AnyDenoiser,
    sampler: Sampler,
    shape: Sequence[int],
    steps: int,
    seeds: Sequence[int],
    refinement: Refinement,
    **options: Any,
) -> Tensor:
    """Draw samples as `sample` does, and again `iterations` times from refined initial noise; options are its own.

    Each sample follows from its seed alone. `callback`, if given, hears every round.

    Raises:
        ValueError: as `sample` and `mix_noise` do.
    """
    process = denoiser.process
    initial = process.prior(shape, seeds)
    x0 = sample(denoiser, sampler, shape, steps, seeds, initial=initial, **options)
    for iteration in range(refinement.iterations):
        fresh = [derive(int(seed), "refine", iteration) for seed in seeds]
        # The same noise as at first, so that what it shares with the sample it made is kept.
        noised = process.add_noise(x0, torch.ones(len(fresh)), process.noise(shape, seeds).to(x0))
        initial = mix_noise(noised, process.prior(shape, fresh).to(x0), refinement.low_pass, process.grid)
        x0 = sample(denoiser, sampler, shape, steps, fresh, initial=initial, **options)
    return x0
