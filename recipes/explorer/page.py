"""The page of `multisagd explore`: one tab per medium, with its controls and outputs.

Every output is a function of the controls' values; only uploaded files and measurements of them are kept between
events. An invalid setting or an unreadable file is reported in one sentence on the page, and the other outputs stay
unchanged.
"""

import functools
import html
import threading
from abc import ABCMeta
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
Choose a spectrum and move the sliders: they change the filter that is applied to white noise, which is drawn once from
the seed. Nothing leaves this computer; uploaded files are deleted when the explorer ends. `multisagd explore --help`
explains the options."""
CSS = (files("recipes.explorer") / "page.css").read_text(encoding="utf-8")
HTML_OUTPUTS = ("message", "now", "spectra", "forward")
"""Outputs of the page that are HTML, from top to bottom."""
UNCHANGED = gr.skip()
"""Value that leaves an output unchanged."""
CHOICES = ("upload", "example", "representation", "kind", "axes")
NUMBERS = ("band_low", "band_high", "band_weight", "offset", "schedule", "shift", "steps", "seed", "time")
BAND = ("band_low", "band_high")
"""The sliders of the optional band."""


def _within_range(slider: gr.Slider, payload: float) -> float:
    return gr.Slider.preprocess(slider, min(max(payload, slider.minimum), slider.maximum))


# gradio would write a stub beside this file for a `class` statement.
Slider: type[gr.Slider] = ABCMeta.__new__(
    type(gr.Slider), "Slider", (gr.Slider,), {"is_template": True, "preprocess": _within_range}
)
"""A slider that limits a number while it is typed; gradio's own refuses it, and forgets the events that follow."""


