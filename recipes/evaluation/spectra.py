"""Metrics of power spectra, and of differences between neighbours along the grid's axes, without networks or labels.

They apply to every modality, in the units of its axes: for a video, the temporal spectrum in hertz and the mean frame
difference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from multisagd.analysis.profiles import NORMAL_95, RADIUS, Profile, unit_of
from multisagd.metrics.axes import bands_along, mean_difference, neighbour_differences
from multisagd.metrics.discriminate import BandAccuracy, band_powers, discriminability
from multisagd.metrics.spectral import BANDS, Curves, decibel_errors, decibels, error
from recipes.evaluation.task import Result, Row, Task, mean_and_std
from recipes.plotting.figures import REAL, SAMPLES, draw_power, on_logarithmic_axis, save


def spectrum(task: Task) -> Result:
    """Compare power spectra in decibels: radially averaged, along every axis, and in bands."""
    made, real = task.curves
    halves = task.halves
    one, other = halves[0]
    rows = []
    for name in made:
        if name != BANDS:
            where = ", radially averaged" if name == RADIUS else f" along {name}"
            rows.append(task.row(f"rms{where}", error, made[name].values, real[name].values, unit="dB"))
    ours, theirs = made[BANDS].values, real[BANDS].values
    signed, signed_error = decibels(ours, theirs[one]), decibel_errors(ours, theirs[one])
    floors = torch.stack([decibels(theirs[b], theirs[a]) for a, b in halves])
    for number, edges in enumerate(made[BANDS].edges):
        floor = mean_and_std(floors[:, number].tolist())
        name = f"band {band_name(*edges)}"
        rows.append(Row(name, float(signed[number]), float(signed_error[number]), *floor, unit="dB"))

    def half_of(number: Tensor) -> dict[str, Curves]:
        return {name: Curves(each.frequency, each.values[number], each.edges) for name, each in real.items()}

    figure_path = task.figure_path("evaluate_spectra.png")
    grid = task.modality.grid()
    units = {name: unit_of(name, grid) for name in (RADIUS, *grid.names)}
    draw_spectra(made, half_of(one), half_of(other), units, figure_path)
    curves = {
        name: {
            "frequency": made[name].frequency.tolist(),
            "decibels": decibels(made[name].values, real[name].values[one]).tolist(),
            "samples": made[name].values.mean(0).tolist(),
            "data": real[name].values.mean(0).tolist(),
        }
        for name in made
    }
    return Result(tuple(rows), {"curves": curves})


def draw_spectra(
    made: Mapping[str, Curves],
    real: Mapping[str, Curves],
    other: Mapping[str, Curves],
    units: Mapping[str, str],
    path: Path,
) -> None:
    """Plot power against frequency, and below it the ratio to the data in dB with 95 % bands.

    There is a column for every name in `units`, the units of its frequencies, such as `radius` and the axes. `real` and
    `other` are the curves for two halves of the data, whose ratio shows the statistical variation.
    """
    names = list(units)
    figure = Figure(figsize=(3.9 * len(names) + 0.5, 5.6), layout="constrained")
    above, below = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 2))
    for name, upper, lower in zip(names, above, below, strict=True):
        for shown, compared, label, colour in (
            (real[name], other[name], "data (below: one half divided by the other)", REAL),
            (made[name], made[name], "samples", SAMPLES),
        ):
            draw_power(upper, Profile(shown.frequency, shown.values.mean(0)), label, markersize=4, color=colour)
            _draw_ratio(lower, compared, real[name], colour)
        lower.axhline(0, color="black", linewidth=0.8)
        for axis in (lower.xaxis, upper.yaxis):
            axis.set_minor_formatter(NullFormatter())
        lower.set(xlabel=units[name])
        upper.set(title=name)
    above[0].set_ylabel("power")
    below[0].set_ylabel("ratio to data, dB (95 %)")
    figure.legend(*above[0].get_legend_handles_labels(), fontsize="small", loc="outside upper right", ncols=2)
    save(figure, path)


def _draw_ratio(plot: Axes, made: Curves, real: Curves, colour: str) -> None:
    """Plot the ratio of two powers in dB, with a 95 % band, as a function of frequency."""
    frequency = on_logarithmic_axis(real.frequency).numpy()
    centre = decibels(made.values, real.values)
    half = NORMAL_95 * decibel_errors(made.values, real.values)
    plot.fill_between(frequency, (centre - half).numpy(), (centre + half).numpy(), alpha=0.25, color=colour)
    plot.semilogx(frequency, centre.numpy(), marker=".", markersize=4, color=colour)


def axes(task: Task) -> Result:
    """Compare, along every axis, differences between neighbours and power in bands, as ratios of samples to data."""
    sets, grid = task.sets, task.modality.grid()
    made, real = task.curves
    rows: list[Row] = []

    def difference(above: Tensor, below: Tensor) -> float:
        return float(mean_difference(above) / mean_difference(below))

    def power(above: Tensor, below: Tensor) -> float:
        return float(above.mean() / below.mean())

    for axis in grid.axes:
        ours, theirs = (neighbour_differences(sets.batches(real=each), grid, axis.name) for each in (False, True))
        rows.append(task.row(f"{axis.name}: difference of neighbours", difference, ours, theirs, ideal=1.0))
        for name, members in bands_along(axis, made[axis.name].frequency, task.settings.bands):
            ours, theirs = (each[axis.name].values[:, members].mean(1) for each in (made, real))
            rows.append(task.row(f"{axis.name}: power at {name}", power, ours, theirs, ideal=1.0))
    return Result(tuple(rows))


def band_tests(task: Task) -> Result:
    """Measure how well a classifier distinguishes samples from data by the magnitudes in one band at a time."""
    sets, settings, grid = task.sets, task.settings, task.modality.grid()
    made, real = (band_powers(sets.batches(real=each), grid, settings.bands) for each in (False, True))
    edges = [(low, high) for low, high, _ in made]
    # The classes must be balanced, because the test splits its rows into training and test rows at random.
    _, own, theirs = sets.alike()
    accuracies = [discriminability(b[2][theirs], a[2][own]) for a, b in zip(made, real, strict=True)]
    halves = [(one[theirs], other[own]) for one, other in task.halves]
    floors = [[discriminability(band[one], band[other]).accuracy for one, other in halves] for *_, band in real]
    rows = tuple(
        Row(f"band {band_name(*edge)}", 100 * each.accuracy, 100 * each.error,
            *mean_and_std([100 * value for value in floor]), ideal=50, unit="%")
        for edge, each, floor in zip(edges, accuracies, floors, strict=True)
    )  # fmt: skip
    draw_bands(edges, accuracies, [mean_and_std(floor) for floor in floors], task.figure_path("evaluate_bands.png"))
    bands = [{"low": low, "high": high, **asdict(each)} for (low, high), each in zip(edges, accuracies, strict=True)]
    return Result(rows, {"bands": bands})


def draw_bands(
    edges: Sequence[tuple[float, float]],
    made: Sequence[BandAccuracy],
    floor: Sequence[tuple[float, float | None]],
    path: Path,
) -> None:
    """Plot the accuracy of distinguishing samples from data in each band, next to the accuracy for two sets of data."""
    figure = Figure(figsize=(max(4.5, 0.8 * len(edges) + 1.6), 3.4), layout="constrained")
    plot = figure.subplots()
    positions = np.arange(len(edges))
    accuracies = [(each.accuracy, each.error) for each in made]
    for values, shift, label, colour in (
        (accuracies, -0.2, "samples from data", SAMPLES),
        (floor, 0.2, "data from data", REAL),
    ):
        heights, errors = [100 * value for value, _ in values], [100 * (std or 0.0) for _, std in values]
        plot.bar(positions + shift, heights, 0.4, yerr=errors, color=colour, label=label, capsize=2)
    plot.axhline(50, color="black", linewidth=0.8, linestyle="--")
    plot.set_xticks(positions, [band_name(low, high) for low, high in edges], fontsize="small")
    plot.set(ylim=(40, 102), xlabel="band, cycles per sample", ylabel="distinguished, %")
    figure.legend(fontsize="small", loc="outside upper right", ncols=2)
    save(figure, path)


def band_name(low: float, high: float) -> str:
    """Return a band's edges as text, or "0" for zero frequency."""
    return f"{low:.2f}-{high:.2f}" if high else "0"
