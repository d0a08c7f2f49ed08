"""Examples of a run's data, if they are at hand. Nothing is fetched: a run may name addresses of anybody."""

from __future__ import annotations

from torch import Tensor

from modalities.base import Modality
from modalities.reading import UnreadableFilesError
from recipes.engine.build import Builder
from recipes.engine.config import Config
from recipes.engine.corrupted import build_data
from recipes.engine.errors import RecipeError
from recipes.engine.order import Order
from recipes.engine.settings import TrainSettings


def examples(config: Config, modality: Modality, builder: Builder, count: int) -> Tensor:
    """Return examples of the data, chosen by the run's seed, without augmentation, `(count, channels, *grid)`.

    Raises:
        RecipeError: if they lie elsewhere than on this machine, or cannot be read.
    """
    settings = builder.settings(TrainSettings, config, "")
    dataset = build_data(settings.data, settings.corruption, settings.seed, modality, builder)
    try:
        return dataset.batch(Order(len(dataset), settings.seed).indices(0, min(count, len(dataset)))).x0
    except UnreadableFilesError as error:
        raise RecipeError(str(error)) from error
