"""What a run learns besides its examples: classes or captions, scalars and dense conditions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from modalities.base import Batch, Dataset, distinct_classes
from modalities.buckets import reference_bucket
from modalities.derived_conditions import DerivedCondition, with_derived_condition
from modalities.pairs import check_sizes
from modalities.reading import UnreadableFilesError, read_batch
from modalities.scalars import Scalar
from modalities.text import TextEncoder
from modalities.wrapped import Captioned, with_standardised
from multisagd.condition import AnyCondition, as_condition
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error, nearest
from recipes.config.build import Builder
from recipes.data.dataset import drawn
from recipes.data.order import TrainingOrder
from recipes.runs.assembly import build_derived_condition, follows_condition
from recipes.runs.run import MAX_SCALARS
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import broadcast_from_rank0, long_barrier
from recipes.sampling.condition import never_trained, trained_classes, with_scalars

SCALAR_EXAMPLES = 1000
"""Maximum number of examples on which the mean and deviation of scalars are measured."""


@dataclass(frozen=True)
class LearnedCondition:
    """The condition that a network learns: classes, captions encoded by a text encoder, or neither.

    `untrained` contains the classes without training examples. `scalars` are learned in addition, and so is a dense
    condition of `dense` channels, unless that is None: `derived` from the examples, with random numbers from `seed`, or
    if that is None, of their own.
    """

    classes: tuple[str, ...] | None = None
    encoder: TextEncoder | None = None
    untrained: tuple[str, ...] = ()
    scalars: tuple[Scalar, ...] = ()
    dense: int | None = None
    derived: DerivedCondition | None = None
    seed: int = 0

    @property
    def learned(self) -> bool:
        """Whether the network learns classes or captions."""
        return self.classes is not None or self.encoder is not None

    @property
    def note(self) -> str | None:
        """A warning about the condition, or None."""
        return (
            f"{never_trained(self.untrained)}, so no such samples are drawn during training" if self.untrained else None
        )

    def embedded(self, dataset: Dataset) -> Dataset:
        """Return the dataset with embeddings of its captions, scalars and derived conditions, if they are learned.

        Raises RecipeError if the dataset has no captions.
        """
        if self.encoder is not None:
            with as_recipe_error(ValueError):
                dataset = Captioned(dataset, self.encoder)
        return with_derived_condition(with_standardised(dataset, self.scalars), self.derived, self.seed)

    def shown(self, examples: Dataset, count: int) -> tuple[AnyCondition, list[str] | None]:
        """Return the condition of `count` samples, and their captions if they have captions.

        It consists of trained classes in turn or encoded captions, and of the mean of each scalar. If a dense condition
        is learned, the samples have those of `examples` in turn, and their classes.

        Raises RecipeError if too many examples cannot be read.
        """
        captions, tensor, dense = None, None, None
        if self.dense is not None:
            examples, batch = self._of_sample_size(examples, count)
            dense, tensor = batch.dense, batch.labels if self.classes is not None else None
        if self.encoder is not None:
            captions = [examples.caption(slot % len(examples)) or "" for slot in range(count)]
            tensor = self.encoder(captions)
        elif self.classes is not None and tensor is None:
            trained = trained_classes(self.classes, self.untrained)
            tensor = torch.tensor([trained[slot % len(trained)] for slot in range(count)])
        condition = with_scalars(tensor, self.scalars, {}, count)
        if dense is not None:
            condition = as_condition(condition, classes=True, text=True)._replace(dense=dense)
        return condition, captions

    def _of_sample_size(self, examples: Dataset, count: int) -> tuple[Dataset, Batch]:
        """Return examples of the size of samples, and a batch of `count` of them, in turn, with derived conditions."""
        own = examples.modality.in_buckets()[0]
        part = reference_bucket(examples) or examples.with_modality(own)
        examples = with_derived_condition(part, self.derived, self.seed)
        numbers = [slot % len(examples) for slot in range(count)]
        distinct = numbers[: len(examples)]
        with as_recipe_error(UnreadableFilesError):
            batch = read_batch(examples, distinct)
        rows = torch.tensor(numbers)
        labels, dense = (None if each is None else each[rows] for each in (batch.labels, batch.dense))
        return examples, batch._replace(labels=labels, dense=dense)

    def metadata(self, captions: list[str] | None, modality: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the entries of `run.json` for sampling.

        `captions` belong to the samples drawn during training, and `modality` is the configuration of that which reads
        the conditions, unless it is that of the data.
        """
        more: dict[str, Any] = {"scalars": [asdict(each) for each in self.scalars]} if self.scalars else {}
        if self.dense is not None:
            more["condition"] = {"channels": self.dense, "modality": modality}
        if self.encoder is None:
            return {"classes": self.classes, "untrained": self.untrained, "text": None, **more}
        encoder = self.encoder
        text = {"name": encoder.name, "fingerprint": encoder.fingerprint, "width": encoder.width, "shown": captions}
        return {"classes": None, "text": text, **more}


