"""Curves for the page: spectra of data and noise along every axis, and log-SNR step by step.

They are SVG in which text and axes have the colour of the text around them, so that they suit light and dark pages.
"""

from __future__ import annotations

import html
import io
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import Tensor

from multisagd import Grid
from multisagd.analysis.profiles import axis_profile
from recipes.exploring.designing import Designed
from recipes.exploring.forward import Pair
from recipes.profiles import on_logarithmic_axis

INK = "#010203"
"""Stands for the colour of the page's text while a figure is drawn; no line has it."""
COLORS = {"data": "#2e8b57", "white": "#8a8a8a", "shaped": "#d1495b"}
POINTS = 150
"""Points of a curve; more cannot be told apart."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "figure.facecolor": "none",
    "axes.facecolor": "none", "legend.framealpha": 0.0, "axes.grid": True, "grid.alpha": 0.25,
    **{f"{name}.color": INK for name in ("text", "xtick", "ytick", "grid")},
    "axes.edgecolor": INK, "axes.labelcolor": INK,
}  # fmt: skip
_STYLED = threading.Lock()
"""Matplotlib's style is one for the whole process."""


def curve(power: Tensor, grid: Grid, name: str) -> tuple[Tensor, Tensor]:
    """Return frequencies and power of the profile along an axis, thinned by averaging over equal shares of an octave.

    Zero frequency stands at half the lowest, for the axis is logarithmic.
    """
    profile = axis_profile(power, grid, name)
    frequency = on_logarithmic_axis(profile.frequency)
    if len(frequency) <= POINTS:
        return frequency, profile.power
    edges = torch.logspace(math.log10(float(frequency[0])), math.log10(float(frequency[-1])), POINTS).double()
    place = torch.searchsorted(edges, frequency.contiguous(), right=True)
    _, place = torch.unique(place, return_inverse=True)
    count = torch.bincount(place).double()
    return torch.bincount(place, frequency) / count, torch.bincount(place, profile.power) / count


def spectra_figure(pair: Pair, time: float) -> Figure:
    """Draw the power of the data and of both noises along every axis, the noise as it is at `time`.

    Noise is drawn over the signal's share, `(σ/α)² W`, so the data are drowned at frequencies where its curve is above
    theirs.
    """
    subject = pair.subject
    grid, schedule = subject.grid, pair.processes["shaped"].schedule
    level = float(torch.exp(-schedule.log_snr(torch.tensor([time], dtype=torch.float64))))
    powers = {"data": subject.statistics.power}
    powers |= {name: level * process.covariance.power() for name, process in pair.processes.items()}
    width = 3.2 * grid.dimensions + 0.8
    figure = Figure(figsize=(width, 3.0))
    plots = figure.subplots(1, grid.dimensions, squeeze=False)[0]
    # A layout that is computed would take longer than everything else here together.
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.15 / width, bottom=0.16, top=0.9, wspace=0.25)
    for plot, axis in zip(plots, grid.axes, strict=True):
        curves = {name: curve(power, grid, axis.name) for name, power in powers.items()}
        highest = max(float(power.max()) for _, power in curves.values())
        lowest = min(float(power[power > 0].min()) for _, power in curves.values() if bool((power > 0).any()))
        for name, (frequency, power) in curves.items():
            shown = power.clamp(min=highest * 1e-12)
            label = "data" if name == "data" else f"{name} noise"
            plot.loglog(frequency.numpy(), shown.numpy(), color=COLORS[name], label=label)
        plot.set_ylim(max(lowest, highest * 1e-9) / 2, highest * 2)
        plot.minorticks_off()
        plot.set(xlabel=f"cycles per {axis.unit}", title=axis.name)
    plots[0].set_ylabel("power")
    plots[-1].legend(fontsize="small")
    return figure


def schedule_figure(designed: Designed) -> Figure:
    """Draw the log-SNR at every step: as designed, and equal steps of the chosen and of the cosine schedule's time."""
    figure = Figure(figsize=(4.6, 3.0))
    plot = figure.subplots()
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.16, top=0.97)
    looks = ((COLORS["shaped"], "o-"), (COLORS["data"], "s--"), (COLORS["white"], "^:"))
    for (name, log_snrs), (color, style) in zip(designed.log_snrs.items(), looks, strict=False):
        place = np.linspace(0, 1, len(log_snrs))
        plot.plot(place, log_snrs, style, color=color, label=f"{name} ({designed.errors[name]:.1%})", markersize=3)
    plot.set(xlabel="share of the steps, from noise to data", ylabel="log-SNR")
    plot.legend(fontsize="small", title="steps (error of the Gaussian model)", title_fontsize="small")
    return figure


def svg(draw: Callable[[], Figure], salt: str, about: str) -> str:
    """Return what `draw` draws as SVG to stand in a page, `about` saying in words what it is.

    `salt` keeps the names in it from meeting those of other figures on the page.
    """
    file = io.StringIO()
    with _STYLED, rc_context(STYLE | {"svg.hashsalt": salt}):
        draw().savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{html.escape(about, quote=True)}" ', 1)
    return f'<div class="curves">{text}</div>'
