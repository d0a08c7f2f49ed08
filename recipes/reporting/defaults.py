"""The configuration of a run beside the defaults: what somebody decided, and what was left as it comes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from recipes.engine import config as configuration
from recipes.engine.config import Config
from recipes.engine.help import CONFIGS, groups
from recipes.reporting.blocks import Setting, Settings

LONGEST = 300
"""Characters of a value that are shown."""

ABSENT = "-"
OF_THE_RUN = ("run_dir",)
"""Keys that have no default to differ from."""


def settings(config: Config) -> Settings:
    """Return every key of a configuration, and which choice each of its groups is."""
    own = configuration.read(CONFIGS / "train.yaml")
    own.pop("defaults", None)
    expected = configuration.flatten(own)
    choices = []
    for group in groups():
        node = config.get(group)
        if not isinstance(node, Mapping) or group in own:
            continue
        name, defaults = nearest_choice(group, node)
        choices.append((group, name or str(node.get("_target_", ABSENT))))
        expected |= configuration.flatten(defaults, group) if defaults else {}
    rows = []
    for key, value in configuration.flatten(config).items():
        told = shown(value)
        default = shown(expected.get(key, ABSENT)).replace("???", ABSENT)
        rows.append(Setting(key, told, default if default != told and key not in OF_THE_RUN else None))
    return Settings(tuple(choices), tuple(rows))


def nearest_choice(group: str, node: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the choice of a group whose class this is and that differs least, with its values; None if there is none.

    Choices differ by their class, or as engines do by their values alone.
    """
    here = configuration.flatten(node)
    best: tuple[int, str | None, dict[str, Any]] = (len(here) + 1, None, {})
    for choice in groups()[group]:
        values = _choice(group, choice)
        there = configuration.flatten(values)
        if values.get("_target_") == node.get("_target_"):
            apart = sum(here.get(key, ABSENT) != there.get(key, ABSENT) for key in here.keys() | there.keys())
            best = min(best, (apart, choice, values), key=lambda each: each[0])
    return best[1], best[2]


def shown(value: Any) -> str:
    """Return a value as text, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


@cache
def _choice(group: str, choice: str) -> dict[str, Any]:
    """Return the values of a choice, over those of the choice of its group that it builds on."""
    values = configuration.read(CONFIGS / group / f"{choice}.yaml")
    for base in values.pop("defaults", []):
        # Other entries are groups within this one, told apart by a class of their own.
        name, _, place = base.partition("@") if isinstance(base, str) else ("_self_", "", "")
        if name != "_self_":
            below = _choice(group, name)
            values = _over({place: below} if place else below, values)
    return values


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with others laid over them."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _over(result[key], value) if both else value
    return result
