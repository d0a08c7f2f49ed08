"""Detect addresses (URLs) in a string, and remove secrets from them.

An address may contain secrets: a user name and password, or a signature after the question mark.
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
    """Whether a string is more than a plain path: an address, a chain of addresses, or a network share."""
    return "://" in text or "::" in text or text.lstrip().lower().startswith(("data:", "pipe:", "//", "\\\\"))


def without_secrets(text: str) -> str:
    """Return the text without the user name, password, query and fragment of its addresses.

    Each removed part is replaced with `…`.
    """
    return QUERY.sub("?…", USER.sub("…@", ADDRESS.sub(_plain, text)))


def for_others(text: str) -> str:
    """Remove secrets as `without_secrets` does, and replace home folders, which contain a person's name, with `~`."""
    return HOME.sub("~", without_secrets(text))


def _plain(match: re.Match[str]) -> str:
    rest, mark, _ = (*re.split(r"([?#])", match["rest"], maxsplit=1), "", "")[:3]
    # A password may contain an unescaped @, so the address begins after the last one.
    _, at, address = rest.rpartition("@")
    return f"{match['scheme']}{'…@' if at else ''}{address}{f'{mark}…' if mark else ''}"
