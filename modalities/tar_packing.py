"""Packing of files into tar shards in the WebDataset layout; the result is deterministic to the byte."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from modalities.endings import ending_of
from modalities.files import Folder
from modalities.tar_members import BLOCK


class Packed(NamedTuple):
    """One example: its name and ending in the shard, its media file of `size` bytes, and its JSON record."""

    key: str
    ending: str
    path: Path
    size: int
    facts: bytes

    @classmethod
    def of(cls, key: str, ending: str, path: Path, size: int, facts: dict[str, Any]) -> Packed:
        """Return a packed example; values that are None are omitted."""
        # ASCII only, since names of files need not be valid UTF-8.
        record = json.dumps({name: fact for name, fact in facts.items() if fact is not None})
        return cls(key, ending, path, size, record.encode())

    @property
    def stored_size(self) -> int:
        """Size of the example in a shard, in bytes, including headers and padding."""
        return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in (self.size, len(self.facts)))


class Packing:
    """Assignment of a folder's files to shards; it depends only on the files, their sizes, their order and the limit.

    Args:
        folder: the files.
        order: indices of the files, in packing order.
        shard_bytes: approximate maximum size of a shard, in bytes.

    Raises:
        OSError: If a file is missing.
    """

    def __init__(self, folder: Folder, order: Sequence[int], shard_bytes: int) -> None:
        self.folder, self.order = folder, order
        self.sizes = [(folder.root / folder.files[index]).stat().st_size for index in order]
        self.shards = list(divided([self.example(number).stored_size for number in range(len(order))], shard_bytes))

    def example(self, number: int) -> Packed:
        """Return the example at position `number` in packing order."""
        index, folder = self.order[number], self.folder
        label, file = folder.labels[index], folder.files[index]
        named = None if label is None or folder.classes is None else folder.classes[label]
        captions = folder.captions(index)
        text = list(captions) if len(captions) > 1 else folder.caption(index)
        facts = {"file": file, "label": named, "text": text}
        ending = ending_of(file, folder.modality.suffixes)
        return Packed.of(f"{number:09d}", ending, folder.root / file, self.sizes[number], facts)


def shard_size(examples: Iterable[Packed]) -> int:
    """Return the size, in bytes, of a shard with these examples."""
    content = sum(example.stored_size for example in examples) + 2 * BLOCK
    return -(-content // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def divided(sizes: Sequence[int], shard_bytes: int) -> Iterator[range]:
    """Yield the range of examples of each shard, up to about `shard_bytes`; `sizes` are the examples' sizes."""
    start = taken = 0
    for index, size in enumerate(sizes):
        if index > start and taken + size > shard_bytes:
            yield range(start, index)
            start, taken = index, 0
        taken += size
    yield range(start, len(sizes))


def write_tar(path: Path, examples: Iterable[Packed]) -> None:
    """Write one shard: the media of each example, named by key and suffix, and its JSON record.

    Raises:
        OSError: If a file cannot be read, or the shard cannot be written.
        ValueError: If the size of a file has changed.
    """
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for example in examples:
            with example.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != example.size:
                    raise ValueError(f"{example.path} has changed since this command started: run it again")
                archive.addfile(_header(example.key + example.ending, example.size), file)
            archive.addfile(_header(f"{example.key}.json", len(example.facts)), io.BytesIO(example.facts))


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # owner 0, time 0 and mode 0644
    header.size = size
    return header
