"""Convert the page's controls to a configuration: kinds of spectra, their sliders, and the export.

Most kinds are choices of `configs/spectrum`, and each slider sets a dotted key of the choice. Not offered are `rings`,
whose levels `multisagd design` writes, `omitting`, which depends on a corruption, and `data_channels` and
`per_channel`, which give every channel its own noise. For clips, there are also
products of a power law in space and a spectrum along time.
"""

import copy
import io
import math
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import yaml

from modalities.browser_media import file_content
from multisagd import Grid, Spectrum
from multisagd.analysis.design import DesignedSteps
from recipes.config.build import Builder
from recipes.config.groups import of_choice, summary
from recipes.explorer.media import Example

ALL = "all, in cycles per sample"
"""Label of the choice of all axes, if their units differ."""
FOLDER = "explored"
"""Name of the downloaded folder, for `--config-dir`."""


@dataclass(frozen=True)
class Control:
    """One slider.

    With the scale "frequency", values are fractions of the highest frequency along the axes; with "distance", they are
    in samples.
    """

    label: str
    low: float
    high: float
    step: float
    scale: Literal["plain", "frequency", "distance"] = "plain"


CONTROLS: dict[str, Control] = {
    "exponent": Control("exponent of the amplitude (below 0: more noise at low frequencies)", -2.0, 1.0, 0.01),
    "corner": Control("corner frequency (flat below it; 0: as the modality declares)", 0.0, 0.5, 0.002, "frequency"),
    "time_exponent": Control("exponent of the amplitude along time", -2.0, 1.0, 0.01),
    "low": Control("lowest frequency with noise", 0.0, 1.0, 0.005, "frequency"),
    "high": Control("highest frequency with noise", 0.0, 1.0, 0.005, "frequency"),
    "edge": Control("edge between the bands (1: the corner of the spectrum)", 0.02, 0.98, 0.01),
    "low_weight": Control("amplitude of the low band", 0.0, 1.0, 0.01),
    "high_weight": Control("amplitude of the high band", 0.0, 1.0, 0.01),
    "length": Control("length of the blur", 0.0, 8.0, 0.05, "distance"),
    "level": Control("power of the added white noise", 0.0, 1.0, 0.005),
    "rate": Control("rate of decay (below 0: more noise at high frequencies)", -20.0, 20.0, 0.1),
    "strength": Control("standard deviation of the shared component", 0.0, 3.0, 0.01),
    "data_exponent": Control("exponent of the data's power (0: white, 1: like the data)", -1.0, 1.0, 0.05),
    "floor": Control("minimum power, in decibels below the maximum", 10.0, 80.0, 1.0),
    "coefficient": Control("correlation of neighbours", -0.98, 0.98, 0.01),
    "time_constant": Control("time in which the noise changes (seconds)", 0.02, 4.0, 0.01),
    "time_factor": Control("cycles per pixel that correspond to one hertz", 0.005, 0.5, 0.005),
    "right": Control("pixels per second to the right", -32.0, 32.0, 0.5),
    "down": Control("pixels per second downwards", -32.0, 32.0, 0.5),
    "fundamental": Control("fundamental frequency (Hz)", 20.0, 400.0, 1.0),
    "width": Control("width of each stop band (Hz)", 1.0, 19.0, 0.5),
    "band_low": Control("band from", 0.0, 1.0, 0.005, "frequency"),
    "band_high": Control("band to", 0.0, 1.0, 0.005, "frequency"),
}
"""All controls by name, for the kinds of spectra and for the optional band."""


