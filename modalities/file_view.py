"""A file as its readers should see it: without what precedes or follows it, and with a corrected header."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

READ_AHEAD = 1 << 16
"""Bytes read at a time; decoders ask for a few bytes only."""


def open_view(path: Path, stop: int, at: int = 0, correction: bytes = b"", start: int = 0) -> io.BufferedReader:
    """Open the bytes of a file from `start` up to `stop` for reading, as if there were no others.

    Those at position `at` of the whole file are replaced by `correction`.
    """
    return io.BufferedReader(_View(path, (start, stop), at, correction), READ_AHEAD)


class _View(io.RawIOBase):
    def __init__(self, path: Path, part: tuple[int, int], at: int, correction: bytes) -> None:
        self._file = path.open("rb", buffering=0)
        (self._start, self._stop), self._at, self._correction = part, at, correction
        self._file.seek(self._start)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: self._start, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._stop}[whence]
        # Decoders of damaged files ask for positions that no file has.
        return self._file.seek(min(max(base + offset, self._start), self._stop)) - self._start

    def readinto(self, target: WriteableBuffer) -> int:
        buffer, start = memoryview(target).cast("B"), self._file.tell()
        content = self._file.read(max(0, min(len(buffer), self._stop - start))) or b""
        buffer[: len(content)] = content
        first, last = max(start, self._at), min(start + len(content), self._at + len(self._correction))
        if first < last:
            buffer[first - start : last - start] = self._correction[first - self._at : last - self._at]
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()
