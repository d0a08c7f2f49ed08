"""The pictures of an evaluation: spectra with their errors, bands that give samples away, and classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from multisagd import Grid
from multisagd.analysis.profiles import NORMAL_95, Profile
from multisagd.metrics.discriminate import BandAccuracy
from multisagd.metrics.spectral import RADIUS, Curves, decibel_errors, decibels
from recipes.plotting.figures import draw_power, on_logarithmic_axis, save, unit_of

SAMPLES, REAL = "tab:orange", "tab:blue"


def draw_spectra(
    made: Mapping[str, Curves], real: Mapping[str, Curves], other: Mapping[str, Curves], grid: Grid, path: Path
) -> None:
    """Draw power over the radius and along every axis, and below it the ratio to the data in dB with 95 % bands.

    `real` and `other` are the curves of two halves of the data: their ratio is what chance does.
    """
    names = [RADIUS, *grid.names]
    figure = Figure(figsize=(3.9 * len(names) + 0.5, 5.6), layout="constrained")
    above, below = figure.subplots(2, len(names), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 2))
    for name, upper, lower in zip(names, above, below, strict=True):
        for shown, judged, label, colour in (
            (real[name], other[name], "data (below: one half over the other)", REAL),
            (made[name], made[name], "samples", SAMPLES),
        ):
            draw_power(upper, Profile(shown.frequency, shown.values.mean(0)), label, markersize=4, color=colour)
            _ratio(lower, judged, real[name], colour)
        lower.axhline(0, color="black", linewidth=0.8)
        for axis in (lower.xaxis, upper.yaxis):
            axis.set_minor_formatter(NullFormatter())
        lower.set(xlabel=unit_of(name, grid))
        upper.set(title=name)
    above[0].set_ylabel("power")
    below[0].set_ylabel("over data, dB (95 %)")
    figure.legend(*above[0].get_legend_handles_labels(), fontsize="small", loc="outside upper right", ncols=2)
    save(figure, path)


def _ratio(plot: Axes, made: Curves, real: Curves, colour: str) -> None:
    frequency = on_logarithmic_axis(real.frequency).numpy()
    centre = decibels(made.values, real.values)
    half = NORMAL_95 * decibel_errors(made.values, real.values)
    plot.fill_between(frequency, (centre - half).numpy(), (centre + half).numpy(), alpha=0.25, color=colour)
    plot.semilogx(frequency, centre.numpy(), marker=".", markersize=4, color=colour)


def draw_bands(
    edges: Sequence[tuple[float, float]],
    made: Sequence[BandAccuracy],
    floor: Sequence[tuple[float, float | None]],
    path: Path,
) -> None:
    """Draw in each band the accuracy with which samples are told from data, beside that of data from data."""
    figure = Figure(figsize=(max(4.5, 0.8 * len(edges) + 1.6), 3.4), layout="constrained")
    plot = figure.subplots()
    places = np.arange(len(edges))
    told = [(each.accuracy, each.error) for each in made]
    for values, shift, label, colour in (
        (told, -0.2, "samples from data", SAMPLES),
        (floor, 0.2, "data from data", REAL),
    ):
        heights, errors = [100 * value for value, _ in values], [100 * (spread or 0.0) for _, spread in values]
        plot.bar(places + shift, heights, 0.4, yerr=errors, color=colour, label=label, capsize=2)
    plot.axhline(50, color="black", linewidth=0.8, linestyle="--")
    plot.set_xticks(places, [band_name(low, high) for low, high in edges], fontsize="small")
    plot.set(ylim=(40, 102), xlabel="band, cycles per sample", ylabel="told apart, %")
    figure.legend(fontsize="small", loc="outside upper right", ncols=2)
    save(figure, path)


def band_name(low: float, high: float) -> str:
    """Name a band by its edges, zero frequency as 0."""
    return f"{low:.2f}-{high:.2f}" if high else "0"


def draw_classes(
    names: Sequence[str], seen: Tensor, real: Tensor, recognised: Sequence[float | None] | None, path: Path
) -> None:
    """Draw the share of items `(classes,)` that are seen as each class, and of conditional samples those recognised.

    A class that nobody asked for has None, and no bar.
    """
    rows = 1 if recognised is None else 2
    figure = Figure(figsize=(max(4.5, 0.5 * len(names) + 1.6), 2.6 * rows + 0.4), layout="constrained")
    plots = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
    places = np.arange(len(names))
    plots[0].bar(places - 0.2, 100 * seen.numpy(), 0.4, color=SAMPLES, label="samples")
    plots[0].bar(places + 0.2, 100 * real.numpy(), 0.4, color=REAL, label="data")
    plots[0].set(ylabel="seen as this, %")
    figure.legend(fontsize="small", loc="outside upper right", ncols=2)
    if recognised is not None:
        plots[1].bar(places, [np.nan if share is None else 100 * share for share in recognised], 0.6, color=SAMPLES)
        plots[1].set(ylabel="of those asked for\nrecognised, %", ylim=(0, 102))
    turned = max(map(len, names)) > 3
    plots[-1].set_xticks(places, list(names), rotation=45 if turned else 0, ha="right" if turned else "center")
    save(figure, path)
