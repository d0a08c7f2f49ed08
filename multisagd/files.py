"""Files that may come from someone else: refused before they are read, unless they are files of a sensible size.

A pipe would be waited for and a device read for ever, and a little JSON nests deeper than Python's stack. Links are
followed: shared folders of files are often made of them, and reading does no harm.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LARGEST_TEXT = 16 << 20
"""Bytes of a text that is read as a whole: far more than any record of a run."""

DEEPEST = 50
"""How deep lists and objects of a JSON text may nest."""

DIGITS = 300
"""Digits of a whole number; one of 309 is beyond all floats, and one of 4,300 beyond what Python reads."""

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def check_file(path: str | Path, largest: int | None = None) -> None:
    """Check that a path leads to a file, of at most `largest` bytes.

    Raises:
        OSError: if there is nothing, or it may not be looked at.
        ValueError: if it is something else, or larger.
    """
    found = Path(path).stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"it is {KINDS.get(stat.S_IFMT(found.st_mode), 'something else')} and not a file")
    if largest is not None and found.st_size > largest:
        raise ValueError(f"it has {found.st_size:,} bytes, and at most {largest:,} make sense")


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """Return the content of a file in UTF-8.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is no file, larger than `largest` bytes, or no UTF-8.
    """
    check_file(path, largest)
    return Path(path).read_text(encoding="utf-8")


def read_json(path: str | Path, largest: int = LARGEST_TEXT, finite: bool = True) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: if it cannot be read.
        ValueError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, largest), finite)


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """Return what a JSON text holds: mappings, lists, texts, and numbers that fit into a float.

    `finite` False takes NaN and Infinity too, which are no JSON, but which Python writes and reads.

    Raises:
        ValueError: if it is no JSON, nested too deeply, has a name twice in one object, or a number that is none.
    """
    try:
        found = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole,
            parse_float=_finite if finite else float, parse_constant=_finite if finite else float,
        )  # fmt: skip
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # Level by level, not by a function that calls itself: what walks through it later may be one.
    level = [found]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _containers(outer)]
    if level:
        raise ValueError("it is nested too deeply")
    return found


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, dict | list)]


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits makes no sense")
    return int(digits)


def _finite(number: str) -> float:
    found = float(number)
    if not math.isfinite(found):
        raise ValueError(f"{number:.40} is no finite number")
    return found


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        # Programs differ in which of them they take, so what one has checked another may not have seen.
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice in one object")
    return found
