"""The file of results that all experiments share: one JSON row per measurement, appended when it is made."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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


def measure_missing(
    experiment: str, arms: list[dict[str, Any]], options: argparse.Namespace,
    measure: Callable[[dict[str, Any]], Mapping[str, Any]], shown: Iterable[str] | None = None,
) -> None:  # fmt: skip
    """Measure the arms without a row, append a row for each, and print it: the values `shown`, rounded, or all.

    With `options.show`, nothing is measured.
    """
    for arm in [] if options.show else missing(experiment, arms, options.results):
        values = measure(arm)
        append(experiment, arm, values, options.results)
        print(f"{arm}: {values if shown is None else {key: round(values[key], 4) for key in shown}}", flush=True)


def between(text: str, begin: str, end: str, content: str) -> str:
    """Return a page with other content between the lines `begin` and `end`, which mark what a benchmark writes."""
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n\n{content}\n\n{end}", text)


def tutorial_parser(
    description: str | None, samples: int, seeds: list[int], work: Path, recordings: bool = True
) -> argparse.ArgumentParser:
    """Return the parser of a benchmark that trains, on recordings or other data, and writes a table into a tutorial."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=samples, help="training samples of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    parser.add_argument("--threads", type=int, default=1)
    if recordings:
        parser.add_argument("--root", type=Path, help="folder of recordings, instead of that of the experiment")
    parser.add_argument("--work", type=Path, default=work)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--shrink", type=int, default=1, metavar="FACTOR")
    parser.add_argument("--show", action="store_true", help="only print existing results")
    parser.add_argument("--write", action="store_true", help="only write existing results to the tutorial")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options of `tutorial_parser`; short trials need another file of results."""
    options = parser.parse_args()
    if options.shrink > 1 and options.results == RESULTS:
        parser.error("--shrink makes other runs than those of the table: give another file of results, --results FILE")
    return options
