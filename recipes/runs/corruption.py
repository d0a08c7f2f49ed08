"""The corruption of a run's data, and what is done about it, as its configuration says."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from modalities.base import Modality
from multisagd import Corruption
from recipes.config.build import Builder
from recipes.runs.settings import Group


@dataclass(frozen=True)
class CorruptionOptions:
    """What is done about a corruption: the keys of its group that do not describe the corruption itself.

    `added`: to clean data, as experiments need it; if not, the data have it already. `redrawn`: another one each time.
    `restored`: by the data's covariance before training, to their conditional mean or a sample; None: not at all.
    `examples`: how many are read to measure that covariance, None: all.
    """

    added: bool = True
    redrawn: bool = False
    restored: Literal["mean", "sample"] | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        if self.examples is not None and self.examples < 4:
            raise ValueError(f"examples is at least 4, or null for all, got {self.examples}")


def corruption_options(group: Group, builder: Builder) -> CorruptionOptions:
    """Return what a configuration says is done about its corruption.

    Raises:
        RecipeError: for a value of a wrong type.
    """
    own = {field.name for field in fields(CorruptionOptions)}
    return builder.settings(CorruptionOptions, {key: group[key] for key in own & group.keys()}, "corruption")


def build_corruption(group: Group, modality: Modality, builder: Builder) -> Corruption | None:
    """Return the corruption that a configuration describes on a modality's grid, None if it describes none.

    Raises:
        RecipeError: if it makes no sense there.
    """
    if group.get("_target_") is None:
        return None
    own = {field.name for field in fields(CorruptionOptions)}
    described = {key: value for key, value in group.items() if key not in own}
    return builder.build(described, Corruption, "corruption", grid=modality.grid())