class Computations:
    """Runs functions of the page, until `close` waits for those that are running and refuses all others.

    A thread that is still in PyTorch's code while the interpreter ends would abort the process.
    """

    def __init__(self) -> None:
        self._running, self._closed, self._changed = 0, False, threading.Condition()

    def counted(self, function: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        """Return the function, as one that `close` waits for."""

        @functools.wraps(function)
        def run(*values: Any) -> list[Any]:
            with self._changed:
                if self._closed:
                    raise gr.Error("The explorer is stopping.", print_exception=False)
                self._running += 1
            try:
                return function(*values)
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

        return run

    def close(self) -> None:
        """Wait for the running functions."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._running == 0)


class Panel:
    """The outputs of one tab, as functions of the values of its controls in the order of `inputs`.

    `controls` are the names of the sliders of its kinds of spectra, and `inputs` the names of all controls.
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
        """Return the selected example and settings. Raises ValueError if an uploaded file cannot be used."""
        named = self.named(values)
        if named["upload"] is None:
            example = built_in(self.medium, named["example"], named["representation"], self.sizes)
        else:
            example = own_file(self.medium, Path(named["upload"]), named["representation"], self.sizes)
        return example, Settings(
            named["kind"], named["axes"], {name: named[name] for name in self.controls},
            (named["band_low"], named["band_high"]), named["band_weight"], named["offset"], named["schedule"],
            named["shift"], int(named["steps"]), named["time"], int(named["seed"] or 0),
        )  # fmt: skip

    def show(self, *values: Any) -> list[Any]:
        """Return the outputs for changed values: message, noise, spectra, noisy data, final signal, YAML, command."""
        try:
            example, settings = self.read(values)
            group = spectrum_group(settings, example)
            pair = Pair.of(example, settings, group)
            title = f"the {self.medium.noun} at t = {settings.time:g}"
            now = [("the noise", pair.noise_media()), (title, pair.media_at(settings.time))]
            over_time = [(f"t = {time:g}", pair.media_at(time)) for time in TIMES]
            explanation = f"Where the curve of the noise is above the data's, noise dominates at t = {settings.time:g}."
            return [
                "",
                f"<h3>Noise, and noisy data</h3>{media_table(now, example)}",
                f"<h3>Spectra</h3>{charts_html(spectra_charts(pair, settings.time))}"
                f"<p>{explanation} {html.escape(example.note)}</p>",
                f"<h3>The forward process</h3>{media_table(over_time, example)}",
                ending(pair),
                configuration.spectrum_yaml(group),
                configuration.train_command(settings, example),
            ]
        except (RecipeError, ValueError) as error:
            return [mistake(error), *[UNCHANGED] * 6]

    def design(self, *values: Any) -> list[Any]:
        """Return a chart of the designed steps, and a link for downloading the exported files."""
        try:
            example, settings = self.read(values)
            group = spectrum_group(settings, example)
            designed = design_steps(example, Pair.of(example, settings, group).processes["shaped"], settings.steps)
        except (RecipeError, ValueError) as error:
            return [mistake(error), UNCHANGED]
        chart = charts_html([steps_chart(designed, f"{self.medium.name}-schedule")])
        source = data_url("application/zip", configuration.archive(settings, example, group, designed.steps))
        link = (
            f'<a class="download" download="{configuration.FOLDER}.zip" href="{source}">Download '
            f"{configuration.FOLDER}.zip</a>: the spectrum, the training command, and the designed steps for "
            "<code>multisagd sample sampler=dpm_solver steps_file=…</code>"
        )
        return [f"<h3>Steps designed from the spectrum</h3>{chart}", link]

    def choose(self, *values: Any) -> list[Any]:
        """Return updates of the controls for a newly selected kind of spectrum, with its initial values."""
        return self._controls(self.named(values), dict.fromkeys(self.controls))

    def adapt(self, *values: Any) -> list[Any]:
        """Return updates of the controls for newly selected axes; controls keep their values where possible."""
        named = self.named(values)
        return self._controls(named, named)

    def recommend(self, *values: Any) -> list[Any]:
        """Return the reasons for a recommendation, its kind of spectrum, and updates of all controls.

        A recommendation has no band and no offset: the last two values set the band's weight to 1 and the offset to 0.
        """
        try:
            example, settings = self.read(values)
            process = Pair.of(example, settings, {"_target_": "multisagd.Flat"}).processes["white"]
            advice = recommend_noise(example, process, settings.steps)
        except (RecipeError, ValueError) as error:
            return [mistake(error), *[UNCHANGED] * (len(self.controls) + 7)]
        exponent = advice.chosen.exponent
        name = "data_power" if exponent else "white"
        recommendation = f"<h3>Recommended: {html.escape(advice.chosen.name)}</h3>{listed(advice.reasons)}"
        new = dict.fromkeys(self.controls) | {"data_exponent": exponent, "floor": 60.0}
        return [recommendation, name, *self._controls(self.named(values) | {"kind": name}, new), 1.0, 0.0]

    def _controls(self, current: dict[str, Any], new: dict[str, Any]) -> list[Any]:
        """Return updates of the description, the axes and every slider, for the kind and axes in `current`.

        `new` are the sliders' new values; None means the initial value.
        """
        selected = kind(current["kind"])
        grid = self.medium.modality(self.sizes, current["representation"], 1).grid()
        choices = axes_choices(grid)
        axes = current["axes"] if current["axes"] in choices else choices[0]
        first = first_values(current["kind"], grid, axes)
        updates: list[Any] = [selected.description, gr.update(choices=choices, value=axes, visible=len(choices) > 1)]
        for name in self.controls:
            value = new[name] if new[name] is not None and name in first else first.get(name)
            updates.append(gr.update(**slider(name, grid, selected.over(axes), value), visible=name in first))
        return updates + [gr.update(**slider(name, grid, axes, current[name])) for name in BAND]


def build(sizes: Sizes, computations: Computations) -> gr.Blocks:
    """Build the page, without serving it; its functions are among `computations`."""
    with gr.Blocks(title="multisagd explore", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        for number, (name, medium) in enumerate(MEDIA.items()):
            with gr.Tab(name.title(), id=name) as tab:
                panel = Panel(medium, sizes)
                with gr.Row():
                    with gr.Column(scale=1, min_width=320, elem_classes="controls"):
                        controls = _controls(panel)
                    with gr.Column(scale=3, min_width=320):
                        outputs = _outputs(name)
                start = _connect(panel, controls, outputs, computations.counted)
            # Rendering a tab takes a second, so a hidden tab is rendered when it is opened.
            start(tab.select if number else page.load)
    return page


def _controls(panel: Panel) -> dict[str, Any]:
    """Create the controls of a tab: the inputs of its panel, and the button and text of the recommendation."""
    medium = panel.medium
    representations = tuple(medium.representations)
    modality = medium.modality(panel.sizes, representations[0], 1)
    grid, axes = modality.grid(), axes_choices(modality.grid())
    controls: dict[str, Any] = {
        "upload": gr.File(label=f"your own {medium.noun}", file_types=list(modality.suffixes), height=140),
        "example": gr.Radio(list(medium.examples), value=next(iter(medium.examples)), label="or an example"),
        "representation": gr.Radio(
            representations, value=representations[0], label="representation", visible=len(representations) > 1
        ),
        "kind": gr.Dropdown(medium.kinds, value=medium.first, label="spectrum", elem_id=f"{medium.name}-kind"),
        "description": gr.Markdown(),
        "axes": gr.Radio(
            axes, value=axes[0], label="axes of the radial frequency, and of a band", visible=len(axes) > 1
        ),
    }
    for name in panel.controls:
        controls[name] = Slider(**slider(name, grid, axes[0]), elem_id=f"{medium.name}-{name}", visible=False)
    with gr.Accordion("a band, and an offset", open=False):
        for name in BAND:
            controls[name] = Slider(**slider(name, grid, axes[0]), elem_id=f"{medium.name}-{name.replace('_', '-')}")
        controls["band_weight"] = Slider(0.0, 10.0, 1.0, step=0.05, label="power in the band is multiplied by")
        controls["offset"] = Slider(
            0.0, 3.0, 0.0, step=0.01, label="offset: standard deviation of a constant added to all values"
        )
    controls["time"] = Slider(0.0, 1.0, 0.5, step=0.01, label="noise level t", elem_id=f"{medium.name}-time")
    with gr.Accordion("schedule, steps and seed", open=False):
        controls["schedule"] = gr.Dropdown(SCHEDULES, value="cosine", label="schedule")
        controls["shift"] = Slider(0.1, 10.0, 1.0, step=0.05, label="shift (above 1: more noise)")
        controls["steps"] = Slider(2, 50, 10, step=1, label="number of designed steps")
        controls["seed"] = gr.Number(0, precision=0, label="seed of the noise")
    controls["recommend"] = gr.Button("Recommend noise for these data")
    controls["advice"] = gr.HTML(elem_classes="explored", elem_id=f"{medium.name}-advice")
    return controls


def _outputs(name: str) -> dict[str, Any]:
    """Create the outputs of a tab."""

    def html_output(part: str) -> gr.HTML:
        return gr.HTML(elem_classes="explored", elem_id=f"{name}-{part}")

    outputs: dict[str, Any] = {part: html_output(part) for part in HTML_OUTPUTS}
    with gr.Row():
        for part in ("ending", "design"):
            with gr.Column(min_width=320):
                outputs[part] = html_output(part)
    gr.Markdown("### Export")
    label = f"{configuration.FOLDER}/spectrum/explored.yaml"
    outputs["config"] = gr.Code(language="yaml", label=label, elem_id=f"{name}-config", lines=1)
    outputs["command"] = gr.Code(
        language="shell", label="command that trains with it", elem_id=f"{name}-command", lines=1
    )
    return outputs | {"download": html_output("download")}


def _connect(
    panel: Panel, controls: dict[str, Any], outputs: dict[str, Any], counted: Callable[[Any], Any]
) -> Callable[[Any], None]:
    """Connect the controls to the panel, and return a function that makes an event render the tab.

    `counted` is applied to every function of the panel.
    """
    own = [controls[name] for name in panel.controls]
    ranges = [controls["description"], controls["axes"], *own, *(controls[name] for name in BAND)]
    shown = [outputs[part] for part in (*HTML_OUTPUTS, "ending", "config", "command")]
    designed = [outputs[part] for part in ("design", "download")]
    inputs = [controls[name] for name in panel.inputs]
    functions = (panel.show, panel.design, panel.choose, panel.adapt, panel.recommend)
    show, design, choose, adapt, recommend = (counted(each) for each in functions)
    shared: dict[str, Any] = {"inputs": inputs, "show_progress": "hidden", "api_visibility": "private"}
    showing: dict[str, Any] = {"outputs": shown, "concurrency_id": "show", **shared}
    designing: dict[str, Any] = {"outputs": designed, "concurrency_id": "design", **shared}

    def render_after(event: Any) -> None:
        event.then(show, **showing).then(design, **designing)

    # Not `input`: a number typed beyond a slider's range is limited when its field loses focus, which is only a change.
    sliders = [*own, *(controls[name] for name in (*BAND, "band_weight", "offset", "shift"))]
    dragged = [each.change for each in sliders]
    dragged += [controls["schedule"].input, controls["seed"].input]
    # While a slider is dragged, only the latest position is processed.
    last: dict[str, Any] = {"trigger_mode": "always_last"}
    gr.on([*dragged, controls["time"].change], show, **last, **showing)
    gr.on([*dragged, controls["steps"].change], design, **last, **designing)
    render_after(controls["kind"].input(choose, outputs=ranges, **last, **shared))
    adapting = [controls["axes"].input, controls["representation"].input]
    render_after(gr.on(adapting, adapt, outputs=ranges, **last, **shared))
    changed = [controls["upload"].change, controls["example"].input]
    gr.on(changed, show, **last, **showing).then(design, **designing)
    recommending = [controls["advice"], controls["kind"], *ranges, controls["band_weight"], controls["offset"]]
    waiting = shared | {"show_progress": "full"}
    render_after(controls["recommend"].click(recommend, outputs=recommending, **waiting))
    return lambda event: render_after(event(choose, outputs=ranges, **shared))
