"""Writing files as tar shards in WebDataset's layout: the same bytes from the same files, whoever packs them."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from modalities.files import Folder
from modalities.tar_members import BLOCK


class Packed(NamedTuple):
    """One example: its name in the shard, the file of `size` bytes that holds its media, and its JSON."""

    key: str
    path: Path
    size: int
    facts: bytes

    @classmethod
    def of(cls, key: str, path: Path, size: int, facts: dict[str, str | None]) -> Packed:
        """Take an example; of the facts, those that are None are left out."""
        # In ASCII, since names of files need not be valid UTF-8.
        told = json.dumps({name: fact for name, fact in facts.items() if fact is not None})
        return cls(key, path, size, told.encode())

    @property
    def room(self) -> int:
        """Bytes that it takes in a shard."""
        return sum(BLOCK + -(-size // BLOCK) * BLOCK for size in (self.size, len(self.facts)))


class Packing:
    """Which file of a folder goes into which shard: a function of the files, their sizes, their order and the limit.

    Args:
        folder: the files.
        order: their numbers, in the order in which they are packed.
        shard_bytes: about how many bytes a shard may have.

    Raises:
        OSError: if a file is missing.
    """

    def __init__(self, folder: Folder, order: Sequence[int], shard_bytes: int) -> None:
        self.folder, self.order = folder, order
        self.sizes = [(folder.root / folder.files[place]).stat().st_size for place in order]
        self.shards = list(divided([self.example(number).room for number in range(len(order))], shard_bytes))

    def example(self, number: int) -> Packed:
        """Return the example at one place of the order."""
        place, folder = self.order[number], self.folder
        label, file = folder.labels[place], folder.files[place]
        named = None if label is None or folder.classes is None else folder.classes[label]
        facts = {"file": file, "label": named, "text": folder.caption(place)}
        return Packed.of(f"{number:09d}", folder.root / file, self.sizes[number], facts)


def shard_size(examples: Iterable[Packed]) -> int:
    """Return the size in bytes of the shard of these examples."""
    content = sum(example.room for example in examples) + 2 * BLOCK
    return -(-content // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def divided(rooms: Sequence[int], shard_bytes: int) -> Iterator[range]:
    """Yield which of a row of examples, of this room each, go into each shard of up to about `shard_bytes`."""
    start = taken = 0
    for place, room in enumerate(rooms):
        if place > start and taken + room > shard_bytes:
            yield range(start, place)
            start, taken = place, 0
        taken += room
    yield range(start, len(rooms))


def write_tar(path: Path, examples: Iterable[Packed]) -> None:
    """Write one shard: of each example its media, named by key and ending, and its JSON.

    Raises:
        OSError: if a file cannot be read or the shard not be written.
        ValueError: if a file has not the size that it had.
    """
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        for example in examples:
            with example.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != example.size:
                    raise ValueError(f"{example.path} has changed since this command began: start it again")
                archive.addfile(_header(example.key + example.path.suffix.lower(), example.size), file)
            archive.addfile(_header(f"{example.key}.json", len(example.facts)), io.BytesIO(example.facts))


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)  # owner 0, time 0 and mode 0644
    header.size = size
    return header
