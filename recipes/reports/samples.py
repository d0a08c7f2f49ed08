"""What a run has drawn: pictures while it trained, and the sets that `multisagd sample` and `evaluate` left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from multisagd import DataStatistics
from recipes.base.quoting import setting
from recipes.base.untrusted import inside, read_header, read_rows
from recipes.reports.blocks import Block, Facts, Frame, Gallery, Item, Note, Slider
from recipes.reports.defaults import shown
from recipes.reports.media import Budget, item
from recipes.reports.run import MALFORMED, Run, own_json, shortened
from recipes.runs.metrics import inner, number
from recipes.sampling.sample_files import FOLDER

MOST = 1000
"""Samples of a set whose spectrum is measured."""

MOST_NUMBERS = 1 << 25
"""Numbers in them all."""

MADE_BY = ("steps", "seed", "count", "labels", "weights", "spacing", "guidance")
"""Settings of sampling that are told."""


@dataclass(frozen=True)
class SampleSet:
    """A folder of samples: `made` is how, as `multisagd sample` noted it."""

    folder: Path
    made: dict[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What to call it."""
        seen = number(self.made.get("samples_seen"))
        told = f"after {seen:,.0f} samples seen, " if seen == seen else ""
        return f"{told}{self.sampler or self.folder.name}"

    @property
    def sampler(self) -> str:
        """The sampler and its steps, an empty text if nothing says which."""
        settings = inner(self.made, "settings")
        name = str(inner(settings, "sampler").get("_target_", "")).rsplit(".", 1)[-1]
        return f"{name} in {settings.get('steps')} steps" if name else ""

    def read(self, statistics: DataStatistics, most: int = MOST) -> Tensor:
        """Return its first samples as tensors, `(count, channels, *grid)`.

        Raises:
            ValueError: if they are not of the data's shape, or not finite.
        """
        path = self.folder / "samples.safetensors"
        shape = read_header(path)["x0"].shape
        if shape[1:] != tuple(statistics.mean.shape) or not shape[0]:
            raise ValueError(f"{path} holds samples of shape {shape}, the data have {tuple(statistics.mean.shape)}")
        x0 = read_rows(path, "x0", max(2, min(most, MOST_NUMBERS // statistics.mean.numel()))).float()
        if not bool(x0.isfinite().all()):
            raise ValueError(f"some samples in {path} are not finite: sample again with more steps")
        return x0

    def names(self, classes: Sequence[str] | None, count: int) -> list[str]:
        """Return what each of its first samples was asked to be, an empty text where that is not known."""
        prompts = self.made.get("prompts")
        if isinstance(prompts, list):
            return [str(each) for each in prompts[:count]]
        try:
            labels = read_rows(self.folder / "samples.safetensors", "labels", count).tolist()
            return [(classes or ())[label] for label in labels]
        except MALFORMED:
            return []


def sample_sets(run: Run) -> list[SampleSet]:
    """Return the sets in a run's folder `sampled`, the newest first."""
    root = run.folder / "sampled"
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        samples = folder / "samples.safetensors"
        if samples.is_file() and inside(samples, run.folder):
            try:
                made = own_json(folder / "sample.json", run.folder)
            except MALFORMED:
                made = {}
            found.append(SampleSet(folder, made if isinstance(made, dict) else {}))
    return sorted(found, key=lambda each: (each.folder / "samples.safetensors").stat().st_mtime, reverse=True)


def training_pictures(run: Run) -> dict[int, Path]:
    """Return the pictures made while training, by the samples seen."""
    folder = run.folder / "samples"
    files = folder.glob("*.png") if folder.is_dir() and inside(folder, run.folder) else ()
    named = {int(path.stem): path for path in files if path.stem.isdecimal() and len(path.stem) < 19}
    return dict(sorted(named.items()))


def spread(places: Sequence[int], most: int) -> list[int]:
    """Return no more than so many places, evenly chosen, with the first and the last."""
    if len(places) <= most:
        return list(places)
    return [places[round(n * (len(places) - 1) / max(1, most - 1))] for n in range(most)][-most:]


def sample_blocks(run: Run, sets: Sequence[SampleSet], pictures: int, media: int, budget: Budget) -> list[Block]:
    """Return the pictures of training as a slider, and every set of samples with what can be heard or seen to move."""
    blocks: list[Block] = []
    found = training_pictures(run)
    chosen = spread(list(found), pictures)
    frames = []
    for seen in chosen:
        shown_as = item(f"after {seen:,} samples seen", found[seen], run.folder, budget, "samples of a training run")
        frames += [] if shown_as is None else [Frame(f"{seen:,} samples seen", [shown_as])]
    if frames:
        blocks.append(Slider("Samples over training, always of the same seeds", frames))
    if len(chosen) < len(found):
        blocks.append(Note(f"{len(chosen)} of {len(found)} pictures are shown: pictures={len(found)} shows all."))
    if not found:
        blocks.append(Note("No picture has been made while training: every.samples says how often that is done."))
    classes = run.facts.get("classes")
    names = [str(each) for each in classes] if isinstance(classes, list) else None
    for each in sets:
        blocks += _set_blocks(each, run, names, media, budget)
    if not sets:
        blocks.append(
            Note("No samples have been drawn from it yet.", f"multisagd sample {setting('run_dir', run.folder)}")
        )
    return blocks


def _set_blocks(each: SampleSet, run: Run, classes: Sequence[str] | None, media: int, budget: Budget) -> list[Block]:
    settings = inner(each.made, "settings")
    rows = [("folder", each.folder.name), *((key, shown(settings[key])) for key in MADE_BY if key in settings)]
    blocks: list[Block] = [Facts(rows)]
    grid = item("all", each.folder / "grid.png", run.folder, budget, "all samples of the set")
    if grid is not None:
        blocks.insert(0, Gallery(f"Samples {each.title}", [grid]))
    try:
        inside = (each.folder / FOLDER).iterdir()
        files = [path for path in inside if path.stem.isdecimal() and path.suffix in (".wav", ".mp4")]
    except OSError as error:
        return [*blocks, Note(shortened(error))]
    files.sort(key=lambda path: int(path.stem))
    asked = each.names(classes, media)
    items: list[Item] = []
    for place, path in enumerate(files[:media]):
        name = f"{path.stem}: {asked[place]}" if place < len(asked) else path.stem
        shown_as = item(name, path, run.folder, budget, "one sample")
        items += [] if shown_as is None else [shown_as]
    if items:
        blocks.append(Gallery(f"One by one, {each.title}", items))
    if len(files) > media:
        blocks.append(Note(f"{media} of {len(files):,} are shown: media={len(files)} shows all."))
    return blocks
