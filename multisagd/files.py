"""Read files from untrusted sources: anything but a regular file of limited size is refused before reading.

Reading a pipe or a device may never end, and small JSON may nest deeper than Python's stack. Links are followed: shared
folders often consist of links, and reading them is harmless.
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
"""Maximum size of a text file, in bytes: far more than any record of a run."""

DEEPEST = 50
"""Maximum nesting of lists and objects in JSON."""

DIGITS = 300
"""Maximum number of digits of an integer: 309 may exceed the largest float, and Python's limit is 4,300."""

KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def check_file(path: str | Path, largest: int | None = None) -> None:
    """Check that a path is a regular file of at most `largest` bytes.

    Raises:
        OSError: If the file does not exist, or access is denied.
        ValueError: If the path is not a regular file, or is larger than `largest`.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"it is {KINDS.get(stat.S_IFMT(status.st_mode), 'something else')} and not a file")
    if largest is not None and status.st_size > largest:
        raise ValueError(f"it has {status.st_size:,} bytes, more than the limit of {largest:,}")


def digest(path: str | Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """Return the text of a UTF-8 file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If the path is not a regular file, larger than `largest` bytes, or not UTF-8.
    """
    check_file(path, largest)
    return Path(path).read_text(encoding="utf-8")


def read_json(path: str | Path, largest: int = LARGEST_TEXT, finite: bool = True) -> Any:
    """Return the content of a JSON file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If `read_text` or `parse_json` refuses the file.
    """
    return parse_json(read_text(path, largest), finite)


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """Parse JSON into mappings, lists, strings, and numbers that fit into a float.

    If `finite` is False, NaN and Infinity are accepted too: they are not part of JSON, but Python writes and reads
    them.

    Raises:
        ValueError: If the text is not JSON, is nested too deeply, repeats a name in an object, or contains an invalid
            number.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_int=_whole,
            parse_float=_finite if finite else float, parse_constant=_finite if finite else float,
        )  # fmt: skip
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    # Check the nesting level by level, without recursion: later code that walks through the value may be recursive.
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _containers(outer)]
    if level:
        raise ValueError("it is nested too deeply")
    return value


def _containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [each for each in inner if isinstance(each, dict | list)]


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits is too long")
    return int(digits)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.40} is not a finite number")
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        # Programs differ in which of the values they use, so a value checked here may not be the one used elsewhere.
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice in one object")
    return members
