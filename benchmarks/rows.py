"""The file of results that all experiments share: one JSON row per measurement, appended when it is made."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "results.jsonl"


def rows(experiment: str, path: Path = RESULTS) -> Iterator[dict[str, Any]]:
    """Yield the rows of an experiment; a line truncated by an interruption is omitted."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("experiment") == experiment:
            yield row


def append(experiment: str, arm: Mapping[str, Any], values: Mapping[str, Any], path: Path = RESULTS) -> None:
    """Add one measurement: the conditions (`arm`) and the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"experiment": experiment, "arm": dict(arm), **values}) + "\n"
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # the last row is truncated: do not append to its line
                line = "\n" + line
        file.write(line.encode())


def missing(experiment: str, arms: list[dict[str, Any]], path: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the arms of an experiment without a row, so that an interrupted experiment continues."""
    done = [row["arm"] for row in rows(experiment, path)]
    return [arm for arm in arms if arm not in done]


def between(text: str, begin: str, end: str, content: str) -> str:
    """Return a page with other content between the lines `begin` and `end`, which mark what a benchmark writes."""
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)
