"""The page of `multisagd explore`: a tab for each medium with its controls, and what they are answered with.

Every answer is a pure function of the controls' values (`callbacks.py`); nothing is kept between them but uploaded
files and what was measured on them.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Any

import gradio as gr

from recipes.explorer.callbacks import BAND, Panel, slider
from recipes.explorer.controls import CONTROLS, axes_choices, control_range
from recipes.explorer.media import MEDIA, Sizes
from recipes.explorer.process import SCHEDULES

INTRODUCTION = """# Explore noise shaped in frequency
Choose a spectrum and drag: the same white noise, drawn once from the seed, is filtered by it. Nothing leaves this
computer; uploaded files are deleted when the explorer ends. `multisagd explore --help` says more."""

CSS = (files("recipes.explorer") / "page.css").read_text(encoding="utf-8")

PIECES = ("message", "now", "spectra", "forward")
"""Pieces of the page that are answered with HTML, from its top."""


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
            # A hidden tab shows nothing, and what it would show takes a second: it is made when it is first looked at.
            start(tab.select if place else page.load)
    return page


def _controls(panel: Panel) -> dict[str, Any]:
    """Lay out the controls of a tab: the inputs of its panel, and what it recommends."""
    medium = panel.medium
    written = tuple(medium.representations)
    modality = medium.modality(panel.sizes, written[0], 1)
    grid, axes = modality.grid(), axes_choices(modality.grid())
    whole = control_range(CONTROLS["high"], grid, axes[0])
    found: dict[str, Any] = {
        "upload": gr.File(label=f"your own {medium.noun}", file_types=list(modality.suffixes), height=140),
        "example": gr.Radio(list(medium.examples), value=next(iter(medium.examples)), label="or an example"),
        "written": gr.Radio(written, value=written[0], label="written as", visible=len(written) > 1),
        "kind": gr.Dropdown(medium.kinds, value=medium.first, label="spectrum", elem_id=f"{medium.name}-kind"),
        "about": gr.Markdown(),
        "axes": gr.Radio(axes, value=axes[0], label="axes of the radius, and of a band", visible=len(axes) > 1),
    }
    for name in panel.controls:
        made = slider(CONTROLS[name].label, control_range(CONTROLS[name], grid, axes[0]))
        found[name] = gr.Slider(**made, elem_id=f"{medium.name}-{name}", visible=False)
    with gr.Accordion("a band, and an offset", open=False):
        for name, label in BAND.items():
            found[name] = gr.Slider(**slider(label, whole), elem_id=f"{medium.name}-{name.replace('_', '-')}")
        found["band_weight"] = gr.Slider(0.0, 10.0, 1.0, step=0.05, label="power in the band is multiplied by")
        found["offset"] = gr.Slider(0.0, 3.0, 0.0, step=0.01, label="offset: deviation of a number added everywhere")
    found["time"] = gr.Slider(0.0, 1.0, 0.5, step=0.01, label="noise level t", elem_id=f"{medium.name}-time")
    with gr.Accordion("schedule, steps and seed", open=False):
        found["schedule"] = gr.Dropdown(SCHEDULES, value="cosine", label="schedule")
        found["shift"] = gr.Slider(0.1, 10.0, 1.0, step=0.05, label="shift (above 1: more noise)")
        found["steps"] = gr.Slider(2, 50, 10, step=1, label="steps that are designed")
        found["seed"] = gr.Number(0, precision=0, label="seed of the noise")
    found["recommend"] = gr.Button("Recommend noise for these data")
    found["advice"] = gr.HTML(elem_classes="explored", elem_id=f"{medium.name}-advice")
    return found


def _pieces(name: str) -> dict[str, Any]:
    """Lay out what a tab answers with."""

    def piece(part: str) -> gr.HTML:
        return gr.HTML(elem_classes="explored", elem_id=f"{name}-{part}")

    found: dict[str, Any] = {part: piece(part) for part in PIECES}
    with gr.Row():
        for part in ("ending", "design"):
            with gr.Column(min_width=320):
                found[part] = piece(part)
    gr.Markdown("### Export")
    for part, language, label in (
        ("config", "yaml", "explored/spectrum/explored.yaml"),
        ("command", "shell", "train with it"),
    ):
        found[part] = gr.Code(language=language, label=label, elem_id=f"{name}-{part}", lines=1)  # type: ignore[arg-type]
    return found | {"download": piece("download")}


def _wire(panel: Panel, controls: dict[str, Any], pieces: dict[str, Any]) -> Callable[[Any], None]:
    """Let the panel answer the controls, and return what makes it answer an event for the first time."""
    own = [controls[name] for name in panel.controls]
    ranges = [controls["about"], controls["axes"], *own, *(controls[name] for name in BAND)]
    shown = [pieces[part] for part in (*PIECES, "ending", "config", "command")]
    inputs = [controls[name] for name in panel.inputs]
    shared: dict[str, Any] = {"inputs": inputs, "show_progress": "hidden", "api_visibility": "private"}
    showing: dict[str, Any] = {"outputs": shown, "concurrency_id": "show", **shared}
    designing: dict[str, Any] = {
        "outputs": [pieces["design"], pieces["download"]], "concurrency_id": "design", **shared
    }  # fmt: skip

    def answer(event: Any) -> None:
        event.then(panel.show, **showing).then(panel.design, **designing)

    # A number that is typed beyond a slider's range is brought into it when one leaves its field, which is no input.
    sliders = [*own, *(controls[name] for name in (*BAND, "band_weight", "offset", "shift"))]
    dragged = [event for each in sliders for event in (each.input, each.release)]
    dragged += [controls["schedule"].input, controls["seed"].input]
    time, steps = controls["time"], controls["steps"]
    # While one drags, only the last of the positions that came in meanwhile is answered.
    last: dict[str, Any] = {"trigger_mode": "always_last"}
    gr.on([*dragged, time.input, time.release], panel.show, **last, **showing)
    gr.on([*dragged, steps.input, steps.release], panel.design, **last, **designing)
    answer(controls["kind"].input(panel.choose, outputs=ranges, **last, **shared))
    adapted = gr.on([controls["axes"].input, controls["written"].input], panel.adapt, outputs=ranges, **last, **shared)
    answer(adapted)
    changed = [controls["upload"].change, controls["example"].input]
    gr.on(changed, panel.show, **last, **showing).then(panel.design, **designing)
    recommending = [controls["advice"], controls["kind"], *ranges, controls["band_weight"], controls["offset"]]
    recommended = controls["recommend"].click
    answer(recommended(panel.recommend, outputs=recommending, **(shared | {"show_progress": "full"})))
    return lambda event: answer(event(panel.choose, outputs=ranges, **shared))
