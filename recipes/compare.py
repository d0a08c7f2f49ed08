"""Compare samples with data along every axis: `multisagd compare …`, the same as `python -m recipes.compare …`.

For each axis of the grid: the mean absolute difference of neighbours (for a video's frames, how much moves), and the
power about the mean in bands of frequency. Each is a ratio of samples to data, beside the ratio of one half of the
data to the other (different examples), which says how much of it is chance. Samples and data are judged alike, as the
files that a person would look at: decoded and encoded again; and where data are padded, so are as many samples.
Left beside the samples: compare.json and compare.png, the profiles.

Errors, each in one message: no run there, samples of another shape, not finite or too few.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from modalities.base import Dataset, Modality, stack_masks
from modalities.reading import UnreadableFilesError
from multisagd import DataStatistics
from multisagd.seeds import derive
from recipes.engine import config as configuration
from recipes.engine.build import Builder
from recipes.engine.command import run_configured
from recipes.engine.config import Config
from recipes.engine.defaults import filled
from recipes.engine.errors import RecipeError
from recipes.engine.files import write_text
from recipes.engine.order import Order
from recipes.engine.runtime import EngineSettings, Runtime
from recipes.engine.settings import Group
from recipes.fidelity import find_or_draw, load_samples, real_data
from recipes.plotting.figures import draw_profiles
from recipes.profiles import describe

Described = dict[str, dict[str, Any]]
Batches = list[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class CompareSettings:
    """The keys of `configs/compare.yaml` that are not of `configs/sample.yaml`, and the run."""

    run_dir: Path
    samples: Path | None
    reference: int
    bands: int
    data: Group
    allow_targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.reference < 4 or self.bands < 1:
            raise ValueError(f"expected reference >= 4 and bands >= 1, got {self.reference} and {self.bands}")


def compare(config: Config) -> dict[str, Any]:
    """Compare samples with data as the configuration says; return what is also in compare.json.

    Raises:
        RecipeError: for the mistakes listed at the head of this file.
    """
    builder = Builder(tuple(config["allow_targets"]))
    own = {field.name for field in fields(CompareSettings)}
    settings = builder.settings(CompareSettings, {key: config[key] for key in own}, "")
    runtime = Runtime.start(builder.settings(EngineSettings, config["engine"], "engine"))
    train, _ = real_data(settings.run_dir, builder, settings.data)
    path = find_or_draw(settings.samples, config, runtime)
    if path is None:
        return {}
    x0, _ = load_samples(path, train)
    if len(x0) < 2:
        raise RecipeError(f"{path} holds one sample, and a power about the mean needs two: draw more with count=…")
    modality, grid = train.modality, train.modality.grid()
    seed = filled(configuration.read(settings.run_dir / "config.yaml"))["seed"]
    one, other = read_halves(train, settings.reference, seed)
    seen = [(as_files(modality, x0), padding_like([*one, *other], len(x0)))]

    real = [*one, *other]
    described = [describe(part, grid, settings.bands) for part in (seen, real, one, other)]
    result = {
        "samples": str(path),
        "counts": {"samples": len(x0), "data": sum(len(part) for part, _ in real)},
        "axes": {axis.name: compare_axis(axis.name, *described) for axis in grid.axes},
    }
    write_text(path.with_name("compare.json"), json.dumps(result, indent=1))
    powers = {name: DataStatistics.measure(part, grid).power for name, part in (("data", real), ("samples", seen))}
    draw_profiles(powers, grid, path.with_name("compare.png"))
    show(result)
    print(f"also in {path.with_name('compare.json')}, and drawn in {path.with_name('compare.png')}")
    return result


def read_halves(dataset: Dataset, count: int, seed: int) -> tuple[Batches, Batches]:
    """Read `count` examples, half of them from one half of a dataset and half from the other, augmented as in training.

    A small dataset gives the same examples several times, each time augmented anew.

    Raises:
        RecipeError: if it has fewer than two examples, or too many that cannot be read.
    """
    if len(dataset) < 2:
        raise RecipeError("the run was trained on one example: there is nothing to compare with")
    places = Order(len(dataset), derive(seed, "compare")).indices(0, len(dataset))
    middle = len(places) // 2
    return (
        read(dataset, places[:middle], count - count // 2, derive(seed, "compare", 0)),
        read(dataset, places[middle:], count // 2, derive(seed, "compare", 1)),
    )


def read(dataset: Dataset, places: Sequence[int], count: int, seed: int, size: int = 32) -> Batches:
    """Read `count` examples of these places, in turn, as the files that a person would look at."""
    batches: Batches = []
    try:
        for start in range(0, count, size):
            numbers = range(start, min(start + size, count))
            chosen = [places[number % len(places)] for number in numbers]
            batch = dataset.batch(chosen, [derive(seed, "augmentation", number) for number in numbers])
            batches.append((as_files(dataset.modality, batch.x0), batch.mask))
    except UnreadableFilesError as error:
        raise RecipeError(str(error)) from error
    return batches


def as_files(modality: Modality, x0: Tensor) -> Tensor:
    """Return data decoded and encoded again, `(count, channels, *grid)`."""
    return torch.stack([modality.encode(modality.decode(each)) for each in x0])


def padding_like(batches: Batches, count: int) -> Tensor | None:
    """Return masks for `count` samples, those of the data in turn; None if no data are padded."""
    each = [mask for x0, masks in batches for mask in ([None] * len(x0) if masks is None else masks)]
    masks = stack_masks(each, batches[0][0].shape[1:])
    return None if masks is None else masks[torch.arange(count) % len(masks)]


def compare_axis(name: str, samples: Described, data: Described, one: Described, other: Described) -> dict[str, Any]:
    """Return the ratios along one axis: samples to data, and `floor`, one half of the data to the other."""

    def ratio(above: float, below: float) -> float | None:
        return above / below if below else None

    rows = zip(*(each[name]["bands"] for each in (samples, data, one, other)), strict=True)
    return {
        "unit": data[name]["unit"],
        "difference": {
            "samples": samples[name]["difference"],
            "data": data[name]["difference"],
            "ratio": ratio(samples[name]["difference"], data[name]["difference"]),
            "floor": ratio(one[name]["difference"], other[name]["difference"]),
        },
        "bands": [
            {"low": b[0], "high": b[1], "ratio": ratio(a[2], b[2]), "floor": ratio(c[2], d[2])} for a, b, c, d in rows
        ],
    }


def show(result: dict[str, Any]) -> None:
    """Print the ratios as a table."""
    counts = result["counts"]
    table = Table(
        "axis", "what", "samples / data", "half / half of the data", box=box.SIMPLE,
        title=f"{counts['samples']} samples beside {counts['data']} examples",
    )  # fmt: skip
    for name, axis in result["axes"].items():
        difference = axis["difference"]
        table.add_row(name, "difference of neighbours", _text(difference["ratio"]), _text(difference["floor"]))
        for band in axis["bands"]:
            where = f"{band['low']:.3g}-{band['high']:.3g}" if band["high"] else "0"
            table.add_row("", f"power at {where} / {axis['unit']}", _text(band["ratio"]), _text(band["floor"]))
    Console().print(table)


def _text(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_configured("compare", arguments, compare)


if __name__ == "__main__":
    sys.exit(main())
