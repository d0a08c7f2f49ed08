"""The modality of conditions (`data.condition_modality`), which the user describes as a choice of the group `modality`.

`data.condition_modality={modality:image,size:8}` becomes the complete settings of `modality=image` with this size. This
happens on the command line only: the configuration of a run contains the result.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipes.base.errors import RecipeError, nearest
from recipes.config.groups import KeyTable, choice_file, groups, is_global, over
from recipes.config.sources import SOURCES

KEY, CHOICE = "condition_modality", "modality"
EXAMPLE = f"data.{KEY}={{modality:image,size:8}}"


def complete_condition_modalities(composed: DictConfig, folder: str | Path | None) -> None:
    """Replace the choice `modality` of each modality of conditions in a composed configuration by its settings.

    `folder` contains the user's additional groups.

    Raises:
        RecipeError: If it is not a group of keys, names no modality or an unknown one.
    """
    sources = OmegaConf.select(composed, SOURCES)
    named = [f"{SOURCES}.{name!s}" for name in sources] if isinstance(sources, DictConfig) else []
    for where in (f"{each}.{KEY}" for each in ("data", *named)):
        node = OmegaConf.select(composed, where)
        if node is None:
            continue
        settings = OmegaConf.to_container(node) if isinstance(node, DictConfig) else node
        if not isinstance(settings, Mapping):
            raise RecipeError(f"{where}: expected the settings of a modality, as in '{EXAMPLE}', got {settings!r:.80}")
        if "_target_" in settings:
            continue
        choice, options = settings.get(CHOICE), groups(folder)[CHOICE]
        if choice not in options:
            raise RecipeError(
                f"{where}.{CHOICE}={choice}: there is no such choice{nearest(str(choice), options)}; write '{EXAMPLE}'"
            )
        if is_global(choice_file(CHOICE, str(choice), folder)):
            raise RecipeError(
                f"{where}.{CHOICE}={choice}: this choice also sets other groups, so it cannot be used here"
            )
        own = {str(key): value for key, value in settings.items() if key != CHOICE}
        complete = over(KeyTable({}, folder).keys(str(choice), CHOICE), own)
        OmegaConf.update(composed, where, complete, merge=False, force_add=True)


def modality_of_conditions(data: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the settings of the modality of conditions in the group `data`, or None for that of the data.

    All sources of a mixture have conditions of one shape, so that of the first one stands for all.
    """
    sources = data.get("sources")
    if isinstance(sources, Mapping) and sources:
        data = next(iter(sources.values()))
    settings = data.get(KEY)
    return settings if isinstance(settings, Mapping) else None
