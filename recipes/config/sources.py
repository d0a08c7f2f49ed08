"""The sources of a mixture (`data=mixture`), which the user describes as choices of the group `data`.

`data.sources.photos={data:folder,root:photos}` becomes the complete settings of `data=folder` with this root. This
happens on the command line only: the configuration of a run contains the result.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from recipes.base.errors import RecipeError, nearest
from recipes.config.groups import KeyTable, choice_file, groups, is_global

SOURCES = "data.sources"
EXAMPLE = f"{SOURCES}.photos={{data:folder,root:photos}}"


def complete_sources(composed: DictConfig, folder: str | Path | None) -> None:
    """Replace the choice `data` of each source in a composed configuration by its settings and their defaults.

    `folder` contains the user's additional groups.

    Raises:
        RecipeError: If a source is not a group of keys, names no kind of data or an unknown one, or one that also sets
            keys outside its group.
    """
    data = composed.get("data")
    sources = data.get("sources") if isinstance(data, DictConfig) else None
    if not isinstance(sources, DictConfig):
        return
    named = cast(dict[str, Any], OmegaConf.to_container(sources))
    complete = {name: _complete(name, node, "_target_" in data, folder) for name, node in named.items()}
    OmegaConf.update(composed, SOURCES, complete, merge=False, force_add=True)


def own_key(key: str) -> str:
    """Return a dotted key of one source, such as data.sources.photos.root, as that of a single source, data.root."""
    return re.sub(rf"^{re.escape(SOURCES)}\.[^.]+\.", "data.", key)


def _complete(name: str, node: Any, whole: bool, folder: str | Path | None) -> Any:
    """Return the settings of one source; unless they are `whole`, they may be a few keys of a run's source."""
    if not isinstance(node, Mapping):
        raise RecipeError(f"{SOURCES}.{name}: expected the settings of a source, as in '{EXAMPLE}', got {node!r:.80}")
    settings = dict(node)
    choice = settings.pop("data", None)
    if choice is None:
        if whole and "_target_" not in settings:
            raise RecipeError(f"{SOURCES}.{name} does not say what kind of data it is: add data, as in '{EXAMPLE}'")
        return settings
    options = groups(folder)["data"]
    if choice not in options:
        raise RecipeError(f"{SOURCES}.{name}.data={choice}: there is no such choice{nearest(str(choice), options)}")
    if is_global(choice_file("data", choice, folder)):
        raise RecipeError(
            f"{SOURCES}.{name}.data={choice}: this choice also sets other groups, so it cannot be a source"
        )
    return {**KeyTable({}, folder).keys(choice, "data"), **settings}
