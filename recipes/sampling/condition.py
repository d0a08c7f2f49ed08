"""The condition of each sample: a class, a prompt, or neither."""

import logging
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.scalars import Scalar, standardised
from modalities.text import TextEncoder
from multisagd.condition import AnyCondition, as_condition
from recipes.base.errors import RecipeError, as_recipe_error, nearest
from recipes.config.build import Builder
from recipes.runs.model import TrainedModel, check_encoder
from recipes.runs.settings import Guidance, SampleSettings
from recipes.runtime.distribution import is_first

SHOWN = 10
"""Maximum number of classes named in a message."""
FARTHEST = 1e6
"""Maximum distance of a scalar from its mean, in standard deviations: beyond, a network can compute nothing useful."""
Labels = str | int | Sequence[str | int] | None
log = logging.getLogger("multisagd")


@dataclass(frozen=True, eq=False)
class SampleConditions:
    """The condition of samples: class numbers `labels`, texts `prompts`, and the `input` of the network."""

    labels: list[int] | None = None
    prompts: list[str] | None = None
    input: AnyCondition = None


@dataclass(frozen=True, eq=False)
class DenseConditions:
    """The dense conditions of samples: `dense` (count, channels, *grid or coarser), dimensionless, or None.

    `modality` is that of the conditions, which shows them, `names` are the names of the samples, after those of the
    files of their media, and `labels` the class numbers of the held-out examples that these are; each may be None.
    """

    dense: Tensor | None = None
    modality: Modality | None = None
    names: list[str] | None = None
    labels: list[int] | None = None

    def joined(self, condition: AnyCondition) -> AnyCondition:
        """Return a condition of labels or text embeddings, and scalars, together with these."""
        return condition if self.dense is None else as_condition(condition, True, True)._replace(dense=self.dense)


NO_DENSE = DenseConditions()


def checked_labels(
    model: TrainedModel, count: int, labels: Labels, prompts: list[str] | None, guidance: Guidance,
    dense: DenseConditions = NO_DENSE,
) -> list[int] | None:  # fmt: skip
    """Return the class number of each of `count` samples, cycling through the labels, or None for no classes.

    Dense conditions of held-out examples come with their classes.

    Raises:
        RecipeError: If a class is unknown, or if guidance is requested without a condition or for a network that was
            trained without condition dropout.
    """
    metadata = model.metadata
    numbers = dense.labels or chosen_labels(
        labels, metadata["classes"], count, metadata.get("text") is not None, metadata.get("untrained", ())
    )
    if guidance.scale != 1.0 and numbers is None and prompts is None and dense.dense is None:
        raise RecipeError(
            "guidance.scale requires labels, prompts or a dense condition: set it to 1, or specify one of them"
        )
    if guidance.scale != 1.0 and not model.config["training"]["condition_dropout"]:
        raise RecipeError(
            "guidance.scale requires a network that was also trained without a condition, but this run has "
            "training.condition_dropout=0: set the scale to 1, or train with training.condition_dropout=0.1"
        )
    return numbers


def chosen_condition(
    model: TrainedModel, count: int, numbers: list[int] | None, prompts: list[str] | None, text_model: str | None,
    scalars: Mapping[str, float], builder: Builder, device: torch.device,
) -> SampleConditions:  # fmt: skip
    """Return the condition for `count` samples with these class numbers or prompts, and values of scalars.

    Prompts are embedded by the model's text encoder, or by a copy of it at `text_model`.

    Raises:
        RecipeError: If the model does not take one of the scalars, or the encoder cannot be loaded or differs from the
            model's.
    """
    check_scalar_values(scalars, model.scalars)
    if prompts is None:
        labels = None if numbers is None else torch.tensor(numbers)
        return SampleConditions(numbers, input=with_scalars(labels, model.scalars, scalars, count))
    node = {**model.located["text"], "device": str(device)}
    if text_model is not None:
        node |= {"name": text_model, "revision": None}
    encoder = builder.of_a_run(text_model).build(node, TextEncoder, "text")
    check_encoder(encoder, model.metadata, model.folder)
    return SampleConditions(prompts=prompts, input=with_scalars(encoder(prompts), model.scalars, scalars, count))


def check_scalar_values(values: Mapping[str, float], scalars: Sequence[Scalar]) -> None:
    """Raise RecipeError if a model does not take one of the scalars, or a value is not finite."""
    known = {each.name: each for each in scalars}
    for name, value in values.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it was trained without scalars (training.scalars)"
            raise RecipeError(f"scalars: this model has no scalar {name!r}{nearest(name, known)}; {takes}")
        if not math.isfinite(value):
            raise RecipeError(f"scalars.{name} must be a finite number, got {value}")
        mean, std = known[name].mean, known[name].std
        if not abs(value - mean) / std <= FARTHEST:
            raise RecipeError(
                f"scalars.{name}={value:g} is more than {FARTHEST:g} standard deviations from the training data "
                f"({mean:g} ± {std:g}): use a value of this kind"
            )


