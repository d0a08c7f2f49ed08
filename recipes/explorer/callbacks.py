"""What the page answers: the values of its controls in, pieces of the page out.

A mistake in the settings or a file that cannot be read becomes one sentence on the page, and the rest stays as it was.
"""

from __future__ import annotations

import html
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from multisagd import Denoiser, terminal_snr
from recipes.base.errors import RecipeError
from recipes.explorer import design, export
from recipes.explorer.controls import CONTROLS, axes_choices, control_range, first_values, kind
from recipes.explorer.examples import Example, built_in, own_file
from recipes.explorer.media import Medium, Sizes
from recipes.explorer.process import TIMES, Pair, Settings, spectrum_group
from recipes.explorer.rendering import charts_html, media_table, spectra_charts, steps_chart
from recipes.plotting.media import address
from recipes.runs.assembly import process_notes

KEPT = gr.skip()
"""Leaves a piece of the page as it is."""
CHOICES = ("upload", "example", "written", "kind", "axes")
NUMBERS = ("band_low", "band_high", "band_weight", "offset", "schedule", "shift", "steps", "seed", "time")
BAND = {"band_low": "band from", "band_high": "band to"}
"""Labels of the sliders of the band that any kind may have."""


@dataclass(frozen=True)
class Panel:
    """The answers of one tab, each to the values of its controls in the order of `inputs`."""

    medium: Medium
    sizes: Sizes

    @cached_property
    def controls(self) -> tuple[str, ...]:
        """Names of the sliders that its kinds of spectra have."""
        used = {name for offered in self.medium.kinds for name in kind(offered).controls}
        return tuple(name for name in CONTROLS if name in used)

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of all controls; those of the sliders of a kind are apart from "band_low" and "band_high"."""
        return (*CHOICES, *self.controls, *NUMBERS)

    def named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Return the values of the controls by name."""
        return dict(zip(self.inputs, values, strict=True))

    def read(self, values: tuple[Any, ...]) -> tuple[Example, Settings]:
        """Return what the controls say: what is looked at, and the settings.

        Raises:
            ValueError: for a file that cannot be used.
        """
        said = self.named(values)
        if said["upload"] is None:
            example = built_in(self.medium, said["example"], said["written"], self.sizes)
        else:
            example = own_file(self.medium, Path(said["upload"]), said["written"], self.sizes)
        settings = Settings(
            said["kind"], said["axes"], {name: said[name] for name in self.controls},
            (said["band_low"], said["band_high"]), said["band_weight"], said["offset"], said["schedule"],
            said["shift"], int(said["steps"]), said["time"], int(said["seed"] or 0),
        )  # fmt: skip
        return example, settings

    def show(self, *values: Any) -> list[Any]:
        """Return message, noise and datum now, spectra, datum over time, signal at the end, configuration, command."""
        try:
            example, settings = self.read(values)
            group = spectrum_group(settings, example)
            pair = Pair.of(example, settings, group)
            title = f"the {self.medium.noun} at t = {settings.time:g}"
            now = [("the noise", pair.noise_media()), (title, pair.media_at(settings.time))]
            over_time = [(f"t = {time:g}", pair.media_at(time)) for time in TIMES]
            drowned = f"Where noise lies above the data it drowns them at t = {settings.time:g}."
            return [
                "",
                f"<h3>Noise, and data in it</h3>{media_table(now, example)}",
                f"<h3>Spectra</h3>{charts_html(spectra_charts(pair, settings.time))}"
                f"<p>{drowned} {html.escape(example.note)}</p>",
                f"<h3>The forward process</h3>{media_table(over_time, example)}",
                ending(pair),
                export.spectrum_yaml(group),
                export.command(settings, example),
            ]
        except (RecipeError, ValueError) as error:
            return [wrong(error), *[KEPT] * 6]

    def design(self, *values: Any) -> list[Any]:
        """Return the designed schedule, and the link that downloads everything."""
        try:
            example, settings = self.read(values)
            group = spectrum_group(settings, example)
            designed = design.design(example, Pair.of(example, settings, group).processes["shaped"], settings.steps)
        except (RecipeError, ValueError) as error:
            return [wrong(error), KEPT]
        drawn = charts_html([steps_chart(designed, f"{self.medium.name}-schedule")])
        source = address("application/zip", export.archive(settings, example, group, designed))
        link = (
            f'<a class="download" download="{export.FOLDER}.zip" href="{source}">Download '
            f"{export.FOLDER}.zip</a>: the spectrum, the command, and the designed steps for "
            "<code>multisagd sample steps_file=…</code>"
        )
        return [f"<h3>Steps designed from the spectrum</h3>{drawn}", link]

    def choose(self, *values: Any) -> list[Any]:
        """Return what a newly chosen kind of spectrum asks of the controls, at its own first values."""
        said = self.named(values)
        return self._controls(said, dict.fromkeys(self.controls))

    def adapt(self, *values: Any) -> list[Any]:
        """Return what other axes ask of the controls, which keep their values as far as they can."""
        said = self.named(values)
        return self._controls(said, said)

    def recommend(self, *values: Any) -> list[Any]:
        """Return the reasons of a recommendation, its kind of spectrum, and the values of all controls that make it up.

        What is recommended has no band of another weight and no offset: the last two set these to 1 and 0.
        """
        try:
            example, settings = self.read(values)
            process = Pair.of(example, settings, {"_target_": "multisagd.Flat"}).processes["white"]
            advice = design.recommended(example, process, settings.steps)
        except (RecipeError, ValueError) as error:
            return [wrong(error), *[KEPT] * (len(self.controls) + 7)]
        exponent = advice.chosen.exponent
        name = "data_power" if exponent else "white"
        told = f"<h3>Recommended: {html.escape(advice.chosen.name)}</h3>{listed(advice.reasons)}"
        own = dict.fromkeys(self.controls) | {"data_exponent": exponent, "floor": 60.0}
        return [told, name, *self._controls(self.named(values) | {"kind": name}, own), 1.0, 0.0]

    def _controls(self, said: dict[str, Any], own: dict[str, Any]) -> list[Any]:
        """Return the words about the kind, the choices of axes, and range and value of every slider.

        `own` are the values of the kind's sliders; None stands for the first.
        """
        chosen, grid = kind(said["kind"]), self.medium.modality(self.sizes, said["written"], 1).grid()
        choices = axes_choices(grid)
        axes = said["axes"] if said["axes"] in choices else choices[0]
        first = first_values(said["kind"], grid, axes)
        updates: list[Any] = [chosen.about, gr.update(choices=choices, value=axes, visible=len(choices) > 1)]
        for name in self.controls:
            label, limits = CONTROLS[name].label, control_range(CONTROLS[name], grid, chosen.over(axes))
            value = own[name] if own[name] is not None and name in first else first.get(name)
            updates.append(gr.update(**slider(label, limits, value), visible=name in first))
        limits = control_range(CONTROLS["high"], grid, axes)
        return updates + [gr.update(**slider(BAND[name], limits, said[name])) for name in BAND]


