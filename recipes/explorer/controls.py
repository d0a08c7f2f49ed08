"""The kinds of spectra that the page offers, their sliders, and which key of their configuration each slider sets.

Most are the choices of `configs/spectrum` as they are; a control is a dotted key in one of them. Left out are `rings`,
whose levels `multisagd design` writes, and `omitting`, which follows from a corruption; power laws of the radius in
space are offered on clips in products with spectra along time, too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

from multisagd import Grid
from recipes.config.defaults import of_choice
from recipes.config.groups import summary

Scale = Literal["plain", "frequency", "distance"]

ALL = "all, in cycles per sample"
"""The choice of all axes where their units differ."""


@dataclass(frozen=True)
class Control:
    """One slider: its label and range, in the unit of the axes where `scale` says so.

    A "frequency" is given as a share of the highest frequency along the axes, a "distance" in samples.
    """

    label: str
    low: float
    high: float
    step: float
    scale: Scale = "plain"


CONTROLS: dict[str, Control] = {
    "exponent": Control("exponent of the amplitude (below 0: more noise at low frequencies)", -2.0, 1.0, 0.01),
    "corner": Control("corner, below which it is flat (0: as the modality declares)", 0.0, 0.5, 0.002, "frequency"),
    "time_exponent": Control("exponent of the amplitude along time", -2.0, 1.0, 0.01),
    "low": Control("lowest frequency with noise", 0.0, 1.0, 0.005, "frequency"),
    "high": Control("highest frequency with noise", 0.0, 1.0, 0.005, "frequency"),
    "edge": Control("edge between the bands (1: the corner of the spectrum)", 0.02, 0.98, 0.01),
    "low_weight": Control("amplitude of the low band", 0.0, 1.0, 0.01),
    "high_weight": Control("amplitude of the high band", 0.0, 1.0, 0.01),
    "length": Control("length of the blur", 0.0, 8.0, 0.05, "distance"),
    "level": Control("power of the white noise below it", 0.0, 1.0, 0.005),
    "rate": Control("rate of decay (below 0: more noise at high frequencies)", -20.0, 20.0, 0.1),
    "strength": Control("standard deviation of the shared part", 0.0, 3.0, 0.01),
    "data_exponent": Control("exponent of the data's power (0: white, 1: like the data)", -1.0, 1.0, 0.05),
    "floor": Control("least power, in decibels below the largest", 10.0, 80.0, 1.0),
    "coefficient": Control("correlation of neighbours", -0.98, 0.98, 0.01),
    "time_constant": Control("seconds after which the noise has changed", 0.02, 4.0, 0.01),
    "time_factor": Control("cycles per pixel that one hertz counts as", 0.005, 0.5, 0.005),
    "right": Control("pixels per second to the right", -32.0, 32.0, 0.5),
    "down": Control("pixels per second downwards", -32.0, 32.0, 0.5),
    "fundamental": Control("fundamental frequency (Hz)", 20.0, 400.0, 1.0),
    "width": Control("width of each stop (Hz)", 1.0, 19.0, 0.5),
}
"""Every control by its name."""


@dataclass(frozen=True)
class Kind:
    """One kind of spectrum: its configuration, and dotted keys of it by the names of the controls that set them.

    `radial` says where its `axes` and `factors` are, for those that are over whatever axes one chooses; `axes` are the
    ones of a power law that is over these only.
    """

    about: str
    template: Mapping[str, Any]
    controls: Mapping[str, str] = field(default_factory=dict)
    radial: str | None = None
    axes: tuple[str, ...] = ()

    def over(self, axes: str) -> str:
        """Return the axes whose units its controls have, where `axes` are chosen."""
        return ", ".join(self.axes) or axes


_KEYS: dict[str, tuple[dict[str, str], str | None]] = {
    "white": ({}, None),
    "power_law": ({"exponent": "exponent", "corner": "corner"}, ""),
    "band": ({"low": "low", "high": "high"}, ""),
    "two_band": ({"edge": "low.1 high.0", "low_weight": "weights.0", "high_weight": "weights.1"}, ""),
    "gaussian": ({"length": "left.length", "level": "right.level"}, "left"),
    "exponential": ({"rate": "rate"}, ""),
    "offset": ({"strength": "right.strength"}, None),
    "data_power": ({"data_exponent": "exponent", "floor": "floor"}, None),
    "autoregressive": ({"coefficient": "coefficient"}, None),
    "pink": ({"corner": "corner"}, None),
    "brown": ({"corner": "corner"}, None),
    "hum_free": ({"fundamental": "fundamental", "width": "width"}, None),
    "separable": ({"exponent": "left.exponent", "time_exponent": "right.exponent"}, None),
    "joint": ({"exponent": "exponent", "time_factor": "factors.frame"}, None),
    "progressive": ({"time_constant": "time_constant"}, None),
    "mixed": ({"strength": "right.strength"}, None),
    "velocity": ({"right": "velocity.width", "down": "velocity.height", "time_constant": "time_constant"}, None),
}


@lru_cache
def kind(name: str) -> Kind:
    """Return a kind by its name.

    Raises:
        KeyError: if there is none.
    """
    if name.startswith("space_by_"):
        other = kind("progressive" if name == "space_by_time" else "velocity")
        space = {"_target_": "multisagd.PowerLaw", "exponent": -0.5, "corner": None, "axes": ["height", "width"]}
        return Kind(
            f"A power law in space, times: {other.about[0].lower()}{other.about[1:]}",
            {"_target_": "multisagd.spectrum.Product", "left": space, "right": other.template},
            {"exponent": "left.exponent", "corner": "left.corner"}
            | {control: f"right.{key}" for control, key in other.controls.items()},
            axes=("height", "width"),
        )
    controls, radial = _KEYS[name]
    template = of_choice("spectrum", name)
    axes = tuple(template.get("axes") or ()) if radial is None else ()
    return Kind(summary("spectrum", name), template, controls, radial, axes)


def axes_choices(grid: Grid) -> tuple[str, ...]:
    """Return the choices of axes that a radius may be over, first the usual one."""
    if grid.dimensions == 1:
        return grid.names
    units = [[axis.name for axis in grid.axes if axis.unit == unit] for unit in {a.unit: 0 for a in grid.axes}]
    together = [", ".join(names) for names in units if len(names) > 1]
    mixed = [ALL] if len(units) > 1 else []
    # On a spectrogram, time comes last and is what most spectra are about.
    return (*together, *(grid.names if together else reversed(grid.names)), *mixed)


def control_range(control: Control, grid: Grid, axes: str) -> tuple[float, float, float, str]:
    """Return (low, high, step, unit) of a control on these axes."""
    if control.scale == "plain":
        return control.low, control.high, control.step, ""
    chosen = grid.select(axes_names(grid, axes))
    if control.scale == "frequency":
        factor = max(0.5 if axes == ALL else axis.nyquist for axis in chosen) * math.sqrt(len(chosen))
        unit = "cycles per sample" if axes == ALL else f"cycles per {chosen[0].unit}"
    else:
        factor, unit = (1.0, "samples") if axes == ALL else (chosen[0].spacing, chosen[0].unit)
    # Steps that one can read, no coarser than the control's own.
    step = 10 ** math.floor(math.log10(control.step * factor))
    return control.low * factor, math.floor(control.high * factor / step + 1e-9) * step, step, unit


def first_values(name: str, grid: Grid, axes: str) -> dict[str, float]:
    """Return the values that a kind's controls have when it is chosen, within range.

    They are those of its configuration, except where nothing could be seen of it.
    """
    chosen, values = kind(name), {}
    for control, keys in chosen.controls.items():
        low, high, _, _ = control_range(CONTROLS[control], grid, chosen.over(axes))
        place, key = at_key(chosen.template, keys.split()[0])
        standard = 60.0 if control == "floor" else 0.0  # null in the configuration
        value = standard if place[key] is None else float(place[key])
        if control == "high":
            value = high
        elif name == "power_law" and control == "exponent":
            value = -0.5  # that of the papers, -0.06, can hardly be seen
        elif control == "length":
            value = high / 8
        values[control] = min(max(value, low), high)
    return values


def axes_names(grid: Grid, axes: str) -> list[str]:
    """Return the names of the axes that a choice means."""
    return list(grid.names) if axes in ("", ALL) else axes.split(", ")


def at_key(group: Any, key: str) -> tuple[Any, str | int]:
    """Return the mapping or list that holds what a dotted key names, and its place there."""
    *parts, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in parts:
        group = group[part]
    return group, last
