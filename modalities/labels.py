"""Classes and captions of files, from folders, file names, a manifest, or text files next to them."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from modalities.endings import ending_of
from modalities.manifest import Entry

LabelSource = Literal["auto", "folder", "name", "manifest", "none"]
CaptionSource = Literal["auto", "sidecar", "labels", "none"]

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
log = logging.getLogger("multisagd")


def class_names(
    source: LabelSource, root: Path, files: Sequence[str], entries: Sequence[Entry], pattern: str | None
) -> list[str] | None:
    """Return the class name of each file, or None if there are no classes.

    `entries` are the manifest lines of the files, if there is a manifest.

    Raises:
        ValueError: If a file has no class although `source` requires one, or `pattern` is invalid.
    """
    listed = [entry.label for entry in entries if entry.label is not None]
    if source == "manifest" and not listed:
        raise ValueError("labels=manifest needs a manifest with a column label: set manifest, or labels=none")
    if source == "name":
        if pattern is None:
            raise ValueError("labels=name needs pattern, a regular expression such as ^(?P<label>[a-z]+)_")
        return from_names(files, pattern)
    if source in ("auto", "manifest") and listed:
        return listed
    return from_folders(root, files, required=source == "folder") if source in ("auto", "folder") else None


def captions(source: CaptionSource, entries: Sequence[Entry], names: Sequence[str] | None) -> list[str] | None:
    """Return the caption of each file, or None if there are no captions; `names` are the class names.

    Raises:
        ValueError: If captions should come from classes that do not exist.
    """
    if source == "labels":
        if names is None:
            raise ValueError("captions=labels requires classes, but these files have none: set labels")
        return [name.replace("_", " ") for name in names]
    return [entry.text for entry in entries if entry.text is not None] or None if source == "auto" else None


def number(names: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Return the sorted classes and each file's class number; `names` contains the class name of each file.

    Classes are sorted by name, with numbers in names compared by value: 9 comes before 10.
    """
    classes = sorted(set(names), key=_natural)
    numbers = {name: number for number, name in enumerate(classes)}
    return tuple(classes), [numbers[name] for name in names]


def compiled(key: str, expression: str) -> re.Pattern[str]:
    """Compile the regular expression of the setting `key`.

    Raises:
        ValueError: If it is not a regular expression; the message names the key and the position.
    """
    try:
        return re.compile(expression)
    except re.error as error:
        raise ValueError(
            f"{key}={expression!r} is not a regular expression: {error.msg} at position {error.pos}"
        ) from error


def from_folders(root: Path, files: Sequence[str], required: bool) -> list[str] | None:
    """Return each file's folder at the first level where folders differ among the files.

    If that gives no classes, return None, or the common folder as the only class if classes are `required`.

    Raises:
        ValueError: If classes are `required` and a file is not in a folder at that level.
    """
    parents = [PurePosixPath(file).parent.parts for file in files]
    common = _common_start(parents)
    tops = [parts[len(common)] if len(parts) > len(common) else None for parts in parents]
    classes = [top for top in tops if top is not None]
    if required and common and not classes:
        return [common[-1]] * len(files)
    if len(classes) < len(tops):
        if not required:
            return None
        raise ValueError(
            f"{root / files[tops.index(None)]} is not in a subfolder, so it has no class: "
            "move it into one, or set labels=none"
        )
    names = sorted(set(classes))
    if SPLITS.issuperset(name.lower() for name in names):
        log.warning(
            "the subfolders of %s (%s) are used as classes, but are named like splits of a dataset: "
            "set match to select one of them, such as ^%s/, or set labels=none",
            root.joinpath(*common), ", ".join(names), "/".join((*common, names[0])),
        )  # fmt: skip
    return classes


def _common_start(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the leading parts that all paths share: those shared by the first and the last path in sorted order."""
    shared = zip(min(paths), max(paths), strict=False)
    return tuple(part for part, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], shared))


def from_names(files: Sequence[str], expression: str) -> list[str]:
    """Return what a regular expression's group `label`, or else its first group, matches in each file's name.

    The expression is searched for in the name without folders; ^ and $ anchor it.

    Raises:
        ValueError: If the expression is invalid or has no group, or a name has no match.
    """
    search = marked("pattern", expression, "label", "class")
    labels = []
    for file in files:
        label = search(PurePosixPath(file).name)
        if not label:
            raise ValueError(
                f"pattern={expression!r} finds no class in the name of {file}: "
                "change it, or exclude the file with match"
            )
        labels.append(label)
    return labels


def marked(key: str, expression: str, group: str, what: str) -> Callable[[str], str | None]:
    """Return a function that searches a text for a regular expression and returns the text that marks `what`, or None.

    That is the match of the capturing group named `group`, or of the first one if none has this name. `key` is the
    setting that contains the expression, for messages.

    Raises:
        ValueError: If the expression is invalid or has no capturing group.
    """
    pattern = compiled(key, expression)
    if not pattern.groups:
        raise ValueError(
            f"{key}={expression!r} has no group in parentheses that marks the {what}: enclose this part in "
            f"(?P<{group}>…)"
        )
    chosen: str | int = group if group in pattern.groupindex else 1

    def search(text: str) -> str | None:
        match = pattern.search(text)
        return None if match is None else match[chosen]

    return search


def sidecars(root: Path, files: Sequence[str], suffixes: Sequence[str]) -> list[str]:
    """Return the captions in the text files next to the media: photo.txt for photo.jpg, UTF-8.

    `suffixes` are those of media.

    Raises:
        FileNotFoundError: If a text file is missing.
        ValueError: If a text file is not UTF-8.
    """
    texts = []
    for file in files:
        path = root / f"{file.removesuffix(ending_of(file, suffixes))}.txt"
        try:
            texts.append(path.read_text(encoding="utf-8-sig").strip())
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{root / file} has no caption: write it to {path.name} next to it (an empty file means no caption), "
                "or exclude the file with match"
            ) from error
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8"
            ) from error
    return texts


def _natural(name: str) -> tuple[list[str | tuple[int, str]], str]:
    # Numbers are compared by length and then as text, since Python does not parse numbers of thousands of digits.
    parts = [part.lstrip("0") if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
    return [(len(part), part) if index % 2 else part for index, part in enumerate(parts)], name
