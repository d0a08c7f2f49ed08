"""What the controls of one page say: as a configuration, as a process, and as noise and data under it.

The configuration comes first and the spectrum is built from it, so what is seen is what is exported. White and shaped
noise are coloured from the same draw: what differs between two pictures is the spectrum.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from multisagd import Flat, Grid, Process, Schedule, SpectralCovariance, Spectrum, seeds
from recipes.config.build import Builder
from recipes.config.defaults import of_choice
from recipes.explorer.controls import ALL, at_key, axes_names, kind
from recipes.explorer.examples import Example

TIMES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Noise levels that are shown beside one another."""
SCHEDULES = ("cosine", "linear", "sigmoid", "flow", "karras")


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


def spectrum_group(settings: Settings, example: Example) -> dict[str, Any]:
    """Return the spectrum as a group of the configuration.

    Raises:
        RecipeError: for numbers that make no spectrum.
    """
    chosen, grid = kind(settings.kind), example.grid
    group: dict[str, Any] = copy.deepcopy(dict(chosen.template))
    for control, keys in chosen.controls.items():
        value = settings.values[control]
        for key in keys.split():
            place, last = at_key(group, key)
            place[last] = value if value or control != "corner" else None
    if settings.kind == "autoregressive":
        group["axis"] = axes_names(grid, settings.axes)[-1]
    if chosen.radial is not None:
        _set_axes(group if not chosen.radial else group[chosen.radial], grid, settings.axes)
    if settings.band_weight != 1 and settings.band[1] > 0:
        group = _combined("Product", group, _banded(settings, example))
    if settings.offset > 0:
        # Spectra have no scale of their own: the offset is in units of this one's.
        scale = math.sqrt(float(grid.mean(build_spectrum(group, example).power(grid))))
        group = _combined(
            "Sum", group, {"_target_": "multisagd.Offset", "strength": settings.offset * scale, "axes": None}
        )
    return group


def build_spectrum(group: Mapping[str, Any], example: Example) -> Spectrum:
    """Build the spectrum that a group of the configuration describes.

    Raises:
        RecipeError: if it makes none.
    """
    return Builder().build(group, Spectrum, "spectrum", statistics=example.statistics)


def build_process(settings: Settings, example: Example, group: Mapping[str, Any]) -> Process:
    """Build the forward process with noise of the spectrum that `group` describes.

    Raises:
        RecipeError: if it makes none.
        ValueError: if the spectrum has no power on the grid.
    """
    schedule_group = of_choice("schedule", settings.schedule)
    schedule = Builder().build(schedule_group | {"shift": settings.shift}, Schedule, "schedule")
    return Process(schedule, SpectralCovariance(build_spectrum(group, example), example.grid))


def _banded(settings: Settings, example: Example) -> dict[str, Any]:
    """Return 1 outside the band, and its weight inside.

    Raises:
        ValueError: if the grid has no frequency in the band.
    """
    band: dict[str, Any] = {"_target_": "multisagd.Band", "low": settings.band[0], "high": settings.band[1]}
    _set_axes(band, example.grid, settings.axes)
    if not bool((build_spectrum(band, example).power(example.grid) > 0).any()):
        raise ValueError(f"no frequency lies between {settings.band[0]:g} and {settings.band[1]:g}: widen the band")
    outside = {"_target_": "multisagd.Outside", "inner": band}
    if settings.band_weight == 0:
        return outside
    return _combined(
        "Sum", outside, _combined("Product", {"_target_": "multisagd.Flat", "level": settings.band_weight}, band)
    )


def _combined(how: str, left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    return {"_target_": f"multisagd.spectrum.{how}", "left": left, "right": right}


def _set_axes(group: dict[str, Any], grid: Grid, axes: str) -> None:
    """Write the axes into the group of a radial spectrum."""
    names = axes_names(grid, axes)
    group["axes"] = None if len(names) == grid.dimensions else names
    group["factors"] = {axis.name: axis.spacing for axis in grid.axes} if axes == ALL else None


@dataclass(frozen=True, eq=False)
class Pair:
    """One datum under two forward processes of the same schedule, and the noise of each, `(channels, *grid)`."""

    example: Example
    processes: Mapping[str, Process]
    noises: Mapping[str, Tensor]

    @classmethod
    def of(cls, example: Example, settings: Settings, group: Mapping[str, Any]) -> Pair:
        """Build the processes "white" and "shaped", and draw from `settings.seed`.

        Raises:
            RecipeError: if the settings make no process.
            ValueError: if the spectrum has no power on the grid.
        """
        shaped = build_process(settings, example, group)
        white = Process(shaped.schedule, SpectralCovariance(Flat(), example.grid))
        processes = {"white": white, "shaped": shaped}
        shape, drawn = (1, *example.x0.shape), [seeds.derive(settings.seed, "explore")]
        return cls(example, processes, {name: each.noise(shape, drawn)[0] for name, each in processes.items()})

    def noise_media(self) -> dict[str, Any]:
        """Return both noises as media, with the standard deviation of the data."""
        sigma, modality = self.example.statistics.sigma_data, self.example.modality
        return {name: modality.decode(sigma * noise) for name, noise in self.noises.items()}

    def noised(self, name: str, time: float) -> Tensor:
        """Return the datum at a time, in the range of data."""
        t = torch.tensor([time], dtype=torch.float64)
        return self.processes[name].in_range(self.example.x0[None], t, self.noises[name][None])[0]

    def media_at(self, time: float) -> dict[str, Any]:
        """Return the datum at a time under both processes, as media."""
        return {name: self.example.modality.decode(self.noised(name, time)) for name in self.processes}