@dataclass(frozen=True)
class Kind:
    """One kind of spectrum: its configuration, and the dotted key that each control sets.

    If the axes can be chosen, `radial` is the key of the spectrum that has `axes` and `factors` ("" for the whole
    configuration). Otherwise it is None, and `axes` are the fixed axes, if any.
    """

    description: str
    template: Mapping[str, Any]
    controls: Mapping[str, str] = field(default_factory=dict)
    radial: str | None = None
    axes: tuple[str, ...] = ()

    def over(self, axes: str) -> str:
        """Return the axes that define the units of the controls: the fixed axes or, without any, `axes`."""
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
    """Return a kind by its name. Raises KeyError if it is unknown."""
    if name.startswith("space_by_"):
        other = kind("progressive" if name == "space_by_time" else "velocity")
        space = {"_target_": "multisagd.PowerLaw", "exponent": -0.5, "corner": None, "axes": ["height", "width"]}
        return Kind(
            f"A power law in space, times: {other.description[0].lower()}{other.description[1:]}",
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
    """Return the choices of axes for a radial spectrum, beginning with the most common choice."""
    if grid.dimensions == 1:
        return grid.names
    units = [[axis.name for axis in grid.axes if axis.unit == unit] for unit in {a.unit: 0 for a in grid.axes}]
    together = [", ".join(names) for names in units if len(names) > 1]
    mixed = [ALL] if len(units) > 1 else []
    # On a spectrogram, time is the last axis, and most spectra are defined along it.
    return (*together, *(grid.names if together else reversed(grid.names)), *mixed)


def slider(name: str, grid: Grid, axes: str, value: float | None = None) -> dict[str, Any]:
    """Return the arguments of a control's slider for these axes, with `value` clamped to its range.

    None means the minimum.
    """
    control = CONTROLS[name]
    low, high, step, unit = control.low, control.high, control.step, ""
    if control.scale != "plain":
        selected = grid.select(axes_names(grid, axes))
        if control.scale == "frequency":
            factor = max(0.5 if axes == ALL else axis.nyquist for axis in selected) * math.sqrt(len(selected))
            unit = " (cycles per sample)" if axes == ALL else f" (cycles per {selected[0].unit})"
        else:
            factor, unit = (1.0, " (samples)") if axes == ALL else (selected[0].spacing, f" ({selected[0].unit})")
        # Readable steps, no coarser than the control's own.
        step = 10 ** math.floor(math.log10(step * factor))
        low, high = low * factor, math.floor(high * factor / step + 1e-9) * step
    value = low if value is None else min(max(value, low), high)
    return {"minimum": low, "maximum": high, "step": step, "value": value, "label": f"{control.label}{unit}"}


def first_values(name: str, grid: Grid, axes: str) -> dict[str, float]:
    """Return the initial values of a kind's controls: from its configuration, or others if those are hardly visible."""
    selected, values = kind(name), {}
    for control, keys in selected.controls.items():
        highest = slider(control, grid, selected.over(axes))["maximum"]
        group, key = at_key(selected.template, keys.split()[0])
        if control == "high":
            value = highest
        elif control == "length":
            value = highest / 8
        elif name == "power_law" and control == "exponent":
            value = -0.5  # the published value, -0.06, is hardly visible
        elif group[key] is None:
            value = 60.0 if control == "floor" else 0.0
        else:
            value = float(group[key])
        values[control] = slider(control, grid, selected.over(axes), value)["value"]
    return values


def axes_names(grid: Grid, axes: str) -> list[str]:
    """Return the names of the axes in a choice of `axes_choices`."""
    return list(grid.names) if axes in ("", ALL) else axes.split(", ")


def at_key(group: Any, key: str) -> tuple[Any, str | int]:
    """Return the mapping or list that contains a dotted key, and the last part of the key."""
    *parts, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in parts:
        group = group[part]
    return group, last


@dataclass(frozen=True)
class Settings:
    """The values of all controls: `values` belong to the kind's own controls, `axes` is one of `axes_choices`.

    Noise power between the frequencies `band` is multiplied by `band_weight`. `offset` is the standard deviation of a
    constant that is added to all values, in units of the noise without it. `time` is the displayed noise level, from 0
    (data) to 1 (noise); `steps` is the number of designed steps.
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


def spectrum_group(settings: Settings, example: Example) -> dict[str, Any]:
    """Return the spectrum as a group of the configuration.

    Raises RecipeError if the settings are invalid, or ValueError if no frequency lies in the band.
    """
    selected, grid = kind(settings.kind), example.grid
    group: dict[str, Any] = copy.deepcopy(dict(selected.template))
    for control, keys in selected.controls.items():
        value = settings.values[control]
        for parent, last in (at_key(group, key) for key in keys.split()):
            parent[last] = value if value or control != "corner" else None
    if settings.kind == "autoregressive":
        group["axis"] = axes_names(grid, settings.axes)[-1]
    if selected.radial is not None:
        _set_axes(group if not selected.radial else group[selected.radial], grid, settings.axes)
    if settings.band_weight != 1 and settings.band[1] > 0:
        group = _combined("Product", group, _banded(settings, example))
    if settings.offset > 0:
        # The scale of a spectrum has no effect, so the offset is relative to the power of this spectrum.
        scale = math.sqrt(float(grid.mean(build_spectrum(group, example).power(grid))))
        offset = {"_target_": "multisagd.Offset", "strength": settings.offset * scale, "axes": None}
        group = _combined("Sum", group, offset)
    return group


def build_spectrum(group: Mapping[str, Any], example: Example) -> Spectrum:
    """Build the spectrum of a configuration group. Raises RecipeError if it is invalid."""
    return Builder().build(group, Spectrum, "spectrum", statistics=example.statistics)


def _banded(settings: Settings, example: Example) -> dict[str, Any]:
    """Return a spectrum that is 1 outside the band and equals the band's weight inside it."""
    low, high = settings.band
    band: dict[str, Any] = {"_target_": "multisagd.Band", "low": low, "high": high}
    _set_axes(band, example.grid, settings.axes)
    if not bool((build_spectrum(band, example).power(example.grid) > 0).any()):
        raise ValueError(f"no frequency lies between {low:g} and {high:g}: widen the band")
    outside = {"_target_": "multisagd.Outside", "inner": band}
    if settings.band_weight == 0:
        return outside
    level = {"_target_": "multisagd.Flat", "level": settings.band_weight}
    return _combined("Sum", outside, _combined("Product", level, band))


def _combined(operation: str, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Return the group of a combination of two spectra; the operation is Sum or Product."""
    return {"_target_": f"multisagd.spectrum.{operation}", "left": left, "right": right}


def _set_axes(group: dict[str, Any], grid: Grid, axes: str) -> None:
    """Set the axes in the group of a radial spectrum."""
    names = axes_names(grid, axes)
    group["axes"] = None if len(names) == grid.dimensions else names
    group["factors"] = {axis.name: axis.spacing for axis in grid.axes} if axes == ALL else None


def spectrum_yaml(group: Mapping[str, Any]) -> str:
    """Return the text of a file of the group `spectrum`, for use as `spectrum=explored` with `--config-dir`."""
    heading = f"# A spectrum chosen in `multisagd explore`. Example: --config-dir={FOLDER} spectrum=explored\n"
    return heading + yaml.safe_dump(dict(group), sort_keys=False, allow_unicode=True)


def train_words(settings: Settings, example: Example) -> list[str]:
    """Return the arguments of `multisagd train`: medium, data, spectrum, schedule and folders."""
    modality, data = example.choices
    keys: dict[str, Any] = {"modality": modality}
    keys |= {f"modality.{key}": value for key, value in example.medium.keys(example.modality).items()}
    keys |= {"data": data} if data else {"data": "folder", "data.root": example.medium.folder}
    keys |= {"spectrum": "explored", "schedule": settings.schedule}
    if settings.shift != 1:
        keys["schedule.shift"] = float(settings.shift)
    if settings.schedule == "karras":
        keys["denoiser"] = "karras"
    keys["run_dir"] = f"runs/{FOLDER}"
    words = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in keys.items()]
    return [f"--config-dir={FOLDER}", *words]


def train_command(settings: Settings, example: Example) -> str:
    """Return the shell command that trains with these settings, with continuation lines."""
    line = " ".join(["multisagd train", *train_words(settings, example)])
    return " \\\n  ".join(textwrap.wrap(line, 88, break_long_words=False, break_on_hyphens=False))


def archive(settings: Settings, example: Example, group: Mapping[str, Any], steps: DesignedSteps) -> bytes:
    """Return a ZIP file with the folder `FOLDER`: the spectrum, the training command, and the designed steps."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(f"{FOLDER}/spectrum/explored.yaml", spectrum_yaml(group))
        zipped.writestr(f"{FOLDER}/train.sh", f"{train_command(settings, example)}\n")
        zipped.writestr(f"{FOLDER}/steps.json", file_content("steps.json", steps.save))
    return file.getvalue()
