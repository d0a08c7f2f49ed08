"""A folder of media files as a dataset, and what becomes of files that cannot be read.

One broken file must not end a night of training, and a thousand must not pass unseen. So an unreadable file is named in
a report and replaced by another of the same dataset; when more than a stated share is unreadable, one error names some.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, Self, get_args

from modalities import labels as sources
from modalities.base import Batch, Dataset, Example, Modality, collate, pair
from modalities.labels import CaptionSource, LabelSource
from modalities.manifest import Entry, check_listed, read_manifest
from multisagd.seeds import derive

log = logging.getLogger("multisagd")


class UnreadableFilesError(RuntimeError):
    """More files are unreadable than the limit allows."""


class FileReport:
    """The unreadable files among `total`, each with its reason, up to a limit.

    `max_unreadable` is a fraction in [0, 1] of `total`; the number it allows is rounded up, so 0 allows none and
    anything above 0 allows one. Parts of one dataset share one report, and so do threads; processes do not.

    Raises:
        ValueError: for a fraction outside [0, 1].
    """

    def __init__(self, total: int, max_unreadable: float = 0.05) -> None:
        if not 0 <= max_unreadable <= 1:
            raise ValueError(f"max_unreadable is a fraction of the files, from 0 to 1, got {max_unreadable}")
        self.total = total
        self.max_unreadable = max_unreadable
        self.reasons: dict[str, str] = {}

    @property
    def allowed(self) -> int:
        """How many files may be unreadable."""
        return math.ceil(self.max_unreadable * self.total)

    def add(self, path: str, error: Exception) -> None:
        """Name a file as unreadable.

        Raises:
            UnreadableFilesError: if that makes more than the limit, or all of them.
        """
        self.reasons[path] = f"{type(error).__name__}: {error}"
        if len(self.reasons) > self.allowed or len(self.reasons) >= self.total:
            raise UnreadableFilesError(self.message()) from error

    def message(self, shown: int = 5) -> str:
        """Return one paragraph that counts the unreadable files, names some and says what to do."""
        some = "; ".join(f"{path} ({reason})" for path, reason in sorted(self.reasons.items())[:shown])
        rest = len(self.reasons) - shown
        return (
            f"{len(self.reasons)} of {self.total} files could not be read, and max_unreadable={self.max_unreadable:g} "
            f"allows {self.allowed}: {some}{f'; and {rest} more' if rest > 0 else ''}. "
            "Repair or remove them, or raise max_unreadable"
        )

    def save(self, path: Path) -> None:
        """Write the report as JSON: the number of files, the limit, and each unreadable file with its reason.

        In ASCII: names of files need not be valid UTF-8, and Python holds the rest in a form that UTF-8 refuses.
        """
        unreadable = [{"path": name, "reason": reason} for name, reason in sorted(self.reasons.items())]
        record = {"files": self.total, "allowed": self.allowed, "unreadable": unreadable}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


class Folder(Dataset):
    """The media files under `root`, at any depth, sorted by path, with the classes and captions that come with them.

    Hidden files and files with other endings than the modality's are passed over. Files are found now and read when
    asked for, by `threads` threads per batch. A file that cannot be read is reported and another of this dataset,
    chosen by index and seed, takes its place. Classes are sorted by name, numbers in names by their value.

    Args:
        modality: what reads the files.
        root: the folder.
        labels: where classes come from. "folder": the first folder on the way to a file. "name": its name, by
            `pattern`. "manifest": the column `label`. "none": nowhere. "auto": the manifest, if it has that column, or
            else the folders, if all files lie in two or more of them.
        pattern: for labels="name", a regular expression searched for in the file's name; its group `label`, or else
            its first group, is the class: `^(?P<label>[a-z]+)_`.
        manifest: a .csv or .jsonl file (path from the root, or absolute), as `modalities.manifest` describes; then only
            the files that it lists are used.
        match: a regular expression, searched for in the path under the root, that a file needs to be used; it serves
            sets whose parts are told apart by their names.
        captions: where texts come from. "auto": the manifest, if it has a column `text`. "sidecar": photo.txt beside
            photo.jpg. "labels": the names of the classes, underscores as spaces. "none": nowhere.
        max_unreadable: share of the files that may be unreadable.
        threads: threads that read a batch.

    Raises:
        FileNotFoundError: if `root` is no folder, holds no file that the modality reads and `match` lets pass, or a
            listed file or caption is missing.
        ValueError: for settings that do not go together, a wrong regular expression or manifest, or a file without
            the class that is asked for.
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
                f"labels is one of {', '.join(get_args(LabelSource))} and captions one of "
                f"{', '.join(get_args(CaptionSource))}; got {labels!r} and {captions!r}"
            )
        if pattern is not None and labels != "name":
            raise ValueError(f"pattern={pattern!r} serves labels=name alone, and labels is {labels}")
        self.modality = modality
        self.root = Path(root)
        self.threads = threads
        fits = (lambda _: True) if match is None else sources.compiled("match", match).search
        entries: list[Entry] = []
        if manifest is None:
            self.files = [file for file in find_files(self.root, modality.suffixes) if fits(file)]
        else:
            entries = [entry for entry in read_manifest(self.root / manifest) if fits(entry.file)]
            check_listed(self.root / manifest, self.root, entries, modality.suffixes)
            self.files = [entry.file for entry in entries]
        if not self.files:
            raise FileNotFoundError(f"match={match!r} lets no file under {self.root.absolute()} pass")
        self.report = FileReport(len(self.files), max_unreadable)
        names = sources.class_names(labels, self.root, self.files, entries, pattern)
        self.texts = sources.captions(captions, self.root, self.files, entries, names)
        self.classes: tuple[str, ...] | None = None
        self.labels: Sequence[int | None] = [None] * len(self.files)
        if names is not None:
            self.classes, self.labels = sources.number(names)

    def __len__(self) -> int:
        return len(self.files)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example, or another in its place if its file cannot be read.

        Raises:
            IndexError: for an index outside `[0, len(self))`.
            UnreadableFilesError: if more files are unreadable than the limit allows.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} files")
        start = derive(seed or 0, "replacement", index)
        places = itertools.chain([index], ((start + n) % len(self) for n in range(len(self))))
        for place in places:
            example = self.read(place, seed)
            if example is not None:
                return example
        raise UnreadableFilesError(f"none of the {len(self)} files of this part can be read. {self.report.message()}")

    def read(self, index: int, seed: int | None) -> Example | None:
        """Return the example of this very file, or None after reporting that it cannot be read."""
        file = self.files[index]
        if file in self.report.reasons:
            return None
        try:
            media = self.modality.load(self.root / file, seed)
            x0, mask = self.modality.encode(media), self.modality.mask(media)
        except Exception as error:  # decoders raise nearly every kind on damaged files, and users' adapters any other
            self.report.add(file, error)
            return None
        return Example(x0, self.labels[index], mask, self.caption(index))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch as `Dataset.batch` says, its files read by several threads."""
        pairs = pair(indices, seeds)
        if self.threads <= 1:
            return collate([self.example(*each) for each in pairs])
        with ThreadPoolExecutor(min(self.threads, len(pairs))) as pool:
            return collate(list(pool.map(lambda each: self.example(*each), pairs)))

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these files only; it shares the report, so the limit counts files of the whole."""
        part = copy.copy(self)
        part.files = [self.files[index] for index in indices]
        part.labels = [self.labels[index] for index in indices]
        part.texts = None if self.texts is None else [self.texts[index] for index in indices]
        return part

    def caption(self, index: int) -> str | None:
        """Return the text of one file, without reading the file; None if the files have none."""
        return None if self.texts is None else self.texts[index]

    @property
    def fingerprint(self) -> str:
        """A hash of the files' paths under the root, their classes and captions."""
        facts = [self.files, self.labels, *([] if self.texts is None else [self.texts])]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Files that could not be read so far, path under the root to reason."""
        return self.report.reasons

    def save_unreadable(self, path: Path) -> None:
        """Write the report of the whole dataset, if any of its files could not be read so far."""
        if self.report.reasons:
            self.report.save(path)


def find_files(root: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Return the paths, relative to `root` and sorted, of the regular files with these endings, links followed once.

    Raises:
        FileNotFoundError: if `root` is no folder, or holds no such file.
        PermissionError: if a folder cannot be listed.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root.absolute()} is not a folder: set root to the folder that holds the files")
    found: list[str] = []
    others: Counter[str] = Counter()
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        for name in names:
            path = Path(folder, name)
            # A named pipe would block the reader for ever.
            if name.startswith(".") or not path.is_file():
                continue
            if path.suffix.lower() in suffixes:
                found.append(path.relative_to(root).as_posix())
            else:
                others[path.suffix.lower() or "(none)"] += 1
    if not found:
        seen = ", ".join(f"{count} × {suffix}" for suffix, count in others.most_common(5)) or "nothing"
        raise FileNotFoundError(f"no file under {root.absolute()} ends in {', '.join(suffixes)}; it holds {seen}")
    return sorted(found)


def _fail(error: OSError) -> NoReturn:
    raise error
