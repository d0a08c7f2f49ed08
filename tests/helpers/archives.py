"""Tar archives in memory."""

import io
import tarfile
from typing import Any


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
