"""Parts of a model in words, for cards: as Markdown in which whatever is told means itself."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multisagd import Process
from multisagd.addresses import for_others

PLACES = ("root", "urls", "index", "manifest", "match", "pattern", "path", "statistics", "cache", "folder")
"""Settings that say where somebody's files are, or what they are called."""

LONGEST = 200
"""Characters of a name or setting that are repeated."""


def in_words(process: Process) -> str:
    """Say how a noise's power differs from that of white noise, at zero frequency and in three bands of frequency."""
    grid, power = process.grid, process.covariance.power()
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes})
    top, mean = float(radius.max()), float(grid.mean(power))

    def decibels(value: float) -> str:
        return f"{10 * math.log10(value / mean):+.1f} dB" if value > 1e-12 * mean else "no noise at all"

    said = [f"at zero frequency {decibels(float(power.flatten()[0]))}"]
    for number, band in enumerate(("lowest", "middle", "highest")):
        weight = grid.multiplicity * ((radius > number * top / 3) & (radius <= (number + 1.001) * top / 3))
        if bool(weight.any()):
            level = float((power * weight).sum() / weight.sum())
            said.append(f"in the {band} third of frequencies {decibels(level)}")
    return ", ".join(said) + ", against white noise of the same power"


def described(node: Mapping[str, Any]) -> str:
    """Return a group of a configuration as a name and its settings, without what says where files lie."""
    kept = {key: value for key, value in node.items() if key != "_target_" and value is not None}
    settings = ", ".join(f"{shown(key)}={_setting(value)}" for key, value in kept.items() if not _private(key, value))
    name = shown(last_part(node))
    return f"{name} ({settings})" if settings else name


def last_part(node: Mapping[str, Any]) -> str:
    """Return the name of the class that a group describes."""
    return str(node.get("_target_") or "none").rsplit(".", 1)[-1]


def shown(value: object) -> str:
    """Return anything as one short line of Markdown that means itself: nothing in it is a link, markup or HTML."""
    return re.sub(r"([\\`*_\[\]<>|#~&!$])", r"\\\1", one_line(value))


def one_line(value: object) -> str:
    """Return anything as one short line of printable characters."""
    text = for_others("".join(each for each in " ".join(str(value).split()) if each.isprintable()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def listed(entries: Mapping[str, str]) -> str:
    """Return entries as a list, those without a value left out."""
    return "\n".join(f"- {name}: {value}" for name, value in entries.items() if value)


def slug(text: str) -> str:
    """Return a text as the hub writes identifiers."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "unnamed"


def _private(key: Any, value: Any) -> bool:
    """Tell whether a setting is a place of somebody's files, or holds one: a path, an address, or a list of them."""
    if isinstance(value, list | tuple):
        return any(_private(key, each) for each in value)
    if not isinstance(value, str):
        return False
    if key == "name":
        return Path(value).is_absolute() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value) is None
    return key in PLACES or re.search(r"[\\/:?#@~]", value) is not None


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            described(value)
            if "_target_" in value
            else f"{{{', '.join(f'{k}: {_setting(v)}' for k, v in value.items())}}}"
        )
    return shown(value)
