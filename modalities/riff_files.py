"""Chunks of WAV (RIFF, RIFX, RF64), AIFF, AVI and CAF files: where they end, and the samples and their encoding.

A recorder that was stopped, or that writes to a pipe, leaves lengths that say nothing (`UNSET`); some programs count
parts of the header as samples. Such files are read to their end.
"""

from __future__ import annotations

from typing import BinaryIO, Literal, NamedTuple

MAX_CHUNKS = 10_000
"""Maximum number of chunks that are read: more than any real file has, but a limit for malicious files."""
UNSET = (0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Lengths that are written to a pipe, perhaps reduced by the header or rounded (less than `HEADER`); others write 0."""
HEADER = 1 << 12
SLACK = 64
"""Bytes that a header may declare too many: programs count the header too (8, 36 or 44 bytes) or padding."""
DECODED = (1, 2, 3, 6, 7, 0x11, 0x40, 0xFFFE)
"""Encodings of WAV that libsndfile decodes: integers, MS ADPCM, floats, A-law, µ-law, IMA ADPCM, G.721, extended."""
ENCODINGS = {0x31: "GSM", 0x50: "MPEG", 0x55: "MP3", 0xFF: "AAC", 0x161: "WMA", 0x2000: "AC-3", 0x2001: "DTS"}
"""Names of other encodings, by their number."""


class Samples(NamedTuple):
    """The samples in a WAV or AIFF file: their position and length in bytes, and their `encoding` (0: unknown).

    If the header does not state the length, the bytes at `field` should be `right`.
    """

    start: int
    length: int
    encoding: int = 0
    field: int = 0
    right: bytes = b""


def find_samples(file: BinaryIO, size: int) -> Samples:
    """Return where the samples are in a WAV or AIFF file of `size` bytes.

    Raises:
        ValueError: If there is no chunk of samples, or it is empty.
    """
    file.seek(0)
    head = file.read(12)
    order: Literal["big", "little"] = "big" if head[:4] in (b"FORM", b"RIFX") else "little"
    wide = wide_field = encoding = 0
    for _ in range(MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            break
        name, length, start = header[:4], int.from_bytes(header[4:], order), file.tell()
        if name == b"ds64":
            wide, wide_field = int.from_bytes(file.read(16)[8:], "little"), start + 8
        elif name == b"fmt ":
            encoding = int.from_bytes(file.read(2), order)
        elif name in (b"data", b"SSND"):
            rest = size - start
            if wide_field and length == 0xFFFFFFFF:
                if _is_stated(wide, rest):
                    return Samples(start, wide, encoding)
                return Samples(start, rest, encoding, wide_field, rest.to_bytes(8, "little"))
            if length == 0 and _ends_with_chunks(file, start, size, order):
                raise ValueError("it contains no samples")
            if _is_stated(length, rest):
                return Samples(start, length, encoding)
            # Only of a WAV file does libsndfile take the length 0 literally; the highest one means the rest of it.
            right = b"\xff" * 4 if length == 0 and name == b"data" else b""
            return Samples(start, rest, encoding, start - 4, right)
        file.seek(start + length + length % 2)
    raise ValueError("truncated: it ends before its samples begin; copy it again")


def _is_stated(length: int, rest: int) -> bool:
    """Whether a length says how many bytes the samples have, if at most `rest` bytes follow."""
    if length <= rest:
        return length > 0 and length not in UNSET
    unset = any(0 <= value - length < HEADER for value in UNSET) or length >= (1 << 64) - HEADER
    return not unset and length - rest > SLACK


def _ends_with_chunks(file: BinaryIO, start: int, size: int, order: Literal["big", "little"]) -> bool:
    """Whether what follows a position is nothing but chunks."""
    for _ in range(MAX_CHUNKS):
        if start >= size:
            return True
        file.seek(start)
        header = file.read(8)
        if len(header) < 8:
            return False
        length = int.from_bytes(header[4:], order)
        start += 8 + length + length % 2
        if start > size + 1:
            return False
    return False


def last_end(file: BinaryIO, size: int, wide: bool) -> int:
    """Return the declared end of the last outermost chunk of an AVI file, or of a CAF file, whose lengths are `wide`.

    AVI of more than a gigabyte has several outermost chunks; a length that says nothing means the rest of the file.
    """
    end, count = (8, 8) if wide else (0, 4)
    for _ in range(MAX_CHUNKS):
        if end >= size:  # positions of damaged files may be too large to seek
            break
        file.seek(end)
        header = file.read(4 + count)
        if len(header) < 4 + count or not header[:4].strip(b"\0"):
            break
        length = int.from_bytes(header[4:], "big" if wide else "little")
        if length in (0, *UNSET) or length >= 1 << 63:
            return size
        end += 4 + count + length + (0 if wide else length % 2)
    return end
