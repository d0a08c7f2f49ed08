"""The sets that an evaluation compares: samples, real examples as a reference, and other real examples.

The samples against the reference are the number; the others, as many as there are samples, against the reference are
the noise floor, at the same counts and proportions of classes. Where data are padded, each sample takes the padding of
one of the others of its class, for a model is not asked to generate padding and must not be judged by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Dataset
from multisagd.metrics import matched_counts, take
from multisagd.seeds import derive
from recipes.base.errors import RecipeError
from recipes.evaluation.real import BATCH, read_real


@dataclass(frozen=True, eq=False)
class Sets:
    """Samples `(count, channels, *grid)` and real examples `(reference_count + count, …)`, as a person would see them.

    Real examples are the reference followed by the others. Rows are sorted by class: there are `sizes` of each among
    the samples and among the others, and `references` of each in the reference. `mask` `(reference_count + count, 1 or
    channels, *grid)` is True for data and False for padding, and its last `count` rows are also those of the samples;
    None: all are data. `labels` are those of the samples, None if they were drawn without. `asked` is how many samples
    there were.
    """

    samples: Tensor
    real: Tensor
    sizes: tuple[int, ...]
    references: tuple[int, ...]
    mask: Tensor | None
    labels: Tensor | None
    asked: int

    @property
    def count(self) -> int:
        """Number of samples compared."""
        return len(self.samples)

    @property
    def reference_count(self) -> int:
        """Number of real examples that they are compared with."""
        return sum(self.references)

    def halves(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the places of a reference and of others among the real examples, disjoint and each sorted by class.

        Number 0 is the division that the samples are compared with the reference of; others are drawn at random.
        """
        places = torch.arange(len(self.real))
        reference, others = places[: self.reference_count], places[self.reference_count :]
        if number:
            generator = torch.Generator().manual_seed(derive(0, "evaluate/halves", number))
            for own, theirs in zip(_spans(self.references), _spans(self.sizes), strict=True):
                both = torch.cat([reference[own], others[theirs]])
                both = both[torch.randperm(len(both), generator=generator)]
                reference[own], others[theirs] = both[: own.stop - own.start], both[own.stop - own.start :]
        return reference, others

    def alike(self) -> tuple[tuple[int, ...], Tensor, Tensor]:
        """Return equal numbers of each class, and the places of so many among the samples and in the reference."""
        sizes = tuple(map(min, self.sizes, self.references))
        return sizes, _first(self.sizes, sizes), _first(self.references, sizes)

    def batches(self, real: bool) -> list[tuple[Tensor, Tensor | None]]:
        """Return the real examples or the samples in batches, each with its mask or None."""
        data = self.real if real else self.samples
        masks = [None] * -(-len(data) // BATCH) if self.mask is None else self.mask[-len(data) :].split(BATCH)
        return list(zip(data.split(BATCH), masks, strict=True))

    def scattered(self, count: int, stream: str) -> Tensor:
        """Return the places of up to `count` samples by chance, of all classes alike."""
        generator = torch.Generator().manual_seed(derive(0, stream))
        return torch.randperm(self.count, generator=generator)[:count].sort().values


def _spans(sizes: Sequence[int]) -> Iterator[slice]:
    """Yield the places of each class in a set that holds so many of each."""
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


def _first(sizes: Sequence[int], wanted: Sequence[int]) -> Tensor:
    """Return the places of the first `wanted` of each class in a set that holds `sizes` of each."""
    spans = zip(_spans(sizes), wanted, strict=True)
    return torch.cat([torch.arange(span.start, span.start + count) for span, count in spans])


def gather(real: Dataset, samples: Tensor, labels: Tensor | None, reference: int | None = None) -> Sets:
    """Return samples `(asked, channels, *grid)` with real examples of the same classes: a reference, and others.

    There are `reference` examples to compare with, by default as many as samples. Where a class has too few real
    examples for that many and as many others as samples, there are fewer of it in all sets alike.

    Raises:
        RecipeError: if fewer than four would be left, or too many examples cannot be read.
    """
    groups = 1 if labels is None else len(real.classes or ())
    ours = [samples] if labels is None else [samples[labels == number] for number in range(groups)]
    asked = [len(group) for group in ours]
    # Rounded up: which of them are used is decided below.
    compared = asked if reference is None else [-(-reference * each // max(1, len(samples))) for each in asked]
    found, masks = read_real(
        real, [own + other for own, other in zip(asked, compared, strict=True)], labels is not None
    )
    if reference is None:
        counts = references = [min(wish, len(group) // 2) for wish, group in zip(asked, found, strict=True)]
        before, after = [0] * groups, references
    else:
        # The others come first, so that they are the same examples for every size of the reference.
        counts, references = matched_counts(asked, [len(group) for group in found], reference)
        before, after = counts, [0] * groups
    if min(sum(counts), sum(references)) < 4:
        raise RecipeError(_too_few(len(samples), labels, real, sum(counts)))
    pool = torch.cat([take(found, references, before), take(found, counts, after)])
    mask = None if masks is None else torch.cat([take(masks, references, before), take(masks, counts, after)])
    kept = take(ours, counts)
    if mask is not None:
        # Not of the reference: what is equal in both would bring the samples nearer than data are.
        kept = torch.where(mask[sum(references) :], kept, pool[sum(references) :])
    sorted_labels = None if labels is None else torch.repeat_interleave(torch.arange(groups), torch.tensor(counts))
    return Sets(kept, pool, tuple(counts), tuple(references), mask, sorted_labels, len(samples))


def _too_few(samples: int, labels: Tensor | None, real: Dataset, compared: int) -> str:
    of = "" if labels is None else " of their classes"
    remedy = "nothing can be measured on so few examples"
    if samples < 4:
        remedy = "draw more samples"
    elif labels is not None and len(real) >= 8:
        remedy = "labels=null compares without regard to classes"
    return (
        f"{samples} samples, and two sets of the {len(real)} real examples{of}, make {compared} to compare, and at "
        f"least 4 are needed: {remedy}"
    )
