"""Design steps, and optionally noise, from a spectrum: `multisagd design …`, the same as `python -m recipes.design …`.

The command writes to `out`:

    steps.json                     log-SNRs of the steps, for any run: `multisagd sample … steps_file=steps.json`
    config/schedule/designed.yaml  a schedule through these log-SNRs; unless noise=given, config/spectrum/designed.yaml:
                                   `multisagd train --config-dir …/config schedule=designed spectrum=designed …`
    transfer.png                   generated power divided by data power, for the design and the usual schedules
    design.json                    the printed table of errors, the noise, and the reasons for a recommendation

The table gives the sampling error of each schedule with this number of steps, for Gaussian data and a perfect network.

Errors, each reported in one message: statistics that are missing or invalid, noise or a schedule that is incompatible
with them, ends that do not increase, an invalid sampler.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from multisagd import DataStatistics, Process, Spectrum
from multisagd.analysis.baselines import baselines, trajectory_regular, transfers
from multisagd.analysis.design import DesignedSteps, Objective, design_schedule, errors, spectral_ends
from multisagd.analysis.joint import FLOOR, design_joint
from multisagd.analysis.profiles import RADIUS, profile_of
from multisagd.analysis.recommend import recommend
from multisagd.analysis.transfer import Transfer
from multisagd.channel_covariance import covariance_of
from multisagd.samplers import Sampler
from recipes.base.errors import as_recipe_error
from recipes.base.files import check_replaceable, write_text
from recipes.cli.command import command
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.plotting.figures import draw_power, on_logarithmic_axis, save
from recipes.runs.run import STATISTICS, read_statistics
from recipes.runs.schedules import build_schedule
from recipes.runs.settings import Group

REPORT, NOISE = "design.json", Path("config", "spectrum", "designed.yaml")
Noise = Literal["given", "recommend", "data_power", "power_law", "bands"]


@dataclass(frozen=True)
class DesignSettings:
    """The keys of `configs/design.yaml`."""

    statistics: Path
    out: Path | None
    steps: int
    objective: Objective
    ends: tuple[float, float] | None
    free_ends: bool
    noise: Noise
    restarts: int
    seed: int
    allow_targets: tuple[str, ...]
    sampler: Group
    spectrum: Group
    schedule: Group

    def __post_init__(self) -> None:
        if self.steps < 1 or self.restarts < 1:
            raise ValueError(f"steps and restarts must be at least 1, got {self.steps} and {self.restarts}")
        if self.ends is not None and not self.ends[0] < self.ends[1]:
            raise ValueError(f"ends must increase from the first log-SNR to the last, got {list(self.ends)}")
        if self.free_ends and self.noise != "given":
            raise ValueError("free_ends requires noise=given: set free_ends=false or noise=given")


@dataclass(frozen=True)
class Outcome:
    """A design: steps, noise (as a spectrum and as a configuration group), and the reasons for a recommendation."""

    steps: DesignedSteps
    spectrum: Spectrum
    group: Group
    reasons: tuple[str, ...] = ()
    candidates: tuple[dict[str, float], ...] = ()


def design(config: Config) -> Path:
    """Create the configured design, and return its folder."""
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(DesignSettings, config, "")
    path = settings.statistics / STATISTICS if settings.statistics.is_dir() else settings.statistics
    statistics = read_statistics(path, "`multisagd analyze` creates such a file", key="statistics: ")
    sampler = builder.build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]
    kind = type(sampler).__name__.lower()
    out = settings.out or path.parent / f"design_{kind}_{settings.steps}_{settings.objective}_{settings.noise}"
    check_replaceable(out, REPORT, "multisagd design", key="out")
    given = builder.build(settings.spectrum, Spectrum, "spectrum", statistics=statistics)
    with as_recipe_error(ValueError, "spectrum: "):
        covariance = covariance_of(given, statistics.grid)
    schedule = build_schedule(settings.schedule, builder, statistics, covariance)
    process = Process(schedule, covariance)
    with as_recipe_error(ValueError, "design: "):
        ends = settings.ends or spectral_ends(statistics, process)
        outcome = choose(settings, statistics, process, sampler, given, ends)
        process = Process(schedule, covariance_of(outcome.spectrum, statistics.grid))
        log_snrs = {"designed": torch.tensor(outcome.steps.log_snrs, dtype=torch.float64)}
        log_snrs |= baselines(settings.steps, ends)
        if settings.steps < 200:
            log_snrs["trajectory-regular"] = trajectory_regular(statistics, process, settings.steps, ends)
        compared = transfers(log_snrs, sampler, process, statistics)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, "{}")
    (out / NOISE).unlink(missing_ok=True)  # left by an earlier design; this one may keep the given noise
    outcome.steps.save(out / "steps.json")
    (out / "config" / "schedule").mkdir(parents=True, exist_ok=True)
    configuration.write(schedule_group(outcome.steps, schedule.path), out / "config" / "schedule" / "designed.yaml")
    if settings.noise != "given":
        (out / NOISE).parent.mkdir(exist_ok=True)
        configuration.write(dict(outcome.group), out / NOISE)
    rows = {name: errors(transfer) for name, transfer in compared.items()}
    report = {"settings": config, "errors": rows, "spectrum": outcome.group, "reasons": outcome.reasons,
              "candidates": outcome.candidates}  # fmt: skip
    write_text(out / REPORT, json.dumps(report, indent=1, default=str))
    draw(compared, statistics, process, out / "transfer.png")
    show(rows, settings)
    for reason in outcome.reasons:
        print(f"- {reason}")
    print(f"in {out}: steps.json for `multisagd sample steps_file=…`, config/ for `multisagd train --config-dir=…`")
    return out


def choose(
    settings: DesignSettings, statistics: DataStatistics, process: Process, sampler: Sampler, given: Spectrum,
    ends: tuple[float, float],
) -> Outcome:  # fmt: skip
    """Return the designed steps, and the designed noise unless it is given."""
    steps, objective = settings.steps, settings.objective
    shared: dict[str, Any] = {"sampler": sampler, "ends": ends, "restarts": settings.restarts, "seed": settings.seed}
    if settings.noise == "given":
        designed = design_schedule(statistics, process, steps, objective, free_ends=settings.free_ends, **shared)
        return Outcome(designed, given, settings.spectrum)
    if settings.noise == "recommend":
        advice = recommend(statistics, process.schedule, steps, objective, **shared)
        best, columns = advice.chosen, ("exponent", "error", "conditioning", "terminal_snr")
        group = {"_target_": "multisagd.Flat"} if best.exponent == 0 else data_power(best.exponent)
        table = tuple({name: getattr(each, name) for name in columns} for each in advice.candidates)
        return Outcome(best.steps, best.spectrum, group, advice.reasons, table)
    joint = design_joint(statistics, process, steps, objective, settings.noise, **shared)
    if settings.noise == "data_power":
        group = data_power(joint.parameters[0])
    elif settings.noise == "bands":
        group = {"_target_": "multisagd.Rings", "levels": list(joint.parameters)}
    else:
        factors = {axis.name: axis.spacing for axis in statistics.grid.axes}
        group = {"_target_": "multisagd.PowerLaw", "exponent": joint.parameters[0], "factors": factors}
    return Outcome(joint.steps, joint.spectrum, group)


def data_power(exponent: float) -> Group:
    """Return the configuration group for noise shaped like the data's power, with the floor that the design assumes."""
    return {"_target_": "multisagd.data_spectra.DataPower", "exponent": exponent, "floor": FLOOR}


