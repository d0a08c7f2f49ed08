"""What `multisagd evaluate` has left next to samples, as tables and their pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from recipes.base.quoting import setting
from recipes.plotting.curves import told
from recipes.reports.blocks import Block, Gallery, Note, Table
from recipes.reports.media import Budget, item
from recipes.reports.run import MALFORMED, Run, own_json, shortened
from recipes.reports.samples import SampleSet
from recipes.runs.metrics import inner, number
from recipes.sampling.sample_files import EVALUATION

MOST_ROWS = 400
"""Rows of a table."""


def evaluation_blocks(run: Run, sets: Sequence[SampleSet], budget: Budget) -> list[Block]:
    """Return the tables of every set of samples, or how to make one."""
    blocks: list[Block] = []
    for each in sets:
        path = each.folder / EVALUATION
        if not path.exists():
            continue
        try:
            blocks += _evaluate(each, own_json(path, run.folder), run, budget)
        except MALFORMED as error:
            blocks.append(Note(f"{EVALUATION} of {each.folder.name} could not be read. {shortened(error)}"))
    if not blocks:
        command = f"multisagd evaluate {setting('run_dir', run.folder)} samples=1000"
        blocks.append(Note("The samples have not been judged yet.", command))
    return blocks


def metric_rows(report: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kind and the row of every number in an evaluate.json."""
    for kind, result in inner(report, "results").items():
        rows = result.get("rows") if isinstance(result, dict) else None
        for row in rows if isinstance(rows, list) else ():
            if isinstance(row, dict):
                yield str(kind), row


def with_error(row: dict[str, Any], value: str, error: str) -> str:
    """Return a number of a row with its uncertainty and unit."""
    found, spread = number(row.get(value)), number(row.get(error))
    if math.isnan(found):
        return "-"
    unit = f" {row['unit']}" if row.get("unit") else ""
    return f"{found:.4g}{unit}" if math.isnan(spread) else f"{found:.4g} ± {spread:.2g}{unit}"


def _evaluate(each: SampleSet, report: Any, run: Run, budget: Budget) -> list[Block]:
    rows: list[tuple[str, ...]] = []
    last = None
    for kind, row in metric_rows(report):
        if kind != last:
            rows.append((kind,))
            last = kind
        ideal = number(row.get("ideal"))
        rows.append(
            (
                str(row.get("name")), with_error(row, "value", "error"), with_error(row, "floor", "floor_error"),
                "" if math.isnan(ideal) else f"{ideal:g}",
            )
        )  # fmt: skip
    count = number(inner(report, "counts").get("compared"))
    blocks: list[Block] = [
        Table(
            f"Evaluation of {told(count)} samples {each.title}, each number beside its noise floor",
            ("what", "samples", "real against real", "ideal"), rows[:MOST_ROWS],
        )
    ]  # fmt: skip
    for result in inner(report, "results").values():
        notes = result.get("notes") if isinstance(result, dict) else None
        blocks += [Note(str(note)) for note in (notes if isinstance(notes, list) else ())]
    blocks += [Note(f"Not computed: {kind}: {why}") for kind, why in inner(report, "unavailable").items()]
    names = report.get("pictures")
    found = [
        item(name, each.folder / name, run.folder, budget, f"picture of the evaluation: {name}")
        for name in (names if isinstance(names, list) else ())
        if isinstance(name, str) and "/" not in name and name.endswith(".png")
    ]
    items = [shown_as for shown_as in found if shown_as is not None]
    return [*blocks, Gallery(f"Pictures of the evaluation {each.title}", items)] if items else blocks
