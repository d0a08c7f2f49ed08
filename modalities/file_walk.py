"""Find the files under a folder, at any depth."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from modalities.byte_ranges import is_hidden
from modalities.endings import ending_of, listed, other_ending


class Found(NamedTuple):
    """The sorted paths of media and of manifests under a root, and the number of other files by their endings."""

    media: list[str]
    tables: list[str]
    others: Counter[str]


def find_files(root: Path, suffixes: tuple[str, ...], tables: Sequence[str] = ()) -> Found:
    """Return the regular files under a root: media with these suffixes, manifests with the names `tables`, and others.

    Symbolic links are followed, but no folder is visited twice.

    Raises:
        FileNotFoundError: If `root` is not a folder, or contains no media.
        PermissionError: If a folder cannot be listed.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root.absolute()} is not a folder: set root to the folder that contains the files")
    found = Found([], [], Counter())
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_fail):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        if (real := os.path.realpath(folder)) in visited:
            folders.clear()
            continue
        visited.add(real)
        for name in names:
            path = Path(folder, name)
            # A named pipe would block the reader forever.
            if is_hidden(name) or not path.is_file():
                continue
            if name in tables:
                found.tables.append(path.relative_to(root).as_posix())
            elif ending_of(name, suffixes):
                found.media.append(path.relative_to(root).as_posix())
            else:
                found.others[other_ending(name)] += 1
    if not found.media:
        raise FileNotFoundError(
            f"no file under {root.absolute()} ends in {', '.join(suffixes)}; it contains {listed(found.others)}"
        )
    found.media.sort()
    found.tables.sort()
    return found


def _fail(error: OSError) -> NoReturn:
    raise error
