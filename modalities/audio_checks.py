"""Checks of an audio file before it is decoded: its format, whether its end is missing, and what decodes it.

Decoders read a truncated file as if it were shorter, so its length is compared here with the declared length.
FLAC and MP3 files declare their number of samples, which is checked when they are read. A file whose header does not
state its length, because its recorder was stopped or wrote to a pipe, is read to its end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from modalities import mp3_files as mp3

KINDS = {
    "WAV": rb"(RIFF|RIFX|RF64)....WAVE",
    "AIFF": rb"FORM....AIF[FC]",
    "FLAC": rb"fLaC",
    "Ogg": rb"OggS",
    "MP3": rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]",
    "MP4": rb"....ftyp",
}
"""First bytes of each supported format, as a regular expression."""
LIBSNDFILE_OGG = (b"\x01vorbis", b"OpusHead")
"""First bytes of the codecs in Ogg that libsndfile decodes; FFmpeg decodes the others, such as FLAC and Speex."""
MAX_PARTS = 10_000
"""Maximum number of chunks or boxes that are read: more than any real file has, but a limit for malicious files."""
UNSET = (0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
"""Lengths of samples that recorders write before they know the length (0), or as they write to a pipe."""
MAX_PAGE = 65_307
"""Maximum size of a page of an Ogg stream, in bytes (RFC 3533, Sec. 6)."""


class Content(NamedTuple):
    """What an audio file contains: one of `KINDS`, whose sound ends before the byte at `end`.

    `libsndfile` is True if libsndfile knows the codec and the length; otherwise FFmpeg is needed. The bytes at `field`
    should be `right`, because the header does not state the length.
    """

    kind: str
    end: int
    libsndfile: bool = True
    field: int = 0
    right: bytes = b""


def examine(path: Path) -> Content:
    """Return what an audio file contains, from its content and not from its name.

    Raises:
        ValueError: If the file is empty, has none of the `KINDS`, is truncated or has no samples.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        kind, start = _recognised(file)
        if kind in ("WAV", "AIFF"):
            samples = _samples(file, size)
            _check_end(samples.start + samples.length, size)
            return Content(kind, size, True, samples.field, samples.right)
        if kind == "MP4":
            _check_end(_last_box_end(file, size), size)
            return Content(kind, size, libsndfile=False)
        if kind == "Ogg":
            _check_end(_last_page_end(file, size), size)
            return Content(kind, size, _ogg_codec(file).startswith(LIBSNDFILE_OGG))
        if kind == "FLAC":
            file.seek(start + 21)
            # The number of samples has 36 bits (RFC 9639, Sec. 8.2).
            return Content(kind, size, libsndfile=bool(int.from_bytes(file.read(5), "big") % (1 << 36)))
        end = mp3.sound_end(file, size)
        return Content(kind, end, mp3.states_length(file, start, end))


def _recognised(file: BinaryIO) -> tuple[str, int]:
    """Return the format of an audio file, and where it begins: a tag of ID3 may precede it."""
    head = file.read(12)
    if not head:
        raise ValueError("the file is empty")
    start = mp3.id3_length(head)
    file.seek(start)
    if start and re.match(KINDS["FLAC"], file.read(12)):
        return "FLAC", start
    file.seek(12)
    for kind, first in KINDS.items():
        if re.match(first, head, re.DOTALL):
            return kind, start
    raise ValueError(
        f"its content is in none of the formats {', '.join(KINDS)}, whatever its name suggests: convert it to one of "
        "them"
    )


def _check_end(end: int, size: int) -> None:
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


class _Samples(NamedTuple):
    """The samples in a RIFF, RF64 or AIFF file: their position and length.

    If the header does not state the length, the bytes at `field` should be `right`.
    """

    start: int
    length: int
    field: int = 0
    right: bytes = b""


def _samples(file: BinaryIO, size: int) -> _Samples:
    """Return where the samples are in a RIFF, RF64 or AIFF file of `size` bytes.

    Raises:
        ValueError: If there is no chunk of samples, or it is empty.
    """
    file.seek(0)
    head = file.read(12)
    order: Literal["big", "little"] = "big" if head[:4] in (b"FORM", b"RIFX") else "little"
    wide = wide_field = 0
    for _ in range(MAX_PARTS):
        header = file.read(8)
        if len(header) < 8:
            break
        length, start = int.from_bytes(header[4:], order), file.tell()
        if header[:4] == b"ds64":
            wide, wide_field = int.from_bytes(file.read(16)[8:], "little"), start + 8
        elif header[:4] in (b"data", b"SSND"):
            rest = size - start
            if wide_field and length == 0xFFFFFFFF:
                return _Samples(start, wide) if wide else _Samples(start, rest, wide_field, rest.to_bytes(8, "little"))
            if length == 0 and int.from_bytes(head[4:8], order) + 8 == size:
                raise ValueError("it contains no samples")
            # Only of a WAV file does libsndfile take the length 0 literally; the highest one means the rest of it.
            unset = length in UNSET
            right = b"\xff" * 4 if length == 0 and header[:4] == b"data" else b""
            return _Samples(start, rest if unset else length, start - 4, right)
        file.seek(start + length + length % 2)
    raise ValueError("truncated: it ends before its samples begin; copy it again")


def _ogg_codec(file: BinaryIO) -> bytes:
    """Return the first bytes of the first packet of an Ogg stream (RFC 3533, Sec. 6)."""
    file.seek(0)
    page = file.read(27 + 255 + 16)
    return page[27 + page[26] :]


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
