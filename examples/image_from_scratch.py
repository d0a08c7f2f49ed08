"""Train a U-Net on handwritten digits and draw samples, using only the core: the noise has a power-law spectrum.

    python examples/image_from_scratch.py                # about three minutes on one CPU core
    python examples/image_from_scratch.py --exponent 0   # white noise

This script uses no configuration files and no training loop of this project. Replace `digits` with your own data.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torchvision.utils import save_image

import multisagd as ms

GRID = ms.Grid.of(height=8, width=8)


def digits() -> Tensor:
    """Return scikit-learn's 1,797 digits in [-1, 1], (count, 1, 8, 8)."""
    return torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 8 - 1


def train(data: Tensor, process: ms.Process, steps: int, batch: int = 64, seed: int = 0) -> ms.Denoiser:
    """Train a small U-Net and return a denoiser with averaged weights.

    Times, noise and the order of the data depend only on the seed.
    """
    torch.manual_seed(seed)  # for the initial weights
    network = ms.networks.UNet(channels=data.shape[1], dimensions=2, width=32, multipliers=(1, 2), blocks=1)
    statistics = ms.DataStatistics.measure([data], process.grid)
    denoiser = ms.Denoiser(network, process, prediction="v", statistics=statistics)
    average = ms.PowerEMA(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps):
        draw = torch.Generator().manual_seed(ms.seeds.derive(seed, "order", step))
        chosen = torch.randint(len(data), (batch,), generator=draw)
        seeds = [ms.seeds.derive(seed, "noise", step, slot) for slot in range(batch)]
        loss = denoiser.loss(data[chosen], ms.stratified_uniform(seed, step, batch), seeds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(network)
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    return ms.Denoiser(average.module, process, prediction="v", statistics=statistics).eval()


def save_images(images: Tensor, path: Path, columns: int) -> None:
    """Write images in [-1, 1] as one image, with pixels enlarged eight times."""
    large = images.repeat_interleave(8, -1).repeat_interleave(8, -2)
    save_image(large, path, nrow=columns, normalize=True, value_range=(-1, 1))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw samples, and save them together with data in one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exponent", type=float, default=-0.3, help="exponent of the amplitude of the noise spectrum")
    parser.add_argument("--out", type=Path, default=Path("digits.png"), help="the image to write")
    parser.add_argument("--small", action="store_true", help="only a few steps, as a quick test")
    options = parser.parse_args(arguments)
    steps, count = (10, 8) if options.small else (3000, 64)

    covariance = ms.SpectralCovariance(ms.PowerLaw(exponent=options.exponent), GRID)
    process = ms.Process(ms.CosineSchedule(), covariance)
    data = digits()
    denoiser = train(data, process, steps)
    samples = ms.sample(denoiser, ms.Heun(), shape=(count, 1, 8, 8), steps=20, seeds=range(count))
    save_images(torch.cat([data[:count], samples]), options.out, columns=16)
    print(f"data above, samples below: {options.out}")


if __name__ == "__main__":
    main()
