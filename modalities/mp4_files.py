"""Boxes of MP4 and QuickTime files (ISO/IEC 14496-12): where they end, and whether there is an index."""

from __future__ import annotations

from typing import BinaryIO

MAX_BOXES = 10_000
"""Maximum number of boxes that are read: more than any real file has, but a limit for malicious files."""
FIRST = rb"....(ftyp|moov|mdat|wide|free|skip|pnot)"
"""First bytes, as a regular expression; old QuickTime files have no ftyp."""


def check_boxes(file: BinaryIO, size: int) -> None:
    """Check the outermost boxes of a file of `size` bytes.

    Raises:
        ValueError: If the last box ends beyond the file, or no box is the index (moov).
    """
    end, indexed = 0, False
    for _ in range(MAX_BOXES):
        if end >= size:  # positions of damaged files may be too large to seek
            break
        file.seek(end)
        header = file.read(16)
        if len(header) < 8:
            break
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:], "big")
        indexed |= header[4:8] == b"moov"
        # Length 0 means that the box extends to the end of the file. Lengths 1 to 7 are padding or damage.
        if length < 8:
            break
        end += length
    if not indexed:
        raise ValueError(
            "truncated: it has no index (moov), which is written when a recording ends; copy it again, or restore the "
            "index with a program that repairs MP4"
        )
    if end > size:
        raise ValueError(
            f"truncated: its header declares {end} bytes, but there are {size}; repair it with an editor, or copy it "
            "again"
        )
