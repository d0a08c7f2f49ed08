"""The reference table of schedule design: `python -m benchmarks.schedule_table`, from the repository.

The data are 32×32 images with power ∝ 1/r² (r = 1/64 at zero frequency), mean power .25 and zero mean; they are sampled
by DDIM with white noise. Each entry is the 2-Wasserstein distance (root of the sum) and the Kullback-Leibler divergence
(sum over the 1,024 frequencies) between the data and the samples after this number of steps. Optimised steps go from
ᾱ = 1e-4 to .9999, to which the cosine schedule is also clipped; the linear and Karras' schedules keep their own ends.

The numbers are computed without sampling, so they are the same on every machine to the digits shown. This takes some
minutes on one core.
"""

from __future__ import annotations

import argparse

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from multisagd import DDIM, CosineSchedule, DataStatistics, Flat, Grid, Process, SpectralCovariance
from multisagd.analysis.baselines import baselines, trajectory_regular
from multisagd.analysis.design import design_schedule, objective_value
from multisagd.analysis.transfer import transfer_function


def reference_data(size: int = 32) -> DataStatistics:
    """Return the statistics of the data in the table."""
    grid = Grid.of(height=size, width=size)
    radius = grid.radius().clone()
    radius[0, 0] = 1 / 64
    power = radius**-2
    return DataStatistics(torch.zeros(1, size, size).double(), 0.25 * (power / grid.mean(power))[None], grid, 1)


def errors(statistics: DataStatistics, process: Process, log_snrs: Tensor) -> tuple[float, float]:
    """Return the Wasserstein distance and the divergence of DDIM at these log-SNRs."""
    transfer = transfer_function(DDIM(), process, process.schedule.time(log_snrs), statistics)
    return float(objective_value(transfer, "w2")), float(objective_value(transfer, "kl"))


def rows(steps: int, restarts: int) -> dict[str, tuple[float, float]]:
    """Return the two errors of every schedule with this number of steps."""
    statistics = reference_data()
    process = Process(CosineSchedule(), SpectralCovariance(Flat(), statistics.grid))
    chosen = baselines(steps)
    chosen["trajectory-regular"] = trajectory_regular(statistics, process, steps)
    for objective in ("w2", "kl"):
        designed = design_schedule(statistics, process, steps, objective, restarts=restarts)
        chosen[f"optimal {objective.upper()}"] = torch.tensor(designed.log_snrs, dtype=torch.float64)
    return {name: errors(statistics, process, log_snrs) for name, log_snrs in chosen.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--restarts", type=int, default=6)
    options = parser.parse_args()
    columns = {steps: rows(steps, options.restarts) for steps in options.steps}
    table = Table("schedule", *(f"{steps} steps" for steps in columns), box=box.SIMPLE, title="W2 / KL")
    for name in next(iter(columns.values())):
        table.add_row(name, *(f"{column[name][0]:.4g} / {column[name][1]:.4g}" for column in columns.values()))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
