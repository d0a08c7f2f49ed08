"""A dataset of shards in the WebDataset layout: uncompressed tar archives, local or read through fsspec.

The files of one example are in one archive and share their name up to the first dot of the last path component. The
suffix after the dot determines the kind: `0017.jpg` is the media, `0017.cls` its class, and `0017.txt` or
`0017.caption` its caption; `0017.json` may contain the class and one or several captions.

Examples are read one by one at their positions, so they can be read in any order, and nothing is unpacked.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import logging
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from modalities.base import Groups, Modality
from modalities.byte_ranges import AccessError, PartsError, Source, find
from modalities.captions import Captions, MissingCaptions, usable
from modalities.endings import ending_of, listed
from modalities.labels import from_folders, from_parents, number
from modalities.reading import FileReport, MediaFiles, UnreadableFilesError
from modalities.tar_catalogue import catalogue
from modalities.tar_index import ScanOptions
from modalities.tar_members import BLOCK

log = logging.getLogger("multisagd")

MEMORY = Path("/dev/shm")
"""A folder that is held in memory on Linux."""


class TarShards(MediaFiles):
    """The examples of tar shards, shard by shard, with their classes and captions.

    First, each shard's headers are read once to build an index, stored in a file (see `modalities.tar_catalogue`). Then
    every example is read at its position, by `threads` threads per batch; the modality gets its media as a file in
    memory. Unreadable media are reported and replaced as in `Folder`; a permanent storage failure is an error.
    Examples without media, hidden files and system files are ignored; files with other endings are passed over, and a
    warning counts them. Classes are sorted by name, with numbers in
    names compared by value.

    Args:
        modality: reads the media.
        urls: one or several paths or URLs that fsspec supports. Each may contain ranges
            (`shards/{000000..000099}.tar`), or be a pattern with * or a folder.
        index: folder for indices; None: next to local shards, or else the user's cache folder.
        media: suffix of the media, if examples have several (`seg.png`); None: the suffixes that the modality reads.
        labels: "auto": the class in `.cls`, or under `label_key` in `.json`, if examples have one, or else the same
            as "folder", if that gives classes. "folder" and "parent": a folder in a member's name, as in `Folder`.
            "none": no classes.
        captions: "auto": the content of `.txt` or `.caption`, or the value of `text_key` in `.json`, one text or a
            list, if examples have one. "labels": the names of the classes, with spaces for underscores. "none": no
            captions.
        missing_captions: what happens to examples without a caption, as in `Folder`.
        label_key: key of the class in JSON files.
        text_key: key of the captions in JSON files.
        window: number of shards that training draws from at a time; more shards shuffle better, fewer use caches
            better.
        max_member_bytes: maximum size of media in bytes; larger media are not read, but reported as unreadable.
        max_unreadable: maximum fraction of examples with unreadable media.
        threads: number of threads that read a batch.
        trusted: False if the settings came with another person's run: shards are then read from plain local paths only,
            without fsspec, and no new index is stored.

    Raises:
        OSError: If there are no shards, or if they cannot be reached.
        ValueError: If a setting is out of range, a shard is damaged, compressed or ambiguous (the message names the
            shard and the member), or only some examples have a class or a caption, or one that cannot be read.
    """

    def __init__(
        self,
        modality: Modality,
        urls: str | Sequence[str],
        index: str | Path | None = None,
        media: str | None = None,
        labels: Literal["auto", "folder", "parent", "none"] = "auto",
        captions: Literal["auto", "labels", "none"] = "auto",
        missing_captions: MissingCaptions = "error",
        label_key: str = "label",
        text_key: str = "text",
        window: int = 16,
        max_member_bytes: int = 1 << 30,
        max_unreadable: float = 0.05,
        threads: int = 4,
        trusted: bool = True,
    ) -> None:
        if window < 1 or max_member_bytes < 1:
            raise ValueError(f"window and max_member_bytes must be at least 1, got {window} and {max_member_bytes}")
        self.modality, self.threads = modality, threads
        self.window, self.max_member_bytes = window, max_member_bytes
        endings = [suffix.lower().removeprefix(".") for suffix in ([media] if media else modality.suffixes)]
        options = ScanOptions(tuple(endings), label_key, text_key)
        self.sources = find(urls, ".tar", local=not trusted)
        self.indices = catalogue(self.sources, options, None if index is None else Path(index), keep=trusted)
        self._starts = np.cumsum([0, *map(len, self.indices)], dtype=np.int64)
        self._positions: NDArray[np.int64] = np.arange(self._starts[-1], dtype=np.int64)
        if not len(self):
            raise ValueError(f"the {len(self.sources)} shards contain no file that ends in .{', .'.join(endings)}")
        self._warn_of_others()
        self._set_captions(captions, missing_captions)
        self._set_classes(labels)
        if captions == "labels" and self.classes is None:
            raise ValueError("captions=labels requires classes, but these shards have none, or labels=none is set")
        self.report = FileReport(len(self), max_unreadable)

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        """Return the URL of a shard and the name of a member in it."""
        shard, row = self._find(index)
        return f"{self.sources[shard].url}/{self.indices[shard].names[row]}"

    def path(self, index: int) -> str:
        """Return the name of one file in its shard."""
        shard, row = self._find(index)
        return self.indices[shard].names[row]

    def load(self, index: int, seed: int | None) -> Any:
        """Return one example's media, as read by the modality.

        Raises:
            UnreadableFilesError: If the shard cannot be read, or has changed since it was indexed.
            Exception: If the media cannot be read.
        """
        shard, row = self._find(index)
        source, shard_index = self.sources[shard], self.indices[shard]
        start, size = int(shard_index.header[row]), int(shard_index.size[row])
        if size > self.max_member_bytes:
            raise ValueError(
                f"it has {size} bytes, but max_member_bytes={self.max_member_bytes}: raise that limit to read it"
            )
        try:
            content = memoryview(source.read(start, start + BLOCK + size))
        except (PartsError, AccessError) as error:
            raise UnreadableFilesError(str(error)) from error
        except OSError as error:
            raise UnreadableFilesError(f"{error}. Run the same command again once the shard can be reached") from error
        if zlib.crc32(content[:BLOCK]) != shard_index.crc[row]:
            raise UnreadableFilesError(f"{source.url} has changed since this command started: run it again")
        # Only the suffix comes from the name in the archive, and only a suffix that the modality reads.
        ending = ending_of(shard_index.names[row], self.modality.suffixes)
        with in_memory(content[BLOCK:], ending) as path:
            return self.modality.load(path, seed)

    def label(self, index: int) -> int | None:
        """Return the class of one example."""
        shard, row = self._find(index)
        return None if self._labels is None else int(self._labels[shard][row])

    def captions(self, index: int) -> Captions:
        """Return all captions of one example, without reading its shard."""
        if self._captions == "none":
            return ()
        shard, row = self._find(index)
        if self._captions == "labels" and self.classes is not None and self._labels is not None:
            return (self.classes[self._labels[shard][row]].replace("_", " "),)
        return self.indices[shard].captions_of(row) or ("",)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only.

        It shares the report of unreadable media, so that the limit applies to the whole dataset.
        """
        part = copy.copy(self)
        part._positions = self._positions[np.asarray(indices, np.int64)]
        return part

    @property
    def groups(self) -> Groups:
        """Groups of consecutive examples that are in the same shard."""
        shards = np.searchsorted(self._starts, self._positions, side="right")
        ends = np.flatnonzero(np.diff(shards, append=-1)) + 1
        return Groups(np.diff(ends, prepend=0).tolist(), self.window)

    def stored(self) -> Iterable[Source]:
        """Return the shards."""
        return self.sources

    @property
    def fingerprint(self) -> str:
        """A hash of the examples' names, sizes, classes and captions, independent of the shards' location."""
        facts = [[index.digest for index in self.indices], self.classes, self._captions]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self._positions.tobytes())
        return digest.hexdigest()

    def _find(self, index: int) -> tuple[int, int]:
        """Return the shard of one example, and its row in the shard's index."""
        position = int(self._positions[index])
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        return shard, position - int(self._starts[shard])

    def _set_classes(self, labels: str) -> None:
        self.classes: tuple[str, ...] | None = None
        self._labels: list[NDArray[np.int64]] | None = None
        if labels not in ("auto", "folder", "parent", "none"):
            raise ValueError(f"labels must be auto, folder, parent or none, got {labels!r}")
        if labels == "none":
            return
        if labels == "auto":
            self._check_faults("labels")
        names = sorted({name for index in self.indices for name in index.classes})
        if labels in ("folder", "parent") or not names:
            self._set_folders(labels)
            return
        self._check_all(
            "class (.cls, or the label_key of .json)", [index.label >= 0 for index in self.indices], "labels"
        )
        self.classes = number(names)[0]
        class_numbers = {name: label for label, name in enumerate(self.classes)}
        numbers = [np.array([class_numbers[name] for name in index.classes], np.int64) for index in self.indices]
        self._labels = [each[index.label] for each, index in zip(numbers, self.indices, strict=True)]

    def _set_folders(self, labels: str) -> None:
        members = [index.names[row] for index in self.indices for row in range(len(index))]
        names = from_parents(Path(), members) if labels == "parent" else from_folders(Path(), members, labels != "auto")
        if names is not None:
            self.classes, numbers = number(names)
            self._labels = np.split(np.array(numbers, np.int64), self._starts[1:-1])

    def _set_captions(self, captions: str, missing: MissingCaptions) -> None:
        if captions not in ("auto", "labels", "none"):
            raise ValueError(f"captions must be auto, labels or none, got {captions!r}")
        if missing not in get_args(MissingCaptions):
            raise ValueError(f"missing_captions must be one of {', '.join(get_args(MissingCaptions))}, got {missing!r}")
        self._captions = captions
        if captions != "auto":
            return
        self._check_faults("captions")
        if not any(len(index.texts) for index in self.indices):
            self._captions = "none"
            return

        def problem(index: int) -> str:
            what = "has no caption (.txt, .caption, or the text_key of .json), but other examples have one"
            return f"{self.name(index)} {what}: add it, set captions=none"

        stated, filled = (
            np.concatenate(each) for each in zip(*(index.captioned for index in self.indices), strict=True)
        )
        self._positions = self._positions[usable(stated, filled, missing, problem)]

    def _check_faults(self, setting: str) -> None:
        for source, index in zip(self.sources, self.indices, strict=True):
            if setting in index.faults:
                raise ValueError(f"{source.url}: {index.faults[setting]}: mend it, or set data.{setting}=none")

    def _warn_of_others(self) -> None:
        others = sum((index.others for index in self.indices), Counter[str]())
        if others:
            log.warning(
                "%d files in %d shards are passed over, because what follows the first dot of their names is none of "
                "%s: %s",
                others.total(), len(self.indices), ", ".join(self.modality.suffixes), listed(others),
            )  # fmt: skip

    def _check_all(self, what: str, given: Sequence[NDArray[np.bool_]], setting: str) -> None:
        for shard, present in enumerate(given):
            if not present.all():
                name = f"{self.sources[shard].url}/{self.indices[shard].names[int(np.argmin(present))]}"
                raise ValueError(f"{name} has no {what}, but other examples have one: add it, or set {setting}=none")


@contextmanager
def in_memory(content: bytes | memoryview, suffix: str) -> Iterator[Path]:
    """Provide a temporary file with this content, in memory if the system supports that and the file fits."""
    path = None
    if os.access(MEMORY, os.W_OK):
        try:
            path = _written(content, suffix, MEMORY)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    path = path or _written(content, suffix, Path(tempfile.gettempdir()))
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _written(content: bytes | memoryview, suffix: str, folder: Path) -> Path:
    handle, name = tempfile.mkstemp(suffix, "multisagd-", folder)
    try:
        with open(handle, "wb", buffering=0) as file:  # noqa: PTH123 - it is open already
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
    except BaseException:
        Path(name).unlink()
        raise
    return Path(name)
