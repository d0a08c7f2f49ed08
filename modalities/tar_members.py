"""The members of an uncompressed tar archive (POSIX ustar, pax, GNU), read in one pass over its headers.

Python's `tarfile` treats a damaged header as the end of the archive, and loads extended headers of any size. Here,
anything unknown is an error, because data would be lost unnoticed if reading ended early. Archives may come from
anyone, so values that contradict the archive's size are errors too. Nothing is ever unpacked.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

BLOCK = 512
LARGEST_EXTENSION = 1 << 20
"""Maximum size of an extended header, which contains a long name, in bytes."""

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
"""First bytes of common compression formats of tar archives."""

KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "link", b"2": "link", b"3": "device", b"4": "device",
         b"5": "folder", b"6": "pipe"}  # fmt: skip
EXTENSIONS = (b"x", b"X", b"g", b"L", b"K")
"""Flags of extended headers (pax and GNU), which describe the next member or all members."""

EMPTY = ("link", "device", "folder", "pipe")
"""Kinds without content, regardless of the size in their header."""

Read = Callable[[int, int], bytes]
"""Reads the bytes from one position up to another."""


class Member(NamedTuple):
    """One entry: its content is the `size` bytes after the header block at `header`, whose CRC-32 is `crc`."""

    name: str
    kind: str
    header: int
    size: int
    crc: int

    @property
    def start(self) -> int:
        """Position of the content."""
        return self.header + BLOCK


class ReadAheadBuffer:
    """Reads small pieces at ascending positions, calling `read` for `block` bytes at a time."""

    def __init__(self, read: Read, size: int, block: int) -> None:
        self.read, self.size, self.block = read, size, block
        self._start, self._held = 0, b""

    def __call__(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` to `stop`, which lie within the archive."""
        if not self._start <= start <= stop <= self._start + len(self._held):
            self._held = self.read(start, max(stop, min(start + self.block, self.size)))
            self._start = start
        return self._held[start - self._start : stop - self._start]


def members(read: Read, size: int) -> Iterator[Member]:
    """Yield all members of an archive of `size` bytes, whatever their kind.

    Raises:
        ValueError: If the archive is compressed, damaged, truncated or unsupported; the message names the member or
            position.
    """
    _check_plain(read(0, min(BLOCK, size)))
    position, extended = 0, _ExtendedHeader()
    while True:
        block = _piece(read, position, BLOCK, size, extended.name)
        if not any(block):
            _check_end(read, position, size)
            return
        header = _header(block, position)
        extension, name = header.flag in EXTENSIONS, extended.name or header.name
        length = header.size if extension or extended.size is None else extended.size
        if extension and length > LARGEST_EXTENSION:
            raise ValueError(
                f"there is an extended header of {length} bytes at byte {position}: this is not an archive of examples"
            )
        # Old archives have no flag for folders; their names end in a slash.
        kind = "folder" if header.flag == b"\0" and name.endswith("/") else KINDS.get(header.flag, "unknown")
        length = 0 if kind in EMPTY else length
        if position + BLOCK + length > size:
            raise ValueError(
                f"it is truncated: {name!r} ends at {position + BLOCK + length}, but the archive has {size} bytes"
            )
        if extension:
            extended = _read_extension(extended, header.flag, read(position + BLOCK, position + BLOCK + length))
        else:
            yield Member(name, kind, position, length, zlib.crc32(block))
            extended = _ExtendedHeader()
        position += BLOCK + -(-length // BLOCK) * BLOCK


@dataclass(frozen=True)
class _ExtendedHeader:
    """Values from extended headers for the next member, whose own header has no space for them."""

    name: str = ""
    size: int | None = None


class _Header(NamedTuple):
    name: str
    flag: bytes
    size: int


def _check_plain(start: bytes) -> None:
    for magic, program in COMPRESSED.items():
        if start.startswith(magic) and not _checksum_matches(start):
            raise ValueError(
                f"it is compressed with {program}, so individual examples cannot be read: decompress it (media files "
                "are compressed already, so it will hardly grow)"
            )


def _piece(read: Read, position: int, count: int, size: int, name: str) -> bytes:
    if position + count > size:
        after = f", after the name of {name!r}" if name else ""
        raise ValueError(f"it is truncated: it has {size} bytes and no end marker{after}")
    return read(position, position + count)


def _header(block: bytes, position: int) -> _Header:
    if not _checksum_matches(block):
        raise ValueError(f"the header at byte {position} is damaged" if position else "it is not a tar archive")
    try:
        size = _number(block[124:136])
    except ValueError as error:
        raise ValueError(f"the header at byte {position} has no valid size: {error}") from error
    name = _text(block[:100])
    if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
        name = f"{prefix}/{name}"
    header = _Header(name, block[156:157], size)
    if header.flag in (b"S", b"M"):
        raise ValueError(
            f"{name!r} is {'sparse' if header.flag == b'S' else 'part of a larger file'}: pack it again as one "
            "complete file"
        )
    return header


def _checksum_matches(block: bytes) -> bool:
    """Whether the checksum of a header block is correct."""
    try:
        checksum = _number(block[148:156])
    except (ValueError, IndexError):
        return False
    # The checksum counts its own field as spaces.
    rest = block[:148] + b" " * 8 + block[156:]
    unsigned = sum(rest)
    if checksum == unsigned:
        return True
    # Some old writers summed signed bytes.
    return checksum == unsigned - 256 * sum(byte > 127 for byte in rest)


def _number(field: bytes) -> int:
    """Return the number in a header field: octal digits, or GNU's binary format, marked by the highest bit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    text = field.split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", text):
        raise ValueError(f"{field!r} is not a positive number")
    return int(text or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _read_extension(extended: _ExtendedHeader, flag: bytes, data: bytes) -> _ExtendedHeader:
    if flag == b"K":
        return extended  # the target of a link; links are ignored
    if flag == b"L":
        return _ExtendedHeader(_text(data), extended.size)
    records = dict(_records(data))
    if sparse := next((key for key in records if key.startswith("GNU.sparse")), None):
        raise ValueError(f"it contains a sparse member ({sparse}): pack that file again without sparse mode")
    if flag == b"g":
        if {"path", "size"} & records.keys():
            raise ValueError(
                "a global header gives all members the same name or size: this is not an archive of examples"
            )
        return extended
    size = extended.size
    if "size" in records:
        if not re.fullmatch(rb"[0-9]{1,19}", records["size"]):
            raise ValueError(f"an extended header gives the size {records['size'][:20]!r}")
        size = int(records["size"])
    return _ExtendedHeader(_text(records["path"]) if "path" in records else extended.name, size)


def _records(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the records of a pax header, `LENGTH KEY=VALUE`; the length includes itself and the end of line."""
    while data.strip(b"\0"):
        match = re.match(rb"([0-9]{1,7}) ([^=]+)=", data)
        if match is None or not match.end() < (length := int(match[1])) <= len(data) or data[length - 1] != 10:
            raise ValueError("an extended header is damaged")
        yield _text(match[2]), data[match.end() : length - 1]
        data = data[length:]


def _check_end(read: Read, position: int, size: int) -> None:
    """Check that nothing follows the end marker; other tools stop there, so data after it would be lost unnoticed."""
    if any(read(position, min(size, position + 20 * BLOCK))):
        raise ValueError(
            f"there are data after the end-of-archive marker at byte {position}, as in archives concatenated with cat: "
            "unpack and repack the archive"
        )
