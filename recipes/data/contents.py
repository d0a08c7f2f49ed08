"""Detect changes in the files that a run is trained on.

The dataset's fingerprint identifies the list of files. A record in the run's folder contains each file's size and a
hash of its modification time, and a hash of the bytes of up to 10,000 files (of pieces of each file, if they exceed
1 GiB in total). A file with a different size has changed; if only the time differs, as after every copy, the bytes are
compared. The record contains neither names nor contents.
"""

import hashlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from modalities.base import Dataset
from modalities.byte_ranges import Source
from recipes.base.files import replace_file
from recipes.base.progress import SOON, Display
from recipes.base.untrusted import Stored, read_header, read_tensors
from recipes.data.order import prefetch

FILE = "contents.safetensors"
MAX_READ = 10_000
"""Number of files whose bytes are hashed, evenly spaced over all files."""
MAX_BYTES = 1 << 30
"""Maximum number of bytes hashed, in total."""
PIECES = 4
"""Number of evenly spaced pieces to hash if a file is longer than its part of `MAX_BYTES`."""
DIGEST = 16
THREADS = 16
NAMED = 3
Integers = NDArray[np.int64]
log = logging.getLogger("multisagd")


@dataclass(frozen=True)
class Contents:
    """Sizes in bytes and states (hashed modification times) of all files, and hashes of some files.

    `sizes` and `states` are int64 with shape (files,). `digests` is uint8 with shape (hashed files, 16), and 0 for an
    unreadable file. Up to `limit` bytes of a file are hashed.
    """

    sizes: Integers
    states: Integers
    digests: NDArray[np.uint8]
    limit: int

    def save(self, path: Path) -> None:
        """Write the record."""
        safetensors.numpy.save_file({**vars(self), "limit": np.array([self.limit], np.int64)}, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record, which may come from someone else.

        Raises OSError if it cannot be read, and ValueError if it is not a record.
        """
        header = read_header(path)
        files = sum(header["sizes"].shape[:1]) if "sizes" in header else 0
        each = Stored("I64", (files,))
        hashes = Stored("U8", (min(files, MAX_READ), DIGEST))
        if header != {"sizes": each, "states": each, "digests": hashes, "limit": Stored("I64", (1,))}:
            raise ValueError(f"it has unexpected tensors: {header}")
        arrays = {name: tensor.numpy() for name, tensor in read_tensors(path).items()}
        limit = int(arrays.pop("limit")[0])
        if not 0 < limit <= MAX_BYTES:
            raise ValueError(f"its limit of {limit} bytes per file is not from 1 to {MAX_BYTES}")
        return cls(**arrays, limit=limit)


def keep(run_dir: Path, *datasets: Dataset) -> None:
    """Record the current files of datasets, if they have any. If the record cannot be written, log a warning."""
    sizes, states = _file_states(datasets)
    indices = _hashed_indices(len(sizes))
    limit = max(1, MAX_BYTES // max(1, len(indices)))
    digests = _digests(datasets, indices, sizes, limit)
    try:
        if len(sizes):
            replace_file(run_dir / FILE, Contents(sizes, states, digests, limit).save)
    except OSError as error:
        log.warning("cannot write %s (%s): changes to the files will not be detected", run_dir / FILE, error)


def changes(run_dir: Path, *datasets: Dataset) -> str | None:
    """Return a message that names files that have changed since the run began, or None if no change was detected."""
    path = run_dir / FILE
    if not path.exists():
        keep(run_dir, *datasets)  # writing failed when the run began
        return None
    try:
        before = Contents.load(path)
    except (OSError, ValueError) as error:
        return f"cannot read {path} ({error}), so it is unknown whether files have changed since this run began"
    sizes, states = _file_states(datasets)
    if len(sizes) != len(before.sizes):
        return f"the data have {len(sizes):,} files, but had {len(before.sizes):,} when this run began"
    resized, touched = sizes != before.sizes, states != before.states
    indices = _hashed_indices(len(sizes))
    known = before.digests.any(1) & (touched & ~resized)[indices]
    now = _digests(datasets, indices[known], sizes, before.limit)
    other = (now != before.digests[known]).any(1) & now.any(1)
    changed = np.flatnonzero(resized).tolist() + indices[known][other].tolist()
    if changed:
        names = ", ".join(source.url for source in _select(datasets, sorted(changed)[:NAMED]))
        return (
            f"{len(changed):,} of {len(sizes):,} files have changed since this run began: {names}"
            f"{', …' * (len(changed) > NAMED)}. The run's statistics and its training so far used the earlier contents"
            ": restore those, or train in another run_dir"
        )
    unknown = int((touched & ~resized).sum()) - int(known.sum())
    if unknown and not known.any():
        return f"{unknown:,} of {len(sizes):,} files were written since this run began; their bytes were not compared"
    if touched.any():  # copied files; record their times, so that nothing needs to be read next time
        try:
            replace_file(path, replace(before, states=states).save)
        except OSError as error:
            log.warning("cannot write %s: %s", path, error)
    return None


def _hashed_indices(files: int) -> Integers:
    """Return the indices of the files whose bytes are hashed."""
    return np.linspace(0, max(0, files - 1), min(files, MAX_READ)).astype(np.int64)


def _stored(datasets: Sequence[Dataset]) -> Iterator[Source]:
    return itertools.chain.from_iterable(dataset.stored() for dataset in datasets)


def _select(datasets: Sequence[Dataset], indices: list[int]) -> Iterator[Source]:
    """Return an iterator over the files with these indices, in increasing order."""
    selected = set(indices)
    return (source for index, source in enumerate(_stored(datasets)) if index in selected)


def _file_states(datasets: Sequence[Dataset]) -> tuple[Integers, Integers]:
    """Return the sizes and states of all files, int64 `(files,)`; -1 and 0 for an inaccessible file."""

    def stat_of(source: Source) -> tuple[int, int]:
        try:
            size, state = source.state()
        except OSError:
            return -1, 0
        return size, int.from_bytes(hashlib.blake2b(state.encode(), digest_size=8).digest(), "little", signed=True)

    pair = np.dtype([("size", np.int64), ("state", np.int64)])
    table = np.fromiter(prefetch(stat_of, _stored(datasets), THREADS), pair)
    return table["size"].copy(), table["state"].copy()


def _digests(datasets: Sequence[Dataset], indices: Integers, sizes: Integers, limit: int) -> NDArray[np.uint8]:
    """Return hashes of up to `limit` bytes of some files, uint8 `(indices, 16)`, 0 for unreadable files."""

    def read(each: tuple[Source, int]) -> bytes:
        source, size = each
        digest = hashlib.blake2b(digest_size=DIGEST)
        try:
            for start, stop in pieces(size, limit):
                digest.update(source.read(start, stop))
        except OSError:
            return bytes(DIGEST)
        return digest.digest()

    files = zip(_select(datasets, indices.tolist()), sizes[indices].tolist(), strict=True)
    digests = np.zeros((len(indices), DIGEST), np.uint8)
    with Display("hashing the data", len(indices), after=SOON) as display:
        for number, digest in enumerate(prefetch(read, files, THREADS)):
            digests[number] = np.frombuffer(digest, np.uint8)
            display.update(number + 1)
    return digests


def pieces(size: int, limit: int) -> list[tuple[int, int]]:
    """Return the byte ranges (start, stop) of a file that are hashed: all of it, or evenly spaced pieces."""
    if size <= limit:
        return [(0, max(0, size))]
    length = max(1, limit // PIECES)
    starts = [number * (size - length) // (PIECES - 1) for number in range(PIECES)]
    return [(start, start + length) for start in starts]
