"""Classes and splits of files, from folders, file names or a manifest."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from modalities.base import Split
from modalities.manifest import Entry
from modalities.splits import SPLITS

LabelSource = Literal["auto", "folder", "parent", "name", "manifest", "none"]
SplitSource = Literal["auto", "folders"]

log = logging.getLogger("multisagd")


def class_names(
    source: LabelSource, root: Path, files: Sequence[str], entries: Sequence[Entry], pattern: str | None, depth: int = 0
) -> list[str] | None:
    """Return the class name of each file, or None if there are no classes.

    `entries` are the manifest lines of the files, if there is a manifest. The first `depth` folders on the path of a
    file are splits, not classes.

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
    if source == "parent":
        return from_parents(root, files, depth)
    if source in ("auto", "manifest") and listed:
        return listed
    return from_folders(root, files, source == "folder", depth) if source in ("auto", "folder") else None


def splits_of(
    source: SplitSource, root: Path, files: Sequence[str], entries: Sequence[Entry]
) -> tuple[list[Split] | None, int]:
    """Return the split of each file, or None without splits, and how many folders on the files' paths are splits.

    Raises:
        ValueError: If splits should come from folders, but a file is in no folder named like a split, or a manifest has
            splits, too.
    """
    listed = [entry.split for entry in entries if entry.split is not None]
    if source == "auto":
        return listed or None, 0
    if listed:
        raise ValueError("splits=folders, but the manifest has a column split: set splits=auto to use the column")
    tops = [file.partition("/")[0].lower() if "/" in file else "" for file in files]
    if (wrong := next((file for file, top in zip(files, tops, strict=True) if top not in SPLITS), None)) is not None:
        raise ValueError(
            f"splits=folders: {root / wrong} is not in a folder train, validation or test directly below {root} (or "
            f"{', '.join(name for name in SPLITS if name not in SPLITS.values())}): move it, or exclude it with match"
        )
    return [SPLITS[top] for top in tops], 1


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


def from_folders(root: Path, files: Sequence[str], required: bool, depth: int = 0) -> list[str] | None:
    """Return each file's folder at the first level, below the first `depth`, where folders differ among the files.

    If that gives no classes, return None, or the common folder as the only class if classes are `required`.

    Raises:
        ValueError: If classes are `required` and a file is not in a folder at that level.
    """
    parents = [PurePosixPath(file).parent.parts[depth:] for file in files]
    common = _common_start(parents)
    tops = [parts[len(common)] if len(parts) > len(common) else None for parts in parents]
    classes = [top for top in tops if top is not None]
    if required and common and not classes:
        return [common[-1]] * len(files)
    if len(classes) < len(tops):
        if not required:
            return None
        raise _without_class(root / files[tops.index(None)])
    names = sorted(set(classes))
    if SPLITS.keys() >= {name.lower() for name in names}:
        log.warning(
            "the subfolders of %s (%s) are used as classes, but are named like splits of a dataset: set splits=folders "
            "to use them as splits, set match to select one of them, such as ^%s/, or set labels=none",
            root.joinpath(*common), ", ".join(names), "/".join((*common, names[0])),
        )  # fmt: skip
    return classes


def from_parents(root: Path, files: Sequence[str], depth: int = 0) -> list[str]:
    """Return the name of the folder that contains each file; the first `depth` folders on its path are no classes.

    Raises:
        ValueError: If a file is not in a folder.
    """
    parents = [PurePosixPath(file).parent.parts[depth:] for file in files]
    if () in parents:
        raise _without_class(root / files[parents.index(())])
    return [parts[-1] for parts in parents]


def _without_class(path: Path) -> ValueError:
    return ValueError(f"{path} is not in a subfolder, so it has no class: move it into one, or set labels=none")


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


def _natural(name: str) -> tuple[list[str | tuple[int, str]], str]:
    # Numbers are compared by length and then as text, since Python does not parse numbers of thousands of digits.
    parts = [part.lstrip("0") if index % 2 else part for index, part in enumerate(re.split(r"([0-9]+)", name))]
    return [(len(part), part) if index % 2 else part for index, part in enumerate(parts)], name
