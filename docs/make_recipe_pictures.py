"""Draw samples of two recipes next to real data, docs/images/field_generate.png and video_predict.png.

python docs/make_recipe_pictures.py runs                  # trains the runs in this folder, or reuses them
python docs/make_recipe_pictures.py runs field_generate   # only this one
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import Tensor

from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.runs.model import open_model
from recipes.sample import sample
from recipes.sampling.held_out import HeldOut, read_held_out
from recipes.sampling.sample_files import TENSORS
from recipes.train import train

IMAGES = Path(__file__).parent / "images"
SHOWN = 6
FRAMES = (0, 3, 4, 6, 9, 12, 15)
"""Frames of the clips that are shown; the first four are known."""


def trained(recipe: str, runs: Path) -> Path:
    """Return the folder of a run of a recipe in its small size, trained as far as it is not."""
    run_dir = runs / recipe
    words = [f"experiment={recipe}", f"run_dir={run_dir}", "report=false"]
    train(resolved(configuration.load("train", words)))
    return run_dir


def drawn(run_dir: Path, *words: str) -> Tensor:
    """Return samples (count, channels, *grid), drawn as `multisagd sample` does."""
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", *words]), reuse=True)
    return load_file(out / TENSORS)["x0"]


def held_out(run_dir: Path, count: int) -> HeldOut:
    """Return held-out examples, those whose conditions `condition=held_out` uses."""
    builder = Builder()
    model = open_model(run_dir, builder)
    assembly = model.assembly(builder)
    return read_held_out(model, assembly, assembly.modality, count, 0, "condition")


def draw(rows: dict[str, Tensor], titles: list[str], path: Path) -> None:
    """Draw rows of pictures (columns, height, width), each with its name, on one scale."""
    columns = len(next(iter(rows.values())))
    figure = Figure(figsize=(1.25 * columns + 0.6, 1.3 * len(rows) + 0.2), layout="constrained")
    scale = float(torch.cat([each.flatten() for each in rows.values()]).abs().quantile(0.999))
    for line, (plots, (name, pictures)) in enumerate(
        zip(figure.subplots(len(rows), columns, squeeze=False), rows.items(), strict=True)
    ):
        for column, (plot, picture) in enumerate(zip(plots, pictures, strict=True)):
            plot.imshow(picture.numpy(), cmap="gray", vmin=-scale, vmax=scale)
            plot.set(xticks=[], yticks=[])
            plot.set_title(titles[column] if line == 0 and titles else "", fontsize="small")
        plots[0].set_ylabel(name)
    figure.savefig(path, dpi=90)


def fields(run_dir: Path) -> None:
    """Draw the picture of field_generate."""
    made = drawn(run_dir, f"count={SHOWN}", "steps=10", "calibration=256")
    rows = {"held out": held_out(run_dir, SHOWN).media.x0[:, 0], "samples": made[:, 0]}
    draw(rows, [], IMAGES / "field_generate.png")


def clips(run_dir: Path) -> None:
    """Draw the picture of video_predict."""
    true, made = held_out(run_dir, 1).media.x0, drawn(run_dir, "condition=held_out", "count=2", "members=2")
    shown = {"true clip": true[0, 0], "sample 1": made[0, 0], "sample 2": made[1, 0]}
    titles = [f"frame {frame}" + (", known" if frame < 4 else "") for frame in FRAMES]
    draw({name: clip[list(FRAMES)] for name, clip in shown.items()}, titles, IMAGES / "video_predict.png")


PICTURES: dict[str, Callable[[Path], None]] = {"field_generate": fields, "video_predict": clips}


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    for name in sys.argv[2:] or PICTURES:
        PICTURES[name](trained(name, runs))
