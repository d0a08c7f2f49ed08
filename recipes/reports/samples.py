"""Samples of a run: images drawn during training, sets of samples, and their evaluations."""

from collections.abc import Sequence

from recipes.base.commands import setting
from recipes.plotting.curves import number_text
from recipes.reports.page import Block, Budget, Facts, Gallery, Note, Slider, Table, item
from recipes.reports.run import (
    MALFORMED,
    Overview,
    SampleSet,
    metric_cells,
    metric_notes,
    metric_rows,
    shortened,
    shown,
)
from recipes.runs.metrics import inner, number
from recipes.sampling.sample_files import EVALUATION, FOLDER, GRID

MADE_BY = ("steps", "seed", "count", "labels", "weights", "spacing", "guidance")
"""Sampling settings to show."""
MAX_ROWS = 400
"""Maximum number of rows of a table."""


def evenly_spaced(items: Sequence[int], maximum: int) -> list[int]:
    """Return at most `maximum` evenly spaced items, including the first and the last."""
    if len(items) <= maximum:
        return list(items)
    return [items[round(n * (len(items) - 1) / max(1, maximum - 1))] for n in range(maximum)][-maximum:]


def sample_blocks(run: Overview, sets: Sequence[SampleSet], pictures: int, media: int, budget: Budget) -> list[Block]:
    """Return the images drawn during training as a slider, and every set of samples with its audio and video."""
    blocks: list[Block] = []
    chosen = evenly_spaced(list(run.images), pictures)
    frames = []
    for seen in chosen:
        title = f"after {seen:,} samples seen"
        if made := item(title, run.images[seen], run.folder, budget, "samples of a training run"):
            frames.append(Gallery(f"{seen:,} samples seen", [made]))
    if frames:
        blocks.append(Slider("Samples over training, with fixed seeds", frames))
    if len(chosen) < (count := len(run.images)):
        blocks.append(Note(f"{len(chosen)} of {count} images are shown: pictures={count} shows all."))
    if not run.images:
        blocks.append(Note("No samples were drawn during training: every.samples sets the interval."))
    for each in sets:
        blocks += _set_blocks(each, run.classes, media, budget)
    if not sets:
        command = f"multisagd sample {setting('run_dir', run.folder)}"
        blocks.append(Note("No samples have been drawn from this run yet.", command))
    return blocks


def _set_blocks(each: SampleSet, classes: Sequence[str], media: int, budget: Budget) -> list[Block]:
    settings = inner(each.made, "settings")
    rows = [("folder", each.folder.name), *((key, shown(settings[key])) for key in MADE_BY if key in settings)]
    blocks: list[Block] = [Facts(rows)]
    if grid := item("all", each.folder / GRID, each.root, budget, "all samples of the set"):
        blocks.insert(0, Gallery(f"Samples {each.title}", [grid]))
    try:
        there = (each.folder / FOLDER).iterdir()
        files = [path for path in there if path.stem.isdecimal() and path.suffix in (".wav", ".mp4")]
    except OSError as error:
        return [*blocks, Note(shortened(error))]
    files.sort(key=lambda path: int(path.stem))
    asked = each.names(classes, media)
    one_by_one = []
    for place, path in enumerate(files[:media]):
        name = f"{path.stem}: {asked[place]}" if place < len(asked) else path.stem
        if made := item(name, path, each.root, budget, "one sample"):
            one_by_one.append(made)
    if one_by_one:
        blocks.append(Gallery(f"One by one, {each.title}", one_by_one))
    if len(files) > media:
        blocks.append(Note(f"{media} of {len(files):,} are shown: media={len(files)} shows all."))
    return blocks


def evaluation_blocks(run: Overview, sets: Sequence[SampleSet], budget: Budget) -> list[Block]:
    """Return the evaluation of every set of samples, or the command that evaluates one."""
    blocks: list[Block] = []
    for each in sets:
        if (each.folder / EVALUATION).exists():
            try:
                blocks += _evaluation(each, budget)
            except MALFORMED as error:
                blocks.append(Note(f"{EVALUATION} of {each.folder.name} could not be read. {shortened(error)}"))
    if not blocks:
        command = f"multisagd evaluate {setting('run_dir', run.folder)} samples=1000"
        blocks.append(Note("The samples have not been evaluated yet.", command))
    return blocks


def _evaluation(each: SampleSet, budget: Budget) -> list[Block]:
    report = each.evaluation()
    rows: list[tuple[str, ...]] = []
    last = None
    for kind, row in metric_rows(report):
        if kind != last:
            rows.append((kind,))
            last = kind
        rows.append((str(row.get("name")), *metric_cells(row)))
    count = number_text(number(inner(report, "counts").get("compared")))
    caption = f"Evaluation of {count} samples {each.title}, each number with its noise floor"
    blocks: list[Block] = [Table(caption, ("what", "samples", "real against real", "ideal"), rows[:MAX_ROWS])]
    blocks += [Note(note) for kind in inner(report, "results") for note in metric_notes(report, kind)]
    blocks += [Note(f"Not computed: {kind}: {why}") for kind, why in inner(report, "unavailable").items()]
    names = report.get("figures")
    named = [name for name in names if isinstance(name, str) and "/" not in name] if isinstance(names, list) else []
    found = [
        item(name, each.folder / name, each.root, budget, f"figure of the evaluation: {name}")
        for name in named
        if name.endswith(".png")
    ]
    pictures = [made for made in found if made is not None]
    return [*blocks, Gallery(f"Figures of the evaluation {each.title}", pictures)] if pictures else blocks
