"""Where the classes and captions of files come from: folders, file names, a manifest, or text files beside them.

A manifest is a table of files, as CSV with a header (.csv) or as one JSON object per line (.jsonl), in UTF-8: `file` is
a path under the root, `label` a class and `text` a caption; other columns are ignored.
"""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

LabelSource = Literal["auto", "folder", "name", "manifest", "none"]
CaptionSource = Literal["auto", "sidecar", "labels", "none"]

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
COLUMNS = ("file", "label", "text")
log = logging.getLogger("multisagd")


@dataclass(frozen=True)
class Entry:
    """One line of a manifest; `label` and `text` are None where the manifest has no such column."""

    file: str
    label: str | None
    text: str | None
    line: int


def number(names: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the classes among the names of all files, and the number of each file's class.

    Classes are sorted by name, numbers in names by their value: 9 comes before 10.
    """
    classes = sorted(set(names), key=_natural)
    places = {name: place for place, name in enumerate(classes)}
    return tuple(classes), [places[name] for name in names]


def compiled(key: str, expression: str) -> re.Pattern[str]:
    """Return a regular expression that the setting `key` gives.

    Raises:
        ValueError: naming the key and the position, if it is none.
    """
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"{key}={expression!r} is no regular expression: {error.msg} at position {error.pos}"
        ) from error


def from_folders(root: Path, files: Sequence[str], required: bool) -> list[str] | None:
    """Return the first folder on the way to each file, None where that makes no classes and none are `required`.

    Raises:
        ValueError: if `required` and a file lies in no subfolder.
    """
    tops = [parts[0] if len(parts := PurePosixPath(file).parts) > 1 else None for file in files]
    names = sorted({top for top in tops if top is not None})
    found = [top for top in tops if top is not None]
    if not required and (len(found) < len(tops) or len(names) < 2):
        return None
    if len(found) < len(tops):
        raise ValueError(
            f"{root / files[tops.index(None)]} lies in no subfolder, so it has no class: "
            "move it into one, or set labels=none"
        )
    if SPLITS.issuperset(name.lower() for name in names):
        log.warning(
            "the subfolders of %s (%s) are taken as classes, but are named like parts of a dataset: "
            "set root to one of them, or labels=none",
            root, ", ".join(names),
        )  # fmt: skip
    return found


def from_names(files: Sequence[str], expression: str) -> list[str]:
    """Return what the group `label` of a regular expression, or else its first group, finds in each file's name.

    The expression is searched for in the name without its folders; ^ and $ anchor it.

    Raises:
        ValueError: for a wrong expression, one without a group, or a name in which it finds nothing.
    """
    pattern = compiled("pattern", expression)
    if not pattern.groups:
        raise ValueError(
            f"pattern={expression!r} has no group to say which part of a name is the class: write (?P<label>…)"
        )
    group: str | int = "label" if "label" in pattern.groupindex else 1
    labels = []
    for file in files:
        found = pattern.search(PurePosixPath(file).name)
        if found is None or not found[group]:
            raise ValueError(
                f"pattern={expression!r} finds no class in the name of {file}: "
                "change it, or leave the file out by match"
            )
        labels.append(found[group])
    return labels


def sidecars(root: Path, files: Sequence[str]) -> list[str]:
    """Return the captions in the text files beside the media: photo.txt for photo.jpg, UTF-8.

    Raises:
        FileNotFoundError: if one is missing.
        ValueError: if one is no UTF-8 text.
    """
    texts = []
    for file in files:
        path = (root / file).with_suffix(".txt")
        try:
            texts.append(path.read_text(encoding="utf-8-sig").strip())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{root / file} has no caption: write it to {path.name} beside it (an empty file is no caption), "
                "or leave the file out by match"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
            ) from error
    return texts


def read_manifest(path: Path) -> list[Entry]:
    """Read a manifest, its entries sorted by file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the line, for text that is no UTF-8, CSV or JSON, a missing column or value, a file twice,
            and a path that is absolute or leads out of the root.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no manifest {path.absolute()}: set manifest to a .csv or .jsonl file")
    kinds = {".csv": _csv_rows, ".jsonl": _json_rows}
    if path.suffix.lower() not in kinds:
        raise ValueError(f"a manifest ends in .csv or .jsonl, got {path}")
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
        raise ValueError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    if all(entry.label is None and entry.text is None for entry in entries.values()):
        raise ValueError(f"{path} lists no file with a label or text: name its columns file, and label or text")
    lines = sorted(entries.values(), key=lambda entry: entry.line)
    for column in ("label", "text"):
        given = [getattr(entry, column) is not None for entry in lines]
        if any(given) and not all(given):
            first = lines[given.index(False)]
            raise ValueError(f"{path}:{first.line}: {column} is missing here, and other lines have one")
    return sorted(lines, key=lambda entry: entry.file)


def check_listed(path: Path, root: Path, entries: Sequence[Entry], suffixes: tuple[str, ...]) -> None:
    """Check that the files of a manifest exist under the root and have an ending that is read.

    Raises:
        FileNotFoundError: naming the first that is missing and its line.
        ValueError: for another ending.
    """
    for entry in entries:
        if not (root / entry.file).is_file():
            raise FileNotFoundError(f"{path}:{entry.line}: there is no file {entry.file} under {root.absolute()}")
        if PurePosixPath(entry.file).suffix.lower() not in suffixes:
            raise ValueError(f"{path}:{entry.line}: {entry.file} does not end in {', '.join(suffixes)}")


def _entry(path: Path, line: int, row: dict[str, Any]) -> Entry:
    texts: dict[str, str | None] = {}
    for column in COLUMNS:
        value = row.get(column)
        if value is not None and (isinstance(value, bool) or not isinstance(value, str | int)):
            raise ValueError(f"{path}:{line}: {column} should be text, got {value!r}")
        texts[column] = None if value is None else str(value).strip()
    file, label = texts["file"], texts["label"]
    if not file or label == "":
        raise ValueError(f"{path}:{line}: {'label' if file else 'file'} is missing or empty")
    place = PurePosixPath(file)
    if place.is_absolute() or ".." in place.parts:
        raise ValueError(f"{path}:{line}: {file} should be a path under root, without a leading / and without ..")
    return Entry(place.as_posix(), label, texts["text"], line)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            columns = [(name or "").strip() for name in reader.fieldnames or ()]
            _check_columns(path, columns)
            reader.fieldnames = columns
            for row in reader:
                if None in row:
                    raise ValueError(f"{path}:{reader.line_num}: more values than columns; quote values with commas")
                yield reader.line_num, row
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.reader.line_num}: no valid CSV: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}:{line}: no valid JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}:{line}: each line should be one JSON object, got {text.strip()[:40]}")
            yield line, row


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if len(set(columns)) < len(columns):
        raise ValueError(f"{path}:1: a column is there twice among {', '.join(columns)}")
    if "file" not in columns:
        raise ValueError(f"{path}:1: no column file among {', '.join(columns) or 'none'}: a manifest needs one")


def _natural(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name
