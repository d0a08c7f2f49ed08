"""Open files of arrays, and decompressed chunks, that are kept for the next examples."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.field_layout import Placement
from modalities.named_arrays import MAX_BYTES, Index, NamedArray

OPEN_FILES = 32
"""Maximum number of files kept open."""
CACHE_BYTES = 256 << 20
"""Maximum size of the decompressed chunks that are kept in memory, in bytes."""
WINDOW = 16
"""Number of chunks that training draws from at a time."""


class OpenFiles:
    """A thread-safe cache of the most recently used open files, and of the chunks that were read from them."""

    def __init__(self, opener: Callable[[Path], Placement]) -> None:
        self._opener = opener
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, Placement] = OrderedDict()
        self._chunks = _Chunks()

    def placement(self, path: Path) -> Placement:
        """Return where the variables are in a file, which is opened if necessary."""
        with self._lock:
            if path not in self._open:
                self._open[path] = self._chunks.behind(path, self._opener(path))
            self._open.move_to_end(path)
            while len(self._open) > 1 and (
                len(self._open) > OPEN_FILES or sum(each.held for each in self._open.values()) > MAX_BYTES
            ):
                # A thread may still be reading from it: a file closes with its last reference.
                self._open.popitem(last=False)
            return self._open[path]


class _Chunks:
    """A thread-safe cache of chunks along the first dimension of arrays, limited to `CACHE_BYTES`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Path, str, int], NDArray[Any]] = OrderedDict()
        self._bytes = 0

    def behind(self, path: Path, placement: Placement) -> Placement:
        """Return a placement whose arrays are read through the cache, if their chunks contain several examples."""
        sources = []
        for source in placement.sources:
            array = source.array
            row = int(np.prod(array.shape[1:], dtype=object)) * array.dtype.itemsize
            numbered = source.examples == (0,) and array.chunk > 1 and array.chunk * row <= CACHE_BYTES // WINDOW
            sources.append(dataclasses.replace(source, array=self._cached(path, array)) if numbered else source)
        return dataclasses.replace(placement, sources=tuple(sources))

    def _cached(self, path: Path, array: NamedArray) -> NamedArray:
        def part(index: Index) -> NDArray[Any]:
            first = range(*index[0].indices(array.shape[0]))
            if len(first) != 1:
                return array.part(index)
            chunk, position = divmod(first[0], array.chunk)
            key = (path, array.name, chunk)
            with self._lock:
                block = self._kept.get(key)
                if block is not None:
                    self._kept.move_to_end(key)
            if block is None:
                whole = [slice(0, size) for size in array.shape[1:]]
                rows = slice(chunk * array.chunk, min((chunk + 1) * array.chunk, array.shape[0]))
                block = array.part((rows, *whole))
                self._keep(key, block)
            return block[(slice(position, position + 1), *index[1:])].copy()

        return dataclasses.replace(array, part=part)

    def _keep(self, key: tuple[Path, str, int], block: NDArray[Any]) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = block
                self._bytes += block.nbytes
            while self._bytes > CACHE_BYTES:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
