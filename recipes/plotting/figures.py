"""Figures as PNG files: their style, and plots of power spectra along every axis of a grid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from multisagd import Grid
from multisagd.analysis.profiles import Profile, profile_of, unit_of
from multisagd.metrics.spectral import MIN_RELATIVE_POWER

SAMPLES, REAL = "tab:orange", "tab:blue"
"""Colours of samples and of data."""
DPI = 110
COLUMN = 3.8
"""Width of one plot, in inches."""


def on_logarithmic_axis(frequency: Tensor) -> Tensor:
    """Return frequencies for a logarithmic axis, with zero at half the lowest positive frequency."""
    moved = frequency.clone()
    if moved[0] == 0:  # not in curves over rings without zero frequency
        moved[0] = moved[1] / 2 if len(moved) > 1 else 1.0
    return moved


def power_axes(plot: Axes, along: str, grid: Grid) -> None:
    """Label the axes of a plot of power as a function of frequency."""
    # Labels between powers of ten would overlap on a small plot.
    plot.xaxis.set_minor_formatter(NullFormatter())
    plot.set(xlabel=unit_of(along, grid), title=along)


def draw_power(plot: Axes, profile: Profile, label: str, **style: Any) -> None:
    """Plot power as a function of frequency on logarithmic axes, with a 95 % band if the profile has errors.

    A profile without power, such as that of a single example about its mean, is not drawn.
    """
    floor = float(profile.power.max()) * MIN_RELATIVE_POWER
    if floor <= 0:
        return
    frequency = on_logarithmic_axis(profile.frequency).numpy()
    if profile.error is not None:
        low, high = profile.confidence()
        plot.fill_between(frequency, low.clamp(min=floor).numpy(), high.numpy(), alpha=0.3)
    plot.loglog(frequency, profile.power.clamp(min=floor).numpy(), label=label, **({"marker": "."} | style))


def draw_profiles(powers: Mapping[str, Tensor], grid: Grid, path: Path) -> None:
    """Write a PNG file with one plot per axis, each with one curve for every named power `(..., *half_shape)`."""
    figure = Figure(figsize=(COLUMN * grid.dimensions + 0.4, 3.2), layout="constrained")
    plots = figure.subplots(1, grid.dimensions, squeeze=False)[0]
    for plot, axis in zip(plots, grid.names, strict=True):
        for name, power in powers.items():
            draw_power(plot, profile_of(power, grid, axis), name)
        power_axes(plot, axis, grid)
    plots[0].set_ylabel("power")
    if plots[-1].has_data():
        plots[-1].legend()
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, creating the folder if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
