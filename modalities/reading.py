"""Datasets whose media are read on demand, and the handling of unreadable files.

One broken file must not stop a training run, and a thousand must not go unnoticed. An unreadable file is therefore
named in a report and replaced by another file of the same dataset. If too many files are unreadable, an error names
some of them.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from modalities.base import Batch, Dataset, Example, Modality, UnusableFileError, collate, pair
from modalities.remarks import collecting
from modalities.scalars import WINDOW, recording
from modalities.sizes import Extent
from multisagd.libraries import failed_import
from multisagd.seeds import derive

log = logging.getLogger("multisagd")


class UnreadableFilesError(RuntimeError):
    """More files are unreadable than allowed."""


class FileReport:
    """The unreadable files among `total`, each with its first reason, up to a limit.

    A file counts as soon as one excerpt of it cannot be read. `unusable` are those that no seed can use. `remarks` are
    about files that were read, each with the files' names.
    `max_unreadable` is a fraction in [0, 1] of `total`; the resulting number is rounded up, so 0 allows none and
    any larger value at least one. All parts of one dataset and all threads share one report; processes do not.

    Raises:
        ValueError: If the fraction is outside [0, 1].
    """

    def __init__(self, total: int, max_unreadable: float = 0.05) -> None:
        if not 0 <= max_unreadable <= 1:
            raise ValueError(f"max_unreadable must be a fraction of the files, from 0 to 1, got {max_unreadable}")
        self.total = total
        self.max_unreadable = max_unreadable
        self.reasons: dict[str, str] = {}
        self.remarks: dict[str, set[str]] = {}
        self.unusable: set[str] = set()

    @property
    def allowed(self) -> int:
        """Number of files that may be unreadable."""
        return math.ceil(self.max_unreadable * self.total)

    def add(self, path: str, error: Exception) -> None:
        """Record a file as unreadable, at least with one seed.

        Raises:
            UnreadableFilesError: If this exceeds the limit.
        """
        self.reasons.setdefault(path, f"{type(error).__name__}: {error}")
        if isinstance(error, UnusableFileError):
            self.unusable.add(path)
        if len(self.reasons) > self.allowed:
            raise UnreadableFilesError(self.message()) from error

    def note(self, path: str, texts: Iterable[str]) -> None:
        """Record remarks about a file that was read; each is logged for the first file only."""
        for text in texts:
            if text not in self.remarks:
                log.warning("%s is %s (said once; `multisagd inspect` counts such files)", path, text)
            self.remarks.setdefault(text, set()).add(path)

    def message(self, shown: int = 5) -> str:
        """Return one paragraph with the number of unreadable files, some of their names and the remedy."""
        some = "; ".join(f"{path} ({reason})" for path, reason in sorted(self.reasons.items())[:shown])
        rest = len(self.reasons) - shown
        return (
            f"{len(self.reasons)} of {self.total} files could not be read, but max_unreadable={self.max_unreadable:g} "
            f"allows {self.allowed}: {some}{f'; and {rest} more' if rest > 0 else ''}. "
            "Repair or remove them, or raise max_unreadable"
        )


def save_report(path: Path, total: int, allowed: int, reasons: Mapping[str, str]) -> None:
    """Write a report as JSON: the number of files, of which so many may be unreadable, and the reason for each that is.

    The file is ASCII: file names need not be valid UTF-8, and surrogate escapes cannot be encoded in UTF-8.
    """
    unreadable = [{"path": name, "reason": reason} for name, reason in sorted(reasons.items())]
    record = {"files": total, "allowed": allowed, "unreadable": unreadable}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def finite(x0: Tensor, mask: Tensor | None) -> Tensor:
    """Return data `(channels, *grid)` in which masked values that are not finite are replaced by 0.

    Raises:
        ValueError: If an unmasked value is NaN or infinite.
    """
    broken = ~torch.isfinite(x0)
    if not bool(broken.any()):
        return x0
    if bool((broken if mask is None else broken & mask).any()):
        raise ValueError("it contains NaN or infinity")
    return x0.masked_fill(broken, 0.0)


def read_batch(dataset: Dataset, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
    """Return a batch of any dataset, after checking that all unmasked values are finite.

    Raises:
        UnreadableFilesError: If too many files cannot be read, or an unmasked value is NaN or infinite; the message
            names the first such example.
    """
    batch = dataset.batch(indices, seeds)
    broken = ~torch.isfinite(batch.x0)
    if bool(broken.any()):
        wrong = (broken if batch.mask is None else broken & batch.mask).flatten(1).any(1).nonzero()
        if len(wrong):
            raise UnreadableFilesError(
                f"example {indices[int(wrong[0])]} of the data contains NaN or infinity: remove it"
            )
    return batch


class MediaFiles(Dataset):
    """A dataset with one media file per example, read by `threads` threads per batch.

    A file that cannot be read is named in `report` and replaced by another file of this dataset, chosen by index and
    seed. `listed_groups` has the name of every file's group, and is None if the data come without such names.
    """

    report: FileReport
    threads: int
    listed_groups: Sequence[str] | None = None

    @abstractmethod
    def name(self, index: int) -> str:
        """Return the unique name of one file, for the report."""

    def path(self, index: int) -> str:
        """Return the path of one file under the root of the dataset, or its name in its shard."""
        return self.name(index)

    @abstractmethod
    def load(self, index: int, seed: int | None) -> Any:
        """Return the media of one file, as read by the modality.

        Raises:
            UnreadableFilesError: If the cause is not this file, so that another file would not help.
            Exception: If the file cannot be read.
        """

    @abstractmethod
    def label(self, index: int) -> int | None:
        """Return the class of one file, or None if there are no classes."""

    @property
    def scalars(self) -> Mapping[str, str]:
        """The names of the scalars that the examples have, each with its unit."""
        return self.modality.scalars

    def numbers(self, index: int) -> Mapping[str, float]:
        """Return scalars of one file that are stated elsewhere, by name; by default there are none."""
        return {}

    def condition(self, index: int, seed: int | None, scalars: Mapping[str, float]) -> Tensor | None:
        """Return the dense condition of one file, as in `Example`; by default there is none.

        `scalars` are the numbers recorded while the file itself was read with this seed.

        Raises:
            UnreadableFilesError: If the cause is not this file, so that another file would not help.
            Exception: If the condition cannot be read.
        """
        return None

    def extent(self, index: int) -> Extent:
        """Return the size of one file, as its header states it.

        Raises:
            UnreadableFilesError: If the cause is not this file.
            Exception: If the header cannot be read.
        """
        headers = copy.copy(self)
        headers.modality = cast(Modality, _Headers(self.modality))
        extent: Extent = headers.load(index, None)
        return extent

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example, or a replacement if its file cannot be read.

        Raises:
            IndexError: If the index is outside `[0, len(self))`.
            UnreadableFilesError: If more files are unreadable than the limit allows.
            BrokenLibraryError: If a library cannot be imported.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} files")
        start = derive(seed or 0, "replacement", index)
        candidates = itertools.chain([index], ((start + n) % len(self) for n in range(len(self))))
        for candidate in candidates:
            example = self.read(candidate, seed)
            if example is not None:
                return example
        raise UnreadableFilesError(
            f"none of the {len(self)} files of this part of the dataset can be read. {self.report.message()}"
        )

    def read(self, index: int, seed: int | None) -> Example | None:
        """Return the example of one file; if the file cannot be read with this seed, report it and return None.

        What is returned depends on the file and the seed only, not on what was read before: a training that is
        continued, and each of several processes, has read other files and excerpts.
        """
        name = self.name(index)
        if name in self.report.unusable:
            return None
        try:
            with collecting() as remarks:
                with recording() as scalars:
                    media = self.load(index, seed)
                condition = self.condition(index, seed, scalars)
            mask = self.modality.mask(media)
            x0 = finite(self.modality.encode(media), mask)
        except UnreadableFilesError:
            raise
        except Exception as error:  # decoders raise many kinds of errors, and users' modalities may raise any
            if (failure := failed_import(error)) is not None:
                raise failure from error
            if isinstance(error, ImportError):
                raise
            self.report.add(name, error)
            return None
        self.report.note(name, remarks)
        scalars = {name: value for name, value in scalars.items() if not name.startswith(WINDOW)}
        scalars.update(self.numbers(index))
        return Example(x0, self.label(index), mask, self.caption(index, seed), scalars or None, condition)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch (see `Dataset.batch`), reading files in several threads."""
        pairs = pair(indices, seeds)
        if self.threads <= 1:
            return collate([self.example(*each) for each in pairs])
        with ThreadPoolExecutor(min(self.threads, len(pairs))) as pool:
            return collate(list(pool.map(lambda each: self.example(*each), pairs)))

    @property
    def unreadable(self) -> Mapping[str, str]:
        """A mapping from the name of each file that could not be read so far to the reason."""
        return self.report.reasons

    @property
    def remarks(self) -> Mapping[str, int]:
        """Remarks about the files read so far, each with the number of files."""
        return {text: len(files) for text, files in self.report.remarks.items()}

    def has_changed(self, name: str, since: float) -> bool:
        """Whether a file of this name has changed since a time, if its storage tells."""
        return False

    def recall_unreadable(self, reasons: Mapping[str, str], since: float) -> None:
        """Add files that could not be read in another process, except those that have changed `since` (a time)."""
        for name, reason in reasons.items():
            if not self.has_changed(name, since):
                self.report.reasons.setdefault(name, reason)

    def save_unreadable(self, path: Path) -> None:
        """Write the report of the whole dataset if any file could not be read so far."""
        if self.report.reasons:
            save_report(path, self.report.total, self.report.allowed, self.report.reasons)


class _Headers:
    """Stands for a modality in a dataset, which then provides each file for reading its header only."""

    def __init__(self, modality: Modality) -> None:
        self.suffixes, self._modality = modality.suffixes, modality

    def load(self, path: Path, seed: int | None = None) -> Extent:
        return self._modality.extent(path)
