"""Measure a dataset's spectrum: `multisagd analyze …`, the same as `python -m recipes.analyze …`.

The command takes the configuration of a training run, and writes to `run_dir`:

    statistics.safetensors  mean and power spectrum per channel, for `multisagd design statistics=…`
    spectrum.png            power, radially averaged and along every axis, with 95 % confidence bands and a power law
    channels.png            with several channels: the power of each, and the coherence of every two
    analysis.json           the curves as numbers, the fitted power law, and how the channels are related
    corruption.safetensors  with clean=…: the excess power over clean data, for `multisagd train corruption=measured`

Errors, each reported in one message: the errors of data and configuration, as in training; a `run_dir` with contents
other than an earlier analysis, which is replaced.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.figure import Figure

from modalities.reading import UnreadableFilesError
from multisagd import Corruption, DataStatistics, Grid
from multisagd.analysis.excess import NoExcessError, estimate_corruption
from multisagd.analysis.profiles import (
    RADIUS,
    PowerLawFit,
    Profile,
    coherence,
    fit_power_law,
    measure_profiles,
)
from multisagd.cross_spectra import cross_spectrum
from multisagd.seeds import derive
from recipes.base.commands import setting
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.files import check_replaceable, write_text
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.dataset import Chunks, configured_data, data_as_trained_on, measure
from recipes.data.extents import of_reference_size
from recipes.data.order import order_of
from recipes.plotting.channels import channel_lines, describe_channels, draw_channels
from recipes.plotting.figures import COLUMN, draw_power, power_axes, save
from recipes.runs.run import CORRUPTION, STATISTICS, read_statistics
from recipes.runs.settings import TrainSettings

REPORT, CHANNELS = "analysis.json", "channels.png"


def analyze(config: Config) -> Path:
    """Write the files listed at the top of this file, and return their folder."""
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(TrainSettings, {key: value for key, value in config.items() if key != "clean"}, "")
    clean = clean_statistics(config.get("clean"))
    out = settings.run_dir
    check_replaceable(out, REPORT, "analyze")
    dataset = of_reference_size(data_as_trained_on(configured_data(settings, builder), settings, builder))
    statistics = measure(dataset, settings)
    indices = order_of(dataset, derive(settings.seed, "statistics")).indices(0, statistics.count)
    chunks = Chunks(dataset, indices, settings.seed)
    with as_recipe_error((ValueError, UnreadableFilesError), "analysing the data: "):
        profiles = measure_profiles(chunks, statistics)
        cross = cross_spectrum(chunks, statistics) if dataset.modality.channels > 1 else None
        fit = fit_power_law(profiles["radius"])

    corruption = None if clean is None else measured_corruption(statistics, clean)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / REPORT, "{}")
    statistics.save(out / STATISTICS)
    (out / CORRUPTION).unlink(missing_ok=True)
    if corruption is not None:
        corruption.save(out / CORRUPTION)
    dataset.save_unreadable(out / "unreadable.json")
    grid = statistics.grid
    report: dict[str, Any] = {
        "examples": statistics.count,
        "of": len(dataset),
        "sigma_data": statistics.sigma_data,
        "channel_deviations": grid.mean(statistics.power).sqrt().tolist(),
        "power_law": vars(fit),
        "profiles": {
            name: {"frequency": each.frequency, "power": each.power, "standard_error": each.error}
            for name, each in profiles.items()
        },
        "corruption": None if corruption is None else describe_corruption(corruption),
        "coherence": None
        if cross is None
        else [{"low": low, "high": high, "matrix": matrix} for low, high, matrix in coherence(cross, grid)],
        "channels": None,
    }
    (out / CHANNELS).unlink(missing_ok=True)
    if cross is not None:
        names = [each.name for each in dataset.modality.variables or ()]
        names = names or [f"channel {number + 1}" for number in range(dataset.modality.channels)]
        report["channels"] = describe_channels(cross, statistics, names)
        draw_channels(cross, statistics, names, out / CHANNELS)
    write_text(out / REPORT, json.dumps(report, indent=1, default=torch.Tensor.tolist))
    draw(profiles, fit, grid, out / "spectrum.png")
    print(summary(statistics, fit, report, out))
    if clean is not None:
        print(verdict(report["corruption"], out))
    return out


def clean_statistics(setting: Any) -> DataStatistics | Literal["fit"] | None:
    """Return the statistics to which the setting `clean` refers, "fit" or None. Raises RecipeError if it is invalid."""
    if setting is None or setting == "fit":
        return "fit" if setting else None
    if not isinstance(setting, str):
        raise RecipeError(f"clean: expected a folder, fit or null, got {setting!r:.80}")
    path = Path(setting)
    path = path / STATISTICS if path.is_dir() else path
    return read_statistics(path, "create it with multisagd analyze on clean data, or set clean=fit", "clean: ")


def measured_corruption(statistics: DataStatistics, clean: DataStatistics | Literal["fit"]) -> Corruption | None:
    """Return the corruption by which the data's spectrum exceeds that of clean data, or None if it does not.

    With `clean="fit"`, the clean spectrum is estimated too. Raises RecipeError if the spectra cannot be compared.
    """
    expected = None if clean == "fit" else clean
    if expected is not None and expected.grid != statistics.grid:
        shapes = f"{expected.grid.shape}, not {statistics.grid.shape}"
        raise RecipeError(f"clean: the clean data are on a grid of shape {shapes}: use data of the same shape")
    try:
        return estimate_corruption(statistics, expected)
    except NoExcessError:
        return None
    except ValueError as error:
        raise RecipeError(f"clean: {error}") from error


def describe_corruption(corruption: Corruption) -> dict[str, Any]:
    """Return a corruption's noise level, the number of its frequencies and the range of their radii.

    A radius of 1 is the corner of the spectrum.
    """
    grid, inside = corruption.grid, corruption.power() > 0
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes}) * 2 / math.sqrt(grid.dimensions)
    return {
        "std": corruption.std,
        "frequencies": int((grid.multiplicity * inside).sum()),
        "of": grid.numel,
        "radius": [float(radius[inside].min()), float(radius[inside].max())],
    }


def verdict(corruption: Mapping[str, Any] | None, out: Path) -> str:
    """Return a summary of the result of `describe_corruption`, and the command that trains on such data."""
    if corruption is None:
        return "the spectrum shows no corruption: no frequency has excess power"
    low, high = corruption["radius"]
    return (
        f"corrupted: {corruption['frequencies']} of {corruption['of']} frequencies, radius {low:.2f} to {high:.2f} "
        f"(1 is the corner of the spectrum), by noise with standard deviation {corruption['std']:.3g}\n"
        f"to omit or restore these frequencies: multisagd train … corruption=measured "
        f"{setting('corruption.path', out / CORRUPTION)}"
    )


def draw(profiles: Mapping[str, Profile], fit: PowerLawFit, grid: Grid, path: Path) -> None:
    """Plot every profile with its confidence band, and the fitted power law over the radially averaged power."""
    figure = Figure(figsize=(COLUMN * len(profiles), 3.4), layout="constrained")
    plots = figure.subplots(1, len(profiles), squeeze=False)[0]
    for plot, (name, profile) in zip(plots, profiles.items(), strict=True):
        draw_power(plot, profile, "data, 95 % band")
        if name == RADIUS:
            law = Profile(profile.frequency, fit.power(profile.frequency))
            label = f"exponent {fit.exponent:.2f}, knee {fit.knee:.3g}"
            draw_power(plot, law, label, marker="", linestyle="--", color="black")
        power_axes(plot, name, grid)
        plot.legend(fontsize="x-small")
    save(figure, path)


def summary(statistics: DataStatistics, fit: PowerLawFit, report: Mapping[str, Any], out: Path) -> str:
    """Return a summary of the results, with the paths of the files."""
    power = statistics.power.mean(0)
    fraction = float(power.flatten()[0] / (statistics.grid.mean(power) * statistics.grid.numel))
    lines = [
        f"{report['examples']:,} of {report['of']:,} examples, standard deviation {statistics.sigma_data:.3f}",
        f"power falls as radius^{fit.exponent:.2f} above {fit.knee:.3g} cycles per sample; the fit deviates by "
        f"{fit.residual:.1f} dB (root mean square)",
        f"the powers span {_decibels(power)}; zero frequency has {fraction:.0%} of the variance",
    ]
    if report["coherence"]:
        matrices = torch.stack([band["matrix"] for band in report["coherence"]]).float()
        off = matrices[:, ~torch.eye(matrices.shape[1], dtype=torch.bool)].mean(1)
        lines.append(f"channels share {float(off.max()):.0%} of their variance in the most coherent band")
        lines += channel_lines(report["channels"])
    return "\n".join(
        [*lines, f"in {out}: spectrum.png, and {STATISTICS} for `multisagd design {setting('statistics', out)}`"]
    )


def _decibels(power: torch.Tensor) -> str:
    minimum = float(power.min())
    return (
        "an infinite range, because some are zero"
        if minimum <= 0
        else f"{10 * float((power.max() / minimum).log10()):.0f} dB"
    )


main = command("analyze", analyze)

if __name__ == "__main__":
    sys.exit(main())
