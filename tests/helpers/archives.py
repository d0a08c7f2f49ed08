"""Tar archives in memory, and changes of their headers."""

import io
import tarfile
from typing import Any

NAME, SIZE, TIME, KIND = slice(0, 100), slice(124, 136), slice(136, 148), slice(156, 157)
"""Fields of a header."""


def archive(*entries: tuple[str, bytes] | tarfile.TarInfo, form: int = tarfile.USTAR_FORMAT, **more: Any) -> bytes:
    """Return an archive of files (name, content) and of empty members with the given headers."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, **more) as tar:
        for entry in entries:
            header = entry if isinstance(entry, tarfile.TarInfo) else tarfile.TarInfo(entry[0])
            content = b"" if isinstance(entry, tarfile.TarInfo) else entry[1]
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return out.getvalue()


def changed(data: bytes, place: int, field: slice, value: bytes, fix: bool = True) -> bytes:
    """Return an archive with another field in the header at `place`, and the checksum to match if `fix`."""
    header = bytearray(data[place : place + 512])
    header[field] = value.ljust(field.stop - field.start, b"\0")
    if fix:
        header[148:156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
    return data[:place] + bytes(header) + data[place + 512 :]
