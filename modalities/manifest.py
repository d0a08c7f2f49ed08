"""Manifests: tables of files with their classes, captions and splits, as CSV with a header or as JSON lines.

Manifests are UTF-8 files that end in .csv or .jsonl. `file` is a path under the root, `label` a class, `text` a
caption, `split` one of train, validation and test, and `group` the name of a group of files that belong together, such
as the speaker; other columns are ignored.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast, get_args

from modalities.base import Split
from modalities.endings import ending_of
from multisagd.files import parse_json

COLUMNS = ("file", "label", "text", "split", "group")


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; `label`, `text`, `split` and `group` are None if the manifest has no such column."""

    file: str
    label: str | None
    text: str | None
    split: Split | None
    group: str | None
    line: int


def read_manifest(path: Path) -> list[Entry]:
    """Return the entries of a manifest, sorted by file.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the content is not UTF-8, CSV or JSON, a column or value is missing, a file is repeated, or a
            path is absolute or outside the root; the message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path.absolute()}: set manifest to a .csv or .jsonl file")
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"a manifest must end in .csv or .jsonl, got {path}")
    entries: dict[str, Entry] = {}
    try:
        for line, row in kinds[path.suffix.lower()](path):
            entry = _entry(path, line, row)
            if entry.file in entries:
                raise ValueError(
                    f"{path}:{line}: {entry.file} is already in line {entries[entry.file].line}: remove one"
                )
            entries[entry.file] = entry
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): save it as UTF-8") from error
    lines, others = sorted(entries.values(), key=lambda entry: entry.line), COLUMNS[1:]
    present = {column: [getattr(entry, column) is not None for entry in lines] for column in others}
    if not any(any(given) for given in present.values()):
        raise ValueError(
            f"{path} lists no file with a label, text, split or group: it must have a column named file, and at least "
            f"one column named {', '.join(others[:-1])} or {others[-1]}"
        )
    for column, given in present.items():
        if any(given) and not all(given):
            first = lines[given.index(False)]
            raise ValueError(f"{path}:{first.line}: {column} is missing here, but other lines have one: add it")
    return sorted(lines, key=lambda entry: entry.file)


def check_listed(path: Path, root: Path, entries: Sequence[Entry], suffixes: tuple[str, ...]) -> None:
    """Check that the files of a manifest exist under the root and have a supported suffix.

    Raises:
        FileNotFoundError: If a file is missing; the message names the first one and its line.
        ValueError: If a file has an unsupported suffix.
    """
    for entry in entries:
        if not (root / entry.file).is_file():
            raise FileNotFoundError(f"{path}:{entry.line}: there is no file {entry.file} under {root.absolute()}")
        if not ending_of(entry.file, suffixes):
            raise ValueError(f"{path}:{entry.line}: {entry.file} does not end in {', '.join(suffixes)}")


def _entry(path: Path, line: int, row: dict[str, Any]) -> Entry:
    texts: dict[str, str | None] = {}
    for column in COLUMNS:
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise ValueError(f"{path}:{line}: {column} must be text, got {value!r}")
        texts[column] = None if value is None else str(value).strip()
    file = texts["file"]
    empty = next((column for column in ("file", "label", "group") if texts[column] == ""), None)
    if not file or empty:
        raise ValueError(f"{path}:{line}: {empty or 'file'} is missing or empty")
    split = texts["split"]
    if split not in (None, *get_args(Split)):
        raise ValueError(f"{path}:{line}: split must be one of {', '.join(get_args(Split))}, got {split!r}")
    location = PurePosixPath(file)
    if location.is_absolute() or ".." in location.parts:
        raise ValueError(f"{path}:{line}: {file} must be a path under root, without a leading / and without ..")
    return Entry(location.as_posix(), texts["label"], texts["text"], cast(Split | None, split), texts["group"], line)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns)
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise ValueError(
                        f"{path}:{reader.line_num}: more values than columns: put values that contain commas in quotes"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.reader.line_num}: invalid CSV: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = parse_json(text, finite=False)  # NaN in ignored columns is harmless
            except ValueError as error:
                raise ValueError(f"{path}:{line}: invalid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: each line must be one JSON object, got {text.strip()[:40]}")
            yield line, row


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}:1: a column is repeated among {', '.join(columns)}: remove one")
    if "file" not in columns:
        raise ValueError(f"{path}:1: no column file among {', '.join(columns) or 'none'}: add one")
