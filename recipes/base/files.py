"""Write files atomically."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from multisagd.files import parse_json
from recipes.base.errors import RecipeError


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, so that readers never see a partial file.

    File names in `text` need not be valid UTF-8: their surrogates are written as escapes, which JSON reads back.
    """
    replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def replace_file(path: Path, write: Callable[[Path], Any], shared: bool = False) -> None:
    """Replace a file atomically; `write` receives the path of a partial file.

    Readers may have mapped the old file into memory, so it must not be truncated. If several processes may write the
    same `shared` file at once, each uses its own partial path, and the last write wins.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial" if shared else f"{path.name}.partial")
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a partial file is useless, and the disk may be full
        raise


def as_stored(value: Any) -> Any:
    """Return a value as it is after being written to JSON and read back: with lists for tuples, and strings as keys."""
    return parse_json(json.dumps(value), finite=False)


def check_replaceable(out: Path, report: str, command: str, key: str = "run_dir") -> None:
    """Check that a folder is empty or holds the command's own outputs, including its `report`.

    `key` is the setting that names the folder.

    Raises:
        RecipeError: If the folder has other contents.
    """
    if out.exists() and any(out.iterdir()) and not (out / report).exists():
        raise RecipeError(f"{out} is not empty and was not written by {command}: choose another {key}")
