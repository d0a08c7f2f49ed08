"""Where the sound of an MP3 file ends, and whether the file states how long it is.

Tags may follow the sound: ID3v1, Lyrics3 and APE, which may hold a cover. Decoders that do not know a tag search it for
sound and write messages. A Xing or Info frame, the first one, states the number of frames and of bytes; without it
decoders estimate the length from the first frames, which is wrong if the bit rate varies.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

DEVIATION = 0.01
"""Fraction of the bytes that a stated number may leave out; if it leaves out more, other files were appended."""


def id3_length(head: bytes) -> int:
    """Return the length of the ID3v2 tag at the start of a file, whose size has seven bits per byte; 0: no tag."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def sound_end(file: BinaryIO, end: int) -> int:
    """Return the position before all tags at the end of a file of `end` bytes."""
    while length := min(end, _tag_length(file, end)):
        end -= length
    return end


def states_length(file: BinaryIO, start: int, end: int) -> bool:
    """Whether the first frame states the number of frames, and does not leave out bytes from `start` to `end`."""
    file.seek(start)
    frame = file.read(256)
    at = max(frame.find(b"Xing", 0, 64), frame.find(b"Info", 0, 64))
    if at < 0 or len(frame) < at + 16:
        return False
    flags, _, count = struct.unpack(">III", frame[at + 4 : at + 16])
    return bool(flags & 1) and not (flags & 2 and count < (1 - DEVIATION) * (end - start))


def _tag_length(file: BinaryIO, end: int) -> int:
    """Return the length of the tag that ends at `end`, or 0 if there is none."""
    file.seek(max(0, end - 128))
    tail = file.read(min(end, 128))
    if len(tail) == 128 and tail[:3] == b"TAG":
        return 128
    if tail[-32:-24] == b"APETAGEX":
        size, _, flags = struct.unpack("<III", tail[-20:-8])
        return int(size) + (32 if flags >> 31 else 0)  # the size leaves out the header
    if tail.endswith(b"LYRICS200") and tail[-15:-9].isdigit():
        return int(tail[-15:-9]) + 15
    return 0