def learned_condition(
    settings: TrainSettings, training: Dataset, builder: Builder, device: torch.device
) -> LearnedCondition:
    """Return the condition that a run learns. With `training.conditional=null`, it is the class if there are classes.

    Raises:
        RecipeError: If a condition is requested but the data have none, if settings contradict each other, if the text
            encoder cannot be loaded, or if guidance is requested without a condition or without condition dropout.
    """
    text, conditional, samples = settings.text, settings.training.conditional, settings.training.samples
    condition = LearnedCondition()
    if text.get("_target_") is not None:
        if conditional is False:
            raise RecipeError("training.conditional=false and text=encoder contradict each other: remove one of them")
        node = {**text, "device": text.get("device") or str(device)}
        condition = LearnedCondition(encoder=builder.build(node, TextEncoder, "text"))
    elif training.classes is not None and conditional is not False:
        order = TrainingOrder(training, settings.seed, settings.training.batch)
        whole = samples >= order.longest_pass
        trained = distinct_classes(training, range(len(training))) if whole else order.classes(samples)
        untrained = tuple(name for number, name in enumerate(training.classes) if number not in trained)
        condition = LearnedCondition(training.classes, untrained=untrained)
    elif conditional:
        raise RecipeError(
            "training.conditional=true, but the data have no classes: sort the files into subfolders, set data.labels, "
            "or leave training.conditional at null"
        )
    dense, derived = dense_condition(settings, training, builder)
    if dense is None and follows_condition(settings.covariance):
        raise RecipeError(
            "covariance=… computes the noise of each example from its dense condition, but the examples have none: add "
            "condition=coarse or pairs of files (data.condition_root), or set covariance=shared"
        )
    condition = replace(condition, dense=dense, derived=derived, seed=settings.seed)
    if settings.guidance.scale != 1.0 and not condition.learned and dense is None:
        raise RecipeError(
            "guidance.scale needs classes, captions or a dense condition, but this run has none: leave it at 1"
        )
    if settings.guidance.scale != 1.0 and settings.training.condition_dropout == 0:
        raise RecipeError(
            "guidance.scale needs a network that is also trained without a condition: set "
            "training.condition_dropout=0.1, or leave guidance.scale at 1"
        )
    return condition


def dense_condition(
    settings: TrainSettings, training: Dataset, builder: Builder
) -> tuple[int | None, DerivedCondition | None]:
    """Return the channels of the dense condition that a run learns, or None, and how it is derived, unless it is given.

    Raises:
        RecipeError: If it is both given and derived, cannot be derived from these data, or does not fit their grid.
    """
    modality, given = training.modality, training.condition_modality
    derived = build_derived_condition(settings.condition, modality, builder)
    if derived is None:
        if given is not None:
            with as_recipe_error(ValueError, "data."):
                check_sizes(modality, given)
        return None if given is None else given.channels, None
    if given is not None:
        raise RecipeError(
            "the examples have conditions of their own (data.condition_root or data.lead), and condition=… derives "
            "others from them: remove one of the two"
        )
    if settings.corruption.get("_target_") is not None:
        raise RecipeError(
            "condition=… and corruption=… exclude each other, because the condition would be derived from corrupted "
            "data: use clean data, or pairs of files (data.condition_root)"
        )
    return derived.modality(modality).channels, derived


def check_scalars(names: Sequence[str], dataset: Dataset) -> None:
    """Raise RecipeError if `training.scalars` names a scalar twice, one that the examples do not have, or too many."""
    known = dataset.scalars
    if len(names) > MAX_SCALARS:
        raise RecipeError(f"training.scalars names {len(names)} scalars, more than {MAX_SCALARS}: remove some")
    for number, name in enumerate(names):
        if name in names[:number]:
            raise RecipeError(f"training.scalars: {name} is repeated: remove one")
        if name not in known:
            have = f"the data have {', '.join(known)}" if known else "the data have none"
            raise RecipeError(
                f"training.scalars: there is no scalar {name!r}{nearest(name, known)}; {have} (a column of a manifest "
                "is a scalar if all its values are numbers or empty)"
            )


def measured_scalars(dataset: Dataset, settings: TrainSettings, runtime: Runtime) -> tuple[Scalar, ...]:
    """Return the scalars of `training.scalars`, measured on rank 0 as in training, and broadcast to all ranks.

    Raises RecipeError if a scalar is the same for all examples, or unknown for all.
    """
    names = settings.training.scalars
    numbers = torch.zeros(2, len(names), dtype=torch.float64)
    if names and runtime.main:
        count = min(SCALAR_EXAMPLES, len(dataset))
        indices = drawn(dataset, derive(settings.seed, "scalars"), count)
        seeds = [derive(settings.seed, "augmentation", index) for index in indices]
        with as_recipe_error(UnreadableFilesError, "training.scalars: "):
            found = [dataset.example(index, seed).scalars or {} for index, seed in zip(indices, seeds, strict=True)]
        for number, name in enumerate(names):
            values = torch.tensor([each.get(name, math.nan) for each in found], dtype=torch.float64)
            values = values[values.isfinite()]
            if len(values) < 2 or not bool(values.std() > 0):
                constant = f"{float(values[0]):g} for all" if len(values) else "unknown for all"
                constant = f"known for one only of {count}" if len(values) == 1 else f"{constant} {count}"
                raise RecipeError(
                    f"training.scalars: {name} is {constant} examples that were read, so nothing can be learned from "
                    "it: remove it"
                )
            numbers[:, number] = torch.stack([values.mean(), values.std()])
            if not bool(numbers[:, number].isfinite().all()):
                raise RecipeError(
                    f"training.scalars: {name} has values up to {float(values.abs().max()):g}, whose deviation is too "
                    "large to compute: divide them by a constant, or remove it"
                )
    long_barrier()
    broadcast_from_rank0(numbers)
    return tuple(Scalar(name, dataset.scalars[name], *numbers[:, number].tolist()) for number, name in enumerate(names))
