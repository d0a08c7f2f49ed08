"""Design a sampler's few steps from the spectrum of the data, before any training.

    python examples/schedule_design.py   # a minute on one CPU core

For Gaussian data with the spectrum of the digits, the distribution of a sampler's output has a closed form. The script
minimises its distance to the data distribution over the log-SNRs of the steps, and prints it next to the distances of
steps that are equal in time and in log-SNR. `multisagd sample steps_file=…` and `ms.sample(times=…)` use the steps with
a trained model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from image_from_scratch import GRID, digits
from rich.console import Console
from rich.table import Table

import multisagd as ms
from multisagd.analysis.design import design_schedule
from multisagd.analysis.transfer import transfer_function


def main(arguments: Sequence[str] | None = None) -> None:
    """Design schedules with several numbers of steps, print the improvement, and save the last design."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("steps.json"), help="file for the last design")
    parser.add_argument("--small", action="store_true", help="only one number of steps, as a quick test")
    options = parser.parse_args(arguments)

    statistics = ms.DataStatistics.measure([digits()], GRID)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(exponent=-0.3), GRID))
    sampler = ms.DPMSolver()
    table = Table(
        "steps", "designed", "equal in time", "equal in log-SNR", title="distance from the data (Wasserstein)"
    )
    for steps in (4,) if options.small else (4, 6, 8, 12):
        designed = design_schedule(statistics, process, steps, sampler=sampler, restarts=1 if options.small else 6)
        times = {
            "designed": designed.times(process.schedule),
            "time": ms.time_steps(process.schedule, steps),
            "log-SNR": ms.time_steps(process.schedule, steps, spacing="log_snr"),
        }
        transfers = [transfer_function(sampler, process, each, statistics) for each in times.values()]
        table.add_row(str(steps), *(f"{float(each.total(each.wasserstein())) ** 0.5:.3f}" for each in transfers))
    Console().print(table)
    designed.save(options.out)
    print(f"log-SNRs of {designed.steps} steps: {options.out}")


if __name__ == "__main__":
    main()
