"""Examples of a run's data, if they are at hand. Nothing is fetched: a run may name addresses of anybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from modalities.base import Modality
from modalities.reading import UnreadableFilesError
from recipes.engine.build import Builder
from recipes.engine.config import Config
from recipes.engine.corrupted import build_data
from recipes.engine.data import fetching_nothing
from recipes.engine.errors import RecipeError
from recipes.engine.order import Order
from recipes.engine.settings import Group, TrainSettings


def examples(config: Config, given: Group, modality: Modality, builder: Builder, count: int) -> Tensor:
    """Return examples of the data, chosen by the run's seed, without augmentation, `(count, channels, *grid)`.

    `given` are the keys of the data that the command line gives.

    Raises:
        RecipeError: if they lie elsewhere than on this machine, or cannot be read.
    """
    settings = builder.settings(TrainSettings, config, "")
    for text in _texts(settings.data):
        if "://" in text or text.startswith("pipe:"):
            raise RecipeError(f"the data lie at {text:.80}, and a report fetches nothing")
    data = fetching_nothing(settings.data, given)
    dataset = build_data(data, settings.corruption, settings.seed, modality, builder)
    try:
        return dataset.batch(Order(len(dataset), settings.seed).indices(0, min(count, len(dataset)))).x0
    except UnreadableFilesError as error:
        raise RecipeError(str(error)) from error


def _texts(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _texts(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _texts(value)
