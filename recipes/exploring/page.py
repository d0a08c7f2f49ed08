"""The page of `multisagd explore`: a tab for each medium with its controls, and what they are answered with.

Every answer is a pure function of the controls' values (`answers.py`); nothing is kept between them but uploaded files
and what was measured on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from recipes.exploring.answers import NOUNS, Panel, labelled
from recipes.exploring.kinds import CONTROLS, OFFERED
from recipes.exploring.settings import SCHEDULES, axes_choices, control_range
from recipes.exploring.subjects import EXAMPLES, Medium, Sizes, modality_of

INTRODUCTION = """# Explore noise shaped in frequency
Choose a spectrum and drag: the same white noise, drawn once from the seed, is filtered by it. Nothing leaves this
computer; uploaded files are deleted when the explorer ends. `multisagd explore --help` says more."""

TITLES: dict[Medium, str] = {"image": "Image", "sound": "Sound", "video": "Video"}
FIRST: dict[Medium, str] = {"image": "power_law", "sound": "pink", "video": "space_by_time"}
"""The kind of spectrum that a tab begins with."""

CSS = """
.explored figure { margin: 0; min-width: 0; }
.explored figcaption { font-size: 0.8em; opacity: 0.8; text-align: center; }
.explored h4 { font-size: 0.9em; margin: 0 0 0.2em; }
.explored img, .explored video { width: 100%; display: block; border-radius: 3px; }
.explored .image img, .explored .video video { image-rendering: pixelated; aspect-ratio: 1; }
.explored .sound img { height: 6em; image-rendering: auto; }
.explored audio { width: 100%; height: 2.2em; }
.explored .pair { display: grid; grid-template-columns: 1fr 1fr; gap: 0.4em; }
.explored .groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(15em, 1fr)); gap: 1em; }
.explored .sound.groups { grid-template-columns: repeat(auto-fill, minmax(20em, 1fr)); }
.explored .curves { overflow-x: auto; }
.explored svg { max-width: 100%; min-width: 24em; height: auto; }
.explored table { border-collapse: collapse; font-size: 0.9em; }
.explored td, .explored th { padding: 0.15em 0.8em 0.15em 0; text-align: right; }
.explored .wrong { border-left: 4px solid #d1495b; padding: 0.5em 0.8em; }
@media (min-width: 800px) { .controls { position: sticky; top: 0; max-height: 100vh; overflow-y: auto; } }
.explored .download { display: inline-block; margin: 0.4em 0; }
"""


def build(sizes: Sizes) -> gr.Blocks:
    """Return the page, not yet served."""
    with gr.Blocks(title="multisagd explore", analytics_enabled=False) as page:
        gr.Markdown(INTRODUCTION)
        for medium, title in TITLES.items():
            with gr.Tab(title, id=medium) as tab:
                start = _panel(Panel(medium, sizes))
            # A hidden tab shows nothing, and what it would show takes a second: it is made when it is first looked at.
            start(page.load if medium == "image" else tab.select)
    return page


def _panel(panel: Panel) -> Callable[[Any], None]:
    """Lay out one medium's controls and answers, and return what makes it answer at an event for the first time."""
    medium, kinds = panel.medium, OFFERED[panel.medium]
    grid = modality_of(medium, "waveform", panel.sizes, 1).grid()
    axes = axes_choices(grid)
    with gr.Row():
        with gr.Column(scale=1, min_width=320, elem_classes="controls"):
            upload = gr.File(label=f"your own {NOUNS[medium]}", file_types=list(panel.suffixes), height=140)
            example = gr.Radio(EXAMPLES[medium], value=EXAMPLES[medium][0], label="or an example")
            written = gr.Radio(
                ("waveform", "spectrogram"), value="waveform", label="written as", visible=medium == "sound"
            )
            kind = gr.Dropdown(kinds, value=FIRST[medium], label="spectrum", elem_id=f"{medium}-kind")
            about = gr.Markdown()
            axis = gr.Radio(axes, value=axes[0], label="axes of the radius, and of a band", visible=len(axes) > 1)
            own = {
                name: _slider(control.label, control_range(control, grid, axes[0]), f"{medium}-{name}")
                for name, control in CONTROLS.items()
                if name in panel.controls
            }
            with gr.Accordion("a band, and an offset", open=False):
                whole = control_range(CONTROLS["high"], grid, axes[0])
                low = _slider("band from", whole, f"{medium}-band-low", visible=True)
                high = _slider("band to", whole, f"{medium}-band-high", visible=True)
                weight = gr.Slider(0.0, 10.0, 1.0, step=0.05, label="power in the band is multiplied by")
                offset = gr.Slider(0.0, 3.0, 0.0, step=0.01, label="offset: deviation of a number added everywhere")
            time = gr.Slider(0.0, 1.0, 0.5, step=0.01, label="noise level t", elem_id=f"{medium}-time")
            with gr.Accordion("schedule, steps and seed", open=False):
                schedule = gr.Dropdown(SCHEDULES, value="cosine", label="schedule")
                shift = gr.Slider(0.1, 10.0, 1.0, step=0.05, label="shift (above 1: more noise)")
                steps = gr.Slider(2, 50, 10, step=1, label="steps that are designed")
                seed = gr.Number(0, precision=0, label="seed of the noise")
            recommend = gr.Button("Recommend noise for these data")
            advice = gr.HTML(elem_classes="explored", elem_id=f"{medium}-advice")
        with gr.Column(scale=3, min_width=320):
            message = gr.HTML(elem_classes="explored", elem_id=f"{medium}-message")
            now = gr.HTML(elem_classes="explored", elem_id=f"{medium}-now")
            spectra = gr.HTML(elem_classes="explored", elem_id=f"{medium}-spectra")
            forward = gr.HTML(elem_classes="explored", elem_id=f"{medium}-forward")
            with gr.Row():
                with gr.Column(min_width=320):
                    ending = gr.HTML(elem_classes="explored", elem_id=f"{medium}-ending")
                with gr.Column(min_width=320):
                    design = gr.HTML(elem_classes="explored", elem_id=f"{medium}-design")
            gr.Markdown("### Export")
            config = gr.Code(
                language="yaml", label="explored/spectrum/explored.yaml", elem_id=f"{medium}-config", lines=1
            )
            command = gr.Code(language="shell", label="train with it", elem_id=f"{medium}-command", lines=1)
            download = gr.HTML(elem_classes="explored", elem_id=f"{medium}-download")

    values = [upload, example, written, kind, axis, *own.values()]
    values += [low, high, weight, offset, schedule, shift, steps, seed, time]
    ranges = [about, axis, *own.values(), low, high]
    shown = [message, now, spectra, forward, ending, config, command]
    shared: dict[str, Any] = {"inputs": values, "show_progress": "hidden", "api_visibility": "private"}
    showing: dict[str, Any] = {"outputs": shown, "concurrency_id": "show", **shared}
    designing: dict[str, Any] = {"outputs": [design, download], "concurrency_id": "design", **shared}

    def answer(event: Any) -> None:
        event.then(panel.show, **showing).then(panel.design, **designing)

    # A number that is typed beyond a slider's range is brought into it when one leaves its field, which is no input.
    sliders: list[Any] = [*own.values(), low, high, weight, offset, shift]
    dragged = [event for each in sliders for event in (each.input, each.release)]
    dragged += [schedule.input, seed.input]
    # While one drags, only the last of the positions that came in meanwhile is answered.
    last: dict[str, Any] = {"trigger_mode": "always_last"}
    gr.on([*dragged, time.input, time.release], panel.show, **last, **showing)
    gr.on([*dragged, steps.input, steps.release], panel.design, **last, **designing)
    answer(kind.input(panel.choose, outputs=ranges, **last, **shared))
    answer(gr.on([axis.input, written.input], panel.adapt, outputs=ranges, **last, **shared))
    gr.on([upload.change, example.input], panel.show, **last, **showing).then(panel.design, **designing)
    recommending: list[Any] = [advice, kind, *ranges, weight, offset]
    answer(recommend.click(panel.recommend, outputs=recommending, **(shared | {"show_progress": "full"})))
    return lambda event: answer(event(panel.choose, outputs=ranges, **shared))


def _slider(label: str, limits: tuple[float, float, float, str], name: str, visible: bool = False) -> gr.Slider:
    low, high, step, unit = limits
    return gr.Slider(low, high, low, step=step, label=labelled(label, unit), elem_id=name, visible=visible)
