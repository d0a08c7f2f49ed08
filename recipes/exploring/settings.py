"""What the controls of one page say, and the spectrum and the schedule that it means, as a configuration writes them.

The configuration comes first and the spectrum is built from it, so what is seen is what is exported.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from multisagd import Grid, Process, Schedule, SpectralCovariance, Spectrum
from recipes.engine.build import Builder
from recipes.engine.defaults import of_choice
from recipes.exploring.kinds import CONTROLS, Control, kind
from recipes.exploring.subjects import Subject

SCHEDULES = ("cosine", "linear", "sigmoid", "flow", "karras")
ALL = "all, in cycles per sample"
"""The choice of all axes where their units differ."""


@dataclass(frozen=True)
class Settings:
    """What the controls say; `values` are the numbers of the kind's own controls.

    `axes` is one of `axes_choices`. Noise power between the frequencies `band` is multiplied by `band_weight`, and
    `offset` is the standard deviation of a number that is added everywhere, in units of the noise without it.
    `time` is the noise level that is shown large, from 0 (data) to 1 (noise); `steps` is what steps are designed for.
    """

    kind: str = "white"
    axes: str = ""
    values: Mapping[str, float] = field(default_factory=dict)
    band: tuple[float, float] = (0.0, 0.0)
    band_weight: float = 1.0
    offset: float = 0.0
    schedule: str = "cosine"
    shift: float = 1.0
    steps: int = 10
    time: float = 0.5
    seed: int = 0


def axes_choices(grid: Grid) -> tuple[str, ...]:
    """Return the choices of axes that a radius may be over, first the usual one."""
    if grid.dimensions == 1:
        return grid.names
    units = [[axis.name for axis in grid.axes if axis.unit == unit] for unit in {a.unit: 0 for a in grid.axes}]
    together = [", ".join(names) for names in units if len(names) > 1]
    mixed = [ALL] if len(units) > 1 else []
    # On a spectrogram, time comes last and is what most spectra are about.
    return (*together, *reversed(grid.names), *mixed) if not together else (*together, *grid.names, *mixed)


def control_range(control: Control, grid: Grid, axes: str) -> tuple[float, float, float, str]:
    """Return (low, high, step, unit) of a control on these axes."""
    if control.scale == "plain":
        return control.low, control.high, control.step, ""
    chosen = grid.select(_names(grid, axes))
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
        low, high, _, _ = control_range(CONTROLS[control], grid, ", ".join(chosen.axes) or axes)
        found = _get(chosen.template, keys.split()[0])
        standard = 60.0 if control == "floor" else 0.0  # null in the configuration
        value = standard if found is None else float(found)
        if control == "high":
            value = high
        elif name == "power_law" and control == "exponent":
            value = -0.5  # that of the papers, -0.06, can hardly be seen
        elif control == "length":
            value = high / 8
        values[control] = min(max(value, low), high)
    return values


def spectrum_group(settings: Settings, subject: Subject) -> dict[str, Any]:
    """Return the spectrum as a group of the configuration.

    Raises:
        RecipeError: for numbers that make no spectrum.
    """
    chosen, grid = kind(settings.kind), subject.grid
    group: dict[str, Any] = copy.deepcopy(dict(chosen.template))
    for control, keys in chosen.controls.items():
        value: float | None = settings.values[control]
        if control == "corner" and not value:
            value = None
        for key in keys.split():
            _set(group, key, value)
    if settings.kind == "autoregressive":
        group["axis"] = _names(grid, settings.axes)[-1]
    if chosen.radial is not None:
        _set_axes(group if not chosen.radial else group[chosen.radial], grid, settings.axes)
    if settings.band_weight != 1 and settings.band[1] > 0:
        group = _product(group, _banded(settings, subject))
    if settings.offset > 0:
        # Spectra have no scale of their own: the offset is in units of this one's.
        scale = math.sqrt(float(grid.mean(build_spectrum(group, subject).power(grid))))
        group = _sum(group, {"_target_": "multisagd.Offset", "strength": settings.offset * scale, "axes": None})
    return group


def build_spectrum(group: Mapping[str, Any], subject: Subject) -> Spectrum:
    """Build the spectrum that a group of the configuration describes.

    Raises:
        RecipeError: if it makes none.
    """
    return Builder().build(group, Spectrum, "spectrum", statistics=subject.statistics)


def schedule_group(settings: Settings) -> dict[str, Any]:
    """Return the schedule as a group of the configuration."""
    return of_choice("schedule", settings.schedule) | {"shift": settings.shift}


def build_process(settings: Settings, subject: Subject, group: Mapping[str, Any]) -> Process:
    """Build the forward process with noise of the spectrum that `group` describes.

    Raises:
        RecipeError: if it makes none.
        ValueError: if the spectrum has no power on the grid.
    """
    schedule = Builder().build(schedule_group(settings), Schedule, "schedule")
    return Process(schedule, SpectralCovariance(build_spectrum(group, subject), subject.grid))


def _banded(settings: Settings, subject: Subject) -> dict[str, Any]:
    """Return 1 outside the band, and its weight inside.

    Raises:
        ValueError: if the grid has no frequency in the band.
    """
    band: dict[str, Any] = {"_target_": "multisagd.Band", "low": settings.band[0], "high": settings.band[1]}
    _set_axes(band, subject.grid, settings.axes)
    if not bool((build_spectrum(band, subject).power(subject.grid) > 0).any()):
        raise ValueError(f"no frequency lies between {settings.band[0]:g} and {settings.band[1]:g}: widen the band")
    outside = {"_target_": "multisagd.Outside", "inner": band}
    if settings.band_weight == 0:
        return outside
    return _sum(outside, _product({"_target_": "multisagd.Flat", "level": settings.band_weight}, band))


def _product(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "multisagd.spectrum.Product", "left": left, "right": right}


def _sum(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": "multisagd.spectrum.Sum", "left": left, "right": right}


def _names(grid: Grid, axes: str) -> list[str]:
    return list(grid.names) if axes in ("", ALL) else axes.split(", ")


def _set_axes(group: dict[str, Any], grid: Grid, axes: str) -> None:
    """Write the axes into the group of a radial spectrum."""
    names = _names(grid, axes)
    group["axes"] = None if len(names) == grid.dimensions else names
    group["factors"] = {axis.name: axis.spacing for axis in grid.axes} if axes == ALL else None


def _get(group: Any, key: str) -> Any:
    for part in key.split("."):
        group = group[int(part)] if part.isdigit() else group[part]
    return group


def _set(group: Any, key: str, value: Any) -> None:
    *parts, last = key.split(".")
    for part in parts:
        group = group[part]
    group[int(last) if last.isdigit() else last] = value
