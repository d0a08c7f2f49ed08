"""Restore images with most pixels missing, using a model that was not trained on missing pixels.

    python examples/inverse_problem.py   # about three minutes on one CPU core

A model is trained on digits and then guided with the remaining pixels (ΠGDM). The result is compared with the posterior
mean for Gaussian data, which uses only the spectrum of the data.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from image_from_scratch import GRID, digits, save_images, train

import multisagd as ms

NOISE = 0.05
"""Standard deviation of the measurement noise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, restore, print the errors and save an image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("restored.png"), help="the image to write")
    parser.add_argument("--small", action="store_true", help="only a few steps, as a quick test")
    options = parser.parse_args(arguments)
    steps, count = (5, 4) if options.small else (3000, 32)

    data = digits()
    truth, data = data[:count], data[count:]
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(exponent=-0.3), GRID))
    denoiser = train(data, process, steps)
    statistics = ms.DataStatistics.measure([data], GRID)

    seen = torch.rand(GRID.shape, generator=torch.Generator().manual_seed(0)) < 0.4
    measurement = ms.Masked(seen, GRID)
    y = measurement.observe(truth, NOISE, seeds=range(count))
    guided = ms.PiGDM(denoiser, measurement, y, NOISE, prior=statistics)
    restored = ms.sample(guided, ms.DDIM(eta=1.0), truth.shape, steps=25, seeds=range(count))
    gaussian = ms.GaussianPosterior(statistics, measurement, NOISE).mean(y)

    for name, estimate in {"mean of the data": statistics.mean.expand_as(truth), "Gaussian posterior": gaussian,
                           "guided model": restored}.items():  # fmt: skip
        missing = (estimate - truth)[..., ~seen]
        print(f"{name}: error {float(missing.square().mean().sqrt()):.3f} on the missing pixels")
    rows = torch.cat([truth, torch.where(seen, y, -1.0), gaussian.to(truth), restored])
    save_images(rows, options.out, columns=count)
    print(f"original, measurement, Gaussian posterior, guided model: {options.out}")


if __name__ == "__main__":
    main()
