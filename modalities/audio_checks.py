"""Checks of an audio file before it is decoded: its format, and whether its end is missing.

Decoders read a truncated file as if it were shorter, so its length is compared here with the declared length.
FLAC and MP3 files declare their number of samples, which is checked when they are read. If an MP3 file does not declare
it (no Xing or Info frame), the length is estimated from the size, which is accurate only if the bit rate is constant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO

KINDS = {
    "WAV": rb"(RIFF|RIFX|RF64)....WAVE",
    "AIFF": rb"FORM....AIF[FC]",
    "FLAC": rb"fLaC",
    "Ogg": rb"OggS",
    "MP3": rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]",
    "MP4": rb"....ftyp",
}
"""First bytes of each supported format, as a regular expression."""
MAX_PARTS = 10_000
"""Maximum number of chunks or boxes that are read: more than any real file has, but a limit for malicious files."""
MAX_PAGE = 65_307
"""Maximum size of a page of an Ogg stream, in bytes (RFC 3533, Sec. 6)."""


def recognise(path: Path) -> str:
    """Return the format of an audio file, one of `KINDS`, from its first bytes, not from its name.

    Raises:
        ValueError: If the file is empty or has none of these formats.
    """
    with path.open("rb") as file:
        head = file.read(12)
    if not head:
        raise ValueError("the file is empty")
    for kind, start in KINDS.items():
        if re.match(start, head, re.DOTALL):
            return kind
    raise ValueError(
        f"its content is in none of the formats {', '.join(KINDS)}, whatever its name suggests: convert it to one of "
        "them"
    )


def check_complete(path: Path, kind: str) -> None:
    """Check that a file of format `kind` is as long as its container declares, if it declares a length.

    Raises:
        ValueError: If the file is truncated, or does not state its length because it was written to a pipe.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if kind in ("WAV", "AIFF"):
            end = _samples_end(file)
        elif kind == "MP4":
            end = _last_box_end(file, size)
        elif kind == "Ogg":
            end = _last_page_end(file, size)
        else:
            return
    if end > size:
        raise ValueError(
            f"truncated: its header declares {end} bytes, but there are {size}; repair it with an audio editor, or "
            "copy it again"
        )


def last_page_samples(path: Path) -> int:
    """Return the number of samples in the last page of a complete Ogg stream, from the positions that pages declare.

    Opus positions always count samples at 48 kHz, whatever the decoding rate, so the result may be too large.
    """
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 3 * MAX_PAGE))
        tail = file.read()
    last = tail.rfind(b"OggS")
    end, offset = _position(tail, last), last
    while (offset := tail.rfind(b"OggS", 0, offset)) >= 0:
        before = _position(tail, offset)
        if before >= 0 and tail[offset + 14 : offset + 18] == tail[last + 14 : last + 18]:
            return end - before
    return end


def _position(tail: bytes, offset: int) -> int:
    """Return the granule position of an Ogg page (RFC 3533, Sec. 6), which is -1 if no packet ends on it."""
    return int.from_bytes(tail[offset + 6 : offset + 14], "little", signed=True)


def _samples_end(file: BinaryIO) -> int:
    """Return the declared end of the chunk that contains the samples in a RIFF, RF64 or AIFF file."""
    order = file.read(12)[:4]
    wide = None
    for _ in range(MAX_PARTS):
        header = file.read(8)
        if len(header) < 8:
            break
        length = int.from_bytes(header[4:], "big" if order in (b"FORM", b"RIFX") else "little")
        if header[:4] == b"ds64":
            sizes = file.read(16)
            wide = int.from_bytes(sizes[8:], "little")
            file.seek(-len(sizes), 1)
        if header[:4] == b"data" and length == 0xFFFFFFFF and wide is None:
            raise ValueError(
                "its header does not state its length, as happens when a file is written to a pipe: encode it again"
            )
        if header[:4] in (b"data", b"SSND"):
            return file.tell() + (wide if wide is not None and length == 0xFFFFFFFF else length)
        file.seek(length + length % 2, 1)
    raise ValueError("truncated: it ends before its samples begin; copy it again")


def _last_box_end(file: BinaryIO, size: int) -> int:
    """Return the declared end of the last outermost box of an MP4 file."""
    end = 0
    for _ in range(MAX_PARTS):
        file.seek(end)
        header = file.read(16)
        if end >= size or len(header) < 8:
            break
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        # Length 0 means that the box extends to the end of the file. Lengths 1 to 7 are padding or damage.
        if length < 8:
            break
        end += length
    return end


def _last_page_end(file: BinaryIO, size: int) -> int:
    """Return the declared end of the last page of an Ogg stream.

    Raises:
        ValueError: If that page is not marked as the end of a stream.
    """
    file.seek(max(0, size - 2 * MAX_PAGE))
    tail = file.read()
    offset = tail.rfind(b"OggS")
    page = tail[offset:]
    if offset < 0 or len(page) < 27 or not page[5] & 4:
        raise ValueError("truncated: its last page is not marked as the end of the stream; encode or copy it again")
    return size - len(page) + 27 + page[26] + sum(page[27 : 27 + page[26]])
