"""A folder of media files as a dataset."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self, get_args

from modalities import labels as sources
from modalities.base import Modality
from modalities.byte_ranges import Source, is_hidden, local
from modalities.endings import ending_of, listed, other_ending
from modalities.labels import CaptionSource, LabelSource
from modalities.manifest import Entry, check_listed, read_manifest
from modalities.reading import FileReport, MediaFiles

log = logging.getLogger("multisagd")


class Folder(MediaFiles):
    """The media files under `root`, at any depth, sorted by path, with their classes, captions, splits and groups.

    Hidden and system files (@eaDir, __MACOSX, Thumbs.db) are ignored; files without one of the modality's suffixes are
    passed over, and a warning counts them.
    Files are listed on construction and read on demand, by `threads` threads per batch. An unreadable file is
    reported and replaced by another file of this dataset, chosen by index and seed. Classes are sorted by name, with
    numbers in names compared by value (9 before 10).

    Args:
        modality: reads the files.
        root: the folder.
        labels: where classes come from. "folder": the folder on the path of a file, at the first level where the
            folders of the used files differ (root/train/cat/a.png has class cat if all files lie in train). "name": the
            part of the file's name that `pattern` selects. "manifest": the column `label`. "none": no classes. "auto":
            the manifest, if it has that column, or else the folders, if all files lie in two or more of them.
        pattern: for labels="name", a regular expression searched for in the file's name; its group `label`, or else
            its first group, is the class: `^(?P<label>[a-z]+)_`.
        manifest: a .csv or .jsonl file (its path is absolute or relative to `root`) in the format that
            `modalities.manifest` describes; only the files that it lists are used. `splits` and `listed_groups` are its
            columns `split` and `group`, or None.
        match: a regular expression; only files whose path under the root contains a match are used, for example to
            select one part of a dataset.
        captions: where captions come from. "auto": the manifest, if it has a column `text`. "sidecar": photo.txt next
            to photo.jpg. "labels": the names of the classes, with spaces for underscores. "none": no captions.
        max_unreadable: maximum fraction of unreadable files.
        threads: number of threads that read a batch.

    Raises:
        FileNotFoundError: If `root` is not a folder, if it contains no file that the modality reads and `match`
            selects, or if a listed file or caption is missing.
        ValueError: If settings are incompatible, a regular expression or the manifest is invalid, or a file has no
            class although classes are required.
    """

    def __init__(
        self,
        modality: Modality,
        root: str | Path,
        labels: LabelSource = "auto",
        pattern: str | None = None,
        manifest: str | Path | None = None,
        match: str | None = None,
        captions: CaptionSource = "auto",
        max_unreadable: float = 0.05,
        threads: int = 4,
    ) -> None:
        if labels not in get_args(LabelSource) or captions not in get_args(CaptionSource):
            raise ValueError(
                f"labels must be one of {', '.join(get_args(LabelSource))} and captions one of "
                f"{', '.join(get_args(CaptionSource))}; got {labels!r} and {captions!r}"
            )
        if pattern is not None and labels != "name":
            raise ValueError(f"pattern={pattern!r} applies only to labels=name, but labels is {labels}")
        self.modality = modality
        self.root = Path(root)
        self.threads = threads
        fits = (lambda _: True) if match is None else sources.compiled("match", match).search
        entries: list[Entry] = []
        if manifest is None:
            found, others = find_files(self.root, modality.suffixes)
            self.files = [file for file in found if fits(file)]
            if captions == "sidecar":
                del others[".txt"]
            if others:
                log.warning(
                    "%d of %d files under %s are passed over, because they do not end in %s: %s",
                    others.total(), others.total() + len(found), self.root, ", ".join(modality.suffixes),
                    listed(others),
                )  # fmt: skip
        else:
            entries = [entry for entry in read_manifest(self.root / manifest) if fits(entry.file)]
            check_listed(self.root / manifest, self.root, entries, modality.suffixes)
            self.files = [entry.file for entry in entries]
        if not self.files:
            raise FileNotFoundError(f"match={match!r} selects no file under {self.root.absolute()}")
        self.report = FileReport(len(self.files), max_unreadable)
        names = sources.class_names(labels, self.root, self.files, entries, pattern)
        self.texts = (
            sources.sidecars(self.root, self.files, modality.suffixes)
            if captions == "sidecar"
            else sources.captions(captions, entries, names)
        )
        self.splits = [entry.split for entry in entries if entry.split is not None] or None
        self.listed_groups = [entry.group for entry in entries if entry.group is not None] or None
        self.classes: tuple[str, ...] | None = None
        self.labels: Sequence[int | None] = [None] * len(self.files)
        if names is not None:
            self.classes, self.labels = sources.number(names)

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of one file under the root."""
        return self.files[index]

    def load(self, index: int, seed: int | None) -> Any:
        """Return the media of one file, as read by the modality."""
        return self.modality.load(self.root / self.files[index], seed)

    def label(self, index: int) -> int | None:
        """Return the class of one file."""
        return self.labels[index]

    def has_changed(self, name: str, since: float) -> bool:
        """Whether a file was changed or replaced after a time, or removed."""
        path = self.root / name
        return not path.is_file() or path.stat().st_ctime > since

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these files only.

        It shares the report of unreadable files, so that the limit applies to the whole dataset.
        """
        part = copy.copy(self)
        part.files = [self.files[index] for index in indices]
        part.labels = [self.labels[index] for index in indices]
        part.texts = None if self.texts is None else [self.texts[index] for index in indices]
        part.splits = None if self.splits is None else [self.splits[index] for index in indices]
        groups = self.listed_groups
        part.listed_groups = None if groups is None else [groups[index] for index in indices]
        return part

    def caption(self, index: int) -> str | None:
        """Return the caption of one file, without reading the file, or None if the files have no captions."""
        return None if self.texts is None else self.texts[index]

    def stored(self) -> Iterable[Source]:
        """Return the media files."""
        return (local(self.root / name) for name in self.files)

    @property
    def fingerprint(self) -> str:
        """A hash of the files' paths under the root, and of their classes, captions, splits and groups."""
        facts: list[Any] = [self.files, self.labels, *([] if self.texts is None else [self.texts])]
        if (self.splits or self.listed_groups) is not None:
            facts.append({"splits": self.splits, "groups": self.listed_groups})
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def find_files(root: Path, suffixes: tuple[str, ...]) -> tuple[list[str], Counter[str]]:
    """Return the sorted paths, relative to `root`, of the regular files with these suffixes, and the others' endings.

    Symbolic links are followed, but no folder is visited twice.

    Raises:
        FileNotFoundError: If `root` is not a folder, or contains no such file.
        PermissionError: If a folder cannot be listed.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root.absolute()} is not a folder: set root to the folder that contains the files")
    matching: list[str] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_fail):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        for name in names:
            path = Path(folder, name)
            # A named pipe would block the reader forever.
            if is_hidden(name) or not path.is_file():
                continue
            if ending_of(name, suffixes):
                matching.append(path.relative_to(root).as_posix())
            else:
                others[other_ending(name)] += 1
    if not matching:
        raise FileNotFoundError(
            f"no file under {root.absolute()} ends in {', '.join(suffixes)}; it contains {listed(others)}"
        )
    return sorted(matching), others


def _fail(error: OSError) -> NoReturn:
    raise error