def slider(label: str, limits: tuple[float, float, float, str], value: float | None = None) -> dict[str, Any]:
    """Return what a slider is made of: a label with its unit, and a value within its limits, the lowest by default."""
    low, high, step, unit = limits
    value = low if value is None else min(max(value, low), high)
    label = f"{label} ({unit})" if unit else label
    return {"minimum": low, "maximum": high, "step": step, "value": value, "label": label}


def ending(pair: Pair) -> str:
    """Return what is left of the data at t = 1 by band, and what the library warns of."""
    statistics, process = pair.example.statistics, pair.processes["shaped"]
    notes = process_notes(process, Denoiser(torch.nn.Identity(), process, prediction="v"), statistics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it warns of is in the notes
        bands = terminal_snr(process, statistics)
    rows = "".join(
        f"<tr><td>{f'{band.low:.2f} to {band.high:.2f}' if band.high else 'zero'}</td><td>{band.snr:.2g}</td></tr>"
        for band in bands
    )
    head = "<tr><th>cycles per sample</th><th>signal over noise</th></tr>"
    return f"<h3>What is left at t = 1</h3><table>{head}{rows}</table>{listed(notes or ['nothing to warn of'])}"


def listed(texts: Sequence[str]) -> str:
    """Return texts as a list."""
    return f"<ul>{''.join(f'<li>{html.escape(text)}</li>' for text in texts)}</ul>"


def wrong(error: Exception) -> str:
    """Return a mistake as a piece of the page."""
    return f'<div class="wrong" role="alert">{html.escape(str(error))}</div>'
