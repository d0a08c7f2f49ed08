"""Errors with designed steps, and with designed noise and steps: `python -m benchmarks.joint_table NAME=FOLDER …`.

FOLDER contains the statistics written by `multisagd analyze`. Each entry is the root mean square error per frequency
and channel of DDIM on Gaussian data with that spectrum (2-Wasserstein distance divided by the root of their number),
relative to the standard deviation of the data. The columns are white noise with the cosine schedule, white noise with
designed steps, and noise of the data's power to a designed exponent (in brackets) with the steps designed for it. All
steps, including those of the cosine schedule, lie between the default log-SNRs of `multisagd design`. "power law" is
power ∝ (r + 1/64)^-2.5 on 32×32 with ends at ᾱ = 1e-4 and .9999.

The numbers are computed without sampling, so they are the same on every machine to the digits shown.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from multisagd import DDIM, CosineSchedule, DataStatistics, Flat, Grid, Process, SpectralCovariance
from multisagd.analysis.baselines import baselines
from multisagd.analysis.design import ENDS, design_schedule, objective_value, spectral_ends
from multisagd.analysis.joint import design_joint
from multisagd.analysis.transfer import transfer_function


def power_law(size: int = 32) -> DataStatistics:
    """Return the statistics of the synthetic row."""
    grid = Grid.of(height=size, width=size)
    power = (grid.radius() + 1 / 64) ** -2.5
    return DataStatistics(torch.zeros(1, size, size).double(), 0.25 * (power / grid.mean(power))[None], grid, 1)


def entries(statistics: DataStatistics, steps: int, ends: tuple[float, float] | None, restarts: int) -> list[str]:
    """Return the three errors with this number of steps."""
    process = Process(CosineSchedule(), SpectralCovariance(Flat(), statistics.grid))
    ends = ends or spectral_ends(statistics, process)
    times = process.schedule.time(baselines(steps, ends)["cosine"])
    cosine = float(objective_value(transfer_function(DDIM(), process, times, statistics), "w2"))
    white = design_schedule(statistics, process, steps, ends=ends, restarts=restarts)
    both = design_joint(statistics, process, steps, ends=ends, restarts=restarts)
    scale = math.sqrt(statistics.mean.numel()) * statistics.sigma_data
    return [
        f"{cosine / scale:.3f}",
        f"{white.value / scale:.3f}",
        f"{both.steps.value / scale:.3f} ({both.parameters[0]:.2f})",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("statistics", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--restarts", type=int, default=3)
    options = parser.parse_args()
    rows: dict[str, tuple[DataStatistics, tuple[float, float] | None]] = {"power law": (power_law(), ENDS)}
    for word in options.statistics:
        name, folder = word.split("=", 1)
        rows[name] = (DataStatistics.load(Path(folder) / "statistics.safetensors"), None)
    table = Table("data", "steps", "white, cosine", "white, designed", "designed both", box=box.SIMPLE)
    for name, (statistics, ends) in rows.items():
        for steps in options.steps:
            table.add_row(name, str(steps), *entries(statistics, steps, ends, options.restarts))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
