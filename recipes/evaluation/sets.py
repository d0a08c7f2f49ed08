"""The sets that an evaluation compares: samples, and twice as many real examples, in equal numbers of every class.

Samples against one half of the real examples is the number; the other half against it is the noise floor, at the same
counts and proportions of classes. Where data are padded, each sample takes the padding of a real example of its class
in that other half, for a model is not asked to generate padding and must not be judged by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Dataset, Modality, stack_masks
from modalities.reading import UnreadableFilesError, read_batch
from multisagd.seeds import derive
from recipes.engine.errors import RecipeError
from recipes.engine.progress import Display
from recipes.fidelity import chosen
from recipes.metrics import take

BATCH = 256


@dataclass(frozen=True, eq=False)
class Sets:
    """Samples `(count, channels, *grid)` and real examples `(2 count, …)`, both as the files a person would look at.

    Rows are sorted by class: `sizes` items of each among the samples, and in either half of the real examples. `mask`
    `(2 count, 1 or channels, *grid)` tells data from padding, and its second half is also that of the samples; None:
    all are data. `labels` are those of the samples, None if they were drawn without. `asked` is how many samples there
    were.
    """

    samples: Tensor
    real: Tensor
    sizes: tuple[int, ...]
    mask: Tensor | None
    labels: Tensor | None
    asked: int

    @property
    def count(self) -> int:
        """Number of samples compared."""
        return len(self.samples)

    def halves(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the places of two disjoint halves of the real examples, each sorted by class as the samples are.

        Number 0 is the division that the samples are compared with the first half of; others are drawn at random.
        """
        places = torch.arange(2 * self.count).reshape(2, -1)
        if number:
            generator = torch.Generator().manual_seed(derive(0, "evaluate/halves", number))
            for start, end in self._spans():
                both = places[:, start:end].flatten()
                places[:, start:end] = both[torch.randperm(len(both), generator=generator)].reshape(2, -1)
        return places[0], places[1]

    def batches(self, real: bool) -> list[tuple[Tensor, Tensor | None]]:
        """Return the real examples or the samples in batches, each with its mask or None."""
        data = self.real if real else self.samples
        masks = [None] * -(-len(data) // BATCH) if self.mask is None else self.mask[-len(data) :].split(BATCH)
        return list(zip(data.split(BATCH), masks, strict=True))

    def scattered(self, count: int, stream: str) -> Tensor:
        """Return the places of up to `count` samples by chance, of all classes alike."""
        generator = torch.Generator().manual_seed(derive(0, stream))
        return torch.randperm(self.count, generator=generator)[:count].sort().values

    def _spans(self) -> Iterator[tuple[int, int]]:
        start = 0
        for size in self.sizes:
            yield start, start + size
            start += size


def as_files(modality: Modality, x0: Tensor, report: Callable[[int], None] | None = None) -> Tensor:
    """Return data decoded and encoded again, clipped and rounded as the modality saves them; `report` hears counts."""
    seen = torch.empty_like(x0, dtype=torch.float32)
    for number, each in enumerate(x0):
        seen[number] = modality.encode(modality.decode(each))
        if report is not None:
            report(number + 1)
    return seen


def gather(train: Dataset, samples: Tensor, labels: Tensor | None) -> Sets:
    """Return samples `(asked, channels, *grid)` with as many real training examples of the same classes, twice.

    Where a class has too few examples for two disjoint halves, there are fewer of it in all sets alike.

    Raises:
        RecipeError: if fewer than four would be left, or too many examples cannot be read.
    """
    groups = 1 if labels is None else len(train.classes or ())
    ours = [samples] if labels is None else [samples[labels == number] for number in range(groups)]
    wished = [len(group) for group in ours]
    real, masks = read_real(train, [2 * count for count in wished], labels is not None)
    counts = [min(wish, len(group) // 2) for wish, group in zip(wished, real, strict=True)]
    if sum(counts) < 4:
        of = "" if labels is None else " of their classes"
        remedy = "nothing can be measured on so few examples"
        if len(samples) < 4:
            remedy = "draw more samples"
        elif labels is not None and len(train) >= 8:
            remedy = "labels=null compares without regard to classes"
        raise RecipeError(
            f"{len(samples)} samples, and two halves of the {len(train)} training examples{of}, make {sum(counts)} to "
            f"compare, and at least 4 are needed: {remedy}"
        )
    pool = torch.cat([take(real, counts), take(real, counts, counts)])
    mask = None if masks is None else torch.cat([take(masks, counts), take(masks, counts, counts)])
    kept = take(ours, counts)
    if mask is not None:
        # Not of the half that samples are compared with: what is equal in both would bring them nearer than data are.
        kept = torch.where(mask[len(kept) :], kept, pool[len(kept) :])
    sorted_labels = None if labels is None else torch.repeat_interleave(torch.arange(groups), torch.tensor(counts))
    return Sets(kept, pool, tuple(counts), mask, sorted_labels, len(samples))


def read_real(
    dataset: Dataset, wanted: Sequence[int], by_class: bool, title: str = "reading real examples"
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Return up to `wanted` examples of each class, or of all in one group, as files, and their masks if any is padded.

    Examples are taken in an order that never changes, without augmentation, until all are found.

    Raises:
        RecipeError: if too many cannot be read.
    """
    found: list[list[Tensor]] = [[] for _ in wanted]
    padded: list[list[Tensor | None]] = [[] for _ in wanted]
    missing = list(wanted)
    shape = (dataset.modality.channels, *dataset.modality.grid().shape)
    order, total = chosen(dataset, len(dataset)), sum(wanted)
    with Display(title, min(total, len(dataset))) as display:
        for start in range(0, len(order), BATCH):
            if not any(missing):
                break
            try:
                batch = read_batch(dataset, order[start : start + BATCH])
            except UnreadableFilesError as error:
                raise RecipeError(str(error)) from error
            for place, x0 in enumerate(batch.x0):
                group = int(batch.labels[place]) if by_class and batch.labels is not None else 0
                if missing[group]:
                    missing[group] -= 1
                    found[group].append(dataset.modality.encode(dataset.modality.decode(x0)))
                    padded[group].append(None if batch.mask is None else batch.mask[place])
            display.update(total - sum(missing))
    real = [torch.stack(group) if group else torch.empty(0, *shape) for group in found]
    masks = stack_masks([mask for group in padded for mask in group], shape)
    return real, None if masks is None else list(masks.split([len(group) for group in padded]))
