"""Files that another process, or a later one, may look at: they are written whole."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multisagd.files import parse_json
from recipes.base.errors import RecipeError


def write_text(path: Path, text: str) -> None:
    """Replace a file in one go, so that it is never seen half written.

    Names of files need not be valid UTF-8; Python's form of the rest is written as an escape, which JSON reads back.
    """
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def replace_file(path: Path, write: Callable[[Path], Any], shared: bool = False) -> None:
    """Replace a file in one go by what `write` writes to the path it is given.

    The old one may be mapped into memory by those who have read it, and must not shrink under them. Where processes
    may write the same `shared` file at once, each writes a path of its own, and the last one stays.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # half of it helps nobody, least of all on a disk that is full
        raise


def as_stored(value: Any) -> Any:
    """Return a value as it is read back from a JSON file: tuples as lists, and keys as texts."""
    return parse_json(json.dumps(value), finite=False)


def check_replaceable(out: Path, report: str, command: str, key: str = "run_dir") -> None:
    """Check that nothing in a folder could be overwritten but what the command wrote itself, its `report` among it.

    `key` is the one by which the command names the folder.

    Raises:
        RecipeError: if it holds anything else.
    """
    if out.exists() and any(out.iterdir()) and not (out / report).exists():
        raise RecipeError(f"{out} is not empty and not what {command} left: choose another {key}")
