"""Pages of Ogg streams (RFC 3533): codec, end, and the streams that were joined in one file."""

from __future__ import annotations

from typing import BinaryIO

MAX_PAGE = 65_307
"""Maximum size of a page, in bytes (RFC 3533, Sec. 6)."""
MAX_LINKS = 10_000
"""Maximum number of joined streams: more than any real file has, but a limit for malicious files."""
FIRST, LAST = 2, 4
"""Flags of the first and of the last page of a stream."""


def codec(file: BinaryIO) -> bytes:
    """Return the first bytes of the first packet."""
    file.seek(0)
    page = file.read(27 + 255 + 16)
    return page[27 + page[26] :] if len(page) > 27 else b""


def last_page_end(file: BinaryIO, size: int) -> int:
    """Return the declared end of the last page of a file of `size` bytes.

    Raises:
        ValueError: If that page is not marked as the end of a stream.
    """
    file.seek(max(0, size - 2 * MAX_PAGE))
    tail = file.read()
    offset = tail.rfind(b"OggS")
    page = tail[offset:]
    if offset < 0 or len(page) < 27 or not page[5] & LAST:
        raise ValueError("truncated: its last page is not marked as the end of the stream; encode or copy it again")
    return size - len(page) + 27 + page[26] + sum(page[27 : 27 + page[26]])


def last_page_samples(file: BinaryIO, stop: int) -> int:
    """Return the number of samples in the last page before `stop`, from the positions that pages declare.

    Opus positions always count samples at 48 kHz, whatever the decoding rate, so the result may be too large.
    """
    file.seek(max(0, stop - 3 * MAX_PAGE))
    tail = file.read(min(stop, 3 * MAX_PAGE))
    last = tail.rfind(b"OggS")
    end, offset = _position(tail, last), last
    while (offset := tail.rfind(b"OggS", 0, offset)) >= 0:
        before = _position(tail, offset)
        if before >= 0 and _serial(tail, offset) == _serial(tail, last):
            return end - before
    return end


def links(file: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Return where each of the streams that were joined begins and ends, of one stream the whole file.

    The pages are only searched if the last one belongs to a stream that does not begin at the start of the file.

    Raises:
        ValueError: If there is something else between pages, or if there are more than `MAX_LINKS` streams.
    """
    file.seek(max(0, size - 2 * MAX_PAGE))
    tail = file.read()
    first, position = set(), 0
    while (page := _page(file, position)) is not None and page[0][5] & FIRST:
        first.add(_serial(page[0], 0))
        position = page[1]
    if _serial(tail, tail.rfind(b"OggS")) in first:
        return [(0, size)]
    starts, position, before = [], 0, 0
    while (page := _page(file, position)) is not None:
        if page[0][5] & FIRST and not before & FIRST:  # the streams of a link begin one after another
            starts.append(position)
        position, before = page[1], page[0][5]
        if len(starts) > MAX_LINKS:
            raise ValueError(f"more than {MAX_LINKS} Ogg streams are joined in it")
    if position != size:
        raise ValueError(f"this Ogg file is damaged: there is no page at byte {position}")
    return list(zip(starts, [*starts[1:], size], strict=True))


def _page(file: BinaryIO, position: int) -> tuple[bytes, int] | None:
    """Return the header of the page at a position, and its end; None if there is no page."""
    file.seek(position)
    page = file.read(27 + 255)
    if len(page) < 27 or page[:4] != b"OggS":
        return None
    return page, position + 27 + page[26] + sum(page[27 : 27 + page[26]])


def _position(tail: bytes, offset: int) -> int:
    """Return the granule position of a page, which is -1 if no packet ends on it."""
    return int.from_bytes(tail[offset + 6 : offset + 14], "little", signed=True)


def _serial(tail: bytes, offset: int) -> bytes:
    """Return the number of the stream of a page."""
    return tail[offset + 14 : offset + 18]
