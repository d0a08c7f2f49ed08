"""What a network knows about each sample besides its noise level: a class, a text, numbers, and a dense condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Condition(NamedTuple):
    """The condition of a batch; None is a part that is unknown for all samples.

    Attributes:
        labels: class numbers, int64 (batch,); the number of classes means no class.
        text: text embeddings (batch, tokens, context); a row of zeros is not a token.
        scalars: numbers such as a duration, (batch, scalars), dimensionless: about 0 on average, with a deviation of
            about 1. NaN means unknown.
        dense: values on the grid of the data or a coarser one, such as a low-resolution version or the known part of
            the data: (batch, channels, *grid), dimensionless as the data. NaN means unknown.
    """

    labels: Tensor | None = None
    text: Tensor | None = None
    scalars: Tensor | None = None
    dense: Tensor | None = None


AnyCondition = Tensor | Condition | None
"""A condition, or labels or text embeddings alone as a tensor, or None: no condition."""


def as_condition(condition: AnyCondition, classes: bool, text: bool) -> Condition:
    """Return a condition with its parts apart, in the shapes and units of `Condition`.

    A tensor alone is the labels or the embeddings that a network with `classes` or `text` reads; if it reads both or
    neither, floating-point numbers are embeddings.
    """
    if condition is None or isinstance(condition, Condition):
        return condition or Condition()
    is_text = text if classes != text else condition.is_floating_point()
    return Condition(text=condition) if is_text else Condition(labels=condition)


def mapped(condition: AnyCondition, function: Callable[[Tensor], Tensor]) -> AnyCondition:
    """Return a condition with `function` applied to every tensor, whose shape may change: for example, to indices.

    Labels are (batch,), text embeddings (batch, tokens, context), scalars (batch, scalars) and dense conditions
    (batch, channels, *grid), in the units of `Condition`.
    """
    if isinstance(condition, Condition):
        return Condition(*(None if part is None else function(part) for part in condition))
    return None if condition is None else function(condition)


def joined(conditions: Sequence[AnyCondition]) -> AnyCondition:
    """Return the condition of several batches in a row, in the shapes and units of `Condition`.

    All must have the same parts.
    """
    first = conditions[0]
    if isinstance(first, Condition):
        parts = zip(*(each for each in conditions if isinstance(each, Condition)), strict=True)
        return Condition(*(None if part[0] is None else torch.cat(part) for part in parts))
    tensors = [each for each in conditions if isinstance(each, Tensor)]
    return torch.cat(tensors) if tensors else None


def batch_size(condition: AnyCondition) -> int | None:
    """Return the number of samples of a condition, or None if it has no tensor.

    Raises:
        ValueError: If its parts differ in their number of samples.
    """
    parts = [part for part in condition if part is not None] if isinstance(condition, Condition) else [condition]
    sizes = {len(part) for part in parts if part is not None}
    if len(sizes) > 1:
        raise ValueError(f"the parts of a condition must have one entry per sample, got {sorted(sizes)} entries")
    return next(iter(sizes), None)


def says_what_is_shown(condition: AnyCondition) -> bool:
    """Whether a condition has labels, text embeddings or a dense condition (see `Condition` for shapes and units)."""
    if isinstance(condition, Condition):
        return any(part is not None for part in (condition.labels, condition.text, condition.dense))
    return condition is not None


def only_scalars(condition: AnyCondition) -> AnyCondition:
    """Return the scalars (batch, scalars) of a condition, dimensionless, without its other parts.

    If there are none, the result is None. It is the condition of the weaker estimate in classifier-free guidance.
    Scalars such as the crop describe how an example was recorded, not what it shows, so both estimates have the same
    (as in SDXL, arXiv 2307.01952).
    """
    if isinstance(condition, Condition) and condition.scalars is not None:
        return Condition(scalars=condition.scalars)
    return None
