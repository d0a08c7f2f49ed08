"""Files and folders that systems keep beside a person's own, and that hold no data."""

from __future__ import annotations

from pathlib import PurePosixPath

SYSTEM = {
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""Names, in lower case, that macOS, Windows, file servers and file systems give such files and folders."""


def is_hidden(name: str) -> bool:
    """Tell whether a file or folder of this name is hidden, or the system's own."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM


def any_hidden(path: str) -> bool:
    """Tell whether a file, or a folder on the way to it, is hidden or the system's own."""
    return any(is_hidden(part) for part in PurePosixPath(path).parts)
