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
from typing import NoReturn, Self

from modalities.base import Batch, Dataset, Example, Modality, collate, pair
from multisagd.seeds import derive

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
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
        """Write the report as JSON: the number of files, the limit, and each unreadable file with its reason."""
        unreadable = [{"path": name, "reason": reason} for name, reason in sorted(self.reasons.items())]
        record = {"files": self.total, "allowed": self.allowed, "unreadable": unreadable}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


class Folder(Dataset):
    """The media files under `root`, at any depth, sorted by path; the class of a file is the first folder on its way.

    `labelled=None` finds out: labels if all files lie in two or more subfolders, none otherwise. Hidden files and files
    with other endings than the modality's are passed over. Files are found now and read when asked for, by `threads`
    threads per batch. A file that cannot be read is reported and another of this dataset, chosen by index and seed,
    takes its place.

    Raises:
        FileNotFoundError: if `root` is no folder, or holds no file that the modality reads.
        ValueError: if `labelled` and a file lies in no subfolder.
    """

    def __init__(
        self,
        modality: Modality,
        root: str | Path,
        labelled: bool | None = None,
        max_unreadable: float = 0.05,
        threads: int = 4,
    ) -> None:
        self.modality = modality
        self.root = Path(root)
        self.threads = threads
        self.files = find_files(self.root, modality.suffixes)
        self.report = FileReport(len(self.files), max_unreadable)
        tops = [parts[0] if len(parts := Path(file).parts) > 1 else None for file in self.files]
        names = sorted({top for top in tops if top is not None})
        if labelled is None:
            labelled = None not in tops and len(names) > 1
        if labelled and None in tops:
            raise ValueError(
                f"{self.root / self.files[tops.index(None)]} lies in no subfolder, so it has no class: "
                "move it into one, or set labelled=false"
            )
        if labelled and SPLITS.issuperset(name.lower() for name in names):
            log.warning(
                "the subfolders of %s (%s) are taken as classes, but are named like parts of a dataset: "
                "set root to one of them, or labelled=false",
                self.root, ", ".join(names),
            )  # fmt: skip
        self.classes = tuple(names) if labelled else None
        self.labels = [names.index(top) if labelled and top is not None else None for top in tops]

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
        return Example(x0, self.labels[index], mask)

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
        return part

    @property
    def fingerprint(self) -> str:
        """A hash of the files' paths under the root and their classes."""
        return hashlib.sha256(json.dumps([self.files, self.labels]).encode()).hexdigest()

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
