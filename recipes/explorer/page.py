"""The page of `multisagd explore`: a tab per medium with its controls and outputs.

Every output is a function of the controls' values; only uploaded files and measurements of them are kept between
events. An invalid setting or an unreadable file is reported in one sentence on the page, and the other outputs stay
unchanged.
"""

import html
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from modalities.browser_media import data_url
from recipes.base.errors import RecipeError
from recipes.explorer import configuration
from recipes.explorer.configuration import CONTROLS, Settings, axes_choices, first_values, kind, slider, spectrum_group
from recipes.explorer.media import MEDIA, Example, Medium, Sizes, built_in, own_file
from recipes.explorer.process import SCHEDULES, TIMES, Pair, design_steps, recommend_noise
from recipes.explorer.rendering import charts_html, ending, listed, media_table, mistake, spectra_charts, steps_chart

INTRODUCTION = """# Explore noise shaped in frequency
Choose a spectrum and move the sliders: they filter the same white noise, drawn once from the seed. Nothing leaves this
computer; uploaded files are deleted when the explorer ends. `multisagd explore --help` explains the options."""
CSS = (files("recipes.explorer") / "page.css").read_text(encoding="utf-8")
PIECES = ("message", "now", "spectra", "forward")
"""Outputs of the page that are HTML, from top to bottom."""
KEPT = gr.skip()
"""Leaves an output unchanged."""
CHOICES = ("upload", "example", "written", "kind", "axes")
NUMBERS = ("band_low", "band_high", "band_weight", "offset", "schedule", "shift", "steps", "seed", "time")
BAND = ("band_low", "band_high")
"""The sliders of the optional band."""


