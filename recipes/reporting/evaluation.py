"""What `multisagd evaluate`, `fidelity` and `compare` have left beside samples, as tables and their pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from recipes.engine.words import setting
from recipes.plotting.curves import told
from recipes.reporting.blocks import Block, Gallery, Note, Table
from recipes.reporting.journal import inner, number
from recipes.reporting.media import Budget, item
from recipes.reporting.run import MALFORMED, Run, own_json, shortened
from recipes.reporting.samples import SampleSet

MOST_ROWS = 400
"""Rows of a table."""

EVALUATE, FIDELITY, COMPARE = "evaluate.json", "fidelity.json", "compare.json"


def evaluation_blocks(run: Run, sets: Sequence[SampleSet], budget: Budget) -> list[Block]:
    """Return the tables of every set of samples, or how to make one."""
    blocks: list[Block] = []
    for each in sets:
        for file, tables in ((EVALUATE, _evaluate), (FIDELITY, _fidelity), (COMPARE, _compare)):
            path = each.folder / file
            if not path.exists():
                continue
            try:
                blocks += tables(each, own_json(path, run.folder), run, budget)
            except MALFORMED as error:
                blocks.append(Note(f"{file} of {each.folder.name} could not be read. {shortened(error)}"))
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


def _fidelity(each: SampleSet, report: Any, run: Run, budget: Budget) -> list[Block]:
    floor = inner(report, "noise_floor")
    rows = [
        ("Fréchet distance of classifier features", _number(report, "frechet_distance"),
         f"{_number(floor, 'mean')} ± {_number(floor, 'std')}", _number(report, "frechet_distance_held_out")),
        ("recognised by the classifier", _number(report, "accuracy"), "", _number(report, "classifier", "accuracy")),
    ]  # fmt: skip
    found = report.get("classes")
    classes = [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []
    by_class = [(str(row.get("name")), *(_number(row, key) for key in ("asked", "recognised", "seen")))
                for row in classes[:MOST_ROWS]]  # fmt: skip
    header = ("class", "asked for", "recognised", "seen as this")
    return [
        Table(f"Fidelity, samples {each.title}", ("what", "samples", "real (noise floor)", "held-out real"), rows),
        Table(f"Classes, samples {each.title}", header, by_class, folded=True),
    ]


def _compare(each: SampleSet, report: Any, run: Run, budget: Budget) -> list[Block]:
    rows: list[tuple[str, ...]] = []
    for name, axis in inner(report, "axes").items():
        rows.append((str(name),))
        rows.append(("difference of neighbours", *(_number(axis, "difference", key) for key in ("ratio", "floor"))))
        for band in axis.get("bands") or ():
            low, high = number(band.get("low")), number(band.get("high"))
            where = f"{low:.3g}-{high:.3g}" if high else "0"
            rows.append((f"power at {where} / {axis.get('unit')}", _number(band, "ratio"), _number(band, "floor")))
    caption = f"Samples over data along every axis, {each.title}"
    blocks: list[Block] = [Table(caption, ("what", "samples / data", "half / half of the data"), rows[:MOST_ROWS])]
    drawn = item("compare.png", each.folder / "compare.png", run.folder, budget, "power of data and samples by axis")
    return blocks if drawn is None else [*blocks, Gallery("Profiles of the comparison", [drawn])]


def _number(node: dict[str, Any], *names: str) -> str:
    *groups, name = names
    return told(number(inner(node, *groups).get(name)))
