"""What a network is conditioned on: the classes of the data, their captions, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset, found_classes
from modalities.captions import Captioned
from modalities.text import TextEncoder
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.config.build import Builder
from recipes.data.order import Order
from recipes.runs.settings import TrainSettings
from recipes.sampling.condition import never_trained, trained_classes


@dataclass(frozen=True)
class LearnedCondition:
    """The names of the classes that are learned, or the encoder of the texts; at most one of them.

    `untrained` are those of the classes of which the training shows no example.
    """

    classes: tuple[str, ...] | None = None
    encoder: TextEncoder | None = None
    untrained: tuple[str, ...] = ()

    @property
    def learned(self) -> bool:
        """Whether there is any."""
        return self.classes is not None or self.encoder is not None

    @property
    def note(self) -> str | None:
        """What is doubtful about it, None if nothing is."""
        return f"{never_trained(self.untrained)}, so it is not drawn" if self.untrained else None

    def embedded(self, dataset: Dataset) -> Dataset:
        """Return the dataset as the network learns it: with embeddings of its captions, if it learns from text.

        Raises:
            RecipeError: if it has no captions.
        """
        if self.encoder is None:
            return dataset
        with as_recipe_error(ValueError):
            return Captioned(dataset, self.encoder)

    def shown(self, examples: Dataset, count: int) -> tuple[Tensor | None, list[str] | None]:
        """Return the condition of `count` samples, and its texts: trained classes in turn, or the first captions."""
        if self.encoder is not None:
            texts = [examples.caption(slot % len(examples)) or "" for slot in range(count)]
            return self.encoder(texts), texts
        if self.classes is not None:
            drawn = trained_classes(self.classes, self.untrained)
            return torch.tensor([drawn[slot % len(drawn)] for slot in range(count)]), None
        return None, None

    def facts(self, texts: list[str] | None) -> dict[str, Any]:
        """Return what sampling needs to know, for `run.json`; `texts` are those of the samples that training draws."""
        if self.encoder is None:
            return {"classes": self.classes, "untrained": self.untrained, "text": None}
        encoder = self.encoder
        text = {"name": encoder.name, "fingerprint": encoder.fingerprint, "width": encoder.width, "shown": texts}
        return {"classes": None, "text": text}


def learned_condition(
    settings: TrainSettings, training: Dataset, builder: Builder, device: torch.device
) -> LearnedCondition:
    """Return what a run is to learn from its training data; `training.conditional` None takes what there is.

    Raises:
        RecipeError: if a condition is asked for and the data have none, one is switched off and asked for at the same
            time, the text encoder cannot be loaded, or samples are to be guided by a condition that is not learned or
            never left out.
    """
    text, wanted, samples = settings.text, settings.training.conditional, settings.training.samples
    found = LearnedCondition()
    if text.get("_target_") is not None:
        if wanted is False:
            raise RecipeError(
                "training.conditional=false and text=encoder contradict each other: leave out one of them"
            )
        node = {**text, "device": text.get("device") or str(device)}
        found = LearnedCondition(encoder=builder.build(node, TextEncoder, "text"))
    elif training.classes is not None and wanted is not False:
        shown: Sequence[int] = range(len(training))
        whole = -(-samples // settings.training.batch) * settings.training.batch
        if whole < len(training):  # less than an epoch
            shown = Order(len(training), settings.seed, training.groups).indices(0, whole)
        seen = found_classes(training, shown)
        untrained = tuple(name for number, name in enumerate(training.classes) if number not in seen)
        found = LearnedCondition(training.classes, untrained=untrained)
    elif wanted:
        raise RecipeError(
            "training.conditional=true, but the data have no classes: put them into subfolders, set data.labels "
            "or leave it null"
        )
    if settings.guidance.scale != 1.0 and not found.learned:
        raise RecipeError("guidance.scale needs classes or text, and this run learns none: leave it at 1")
    if settings.guidance.scale != 1.0 and settings.training.condition_dropout == 0:
        raise RecipeError(
            "guidance.scale needs a network that also learns to do without a condition: set "
            "training.condition_dropout=0.1, or leave it at 1"
        )
    return found
