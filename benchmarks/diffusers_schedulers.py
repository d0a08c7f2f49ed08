"""The power that diffusers schedulers generate with a model trained on coloured noise, modified and unmodified.

The model is exact: the optimal denoiser for Gaussian data whose power falls as 1/f², with coloured noise. It is linear,
and so is every scheduler that does not clip, so the generated power at each frequency is computed exactly: each item of
a batch receives a unit impulse in one of the noise draws and zeros in all others, and powers of independent draws add.
Only the torchsde scheduler, whose draws form a tree, is sampled, in one dimension.

`python -m benchmarks.diffusers_schedulers` prints the table in docs/tutorials/from-diffusers.md: for each scheduler
the largest error of the power in a band, in decibels, with coloured noise, unmodified, and unmodified with a model
trained on white noise.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import multisagd as ms
from multisagd.covariance import to_half_spectrum
from multisagd.integrations import ScheduledDenoiser, ShapedNoise, shape_scheduler

GRID = ms.Grid.of(height=16, width=16)
LINE = ms.Grid.of(time=32)
DATA = ms.PowerLaw(-1.0, corner=1 / 16)
NOISE = ms.PowerLaw(-0.5)
BANDS = 8
SEED = 0


@dataclass(frozen=True)
class Case:
    """A diffusers scheduler with its number of steps and options; `items` are sampled if it is not computed exactly."""

    make: Callable[[], Any]
    steps: int
    step_options: dict[str, Any] = field(default_factory=dict)
    items: int = 0
    grid: ms.Grid = GRID


def _plain(name: str, **options: Any) -> Callable[[], Any]:
    return lambda: getattr(diffusers, name)(**options)


def _sigmas(name: str, **options: Any) -> Callable[[], Any]:
    return _plain(name, beta_start=0.0001, beta_end=0.02, beta_schedule="linear", **options)


CASES = {
    "DDPM": Case(_plain("DDPMScheduler", clip_sample=False), 200),
    "DDIM": Case(_plain("DDIMScheduler", clip_sample=False, timestep_spacing="trailing"), 100),
    "DDIM, eta = 1": Case(_plain("DDIMScheduler", clip_sample=False), 200, {"eta": 1.0}),
    "Euler": Case(_sigmas("EulerDiscreteScheduler", use_karras_sigmas=True), 100),
    "Euler ancestral": Case(_sigmas("EulerAncestralDiscreteScheduler"), 200),
    "Heun": Case(_sigmas("HeunDiscreteScheduler", use_karras_sigmas=True), 50),
    "DPM-Solver++ multistep": Case(_sigmas("DPMSolverMultistepScheduler", use_karras_sigmas=True), 50),
    "DPM-Solver++ multistep, SDE": Case(
        _sigmas("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", use_karras_sigmas=True), 100
    ),
    "DPM-Solver SDE": Case(
        _sigmas("DPMSolverSDEScheduler", use_karras_sigmas=True, noise_sampler_seed=SEED), 30, items=2000, grid=LINE
    ),
    "UniPC": Case(_sigmas("UniPCMultistepScheduler", use_karras_sigmas=True), 50),
    "flow matching, Euler": Case(_plain("FlowMatchEulerDiscreteScheduler"), 200),
    "flow matching, stochastic": Case(_plain("FlowMatchEulerDiscreteScheduler", stochastic_sampling=True), 200),
}


class Impulses(TorchFunctionMode):
    """A context in which each draw of normal noise is a unit impulse in the next item of the batch, zero elsewhere.

    An impulse of height √n has power one at every frequency, like white noise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws = 0

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, and replace the noise that it drew."""
        result = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like):
            return result
        result.zero_()
        origin = (0,) * (result.dim() - 1)
        result[self.draws][origin] = result[0, 0].numel() ** 0.5
        self.draws += 1
        return result


def oracle(noise: ms.Spectrum, data: ms.Spectrum, grid: ms.Grid) -> ms.GaussianDenoiser:
    """Return the exact denoiser for one-channel Gaussian data with unit power and noise with a given spectrum."""
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(noise, grid))
    statistics = ms.DataStatistics(
        torch.zeros(1, *grid.shape, dtype=torch.float64), ms.SpectralCovariance(data, grid).power()[None], grid, count=1
    )
    return ms.GaussianDenoiser(process, statistics)


def generate(case: Case, denoiser: ms.GaussianDenoiser, *, wrapped: bool) -> Tensor:
    """Return the power that a scheduler generates, on the half spectrum, coloured or, if not wrapped, unmodified."""
    covariance = denoiser.process.covariance
    assert isinstance(covariance, ms.SpectralCovariance)
    grid, noise = denoiser.process.grid, covariance.spectrum
    shaped = ShapedNoise(noise if wrapped else ms.Flat(), axes=grid.names)
    scheduler = shape_scheduler(case.make(), shaped) if wrapped else case.make()
    scheduler.set_timesteps(case.steps)
    # One draw for the start and at most one for every step; second-order solvers use two for most steps.
    shape = (case.items or len(scheduler.timesteps) + 1, 1, *grid.shape)
    if case.items:
        x = _run(case, scheduler, denoiser, shaped, shape)
    else:
        with Impulses():
            x = _run(case, scheduler, denoiser, shaped, shape)
    power = to_half_spectrum(x.double(), grid.dimensions).abs().square() / grid.numel
    return power.mean((0, 1)) if case.items else power.sum((0, 1))


@torch.no_grad()
def _run(
    case: Case, scheduler: Any, denoiser: ms.GaussianDenoiser, start: ShapedNoise, shape: tuple[int, ...]
) -> Tensor:
    model, generator = ScheduledDenoiser(denoiser, scheduler), torch.Generator().manual_seed(SEED)
    takes = inspect.signature(scheduler.step).parameters
    options = case.step_options | ({"generator": generator} if "generator" in takes else {})
    # Flow matching schedulers scale neither their start, which is the noise itself, nor the model's input.
    x = start.noise(shape, generator, dtype=torch.float64) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(model(given, t).sample, t, x, **options).prev_sample
    return x


def band_errors(power: Tensor, data: ms.Spectrum, grid: ms.Grid) -> Tensor:
    """Return the error of the power in each band in decibels, in bands where the data have power."""
    wanted = ms.SpectralCovariance(data, grid).power()
    rings = [weight for _, _, weight in grid.bands(BANDS)]
    pairs = [((power * weight).sum(), (wanted * weight).sum()) for weight in rings]
    return torch.stack([10 * torch.log10(got / want) for got, want in pairs if want > 0])


def worst(case: Case, noise: ms.Spectrum, *, wrapped: bool) -> float:
    """Return the largest error of a band in decibels, with its sign."""
    errors = band_errors(generate(case, oracle(noise, DATA, case.grid), wrapped=wrapped), DATA, case.grid)
    return float(errors[errors.abs().argmax()])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}; seed {SEED} where noise is sampled\n")
    print("| scheduler | steps | coloured | unmodified | unmodified, model trained with white noise |")
    print("|---|---|---|---|---|")
    for name, case in CASES.items():
        ways = [(NOISE, True), (NOISE, False), (ms.Flat(), False)]
        errors = [f"{worst(case, noise, wrapped=wrapped):+.2f}" for noise, wrapped in ways]
        print(f"| {name} | {case.steps} | {' | '.join(errors)} |", flush=True)


if __name__ == "__main__":
    main()
