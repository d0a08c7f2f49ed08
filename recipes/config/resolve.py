"""Replace settings of the modality that are to be taken from files by their values, before a command uses them.

The configuration of a run is then complete: sampling and continuing it do not need these files.
"""

import inspect
from collections.abc import Mapping
from typing import Any, cast

from modalities.base import Modality
from recipes.base.errors import as_recipe_error
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.config.conditions import KEY
from recipes.runtime.distribution import Rank

GROUP = "modality"


def resolved(config: Config) -> Config:
    """Return a configuration in which its modality, one within it and that of conditions have resolved their settings.

    Settings that change are printed by the first process.

    Raises:
        RecipeError: If the class of the modality is not allowed, or its settings cannot be taken from the files.
    """
    node = config.get(GROUP)
    if not isinstance(node, Mapping) or node.get("_target_") is None:
        return config
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    builder = Builder(tuple(config.get("allow_targets", ())))
    result = {**config, GROUP: _resolved(node, GROUP, data, builder)}
    other = data.get(KEY)
    if isinstance(other, Mapping) and other.get("_target_") is not None:
        own = {**data, "root": data.get("condition_root")}
        result["data"] = {**data, KEY: _resolved(other, f"data.{KEY}", own, builder)}
    return result


def _resolved(node: Mapping[str, Any], where: str, data: Mapping[str, Any], builder: Builder) -> dict[str, Any]:
    inner = node.get(GROUP)
    if isinstance(inner, Mapping) and inner.get("_target_") is not None:
        node = {**node, GROUP: _resolved(inner, f"{where}.{GROUP}", data, builder)}
    target: Any = builder.target(node, Modality, where)
    # A class method is bound to its class.
    kind = cast(type[Modality], target if inspect.isclass(target) else target.__self__)
    with as_recipe_error((ValueError, OSError), f"{where}: "):
        found = kind.resolved(node, data)
    changed = {key: value for key, value in found.items() if value != node.get(key) and value is not None}
    if changed and Rank.from_environment().rank == 0:
        lines = "".join(f"\n  {where}.{key}: {_shown(value)}" for key, value in changed.items())
        print(f"taken from the data, and kept in the configuration of the run:{lines}")
    return found


def _shown(value: Any) -> str:
    """Return a value as text; of the entries of a list, only what is set."""
    if isinstance(value, list | tuple):
        return "; ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {each}" for key, each in value.items() if each not in (None, "", False))
    return str(value)
