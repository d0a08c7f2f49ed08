"""The folder of this user for files that can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Return this project's folder `name` in the user's cache folder (XDG_CACHE_HOME, or else ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "multisagd" / name
