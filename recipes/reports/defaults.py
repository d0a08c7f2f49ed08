"""The configuration of a run beside the defaults: what somebody decided, and what was left as it comes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from multisagd.addresses import for_others
from recipes.config.addresses import mapped, shareable
from recipes.config.compose import Config
from recipes.config.defaults import ABSENT, nearest_choice, train_defaults
from recipes.config.groups import groups
from recipes.config.key_table import flatten
from recipes.reports.blocks import Setting, Settings

LONGEST = 300
"""Characters of a value that are shown."""

OF_THE_RUN = ("run_dir",)
"""Keys that have no default to differ from."""


def settings(config: Config) -> Settings:
    """Return every key of a configuration, and which choice each of its groups is."""
    own = train_defaults()
    expected = flatten(own)
    choices = []
    for group in groups():
        node = config.get(group)
        if not isinstance(node, Mapping) or group in own:
            continue
        name, defaults = nearest_choice(group, node)
        choices.append((group, name or str(node.get("_target_", ABSENT))))
        expected |= flatten(defaults, group) if defaults else {}
    rows = []
    for key, value in flatten(mapped(shareable(config), for_others)).items():
        told = shown(value)
        default = shown(expected.get(key, ABSENT)).replace("???", ABSENT)
        rows.append(Setting(key, told, default if default != told and key not in OF_THE_RUN else None))
    return Settings(tuple(choices), tuple(rows))


def shown(value: Any) -> str:
    """Return a value as text, shortened."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