def schedule_group(steps: DesignedSteps, path: str) -> dict[str, Any]:
    """Return the configuration group of a schedule in whose time the designed log-SNRs are equally spaced."""
    return {
        "_target_": "multisagd.TabulatedSchedule",
        "log_snrs": [float(each) for each in reversed(steps.log_snrs)],
        "shift": 1.0,
        "log_snr_range": None,
        "path": path,
    }


def show(rows: dict[str, dict[str, float]], settings: DesignSettings) -> None:
    """Print the errors as a table; the last row is the Gaussian sampler, which is exact on Gaussian data."""
    table = Table(
        "log-SNRs", "W2", "relative", "KL", "L1 of power", box=box.SIMPLE,
        title=f"{settings.steps} steps of {settings.sampler['_target_'].rsplit('.', 1)[-1]}, Gaussian model",
    )  # fmt: skip
    for name, row in rows.items():
        table.add_row(name, f"{row['w2']:.4g}", f"{row['relative']:.1%}", f"{row['kl']:.4g}", f"{row['l1']:.4g}")
    table.add_row("sampler=gaussian, any", "0", "0.0%", "0", "0")
    Console().print(table)


def draw(compared: Mapping[str, Transfer], statistics: DataStatistics, process: Process, path: Path) -> None:
    """Plot the ratio of generated to data power for each schedule, next to the spectra of data and noise."""
    grid = statistics.grid
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    data = profile_of(statistics.power, grid, RADIUS)
    noise = profile_of(float(data.power.mean()) * process.covariance.power(grid.shape), grid, RADIUS)
    draw_power(left, data, "data")
    draw_power(left, noise, "noise (scaled)", marker="", linestyle="--")
    left.set(xlabel="radius (cycles per sample)", ylabel="power", title="spectra")
    left.legend()
    frequency = on_logarithmic_axis(data.frequency).numpy()
    for name, transfer in compared.items():
        power = profile_of(transfer.power, grid, RADIUS).power / data.power.clamp(min=1e-300)
        decibels = 10 * power.clamp(min=1e-30).log10().numpy()
        mine = name == "designed"
        right.semilogx(frequency, decibels, label=name, linewidth=2.2 if mine else 1, color="black" if mine else None)
    right.axhline(0, color="gray", linewidth=0.6)
    right.set(xlabel="radius (cycles per sample)", ylabel="generated / data (dB)", title="transfer")
    right.legend(fontsize="x-small", ncols=2)
    save(figure, path)


main = command("design", design)

if __name__ == "__main__":
    sys.exit(main())
