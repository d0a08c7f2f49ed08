"""Compare white noise and power-law noise, using the same seeds: which model reproduces the spectrum of the data?

    python examples/shaped_vs_white.py   # about three minutes on one CPU core

Both training runs see the same digits at the same diffusion times. The script prints the error of the generated power
in each frequency ring, in decibels (positive: too much power), and the noise floor, which is the error of the same
number of real digits.
"""

import argparse
from collections.abc import Sequence

import torch
from image_from_scratch import GRID, digits, train
from rich.console import Console
from rich.table import Table
from torch import Tensor

import multisagd as ms
from multisagd.analysis.profiles import radial_profile

SPECTRA = {"white": ms.Flat(), "power law": ms.PowerLaw(exponent=-0.3)}


def decibels(samples: Tensor, data: Tensor, rings: int) -> Tensor:
    """Return the power of samples relative to the data in decibels, shape (zero frequency and rings,)."""
    mean = data.mean(0, keepdim=True)
    power = [torch.fft.rfftn(x - mean, dim=(-2, -1)).abs().square().mean(0) for x in (samples, data)]
    found, wanted = (radial_profile(each, GRID, rings).power.mean(0) for each in power)
    return 10 * torch.log10(found / wanted)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with each noise and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="only a few steps, as a quick test")
    options = parser.parse_args(arguments)
    steps, count, rings = (5, 16, 4) if options.small else (1500, 600, 4)

    data = digits()
    held_out, data = data[:count], data[count:]
    errors = {}
    for name, spectrum in SPECTRA.items():
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, GRID))
        denoiser = train(data, process, steps)
        samples = ms.sample(denoiser, ms.Heun(), shape=(count, 1, 8, 8), steps=20, seeds=range(count))
        errors[name] = decibels(samples, data, rings)
    errors["held-out digits"] = decibels(held_out, data, rings)

    frequencies = radial_profile(torch.ones(GRID.half_shape), GRID, rings).frequency
    table = Table("cycles per pixel", *errors, title="power above that of the data, dB")
    for place, frequency in enumerate(frequencies):
        table.add_row(f"{frequency:.2f}", *(f"{float(each[place]):+.2f}" for each in errors.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
