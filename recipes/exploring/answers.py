"""What the page answers: the values of its controls in, pieces of the page out.

A mistake in the settings or a file that cannot be read becomes one sentence on the page, and the rest stays as it was.
"""

from __future__ import annotations

import html
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import torch

from multisagd import Denoiser, terminal_snr
from recipes.engine.data import process_notes
from recipes.engine.errors import RecipeError
from recipes.exploring import cells, designing, exporting, plots
from recipes.exploring.forward import TIMES, Pair
from recipes.exploring.kinds import CONTROLS, OFFERED, kind
from recipes.exploring.settings import Settings, axes_choices, control_range, first_values, spectrum_group
from recipes.exploring.subjects import Medium, Sizes, Subject, example, modality_of, own_file

NOUNS: dict[Medium, str] = {"image": "image", "sound": "sound", "video": "clip"}
"""What one datum of a medium is called."""

KEPT = gr.skip()
"""Leaves a piece of the page as it is."""


@dataclass(frozen=True)
class Panel:
    """The answers of one tab; `controls` are the names of the sliders that its kinds of spectra have."""

    medium: Medium
    sizes: Sizes
    controls: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        used = {name for offered in OFFERED[self.medium] for name in kind(offered).controls}
        object.__setattr__(self, "controls", tuple(name for name in CONTROLS if name in used))

    @property
    def suffixes(self) -> tuple[str, ...]:
        """Endings of the files that can be uploaded."""
        return modality_of(self.medium, "waveform", self.sizes, 1).suffixes

    def read(self, values: tuple[Any, ...]) -> tuple[Subject, Settings]:
        """Return what the values of the controls say, in the order in which the page lists them.

        Raises:
            ValueError: for a file that cannot be used.
        """
        upload, name, written, chosen, axes, *numbers = values
        own = dict(zip(self.controls, numbers, strict=False))
        low, high, weight, offset, schedule, shift, steps, seed, time = numbers[len(self.controls) :]
        if upload is None:
            subject = example(self.medium, name, written, self.sizes)
        else:
            subject = own_file(self.medium, Path(upload), written, self.sizes)
        settings = Settings(
            chosen, axes, own, (low, high), weight, offset, schedule, shift, int(steps), time, int(seed or 0)
        )
        return subject, settings

    def show(self, *values: Any) -> list[Any]:
        """Return message, noise and datum now, spectra, datum over time, signal at the end, configuration, command."""
        try:
            subject, settings = self.read(values)
            group = spectrum_group(settings, subject)
            pair = Pair.of(subject, settings, group)
            return [
                "",
                self._now(pair, settings),
                self._spectra(pair, settings),
                self._forward(pair),
                self._ending(pair),
                exporting.spectrum_yaml(group),
                exporting.command(settings, subject),
            ]
        except (RecipeError, ValueError) as error:
            return [wrong(error), *[KEPT] * 6]

    def design(self, *values: Any) -> list[Any]:
        """Return the designed schedule, and the link that downloads everything."""
        try:
            subject, settings = self.read(values)
            group = spectrum_group(settings, subject)
            designed = designing.design(subject, Pair.of(subject, settings, group).processes["shaped"], settings.steps)
        except (RecipeError, ValueError) as error:
            return [wrong(error), KEPT]
        drawn = plots.svg(
            lambda: plots.schedule_figure(designed), f"{self.medium}-schedule", "Log-SNR at every designed step"
        )
        source = cells.data_uri(exporting.archive(settings, subject, group, designed), "application/zip")
        link = (
            f'<a class="download" download="{exporting.FOLDER}.zip" href="{source}">Download '
            f"{exporting.FOLDER}.zip</a>: the spectrum, the command, and the designed steps for "
            "<code>multisagd sample steps_file=…</code>"
        )
        return [f"<h3>Steps designed from the spectrum</h3>{drawn}", link]

    def choose(self, *values: Any) -> list[Any]:
        """Return what a newly chosen kind of spectrum asks of the controls, at its own first values."""
        return self._controls(values, None)

    def adapt(self, *values: Any) -> list[Any]:
        """Return what other axes ask of the controls, which keep their values as far as they can."""
        return self._controls(values, dict(zip(self.controls, values[5:], strict=False)))

    def recommend(self, *values: Any) -> list[Any]:
        """Return the reasons of a recommendation, its kind of spectrum, and the values of all controls that make it up.

        What is recommended has no band of another weight and no offset: the last two set these to 1 and 0.
        """
        try:
            subject, settings = self.read(values)
            process = Pair.of(subject, settings, {"_target_": "multisagd.Flat"}).processes["white"]
            advice = designing.recommended(subject, process, settings.steps)
        except (RecipeError, ValueError) as error:
            return [wrong(error), *[KEPT] * (len(self.controls) + 7)]
        exponent = advice.chosen.exponent
        name = "data_power" if exponent else "white"
        reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in advice.reasons)
        told = f"<h3>Recommended: {html.escape(advice.chosen.name)}</h3><ul>{reasons}</ul>"
        chosen = (*values[:3], name, *values[4:])
        return [told, name, *self._controls(chosen, {"data_exponent": exponent, "floor": 60.0}), 1.0, 0.0]

    def _controls(self, values: tuple[Any, ...], kept: dict[str, float] | None) -> list[Any]:
        """Return the words about the kind, the choices of axes, and range and value of every slider."""
        _, _, written, name, axes, *numbers = values
        grid = modality_of(self.medium, written, self.sizes, 1).grid()
        choices = axes_choices(grid)
        axes = axes if axes in choices else choices[0]
        first = first_values(name, grid, axes)
        updates: list[Any] = [kind(name).about, gr.update(choices=choices, value=axes, visible=len(choices) > 1)]
        for control in self.controls:
            low, high, step, unit = control_range(CONTROLS[control], grid, ", ".join(kind(name).axes) or axes)
            value = first.get(control, low)
            if kept is not None and control in first:
                value = min(max(kept.get(control, value), low), high)
            updates.append(
                gr.update(
                    minimum=low, maximum=high, step=step, value=value, visible=control in first,
                    label=labelled(CONTROLS[control].label, unit),
                )
            )  # fmt: skip
        place = len(self.controls)
        low, high, step, unit = control_range(CONTROLS["high"], grid, axes)
        for label, value in zip(("band from", "band to"), numbers[place : place + 2], strict=True):
            value = min(max(value, low), high)
            updates.append(gr.update(minimum=low, maximum=high, step=step, value=value, label=labelled(label, unit)))
        return updates

    def _now(self, pair: Pair, settings: Settings) -> str:
        title = f"the {NOUNS[self.medium]} at t = {settings.time:g}"
        rows = [("the noise", pair.noise_media()), (title, pair.media_at(settings.time))]
        return f"<h3>Noise, and data in it</h3>{cells.table(rows, pair.subject)}"

    def _spectra(self, pair: Pair, settings: Settings) -> str:
        drawn = plots.svg(
            lambda: plots.spectra_figure(pair, settings.time),
            f"{self.medium}-spectra",
            "Power of data, white noise and shaped noise along every axis",
        )
        note = html.escape(pair.subject.note)
        about = f"<p>Where noise lies above the data it drowns them at t = {settings.time:g}. {note}</p>"
        return f"<h3>Spectra</h3>{drawn}{about}"

    def _forward(self, pair: Pair) -> str:
        rows = [(f"t = {time:g}", pair.media_at(time)) for time in TIMES]
        return f"<h3>The forward process</h3>{cells.table(rows, pair.subject)}"

    def _ending(self, pair: Pair) -> str:
        """Return what is left of the data at t = 1 by band, and what the library warns of."""
        statistics, process = pair.subject.statistics, pair.processes["shaped"]
        notes = process_notes(process, Denoiser(torch.nn.Identity(), process, prediction="v"), statistics)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of is in the notes
            bands = terminal_snr(process, statistics)
        rows = "".join(
            f"<tr><td>{f'{band.low:.2f} to {band.high:.2f}' if band.high else 'zero'}</td><td>{band.snr:.2g}</td></tr>"
            for band in bands
        )
        told = "".join(f"<li>{html.escape(note)}</li>" for note in notes) or "<li>nothing to warn of</li>"
        head = "<tr><th>cycles per sample</th><th>signal over noise</th></tr>"
        return f"<h3>What is left at t = 1</h3><table>{head}{rows}</table><ul>{told}</ul>"


def wrong(error: Exception) -> str:
    """Return a mistake as a piece of the page."""
    return f'<div class="wrong" role="alert">{html.escape(str(error))}</div>'


def labelled(label: str, unit: str) -> str:
    """Return a label with its unit."""
    return f"{label} ({unit})" if unit else label
