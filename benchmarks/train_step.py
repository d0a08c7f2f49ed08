"""Cost of a training step: coloured and white noise, ours and a plain diffusers loop, and our defaults.

    1. our step with coloured noise / our step with white noise
    2. same network: a plain diffusers DDPM training loop (DDPMScheduler.add_noise, UNet2DModel, AdamW) / ours, with the
       same network, batch, data and prediction (noise); above 1, ours is faster
    3. our defaults (own U-Net with about the same number of parameters, v, clipping, weight average), as separate rows

All run in turn in one process. Run on an idle machine: `python -m benchmarks.train_step [--threads 2] [--repeats 30]`.
The data are scikit-learn's digits at 32×32, class-unconditional; float32.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

import multisagd as ms
from benchmarks.timing import interleave, machine, milliseconds, ratio
from modalities.image import Image
from modalities.image_sets import Digits

SIZE = 32
EXPONENT = -0.5
LEARNING_RATE = 1e-4
Step = Callable[[], None]


def theirs() -> UNet2DModel:
    """Return a small diffusers U-Net; the weights are the same each time."""
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=SIZE, in_channels=1, out_channels=1, layers_per_block=2, norm_num_groups=8,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    )  # fmt: skip


def ours() -> ms.networks.UNet:
    """Return our U-Net at its default depth, with a width that gives about the same number of parameters."""
    torch.manual_seed(0)
    return ms.networks.UNet(channels=1, dimensions=2, width=42)


def process(spectrum: ms.Spectrum) -> ms.Process:
    """Return the forward process of our steps."""
    covariance = ms.SpectralCovariance(spectrum, Image(size=SIZE, channels=1).grid())
    return ms.Process(ms.CosineSchedule(), covariance)


def batches(size: int) -> Iterator[Tensor]:
    """Yield an endless sequence of batches of digits, prepared beforehand so that no step waits for data."""
    dataset = Digits(Image(size=SIZE, channels=1))
    made = [dataset.batch(range(start, start + size)).x0 for start in range(0, len(dataset) - size + 1, size)]
    while True:
        yield from made


def diffusers_step(size: int) -> Step:
    """Return the plain loop's step, as in the diffusers training guide: draw noise, add it, predict it, update."""
    network, scheduler, data = theirs(), DDPMScheduler(num_train_timesteps=1000), batches(size)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        x0 = next(data)
        noise = torch.randn_like(x0)
        steps = torch.randint(0, scheduler.config.num_train_timesteps, (size,))
        loss = F.mse_loss(network(scheduler.add_noise(x0, noise, steps), steps).sample, noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(network: nn.Module, spectrum: ms.Spectrum, prediction: str, size: int, extras: bool = False) -> Step:
    """Return our step for a network; `extras` adds gradient clipping and the weight average, as in the recipe."""
    denoiser = ms.Denoiser(network, process(spectrum), prediction=prediction)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=extras)
    data, average, number = batches(size), ms.PowerEMA(network), itertools.count()

    def step() -> None:
        index = next(number)
        times = ms.stratified_uniform(0, index, size).float()
        loss = denoiser.loss(next(data), times, ms.seeds.derive_many(0, "noise", index, range(size))).mean()
        loss.backward()
        if extras:
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if extras:
            average.update(network)

    return step


def main() -> None:
    """Print the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--repeats", type=int, default=30, help="paired repeats")
    parser.add_argument("--batch", type=int, default=32, help="images per step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size, white, coloured = options.batch, ms.Flat(), ms.PowerLaw(exponent=EXPONENT)

    networks: tuple[nn.Module, ...] = (theirs(), ours())
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    print(machine())
    print(f"batch {size} of 1×{SIZE}×{SIZE}, {options.repeats} interleaved repeats, medians (quartiles)")
    print(f"parameters: diffusers' UNet2DModel {sizes[0]:,}, ours {sizes[1]:,}\n")
    times = interleave(
        {
            "diffusers": diffusers_step(size),
            "white": our_step(theirs(), white, "noise", size),
            "coloured": our_step(theirs(), coloured, "noise", size),
            "own white": our_step(ours(), white, "v", size, extras=True),
            "own coloured": our_step(ours(), coloured, "v", size, extras=True),
        },
        options.repeats,
    )
    rows = (
        ("diffusers loop, UNet2DModel", "diffusers"),
        ("ours, same network, white", "white"),
        ("ours, same network, coloured", "coloured"),
        ("our defaults, own U-Net, white", "own white"),
        ("our defaults, own U-Net, coloured", "own coloured"),
    )
    for label, name in rows:
        print(f"  {label:<36}{milliseconds(times, name):8.1f} ms per step")
    print("\n1. coloured / white, the cost of colour (at most 1.02)")
    print(f"     same network as diffusers  {ratio(times, 'coloured', 'white')}")
    print(f"     our defaults               {ratio(times, 'own coloured', 'own white')}")
    print("2. same network, time of diffusers / ours (at least 0.97)")
    print(f"     white                      {ratio(times, 'diffusers', 'white')}")
    print(f"     coloured                   {ratio(times, 'diffusers', 'coloured')}")
    print("3. our defaults, time of diffusers / ours")
    print(f"     white                      {ratio(times, 'diffusers', 'own white')}")
    print(f"     coloured                   {ratio(times, 'diffusers', 'own coloured')}")


if __name__ == "__main__":
    main()
