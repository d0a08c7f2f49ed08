"""Finish sampling in a restored band, with its conditional mean or with a sample that has full power."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from multisagd.condition import AnyCondition
from multisagd.covariance import SpectralCovariance, filter_grid
from multisagd.inputs import as_data
from multisagd.restoration import RestoringDenoiser
from multisagd.seeds import checked_seeds, derive, derive_many
from multisagd.spectrum import Flat


@torch.no_grad()
def residual_power(
    denoiser: RestoringDenoiser, batches: Iterable[tuple[Tensor, AnyCondition]], seed: int = 0
) -> Tensor:
    """Return the power in the band that `E[x0 | x_t]` lacks at t = 0, `(channels, *half_shape)`, float64.

    It is measured on corrupted data, given as batches of (x0, condition): the mean squared distance of the estimate
    from the unbiased target, minus the target's noise variance, at least zero. Samples finished by the conditional mean
    lack this power; `finish` restores it.

    Raises:
        ValueError: If there are no data.
    """
    total, noise_power = (torch.zeros((), dtype=torch.float64, device="cpu") for _ in range(2))
    count = 0
    for x0, condition in batches:
        x0, t = as_data(x0), torch.zeros(len(x0), device=x0.device, dtype=torch.float64)
        seeds = derive_many(seed, "residual", 0, range(count, count + len(x0)))
        x_t, target = denoiser.training_pair(x0, t, denoiser.process.noise(x0.shape, seeds).to(x0))
        error = (target - denoiser(x_t, t, condition)).double().cpu()
        dims = tuple(range(-denoiser.process.grid.dimensions, 0))
        total = total + torch.fft.rfftn(error, dim=dims, norm="ortho").abs().square().sum(0)
        noise_power = denoiser.band(denoiser.process.coefficients(t[:1], x0), x0).target_variance.double().cpu()
        count += len(x0)
    if not count:
        raise ValueError("there are no data to measure the residual on")
    power = (total / count - noise_power.reshape(-1, *total.shape[1:])).clamp(min=0)
    return torch.where(noise_power.reshape(-1, *total.shape[1:]) > 0, power, 0.0)


@torch.no_grad()
def finish(
    denoiser: RestoringDenoiser,
    x: Tensor,
    condition: AnyCondition = None,
    residual: Tensor | None = None,
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """Finish the corrupted band of samples `x` at t = 0; the result is shaped like x.

    In the band, sampling ends at the noise floor, or at an estimate if the band is unseen. The band is replaced by its
    conditional mean given the generated sample. The mean has too little power. If a `residual`
    `(channels, *half_shape)` (see `residual_power`) and one seed per item are given, Gaussian noise of that power turns
    the mean into a sample of the band.

    Raises:
        ValueError: If a residual is given without one seed per item.
    """
    x, grid = as_data(x), denoiser.process.grid.resize(x.shape[2:])
    t = torch.zeros(len(x), device=x.device, dtype=torch.float64)
    inside = (denoiser.corruption.power(grid.shape) > 0).to(x.device, torch.promote_types(x.dtype, torch.float32))
    finished = x + filter_grid(denoiser(x, t, condition) - x, inside, grid.dimensions).to(x.dtype)
    if residual is None:
        return finished
    if seeds is None or len(seeds) != len(x):
        raise ValueError(f"sampling the band requires one seed for each of the {len(x)} items")
    white = (
        SpectralCovariance(Flat(), grid)
        .sample([derive(seed, "finish") for seed in checked_seeds(seeds)], x.shape[1])
        .to(x)
    )
    return finished + filter_grid(white, residual.sqrt().to(white), grid.dimensions)
