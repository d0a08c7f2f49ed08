"""What a run has recorded of samples of its weights: a picture of them, and what they were judged to be worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from multisagd.files import check_file, read_json
from recipes.reports.evaluation import metric_rows, with_error
from recipes.runs.metrics import inner, number
from recipes.runs.model import Which
from recipes.sharing.markdown import last_part, shown

SAMPLES, EVALUATION = "samples.png", "evaluate.json"
LARGEST_PICTURE = 32 << 20
PNG = b"\x89PNG\r\n\x1a\n"
DRAWN = ("sampler", "steps", "guidance", "seed")
MOST_ROWS = 100
"""Numbers of an evaluation that a card repeats."""


def last_samples(source: Path, samples: int, which: Which) -> Path | None:
    """Return the picture that a run, or an exported model, has of samples of these weights; None if there is none.

    A training draws from averaged weights alone. A link to somewhere else is no picture of theirs, but for those that
    the hub's cache is made of: from snapshots/COMMIT to blobs beside it.
    """
    place = source.resolve()
    homes = [place, place.parents[1] / "blobs"] if place.parent.name == "snapshots" else [place]
    drawn = [source / "samples" / f"{samples:012d}.png"] if which == "ema" else []
    for path in (*drawn, source / SAMPLES):
        try:
            check_file(path, LARGEST_PICTURE)
            with path.open("rb") as file:
                is_picture = file.read(len(PNG)) == PNG
        except (OSError, ValueError):
            continue
        if is_picture and any(path.resolve().is_relative_to(home) for home in homes):
            return path
    return None


def found_evaluation(source: Path, samples: int, which: Which) -> dict[str, Any] | None:
    """Return counts, rows and notes of the latest evaluation of samples of these weights; None if there is none.

    With it comes how they were drawn.
    """
    found: list[tuple[float, Path, dict[str, Any]]] = []
    for path in source.glob(f"sampled/*/{EVALUATION}"):
        try:
            made = read_json(path.with_name("sample.json"), finite=False)
            settings = made["settings"]
            if made["samples_seen"] == samples and settings["weights"] == which:
                drawn = {"sampler": last_part(settings["sampler"]).lower(), "steps": settings["steps"],
                         "guidance": settings["guidance"]["scale"], "seed": settings["seed"]}  # fmt: skip
                found.append((path.stat().st_mtime, path, drawn))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    newest = max(found, key=lambda each: each[0], default=None)
    path = newest[1] if newest else source / EVALUATION
    try:
        report = read_json(path, finite=False)
    except (OSError, ValueError):
        return None
    kinds = {
        str(kind): {"rows": [row for named, row in metric_rows(report) if named == kind][:MOST_ROWS],
                    "notes": _texts(inner(report, "results", kind).get("notes"))}
        for kind in inner(report, "results")
    }  # fmt: skip
    drawn = newest[2] if newest else {key: value for key, value in inner(report, "drawn").items() if key in DRAWN}
    named = {"data": report["data"]} if isinstance(report.get("data"), str) else {}
    return named | {
        "counts": inner(report, "counts"),
        "drawn": drawn,
        "unavailable": list(inner(report, "unavailable")),
        "results": kinds,
    }


def rows_of(evaluation: Mapping[str, Any] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of an evaluation that hold a number."""
    for kind, row in metric_rows(evaluation or {}):
        if math.isfinite(number(row.get("value"))):
            yield kind, row


def evaluated(evaluation: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what an evaluation found, as paragraphs and a table of Markdown."""
    if evaluation is None:
        yield "None was recorded: nothing here says how good its samples are."
        return
    count = number(inner(evaluation, "counts").get("compared"))  # type: ignore[arg-type]
    drawn = ", ".join(f"{key} {shown(value)}" for key, value in inner(evaluation, "drawn").items())  # type: ignore[arg-type]
    counted = "Samples" if math.isnan(count) else f"{count:,.0f} samples"
    yield (
        f"{counted}{f' ({drawn})' if drawn else ''} against as many real examples, by "
        "`multisagd evaluate`; beside each number the same of real examples against others, its noise floor. Only "
        "numbers of equal counts compare."
    )
    lines = ["| what | samples | real against real | ideal |", "|---|---|---|---|"]
    for kind, row in rows_of(evaluation):
        ideal = number(row.get("ideal"))
        values = (with_error(row, "value", "error"), with_error(row, "floor", "floor_error"))
        cells = (f"{kind}: {row.get('name')}", *values, "" if math.isnan(ideal) else f"{ideal:g}")
        lines.append("| " + " | ".join(map(shown, cells)) + " |")
    yield "\n".join(lines[: MOST_ROWS + 2])
    notes = [note for kind in inner(evaluation, "results").values() for note in _texts(kind.get("notes"))]  # type: ignore[arg-type]
    absent = evaluation.get("unavailable") or []
    missing = [f"not computed: {', '.join(map(str, absent))}"] if absent else []
    if notes or missing:
        yield "\n".join(f"- {shown(each)}" for each in (*notes, *missing))


def _texts(values: Any) -> list[str]:
    return [str(each) for each in values][:MOST_ROWS] if isinstance(values, list) else []
