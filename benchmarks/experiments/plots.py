"""The figures on the results page: the distance of each arm for every seed, and power as a function of frequency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.experiments.design import REAL

Values = Mapping[str, Sequence[float]]
"""For each arm, one number per seed."""
Curves = Mapping[str, Sequence[Sequence[float]]]
"""For each arm, one curve per seed: zero frequency, and rings of equal width up to the corner of the spectrum."""


@dataclass(frozen=True)
class Picture:
    """The content of a figure: `panels` of distances and spectra, and `corrupted` frequencies, both by panel name."""

    name: str
    panels: Mapping[str, tuple[Values, Curves]]
    metric: str
    baseline: str | None
    corrupted: Mapping[str, tuple[float, float]]


LOWEST = -15
"""Lower limit of plotted spectra in decibels, because omitted frequencies have practically no power."""
COLOURS = ("#333333", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#7f7f7f", "#bcbd22")


def draw(picture: Picture) -> Figure:
    """Plot a row for each panel: distances with their standard errors on the left, spectra on the right."""
    panels = picture.panels
    heights = [0.9 + 0.3 * max(len(values), 5) for values, _ in panels.values()]
    figure = Figure(figsize=(10, sum(heights) + 0.3), layout="constrained")
    rows = figure.subplots(len(panels), 2, squeeze=False, height_ratios=heights, width_ratios=[1.15, 1])
    names = list(dict.fromkeys(short(arm) for values, _ in panels.values() for arm in values))
    for (left, right), (name, (values, curves)) in zip(rows, panels.items(), strict=True):
        # An arm has one colour in all panels.
        colours = {arm: COLOURS[names.index(short(arm)) % len(COLOURS)] for arm in values}
        trained = {arm: each for arm, each in values.items() if arm != REAL}
        _distances(left, trained, colours, picture.metric, picture.baseline)
        _spectra(right, {arm: curves[arm] for arm in values if arm in curves}, colours, picture.corrupted.get(name))
        left.set_title(name, loc="left", fontsize="medium")
        if REAL in values:
            # Plotted as a point, it would leave no room for the arms.
            left.set_title(f"{REAL}: {mean(values[REAL]):.3f}", loc="right", fontsize="small")
    return figure


def short(arm: str) -> str:
    """Return the name of an arm without the name of its panel."""
    return arm.split(": ")[-1]


def _distances(plot: Axes, values: Values, colours: Mapping[str, str], title: str, baseline: str | None) -> None:
    places = range(len(values))
    for place, (arm, each) in zip(places, values.items(), strict=True):
        error = stdev(each) / sqrt(len(each)) if len(each) > 1 else 0.0
        plot.plot(each, [place] * len(each), ".", color=colours[arm], alpha=0.4, markersize=5)
        plot.errorbar(mean(each), place, xerr=error, fmt="o", color=colours[arm], capsize=3, markersize=5)
    if baseline is not None and baseline in values:
        plot.axvline(mean(values[baseline]), color=colours[baseline], linewidth=0.7, linestyle=":")
    plot.set_yticks(places, [short(arm) for arm in values], fontsize="small")
    plot.set(xlabel=f"{title} (mean, standard error; every seed)", ylim=(len(values) - 0.5, -0.5))
    plot.grid(axis="x", alpha=0.3)


def _spectra(plot: Axes, curves: Curves, colours: Mapping[str, str], corrupted: tuple[float, float] | None) -> None:
    plot.axhline(0, color="black", linewidth=0.6)
    for place, (arm, seeds) in enumerate(curves.items()):
        curve = [mean(each) for each in zip(*seeds, strict=True)]
        style = ":" if arm == REAL else ("-", "--", "-.")[place // len(COLOURS) % 3]
        plot.plot(range(len(curve)), curve, style, color=colours[arm], marker=".", linewidth=1.1)
    if not curves:
        plot.set_axis_off()
        return
    rings = max(len(seeds[0]) for seeds in curves.values()) - 1
    if corrupted is not None:
        low, high = (0.5 + rings * edge for edge in corrupted)
        plot.axvspan(low, high, color="#cccccc", alpha=0.5, linewidth=0)
    plot.set_xticks(
        range(rings + 1), ["zero", *(f"{(ring + 0.5) / rings:.2f}" for ring in range(rings))], fontsize="small"
    )
    plot.set(xlabel="frequency, fraction of the highest", ylabel="power relative to the data, dB")
    if min(value for seeds in curves.values() for curve in seeds for value in curve) < LOWEST:
        plot.set_ylim(bottom=LOWEST)
    plot.grid(alpha=0.3)
