"""A dataset of previously encoded latents: rows of safetensors files, read on demand through memory maps."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from modalities.base import Dataset, Example, Modality
from modalities.byte_ranges import Source, local
from modalities.encoding import differences
from modalities.latent import Latent, LatentScale
from modalities.reading import UnreadableFilesError
from modalities.shard_index import INDEX, Index, grid_facts, shard_name
from multisagd.files import digest, parse_json
from multisagd.seeds import derive

OPEN_SHARDS = 64
"""Maximum number of open shards; an open shard uses address space, and memory only for labels and captions."""


class LatentShards(Dataset):
    """The data that `multisagd encode` wrote to `root`, scaled by `modality`.

    The examples are the same as in the encoded dataset, in the same order. If it was encoded in several passes, the
    seed selects a pass; if there is no seed, the first pass, which is not augmented, is used. Rows are read on demand
    through a memory map; if `verify` is True, all shards are first read once and compared with their SHA-256.

    Raises:
        ValueError: If the modality is not a `Latent`, encodes differently from the one that wrote the shards (the
            message names the differences) or is not scaled by the statistics of this folder; if encoding was not
            finished; if a shard is missing or damaged.
    """

    modality: Latent

    def __init__(self, modality: Modality, root: str | Path, verify: bool = False) -> None:
        self.root = Path(root)
        self.index = Index.load(self.root)
        if not isinstance(modality, Latent):
            raise ValueError(
                f"{self.root} contains latents, but the modality is {type(modality).__name__}: use the modality that "
                "encoded them, such as modality=latent_image"
            )
        self.modality = modality
        self.classes = None if self.index.classes is None else tuple(self.index.classes)
        self._check(verify)
        self._indices: Sequence[int] = range(self.index.examples)
        self._open = _OpenShards(self.root, self.index)

    def __len__(self) -> int:
        return len(self._indices)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example; the class docstring explains the seed.

        Raises:
            IndexError: If the index is outside `[0, len(self))`.
            UnreadableFilesError: If its shard has been damaged or removed.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range for a dataset of {len(self)} examples")
        pass_number = 0 if seed is None else derive(seed, "pass") % self.index.passes
        shard, row = self._open.find(pass_number * self.index.examples + self._indices[index])
        z, mask = shard.rows("x0", row), shard.rows("mask", row)
        assert z is not None
        return Example(
            self.modality.scaled(z)[0],
            None if shard.labels is None else int(shard.labels[row]),
            None if mask is None else mask[0],
            None if shard.texts is None else shard.texts[row],
        )

    def label(self, index: int) -> int | None:
        """Return the class of one example, or None if there are no classes."""
        shard, row = self._open.find(self._indices[index])
        return None if shard.labels is None else int(shard.labels[row])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the caption that one example has in the first pass; other passes may have another of its captions."""
        shard, row = self._open.find(self._indices[index])
        return () if shard.texts is None else (shard.texts[row],)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only; it shares the open shards."""
        part = copy.copy(self)
        part._indices = [self._indices[index] for index in indices]
        return part

    def stored(self) -> Iterable[Source]:
        """Return the shards."""
        return [local(self.root / shard.file) for shard in self.index.shards]

    @property
    def fingerprint(self) -> str:
        """A hash of the content of all shards and of the indices of the examples used."""
        facts = [[shard.sha256 for shard in self.index.shards], list(self._indices), self.index.shard_size]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _check(self, verify: bool) -> None:
        index = self.index
        if different := differences(index.encoding, self.modality.encoding()):
            raise ValueError(f"{self.root} was encoded with settings different from the modality's; {different}")
        if index.channels != self.modality.channels or index.grid != grid_facts(self.modality):
            raise ValueError(
                f"{self.root} contains latents of {index.channels} channels on the grid {index.grid}, but the modality "
                f"produces {self.modality.channels} on {grid_facts(self.modality)}: encode the data again"
            )
        if len(index.shards) < index.count:
            raise ValueError(
                f"{self.root} has {len(index.shards)} of {index.count} shards: "
                "run the same `multisagd encode` command again to finish encoding"
            )
        if self.modality.scale != LatentScale.load(self.root):
            raise ValueError(
                f"the modality does not scale latents by the statistics of {self.root}: set statistics to {self.root}"
            )
        minimum = index.channels * math.prod(axis["size"] for axis in index.grid)
        for number, shard in enumerate(index.shards):
            rows = index.rows(number).stop - index.rows(number).start  # `len` fails for huge ranges
            if shard.file != shard_name(number) or shard.rows != rows or rows * minimum > shard.bytes:
                raise ValueError(
                    f"{self.root / INDEX} describes {shard.file} incorrectly, with {rows:,} rows of {minimum:,} "
                    "numbers: encode the data again to another folder"
                )
            path = self.root / shard.file
            # Reading a pipe or a device might never end.
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes or (verify and digest(path) != shard.sha256):
                reason = "is missing" if size is None else "is damaged"
                raise ValueError(f"{path} {reason}: run the same `multisagd encode` command again to restore it")


class _Shard:
    """One open shard, with labels and captions in memory and all other tensors on disk."""

    def __init__(self, path: Path, rows: int, shape: Sequence[int], classes: int) -> None:
        self.path = path
        try:
            self._file = safe_open(path, framework="pt")
            self._names = set(self._file.keys())
            texts = (self._file.metadata() or {}).get("texts")
            self.texts: list[str] | None = None if texts is None else parse_json(texts)
            shapes = {name: self._file.get_slice(name).get_shape() for name in self._names}
            expected = {"x0": [rows, *shape], "mask": [rows, 1, *shape[1:]], "labels": [rows]}
            if shapes != {name: expected.get(name) for name in ("x0", *self._names)}:
                raise ValueError(f"it has tensors of shapes {shapes}, but should have {rows} rows of shape {shape}")
            if self.texts is not None and not (
                isinstance(self.texts, list) and [type(text) for text in self.texts] == [str] * rows
            ):
                raise ValueError(f"it does not have {rows} captions")
            self.labels = self._file.get_tensor("labels").clone() if "labels" in self._names else None
            if classes and (self.labels is None or not 0 <= int(self.labels.min()) <= int(self.labels.max()) < classes):
                raise ValueError(f"it does not have valid labels for {classes} classes")
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(error) from error

    def rows(self, name: str, row: int) -> Tensor | None:
        """Return a copy of one row of a tensor, shape `(1, ...)`, or None if the shard has no such tensor."""
        if name not in self._names:
            return None
        try:
            part: Tensor = self._file.get_slice(name)[row : row + 1]
        except (OSError, ValueError, SafetensorError) as error:
            raise self._damaged(error) from error
        return part.clone()

    def _damaged(self, error: Exception) -> UnreadableFilesError:
        return UnreadableFilesError(
            f"{self.path} cannot be read ({error}): run the same `multisagd encode` command again to restore it"
        )


class _OpenShards:
    """A thread-safe cache of the most recently opened shards."""

    def __init__(self, root: Path, index: Index) -> None:
        self.root, self.index = root, index
        self._shape = [index.channels, *(axis["size"] for axis in index.grid)]
        self._classes = len(index.classes or ())
        self._lock = threading.Lock()
        self._shards: OrderedDict[int, _Shard] = OrderedDict()

    def find(self, row: int) -> tuple[_Shard, int]:
        """Return the shard that contains a row, and the row's position in it."""
        number, position = divmod(row, self.index.shard_size)
        with self._lock:
            if number not in self._shards:
                facts = self.index.shards[number]
                self._shards[number] = _Shard(self.root / facts.file, facts.rows, self._shape, self._classes)
            self._shards.move_to_end(number)
            if len(self._shards) > OPEN_SHARDS:
                self._shards.popitem(last=False)
            return self._shards[number], position