def with_scalars(
    labels_or_text: Tensor | None, scalars: Sequence[Scalar], values: Mapping[str, float], count: int
) -> AnyCondition:
    """Return the condition of `count` samples: labels or text embeddings, and scalars if the model takes some.

    Scalars without a value have their mean in the training data.
    """
    if not scalars:
        return labels_or_text
    given = {each.name: torch.full((count,), values.get(each.name, each.mean), dtype=torch.float64) for each in scalars}
    condition = as_condition(labels_or_text, classes=True, text=True)
    return condition._replace(scalars=standardised(scalars, given, count))


def chosen_prompts(settings: SampleSettings, trained_on_text: bool, count: int) -> list[str] | None:
    """Return a prompt for each of `count` samples, cycling through the given ones, or None to sample without text.

    Raises:
        RecipeError: If there are prompts but the run was trained without text, if both `prompts` and `prompts_file` are
            set, or if the file is unreadable or has no prompt.
    """
    if settings.prompts is None and settings.prompts_file is None:
        return None
    if not trained_on_text:
        raise RecipeError("prompts: this run was trained without text; remove them, or train with text=encoder")
    if settings.prompts is not None and settings.prompts_file is not None:
        raise RecipeError("prompts and prompts_file are both set: remove one of them")
    if settings.prompts_file is not None:
        with as_recipe_error((OSError, UnicodeDecodeError), f"prompts_file: cannot read {settings.prompts_file}: "):
            lines = settings.prompts_file.read_text(encoding="utf-8-sig").splitlines()
        prompts = [line.strip() for line in lines if line.strip()]
    else:
        prompts = [settings.prompts] if isinstance(settings.prompts, str) else list(settings.prompts or ())
    if not prompts:
        raise RecipeError("prompts is empty: specify at least one prompt, or set it to null to sample without text")
    return [prompts[slot % len(prompts)] for slot in range(count)]


def chosen_labels(
    labels: Labels, classes: Sequence[str] | None, count: int, text: bool = False, untrained: Collection[str] = ()
) -> list[int] | None:
    """Return a class number for each sample, cycling through the requested classes, or None for no classes.

    `untrained` are classes without training examples: "all" omits them with a note.

    Raises:
        RecipeError: If a class does not exist (the message suggests the most similar name) or has no training examples,
            or if there are labels but the run has no classes.
    """
    if labels is None or (classes is None and labels == "all"):
        return None
    if classes is None:
        reason = "on text: specify prompts instead" if text else "without classes: remove labels"
        raise RecipeError(f"labels={labels}: this run was trained {reason}")
    if labels == "all":
        numbers = trained_classes(classes, untrained)
        if untrained and is_first():
            log.warning("note: %s, so it is omitted", never_trained(untrained))
    else:
        entries = labels if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        numbers = [number for entry in entries for number in _numbers(str(entry), classes)]
        if unknown := [name for name in dict.fromkeys(classes[number] for number in numbers) if name in untrained]:
            raise RecipeError(f"labels={labels}: {never_trained(unknown)}; labels=all uses only the trained classes")
    if not numbers:
        raise RecipeError("labels is empty: specify class names or numbers, all, or null")
    return [numbers[slot % len(numbers)] for slot in range(count)]


def trained_classes(classes: Sequence[str], untrained: Collection[str]) -> list[int]:
    """Return the numbers of the classes that have training examples."""
    return [number for number, name in enumerate(classes) if name not in untrained]


def never_trained(names: Collection[str]) -> str:
    """Return a message saying that the run has no training examples of these classes."""
    return f"this run has no training example of class {listed(names)}"


def listed(names: Collection[str]) -> str:
    """Return the first few names, separated by commas, and how many more there are."""
    return ", ".join(list(names)[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _numbers(entry: str, classes: Sequence[str]) -> list[int]:
    """Return the class numbers that an entry selects: by name, by number, or by a range of numbers."""
    if entry in classes:
        return [classes.index(entry)]
    span = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", entry)
    if span is None:
        raise RecipeError(f"labels: there is no class {entry!r}{nearest(entry, classes)}")
    first, last = int(span[1]), int(span[2] or span[1])
    named = {number: int(name) for number, name in enumerate(classes) if re.fullmatch(r"[0-9]{1,18}", name)}
    # If class names are numbers, entries refer to names: with classes 1, 2 and 3, the entry 1-2 means the first two.
    values = named or {number: number for number in range(len(classes))}
    numbers = [number for number, value in values.items() if first <= value <= last]
    ambiguous = span[2] is None and len(numbers) > 1  # 007, with classes 7 and 07
    if ambiguous or not numbers or not {first, last} <= {values[number] for number in numbers}:
        without_gap = list(values.values()) == list(range(len(classes)))
        existing = f"0 to {len(classes) - 1}" if without_gap else listed(classes)
        raise RecipeError(f"labels: {entry} is not among the classes {existing}")
    return numbers
