"""Addresses in texts: whether a text is one, and what of it others may read.

An address may hold what only its owner should have: user and password, or a signature behind the question mark.
"""

from __future__ import annotations

import re

ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*:/{2,})(?P<rest>[^\s'\"<>]*)")
USER = re.compile(r"[\w.%+-]+:[^\s'\"@/]+@(?=[\w\[{])")
QUERY = re.compile(r"\?[\w.~%-]+=[^\s'\"<>]*")
HOME = re.compile(
    r"(?<![\w.~-])(/home/[^/\s'\"]+|/Users/[^/\s'\"]+|/root|[A-Za-z]:[\\/]+Users[\\/]+[^\\/\s'\"]+)(?![\w.-])"
)


def is_address(text: str) -> bool:
    """Tell whether a text is more than a plain path: an address, a chain of them, or a share of another machine."""
    return "://" in text or "::" in text or text.lstrip().lower().startswith(("data:", "pipe:", "//", "\\\\"))


def without_secrets(text: str) -> str:
    """Return a text whose addresses have neither user and password nor query and fragment.

    Where there were any, `…` stands in their place.
    """
    return QUERY.sub("?…", USER.sub("…@", ADDRESS.sub(_plain, text)))


def for_others(text: str) -> str:
    """Return a text as `without_secrets` does, in which home folders, which name a person, are `~`."""
    return HOME.sub("~", without_secrets(text))


def _plain(found: re.Match[str]) -> str:
    rest, mark, _ = (*re.split(r"([?#])", found["rest"], maxsplit=1), "", "")[:3]
    # A password may hold any character that it should not, so the last @ counts.
    _, at, place = rest.rpartition("@")
    return f"{found['scheme']}{'…@' if at else ''}{place}{f'{mark}…' if mark else ''}"
