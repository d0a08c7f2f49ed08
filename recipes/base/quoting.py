"""Words of commands that are printed: a shell and Hydra read them back as what they stand for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def setting(key: str, value: str | Path) -> str:
    """Return `key=value` for a text, as it is typed into a shell."""
    return shlex.quote(f"{key}={written(str(value))}")


def written(text: str) -> str:
    """Return a text as a value in Hydra's grammar, in quotation marks where it would be read as something else."""
    try:
        if text and "${" not in text and OverridesParser.create().parse_override(f"key={text}").value() == text:
            return text
    except HydraException:
        pass
    # Between quotation marks too, ${…} is a reference to another key, unless an odd number of backslashes precedes it.
    literal = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return QuotedString(literal, Quote.double).with_quotes()
