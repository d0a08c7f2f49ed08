"""Refusal of compressed chunks of HDF5 files that hold more than their metadata state.

HDF5 decompresses a chunk before it compares its size with the metadata, so that a megabyte could take a gigabyte.
Chunks that could take much more memory than their values are examined before HDF5 reads them, once each.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from modalities.base import UnusableFileError
from modalities.named_arrays import GROWTH, MAX_CHUNK, Index, check_size

SHUFFLE, FLETCHER32 = 2, 3
GZIP, SZIP, LZF = 1, 4, 32000
FILTERS = {GZIP: "gzip", SHUFFLE: "shuffle", FLETCHER32: "fletcher32", SZIP: "szip", LZF: "lzf"}
"""Numbers and names of the filters that are applied; all others are plugins or rarely used."""
EXPANSION = {GZIP: 1032, SZIP: math.inf, LZF: 88}
"""Maximum ratio of the sizes after and before decompression."""
HARMLESS = 1 << 27
"""Number of bytes by which a chunk that is not examined may exceed its values when it is decompressed."""

ChunkCheck = Callable[[Index], None]
"""Raises UnusableFileError if a part of a dataset includes a chunk that holds more than its metadata state."""


def chunk_check(name: str, dataset: Any) -> ChunkCheck:
    """Return the check of a dataset's chunks, which must pass before a part is read.

    Raises:
        UnusableFileError: If a filter is not accepted, or a chunk is too large.
    """
    layout = dataset.id.get_create_plist()
    filters = [layout.get_filter(number) for number in range(layout.get_nfilters())]
    for code, *_ in filters:
        if code not in FILTERS:
            raise UnusableFileError(
                f"its array {name} is stored with filter {code}, which is not accepted: store it with one of "
                f"{', '.join(FILTERS.values())} (h5repack converts files)"
            )
    if dataset.chunks is None or not filters:
        return lambda index: None
    check_size(name, dataset.chunks, dataset.dtype, MAX_CHUNK)
    values = math.prod(map(int, dataset.chunks)) * dataset.id.get_type().get_size()
    largest = _largest_chunk(dataset)
    if largest > values + GROWTH:
        raise UnusableFileError(f"a compressed chunk of its array {name} is larger than its values would be")
    used = [EXPANSION[code] for code, *_ in filters if code in EXPANSION]
    if len(used) > 1:
        raise UnusableFileError(f"its array {name} is compressed twice: compress it once (h5repack converts files)")
    if not used or largest * used[0] <= values + HARMLESS:
        return lambda index: None
    return _Examination(name, dataset, filters, values)


def _largest_chunk(dataset: Any) -> int:
    """Return the size of a dataset's largest chunk as it is stored, in bytes."""
    largest = 0

    def compare(chunk: Any) -> None:
        nonlocal largest
        largest = max(largest, chunk.size)

    dataset.id.chunk_iter(compare)
    return largest


class _Examination:
    """Examines the chunks of a dataset, each before it is read for the first time.

    `filters` are those of the dataset, as h5py describes them; `values` is the size of a chunk's values in bytes.
    """

    def __init__(self, name: str, dataset: Any, filters: list[Any], values: int) -> None:
        self.name, self.dataset, self.filters, self.values = name, dataset, filters, values
        (self.expansion,) = (EXPANSION[code] for code, *_ in filters if code in EXPANSION)
        self.examined: set[tuple[int, ...]] = set()

    def __call__(self, index: Index) -> None:
        for offset in _offsets(index, self.dataset.shape, self.dataset.chunks):
            if offset not in self.examined:
                stored = self.dataset.id.get_chunk_info_by_coord(offset)
                if stored.byte_offset is not None and stored.size * self.expansion > self.values + HARMLESS:
                    self._examine(offset)
                self.examined.add(offset)

    def _examine(self, offset: tuple[int, ...]) -> None:
        skipped, data = self.dataset.id.read_direct_chunk(offset)
        for place, (code, _, options, _) in reversed(list(enumerate(self.filters))):
            if skipped >> place & 1:
                continue
            if code == FLETCHER32:
                data = data[:-4]
            elif code == SHUFFLE:
                data = _unshuffled(data, options[0])
            else:
                # A checksum within the compressed data adds a few bytes.
                if _exceeds(code, data, self.values + GROWTH):
                    raise UnusableFileError(
                        f"the chunk of its array {self.name} at {offset} holds more than the {self.values:,} bytes "
                        "that the file states: the file is damaged, so get or write it again"
                    )
                return


def _offsets(index: Index, shape: tuple[int, ...], chunks: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the positions of the first values of the chunks that a part of a dataset includes."""
    starts = []
    for each, size, chunk in zip(index, shape, chunks, strict=True):
        chosen = range(size)[each]
        first, last = sorted((chosen[0], chosen[-1])) if chosen else (0, -1)
        starts.append(range(first // chunk * chunk, last + 1, chunk))
    return itertools.product(*starts)


def _unshuffled(data: bytes, width: int) -> bytes:
    """Undo the filter shuffle for values of `width` bytes."""
    end = len(data) // width * width
    return np.frombuffer(data[:end], np.uint8).reshape(width, -1).T.tobytes() + data[end:]


def _exceeds(code: int, data: bytes, limit: int) -> bool:
    """Whether a filter decompresses data to more than `limit` bytes; of damaged data, HDF5 reads no more than here."""
    if code == SZIP:
        return int.from_bytes(data[:4], "little") > limit
    if code == LZF:
        return _lzf_size(data, limit) > limit
    try:
        return len(zlib.decompressobj().decompress(data, limit + 1)) > limit
    except zlib.error:
        return False


def _lzf_size(data: bytes, limit: int) -> int:
    """Return the size of data that are compressed by LZF, or a part of it that is more than `limit`.

    They are sequences of at most 32 bytes that follow their length, and of references to earlier bytes: three bits are
    the length, or say that the next byte is. Source: LibLZF, lzf_d.c.
    """
    place = size = 0
    while place + 1 < len(data) and size <= limit:
        control = data[place]
        if control < 32:
            size += control + 1
            place += control + 2
        elif control < 7 << 5:
            size += (control >> 5) + 2
            place += 2
        else:
            size += data[place + 1] + 9
            place += 3
    return size
