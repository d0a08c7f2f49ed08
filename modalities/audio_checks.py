"""Checks of an audio file before it is decoded: its format, whether its end is missing, and what decodes it.

Decoders read a truncated file as if it were shorter, so its length is compared here with the declared length.
FLAC and MP3 files declare their number of samples, which is checked when they are read, and so is the duration that
Matroska, AVI and WMA declare. A file whose header does not state its length, because its recorder was stopped or wrote
to a pipe, is read to its end.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, NamedTuple

from modalities import mp3_files as mp3
from modalities import mp4_files, ogg_files, riff_files

KINDS = {
    "WAV": rb"(RIFF|RIFX|RF64)....WAVE",
    "AIFF": rb"FORM....AIF[FC]",
    "FLAC": rb"fLaC",
    "Ogg": rb"OggS",
    "AAC": rb"\xff[\xf0\xf1\xf8\xf9]",
    "MP3": rb"ID3|\xff[\xe2\xe3\xf2\xf3\xfa\xfb]",
    "MP4": mp4_files.FIRST,
    "Matroska": rb"\x1a\x45\xdf\xa3",
    "AVI": rb"RIFF....AVI ",
    "WMA": rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11",
    "CAF": rb"caff",
}
"""First bytes of each supported format, as a regular expression; Matroska includes WebM, and WMA all of ASF."""
TAGGED = ("FLAC", "AAC")
"""Formats that a tag of ID3 may precede, beside MP3."""
LIBSNDFILE_OGG = (b"\x01vorbis", b"OpusHead")
"""First bytes of the codecs in Ogg that libsndfile decodes; FFmpeg decodes the others, such as FLAC and Speex."""


class Content(NamedTuple):
    """What an audio file contains: one of `KINDS`, whose sound lies from byte `begin` up to the byte at `end`.

    `libsndfile` is True if libsndfile knows the codec and the length; otherwise FFmpeg is needed. The bytes at `field`
    should be `right`, because the header does not state the length. `codec` names the encoding, if it was looked up.
    `links` are the first and last positions of streams that are joined in one file; empty: there is one stream.
    """

    kind: str
    end: int
    libsndfile: bool = True
    field: int = 0
    right: bytes = b""
    codec: str = ""
    begin: int = 0
    links: tuple[tuple[int, int], ...] = ()


def examine(path: Path) -> Content:
    """Return what an audio file contains, from its content and not from its name.

    Raises:
        ValueError: If the file is empty, has none of the `KINDS`, is truncated or has no samples.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        kind, start = _recognised(file)
        if kind in ("WAV", "AIFF"):
            samples = riff_files.find_samples(file, size)
            _check_end(samples.start + samples.length, size)
            encoding = samples.encoding
            known = kind == "AIFF" or encoding in riff_files.DECODED
            codec = "" if known else riff_files.ENCODINGS.get(encoding, f"encoding {encoding:#06x}")
            return Content(kind, size, known, samples.field, samples.right, codec)
        if kind in ("AVI", "CAF"):
            _check_end(riff_files.last_end(file, size, wide=kind == "CAF") - 1, size)  # the last byte may be padding
        if kind == "MP4":
            mp4_files.check_boxes(file, size)
        if kind == "Ogg":
            _check_end(ogg_files.last_page_end(file, size), size)
            links = ogg_files.links(file, size)
            known = ogg_files.codec(file).startswith(LIBSNDFILE_OGG)
            return Content(kind, size, known, links=tuple(links) if len(links) > 1 else ())
        if kind == "FLAC":
            file.seek(start + 21)
            # The number of samples has 36 bits (RFC 9639, Sec. 8.2).
            return Content(kind, size, libsndfile=bool(int.from_bytes(file.read(5), "big") % (1 << 36)))
        if kind == "MP3":
            end = mp3.sound_end(file, size)
            return Content(kind, end, mp3.states_length(file, start, end))
        return Content(kind, mp3.sound_end(file, size) if kind == "AAC" else size, libsndfile=False)


def _recognised(file: BinaryIO) -> tuple[str, int]:
    """Return the format of an audio file, and where it begins: a tag of ID3 may precede it."""
    head = file.read(12)
    if not head:
        raise ValueError("the file is empty")
    start = mp3.id3_length(head)
    if start:
        file.seek(start)
        tagged = file.read(12)
        for kind in TAGGED:
            if re.match(KINDS[kind], tagged, re.DOTALL):
                return kind, start
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
