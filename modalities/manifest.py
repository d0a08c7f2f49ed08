"""Manifests: tables of files with their classes, captions and splits, as CSV with a header or as JSON lines.

Manifests are UTF-8 files that end in .csv or .jsonl. `file` is a path under the root, `label` a class, `text` a caption
(in JSON lines also a list of captions), `split` one of train, validation and test, and `group` the name of a group of
files that belong together, such as the speaker. Other columns that contain numbers only are scalars, which a network
can take as a condition; the rest is ignored. `file_name` and `caption` are other names
for `file` and `text`, as in the tables of the Hugging Face libraries.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from modalities.base import Split
from modalities.captions import NOT_UNICODE, Captions, as_captions, is_unicode
from modalities.endings import ending_of
from modalities.splits import named_split
from multisagd.files import parse_json

COLUMNS = ("file", "label", "text", "split", "group")
OTHER_NAMES = {"file_name": "file", "caption": "text"}
TABLES = ("metadata.csv", "metadata.jsonl")
"""Names of manifests that are used without being asked for."""


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; `label`, `captions`, `split` and `group` are None if it has no value in the column.

    `others` contains the values in all other columns, None where there is no value.
    `place` is the path of the manifest and the number of the line, for messages.
    """

    file: str
    label: str | None
    captions: Captions | None
    split: Split | None
    group: str | None
    place: str
    others: Mapping[str, Any]


def read_manifest(path: Path) -> list[Entry]:
    """Return the entries of a manifest whose paths are relative to the root, sorted by file; see `read_tables`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path.absolute()}: set manifest to a .csv or .jsonl file")
    return _checked([path], _entries(path, PurePosixPath()))


def read_tables(root: Path, tables: Sequence[str]) -> list[Entry]:
    """Return the entries of several manifests under a root, sorted by file; paths are relative to their own folder.

    Raises:
        FileNotFoundError: If a manifest does not exist.
        ValueError: If the content is not UTF-8, CSV or JSON, a column or value is missing (a caption may be), a file is
            repeated, or a path is absolute or outside the root; the message names the line.
    """
    entries = (_entries(root / table, PurePosixPath(table).parent) for table in tables)
    return _checked([root / table for table in tables], (entry for each in entries for entry in each))


def _checked(paths: Sequence[Path], lines: Iterator[Entry]) -> list[Entry]:
    entries: dict[str, Entry] = {}
    for entry in lines:
        if entry.file in entries:
            raise ValueError(f"{entry.place}: {entry.file} is already in {entries[entry.file].place}: remove one")
        entries[entry.file] = entry
    given = {
        "label": [entry.label is not None for entry in entries.values()],
        "text": [entry.captions is not None for entry in entries.values()],
        "split": [entry.split is not None for entry in entries.values()],
        "group": [entry.group is not None for entry in entries.values()],
    }
    if not any(any(present) for present in given.values()):
        names = ", ".join(map(str, paths))
        raise ValueError(
            f"{names} lists no file with a label, text, split or group: it must have a column named file, and at least "
            "one column named label, text, split or group"
        )
    del given["text"]  # `missing_captions` decides
    for column, present in given.items():
        if any(present) and not all(present):
            first = list(entries.values())[present.index(False)]
            raise ValueError(f"{first.place}: {column} is missing here, but other lines have one: add it")
    return sorted(entries.values(), key=lambda entry: entry.file)


def check_listed(root: Path, entries: Sequence[Entry], suffixes: tuple[str, ...]) -> None:
    """Check that the files of a manifest exist under the root and have a supported suffix.

    Raises:
        FileNotFoundError: If a file is missing; the message names the first one and its line.
        ValueError: If a file has an unsupported suffix.
    """
    for entry in entries:
        if not (root / entry.file).is_file():
            hint = ": separate folders by / instead of \\" if "\\" in entry.file else ""
            raise FileNotFoundError(f"{entry.place}: there is no file {entry.file} under {root.absolute()}{hint}")
        if not ending_of(entry.file, suffixes):
            raise ValueError(f"{entry.place}: {entry.file} does not end in {', '.join(suffixes)}")


def _entries(path: Path, folder: PurePosixPath) -> Iterator[Entry]:
    """Yield the entries of one manifest; `folder`, relative to the root, is put before each path."""
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"a manifest must end in .csv or .jsonl, got {path}")
    try:
        for line, row in kinds[path.suffix.lower()](path):
            yield _entry(f"{path}:{line}", row, folder)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}): save it as UTF-8") from error


def _entry(place: str, row: dict[str, Any], folder: PurePosixPath) -> Entry:
    texts: dict[str, str | None] = {}
    for column in ("file", "label", "split", "group"):
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise ValueError(f"{place}: {column} must be text, got {value!r}")
        texts[column] = None if value is None else str(value).strip()
        if not is_unicode(texts[column] or ""):
            raise ValueError(f"{place}: {column}: {NOT_UNICODE}, got {value!r:.100}")
    try:
        captions = as_captions(row.get("text"))
    except ValueError as error:
        raise ValueError(f"{place}: text {error}") from error
    file = texts["file"]
    empty = next((column for column in ("file", "label", "group") if texts[column] == ""), None)
    if not file or empty:
        raise ValueError(f"{place}: {empty or 'file'} is missing or empty")
    try:
        split = None if texts["split"] is None else named_split(texts["split"])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    location = PurePosixPath(file)
    if location.is_absolute() or ".." in location.parts:
        raise ValueError(f"{place}: {file} must be a path under root, without a leading / and without ..")
    name = (folder / location).as_posix()
    others = {column: None if value == "" else value for column, value in row.items() if column not in ("", *COLUMNS)}
    return Entry(name, texts["label"], captions or None, split, texts["group"], place, others)


def numbers_of(entries: Sequence[Entry]) -> dict[str, list[float]]:
    """Return the columns of other names that contain numbers only: a value for each entry, NaN where there is none."""
    found = {}
    for column in dict.fromkeys(column for entry in entries for column in entry.others):
        values = [_number(entry.others.get(column)) for entry in entries]
        numbers = [math.nan if value is None else value for value in values if value is not False]
        if len(numbers) == len(entries) and not all(map(math.isnan, numbers)):
            found[column] = numbers
    return found


def _number(value: Any) -> float | Literal[False] | None:
    """Return a finite number, None if there is no value or it is NaN, and False if it is something else."""
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.inf
    except (ValueError, OverflowError):
        return False
    if math.isnan(number):  # as tables of pandas and NumPy write unknown numbers
        return None
    return number if math.isfinite(number) else False


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            reader.fieldnames = _renamed(f"{path}:1", columns)
            if "file" not in reader.fieldnames:
                remedy = "separate columns by commas" if re.search("[;\t|]", "".join(columns)) else "add one"
                raise ValueError(f"{path}:1: no column file among {', '.join(columns) or 'none'}: {remedy}")
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
            yield line, dict(zip(_renamed(f"{path}:{line}", list(row)), row.values(), strict=True))


def _renamed(place: str, columns: Sequence[str]) -> list[str]:
    """Return the columns with the names that are used here. Raises ValueError if one is repeated."""
    names = [OTHER_NAMES.get(name, name) for name in columns]
    named = [name for name in names if name]  # spreadsheets append columns without a name
    if repeated := next((name for name in named if named.count(name) > 1), None):
        same = " and ".join(column for column, name in zip(columns, names, strict=True) if name == repeated)
        raise ValueError(f"{place}: a column is repeated among {', '.join(columns)}: {same} mean the same, remove one")
    return names
