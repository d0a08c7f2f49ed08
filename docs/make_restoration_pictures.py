"""Train the recipes of restoration, and draw the picture and print the table of docs/tutorials/restoration.md.

python docs/make_restoration_pictures.py runs        # one seed; runs/image_inpaint_0 and so on are continued or reused
python docs/make_restoration_pictures.py runs 3      # the mean over three seeds
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean

import PIL.Image

from recipes.config import compose as configuration
from recipes.config.resolve import resolved
from recipes.evaluate import evaluate
from recipes.train import train

IMAGES = Path(__file__).parent / "images"
RECIPES = {"field_superresolve": ["sampler=dpm_solver"], "image_superresolve": [], "image_inpaint": []}
"""Each with its settings of sampling."""
WIDTH = 1000
"""Maximum width of a picture, in pixels."""


def scores(recipe: str, seed: int, runs: Path) -> dict[str, float]:
    """Train and evaluate a recipe, and return the values of its rows; the first seed draws the picture."""
    run_dir = runs / f"{recipe}_{seed}"
    words = [f"experiment={recipe}", f"run_dir={run_dir}", f"seed={seed}", "report=false"]
    train(resolved(configuration.load("train", words)))
    words = [f"run_dir={run_dir}", "metrics=[ensemble]", *RECIPES[recipe]]
    report = evaluate(configuration.load("evaluate", words))
    if seed == 0:
        reduce(Path(report["samples"]).with_name("evaluate_ensemble.png"), IMAGES / f"restoration_{recipe}.png")
    return {row["name"]: row["value"] for row in report["results"]["ensemble"]["rows"]}


def reduce(figure: Path, path: Path) -> None:
    """Write a figure as a small picture."""
    with PIL.Image.open(figure) as picture:
        drawn = picture.convert("RGB")
    drawn.thumbnail((WIDTH, WIDTH))
    drawn.quantize(128).save(path, optimize=True)


def table(recipe: str, found: list[dict[str, float]]) -> str:
    """Return the rows of a table: the means over seeds, and the range if there are several."""
    lines = [f"| {recipe} | |", "|---|---|"]
    for name in found[0]:
        values = [each[name] for each in found]
        extent = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
        lines.append(f"| {name} | {fmean(values):.3g}{extent} |")
    return "\n".join(lines)


if __name__ == "__main__":
    runs, seeds = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1
    tables = [table(recipe, [scores(recipe, seed, runs) for seed in range(seeds)]) for recipe in RECIPES]
    print("\n\n".join(tables))
