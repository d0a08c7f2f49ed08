"""Hidden files and system files, which contain no data."""

from __future__ import annotations

from pathlib import PurePosixPath

SYSTEM = {
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""Names, in lower case, of such files and folders on macOS, Windows, file servers and file systems."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or a system file."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM


def any_hidden(path: str) -> bool:
    """Whether a file, or a folder on its path, is hidden or a system file."""
    return any(is_hidden(part) for part in PurePosixPath(path).parts)
