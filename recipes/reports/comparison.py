"""Comparison of several runs: differing settings, losses, metrics, spectra and samples."""

from collections.abc import Callable, Sequence
from typing import Any

from recipes.config.groups import ABSENT, flatten
from recipes.plotting.curves import Axis, draw, number_text
from recipes.reports.losses import SEEN, loss, over_samples
from recipes.reports.page import Block, Budget, Gallery, Note, Slider, Table, item
from recipes.reports.process import sample_powers, spectrum_charts
from recipes.reports.run import MALFORMED, Overview, SampleSet, metric_rows, shown, with_error
from recipes.reports.samples import evenly_spaced
from recipes.reports.summary import STATES, training_seconds
from recipes.runs.metrics import Entry
from recipes.sampling.sample_files import EVALUATION

MAX_ROWS = 300


def comparison_blocks(
    runs: Sequence[Overview], sets: Sequence[Sequence[SampleSet]], pictures: int, budget: Budget
) -> list[Block | None]:
    """Return the blocks of a page that compares runs."""
    blocks: list[Block | None] = [_facts(runs), _differences(runs)]
    description = (
        "Losses of runs with different noise, data or weighting measure different predictions: such curves "
        "show the progress of each run, not which run is better."
    )
    for name, title, entries in (
        ("both-train", "Training loss", [run.train for run in runs]),
        ("both-validation", "Validation loss", [run.validation for run in runs]),
    ):
        series = [
            over_samples(run.name, entries[number], loss, f"c{number % 8}", number) for number, run in enumerate(runs)
        ]
        blocks.append(draw(name, title, description, SEEN, Axis("loss", "log"), series))
    blocks.append(_metrics(runs, sets))
    blocks += _images(runs, pictures, budget)
    return [*blocks, *_spectra(runs, sets)]


def _facts(runs: Sequence[Overview]) -> Table:
    def last(entries: Sequence[Entry]) -> str:
        return number_text(loss(entries[-1])) if entries else ABSENT

    columns: dict[str, Callable[[Overview], str]] = {
        "folder": lambda run: str(run.folder),
        "state": lambda run: STATES[run.state],
        "samples seen": lambda run: f"{run.seen:,}",
        "minutes in training steps (approximate)": lambda run: f"{training_seconds(run) / 60:.1f}",
        "training loss, last entry": lambda run: last(run.train),
        "validation loss, last entry": lambda run: last(run.validation),
    }
    rows = [(name, *map(value, runs)) for name, value in columns.items()]
    return Table("The runs", ("", *(run.name for run in runs)), rows)


def _differences(runs: Sequence[Overview]) -> Block:
    """Return a table of the configuration keys that differ between the runs."""
    configs = [flatten(run.config or {}) for run in runs]
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = []
    for key in keys:
        values = [shown(config[key]) if key in config else ABSENT for config in configs]
        if len(set(values)) > 1 and key != "run_dir":
            rows.append((key, *values))
    if not rows:
        return Note("The configurations of the runs are the same.")
    return Table("Differing configuration keys", ("key", *(run.name for run in runs)), rows[:MAX_ROWS])


def _metrics(runs: Sequence[Overview], sets: Sequence[Sequence[SampleSet]]) -> Block:
    """Return the metrics of the newest evaluation of each run, side by side."""
    rows_by_run: list[dict[tuple[str, str], dict[str, Any]]] = []
    for of_run in sets:
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        evaluated = next((each for each in of_run if (each.folder / EVALUATION).exists()), None)
        if evaluated is not None:
            try:
                rows = {(kind, str(row.get("name"))): row for kind, row in metric_rows(evaluated.evaluation())}
            except MALFORMED:
                rows = {}
        rows_by_run.append(rows)
    keys = dict.fromkeys(key for rows in rows_by_run for key in rows)
    if not keys:
        return Note("No run has an evaluation (multisagd evaluate), so there are no metrics to compare.")
    table = []
    for kind, name in keys:
        cells = [with_error(rows.get((kind, name), {}), "value", "error") for rows in rows_by_run]
        floors = [with_error(rows[kind, name], "floor", "floor_error") for rows in rows_by_run if (kind, name) in rows]
        table.append((f"{kind}: {name}", *cells, floors[0]))
    header = ("metric", *(run.name for run in runs), "noise floor (of the first run that has one)")
    return Table("Metrics of the newest evaluation; compare only values for equal counts", header, table[:MAX_ROWS])


def _images(runs: Sequence[Overview], maximum: int, budget: Budget) -> list[Block]:
    """Return the images saved by each run during training, side by side, at equal numbers of samples seen."""
    shared = sorted(set.intersection(*(set(run.images) for run in runs)))
    frames = []
    for seen in evenly_spaced(shared, maximum):
        items = [item(run.name, run.images[seen], run.folder, budget, f"samples of {run.name}") for run in runs]
        frames.append(Gallery(f"{seen:,} samples seen", [each for each in items if each is not None]))
    if frames:
        seeds = {(run.config or {}).get("seed") for run in runs}
        same = "with the same seeds" if len(seeds) == 1 else "with different seeds"
        return [Slider(f"Samples side by side, {same}", frames)]
    return [Note("The runs have no images at equal numbers of samples seen.")]


def _spectra(runs: Sequence[Overview], sets: Sequence[Sequence[SampleSet]]) -> Sequence[Block | None]:
    """Return charts of the spectra of the runs' samples, if all runs have the same grid and there are such samples."""
    statistics = [run.statistics for run in runs if run.statistics is not None]
    if len(statistics) < len(runs) or any(each.grid != statistics[0].grid for each in statistics):
        return []
    powers = {"data": statistics[0].power}
    for run, data, of_run in zip(runs, statistics, sets, strict=True):
        powers |= {f"samples of {run.name}": power for power in sample_powers(data, of_run[:1])[0].values()}
    return spectrum_charts(powers, statistics[0].grid, "both-spectrum") if len(powers) > 1 else []