class Panel:
    """The outputs of one tab, as functions of its controls' values in the order of `inputs`.

    `controls` are the names of the sliders of its kinds of spectra, `inputs` the names of all controls.
    """

    def __init__(self, medium: Medium, sizes: Sizes) -> None:
        self.medium, self.sizes = medium, sizes
        used = {name for offered in medium.kinds for name in kind(offered).controls}
        self.controls = tuple(name for name in CONTROLS if name in used)
        self.inputs = (*CHOICES, *self.controls, *NUMBERS)

    def named(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Return the values of the controls by name."""
        return dict(zip(self.inputs, values, strict=True))

    def read(self, values: tuple[Any, ...]) -> tuple[Example, Settings]:
        """Return the selected example and settings. Raises ValueError if a file cannot be used."""
        said = self.named(values)
        if said["upload"] is None:
            example = built_in(self.medium, said["example"], said["written"], self.sizes)
        else:
            example = own_file(self.medium, Path(said["upload"]), said["written"], self.sizes)
        return example, Settings(
            said["kind"], said["axes"], {name: said[name] for name in self.controls},
            (said["band_low"], said["band_high"]), said["band_weight"], said["offset"], said["schedule"],
            said["shift"], int(said["steps"]), said["time"], int(said["seed"] or 0),
        )  # fmt: skip

    def show(self, *values: Any) -> list[Any]:
        """Return the message, the noise, the spectra, the example over time, the final signal, YAML and command."""
        try:
            example, settings = self.read(values)
            group = spectrum_group(settings, example)
            pair = Pair.of(example, settings, group)
            title = f"the {self.medium.noun} at t = {settings.time:g}"
            now = [("the noise", pair.noise_media()), (title, pair.media_at(settings.time))]
            over_time = [(f"t = {time:g}", pair.media_at(time)) for time in TIMES]
            drowned = f"Where the noise curve is above the data, noise dominates at t = {settings.time:g}."
            return [
                "",
                f"<h3>Noise, and noisy data</h3>{media_table(now, example)}",
                f"<h3>Spectra</h3>{charts_html(spectra_charts(pair, settings.time))}"
                f"<p>{drowned} {html.escape(example.note)}</p>",
                f"<h3>The forward process</h3>{media_table(over_time, example)}",
                ending(pair),
                configuration.spectrum_yaml(group),
                configuration.train_command(settings, example),
            ]
        except (RecipeError, ValueError) as error:
            return [mistake(error), *[KEPT] * 6]

    def design(self, *values: Any) -> list[Any]:
        """Return the designed schedule, and the link that downloads everything."""
        try:
            example, settings = self.read(values)
            group = spectrum_group(settings, example)
            designed = design_steps(example, Pair.of(example, settings, group).processes["shaped"], settings.steps)
        except (RecipeError, ValueError) as error:
            return [mistake(error), KEPT]
        drawn = charts_html([steps_chart(designed, f"{self.medium.name}-schedule")])
        source = data_url("application/zip", configuration.archive(settings, example, group, designed.steps))
        link = (
            f'<a class="download" download="{configuration.FOLDER}.zip" href="{source}">Download '
            f"{configuration.FOLDER}.zip</a>: the spectrum, the command, and the designed steps for "
            "<code>multisagd sample steps_file=…</code>"
        )
        return [f"<h3>Steps designed from the spectrum</h3>{drawn}", link]

    def choose(self, *values: Any) -> list[Any]:
        """Return control updates for a newly chosen kind of spectrum, with its initial values."""
        return self._controls(self.named(values), dict.fromkeys(self.controls))

    def adapt(self, *values: Any) -> list[Any]:
        """Return control updates for newly chosen axes; controls keep their values where possible."""
        said = self.named(values)
        return self._controls(said, said)

    def recommend(self, *values: Any) -> list[Any]:
        """Return the reasons of a recommendation, its kind of spectrum, and the values of all its controls.

        A recommendation has no band and no offset: the last two values set these to 1 and 0.
        """
        try:
            example, settings = self.read(values)
            process = Pair.of(example, settings, {"_target_": "multisagd.Flat"}).processes["white"]
            advice = recommend_noise(example, process, settings.steps)
        except (RecipeError, ValueError) as error:
            return [mistake(error), *[KEPT] * (len(self.controls) + 7)]
        exponent = advice.chosen.exponent
        name = "data_power" if exponent else "white"
        recommendation = f"<h3>Recommended: {html.escape(advice.chosen.name)}</h3>{listed(advice.reasons)}"
        own = dict.fromkeys(self.controls) | {"data_exponent": exponent, "floor": 60.0}
        return [recommendation, name, *self._controls(self.named(values) | {"kind": name}, own), 1.0, 0.0]

    def _controls(self, said: dict[str, Any], own: dict[str, Any]) -> list[Any]:
        """Return updates of the description, the axes and every slider; a value None in `own` is the initial one."""
        chosen, grid = kind(said["kind"]), self.medium.modality(self.sizes, said["written"], 1).grid()
        choices = axes_choices(grid)
        axes = said["axes"] if said["axes"] in choices else choices[0]
        first = first_values(said["kind"], grid, axes)
        updates: list[Any] = [chosen.description, gr.update(choices=choices, value=axes, visible=len(choices) > 1)]
        for name in self.controls:
            value = own[name] if own[name] is not None and name in first else first.get(name)
            updates.append(gr.update(**slider(name, grid, chosen.over(axes), value), visible=name in first))
        return updates + [gr.update(**slider(name, grid, axes, said[name])) for name in BAND]


def build(sizes: Sizes) -> gr.Blocks:
    """Return the page, not yet served."""
    with gr.Blocks(title="multisagd explore", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        for place, (name, medium) in enumerate(MEDIA.items()):
            with gr.Tab(name.title(), id=name) as tab:
                panel = Panel(medium, sizes)
                with gr.Row():
                    with gr.Column(scale=1, min_width=320, elem_classes="controls"):
                        controls = _controls(panel)
                    with gr.Column(scale=3, min_width=320):
                        pieces = _pieces(name)
                start = _wire(panel, controls, pieces)
            # Rendering a tab takes a second, so a hidden tab is rendered when it is first opened.
            start(tab.select if place else page.load)
    return page


def _controls(panel: Panel) -> dict[str, Any]:
    """Create the controls of a tab: the inputs of its panel, and the recommendation."""
    medium = panel.medium
    written = tuple(medium.representations)
    modality = medium.modality(panel.sizes, written[0], 1)
    grid, axes = modality.grid(), axes_choices(modality.grid())
    controls: dict[str, Any] = {
        "upload": gr.File(label=f"your own {medium.noun}", file_types=list(modality.suffixes), height=140),
        "example": gr.Radio(list(medium.examples), value=next(iter(medium.examples)), label="or an example"),
        "written": gr.Radio(written, value=written[0], label="representation", visible=len(written) > 1),
        "kind": gr.Dropdown(medium.kinds, value=medium.first, label="spectrum", elem_id=f"{medium.name}-kind"),
        "description": gr.Markdown(),
        "axes": gr.Radio(axes, value=axes[0], label="axes of the radius, and of a band", visible=len(axes) > 1),
    }
    for name in panel.controls:
        controls[name] = gr.Slider(**slider(name, grid, axes[0]), elem_id=f"{medium.name}-{name}", visible=False)
    with gr.Accordion("a band, and an offset", open=False):
        for name in BAND:
            controls[name] = gr.Slider(**slider(name, grid, axes[0]), elem_id=f"{medium.name}-{name.replace('_', '-')}")
        controls["band_weight"] = gr.Slider(0.0, 10.0, 1.0, step=0.05, label="power in the band is multiplied by")
        controls["offset"] = gr.Slider(
            0.0, 3.0, 0.0, step=0.01, label="offset: standard deviation of a constant added to all values"
        )
    controls["time"] = gr.Slider(0.0, 1.0, 0.5, step=0.01, label="noise level t", elem_id=f"{medium.name}-time")
    with gr.Accordion("schedule, steps and seed", open=False):
        controls["schedule"] = gr.Dropdown(SCHEDULES, value="cosine", label="schedule")
        controls["shift"] = gr.Slider(0.1, 10.0, 1.0, step=0.05, label="shift (above 1: more noise)")
        controls["steps"] = gr.Slider(2, 50, 10, step=1, label="number of designed steps")
        controls["seed"] = gr.Number(0, precision=0, label="seed of the noise")
    controls["recommend"] = gr.Button("Recommend noise for these data")
    controls["advice"] = gr.HTML(elem_classes="explored", elem_id=f"{medium.name}-advice")
    return controls


def _pieces(name: str) -> dict[str, Any]:
    """Create the outputs of a tab."""

    def piece(part: str) -> gr.HTML:
        return gr.HTML(elem_classes="explored", elem_id=f"{name}-{part}")

    parts: dict[str, Any] = {part: piece(part) for part in PIECES}
    with gr.Row():
        for part in ("ending", "design"):
            with gr.Column(min_width=320):
                parts[part] = piece(part)
    gr.Markdown("### Export")
    label = f"{configuration.FOLDER}/spectrum/explored.yaml"
    parts["config"] = gr.Code(language="yaml", label=label, elem_id=f"{name}-config", lines=1)
    parts["command"] = gr.Code(language="shell", label="train with it", elem_id=f"{name}-command", lines=1)
    return parts | {"download": piece("download")}


def _wire(panel: Panel, controls: dict[str, Any], pieces: dict[str, Any]) -> Callable[[Any], None]:
    """Connect the controls to the panel, and return a function that renders it on a first event."""
    own = [controls[name] for name in panel.controls]
    ranges = [controls["description"], controls["axes"], *own, *(controls[name] for name in BAND)]
    shown = [pieces[part] for part in (*PIECES, "ending", "config", "command")]
    designed = [pieces[part] for part in ("design", "download")]
    inputs = [controls[name] for name in panel.inputs]
    shared: dict[str, Any] = {"inputs": inputs, "show_progress": "hidden", "api_visibility": "private"}
    showing: dict[str, Any] = {"outputs": shown, "concurrency_id": "show", **shared}
    designing: dict[str, Any] = {"outputs": designed, "concurrency_id": "design", **shared}

    def answer(event: Any) -> None:
        event.then(panel.show, **showing).then(panel.design, **designing)

    # A typed number outside a slider's range is clamped when the field loses focus, which is not an input event.
    sliders = [*own, *(controls[name] for name in (*BAND, "band_weight", "offset", "shift"))]
    dragged = [event for each in sliders for event in (each.input, each.release)]
    dragged += [controls["schedule"].input, controls["seed"].input]
    # While a slider is dragged, only the latest position is processed.
    last: dict[str, Any] = {"trigger_mode": "always_last"}
    gr.on([*dragged, controls["time"].input, controls["time"].release], panel.show, **last, **showing)
    gr.on([*dragged, controls["steps"].input, controls["steps"].release], panel.design, **last, **designing)
    answer(controls["kind"].input(panel.choose, outputs=ranges, **last, **shared))
    answer(gr.on([controls["axes"].input, controls["written"].input], panel.adapt, outputs=ranges, **last, **shared))
    changed = [controls["upload"].change, controls["example"].input]
    gr.on(changed, panel.show, **last, **showing).then(panel.design, **designing)
    recommending = [controls["advice"], controls["kind"], *ranges, controls["band_weight"], controls["offset"]]
    waiting = shared | {"show_progress": "full"}
    answer(controls["recommend"].click(panel.recommend, outputs=recommending, **waiting))
    return lambda event: answer(event(panel.choose, outputs=ranges, **shared))
