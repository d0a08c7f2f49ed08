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
from recipes.sampling.sample_files import EVALUATION, FOLDER, GRID, recorded_names

SHOWN_SETTINGS = ("steps", "seed", "count", "labels", "weights", "ema", "spacing", "guidance")
"""Sampling settings shown with a set of samples."""
MAX_ROWS = 400
"""Maximum number of rows of a table."""


def evenly_spaced(items: Sequence[int], maximum: int) -> list[int]:
    """Return at most `maximum` evenly spaced items, including the first and the last."""
    if len(items) <= maximum:
        return list(items)
    return [items[round(n * (len(items) - 1) / max(1, maximum - 1))] for n in range(maximum)][-maximum:]


def sample_blocks(run: Overview, sets: Sequence[SampleSet], pictures: int, media: int, budget: Budget) -> list[Block]:
    """Return the images saved during training as a slider, and every set of samples with its audio and video."""
    blocks: list[Block] = []
    selected = evenly_spaced(list(run.images), pictures)
    frames = []
    for seen in selected:
        title = f"after {seen:,} samples seen"
        if made := item(title, run.images[seen], run.folder, budget, "samples of a training run"):
            frames.append(Gallery(f"{seen:,} samples seen", [made]))
    if frames:
        blocks.append(Slider("Samples over training, with fixed seeds", frames))
    if len(selected) < (count := len(run.images)):
        blocks.append(Note(f"{len(selected)} of {count} images are shown: pictures={count} shows all."))
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
    rows = [("folder", each.folder.name), *((key, shown(settings[key])) for key in SHOWN_SETTINGS if key in settings)]
    blocks: list[Block] = [Facts(rows)]
    if grid := item("all", each.folder / GRID, each.root, budget, "all samples of the set"):
        blocks.insert(0, Gallery(f"Samples: {each.title}", [grid]))
    try:
        paths = (each.folder / FOLDER).iterdir()
        order = {name: number for number, name in enumerate(recorded_names(each.made) or ())}
        media_files = [path for path in paths if path.suffix in (".wav", ".mp4")]
        files = [path for path in media_files if path.stem in order or (not order and path.stem.isdecimal())]
    except OSError as error:
        return [*blocks, Note(shortened(error))]
    files.sort(key=lambda path: order[path.stem] if order else int(path.stem))
    conditions = each.names(classes, media)
    single = []
    for index, path in enumerate(files[:media]):
        name = f"{path.stem}: {conditions[index]}" if index < len(conditions) else path.stem
        if made := item(name, path, each.root, budget, "one sample"):
            single.append(made)
    if single:
        blocks.append(Gallery(f"Single samples: {each.title}", single))
    if len(files) > media:
        blocks.append(Note(f"{media} of {len(files):,} samples are shown: media={len(files)} shows all."))
    return blocks


def evaluation_blocks(run: Overview, sets: Sequence[SampleSet], budget: Budget) -> list[Block]:
    """Return the evaluations of the sets of samples, or a note with the command that evaluates a set."""
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
    caption = f"Evaluation of {count} samples ({each.title}), each value with its noise floor"
    blocks: list[Block] = [Table(caption, ("what", "samples", "real against real", "ideal"), rows[:MAX_ROWS])]
    blocks += [Note(note) for kind in inner(report, "results") for note in metric_notes(report, kind)]
    blocks += [Note(f"Not computed: {kind}: {reason}") for kind, reason in inner(report, "unavailable").items()]
    figures = report.get("figures")
    names = [name for name in figures if isinstance(name, str) and "/" not in name] if isinstance(figures, list) else []
    items = [
        item(name, each.folder / name, each.root, budget, f"figure of the evaluation: {name}")
        for name in names
        if name.endswith(".png")
    ]
    readable = [made for made in items if made is not None]
    return [*blocks, Gallery(f"Figures of the evaluation: {each.title}", readable)] if readable else blocks
