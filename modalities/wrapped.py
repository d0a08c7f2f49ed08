"""Datasets that wrap another: `Wrapped` forwards everything, and each subclass changes one part of an example."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modalities.base import Batch, Dataset, Example, Groups, Modality, Split, pair
from modalities.byte_ranges import Source
from modalities.scalars import Scalar, standardised
from modalities.sizes import Extent
from modalities.text import TextEncoder
from multisagd import Corruption, GaussianRestoration
from multisagd.seeds import derive


class Wrapped(Dataset):
    """The unchanged examples of another dataset, `inner`; subclasses override what they change."""

    def __init__(self, inner: Dataset) -> None:
        self.inner = inner
        self.modality, self.classes = inner.modality, inner.classes

    def __len__(self) -> int:
        return len(self.inner)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example."""
        return self.inner.example(index, seed)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the examples at `indices`."""
        return self.inner.batch(indices, seeds)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only."""
        part = copy.copy(self)
        part.inner = self.inner.subset(indices)
        return part

    def with_modality(self, modality: Modality) -> Self:
        """Return this dataset with another modality of the same medium."""
        part = super().with_modality(modality)
        part.inner = self.inner.with_modality(modality)
        return part

    def extent(self, index: int) -> Extent:
        """Return the size of the file of one example, as its header states it."""
        return self.inner.extent(index)

    def label(self, index: int) -> int | None:
        """Return the class that one example has in the inner dataset."""
        return self.inner.label(index)

    def captions(self, index: int) -> tuple[str, ...]:
        """Return all captions of one example."""
        return self.inner.captions(index)

    @property
    def scalars(self) -> Mapping[str, str]:
        """The names of the scalars that the examples have, each with its unit."""
        return self.inner.scalars

    @property
    def condition_modality(self) -> Modality | None:
        """The modality that reads and encodes the examples' conditions, or None."""
        return self.inner.condition_modality

    @property
    def groups(self) -> Groups | None:
        """Groups of examples that are stored together; None if there are no groups."""
        return self.inner.groups

    @property
    def weights(self) -> Sequence[tuple[int, float]] | None:
        """The length of each block of consecutive examples and its share of the samples in training."""
        return self.inner.weights

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the inner dataset; a wrapper's effect is identified by the configuration."""
        return self.inner.fingerprint

    def stored(self) -> Iterable[Source]:
        """Return the files that the examples are read from."""
        return self.inner.stored()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """A mapping from the name of each file that could not be read so far to the reason."""
        return self.inner.unreadable

    @property
    def remarks(self) -> Mapping[str, int]:
        """Remarks about files that were read, with the number of files."""
        return self.inner.remarks

    def recall_unreadable(self, reasons: Mapping[str, str], since: float) -> None:
        """Add files that could not be read in another process."""
        self.inner.recall_unreadable(reasons, since)

    def save_unreadable(self, path: Path) -> None:
        """Write the list of files that could not be read so far, if there are any."""
        self.inner.save_unreadable(path)


class Captioned(Wrapped):
    """A dataset with captions whose batches contain the embeddings of the captions.

    Its `classes` attribute is None: a model learns either classes or text.

    Raises:
        ValueError: If the dataset has no captions.
    """

    def __init__(self, dataset: Dataset, encoder: TextEncoder) -> None:
        if not dataset.captions(0):
            raise ValueError(
                "the data have no captions: for a folder of files, set data.manifest=FILE (with a column text), "
                "data.captions=sidecar or data.captions=labels; for tar shards, data.text_key=KEY if JSON files have "
                "captions under another key than text; otherwise set text=none"
            )
        super().__init__(dataset)
        self.classes, self.encoder = None, encoder

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch with `embeddings`.

        Raises:
            ValueError: If an example has no caption; an empty string is a valid caption.
        """
        batch = super().batch(indices, seeds)
        if batch.texts is None:
            raise ValueError(f"one of the examples {list(indices)} has no caption")
        return batch._replace(embeddings=self.encoder(batch.texts))


class WithExtents(Wrapped):
    """A dataset of files whose sizes are known: `extents` float64 `(examples, 3)`, NaN where a part is unknown.

    Of the dataset from which all parts were taken, `scanned` contains the sizes and `whole` the fingerprint; `omitted`
    is the number of its files that each filter left out.
    """

    def __init__(self, inner: Dataset, extents: NDArray[np.float64]) -> None:
        super().__init__(inner)
        self.extents, self.scanned, self.whole = extents, extents, inner.fingerprint
        self.omitted: Mapping[str, int] = {}

    @property
    def splits(self) -> Sequence[Split] | None:  # type: ignore[override]
        """The split of every example, or None."""
        return self.inner.splits

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only."""
        part = super().subset(indices)
        part.extents = self.extents[np.asarray(indices, np.int64)]
        return part

    def extent(self, index: int) -> Extent:
        """Return the size of the file of one example."""
        return Extent(*(None if math.isnan(part) else part for part in self.extents[index].tolist()))


class Standardised(Wrapped):
    """A dataset whose batches contain the scalars that a network takes."""

    def __init__(self, dataset: Dataset, taken: Sequence[Scalar]) -> None:
        super().__init__(dataset)
        self.taken = taken

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch with `standardised` scalars."""
        batch = super().batch(indices, seeds)
        return batch._replace(standardised=standardised(self.taken, batch.scalars or {}, len(batch.x0)))


def with_standardised(dataset: Dataset, taken: Sequence[Scalar]) -> Dataset:
    """Return a dataset whose batches contain the scalars that a network takes; the same one if it takes none."""
    return Standardised(dataset, taken) if taken else dataset


class Relabelled(Wrapped):
    """A dataset whose labels are the indices of its classes' names in `classes`; None removes the classes.

    Raises:
        ValueError: If the dataset has no classes, or has one that is not in `classes` (the message names it).
    """

    def __init__(self, inner: Dataset, classes: Sequence[str] | None) -> None:
        super().__init__(inner)
        self.numbers: list[int] | None = None
        if classes is not None:
            known = {name: number for number, name in enumerate(classes)}
            if inner.classes is None:
                raise ValueError(f"the data have no classes, but those for training have {', '.join(known)}")
            if unknown := [name for name in inner.classes if name not in known]:
                raise ValueError(f"unknown class {unknown[0]!r}; the known classes are {', '.join(known)}")
            self.numbers = [known[name] for name in inner.classes]
        self.classes = None if classes is None else tuple(classes)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example with the number of its class."""
        example = self.inner.example(index, seed)
        return example._replace(label=self._number(example.label))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch with the numbers of the classes."""
        batch = self.inner.batch(indices, seeds)
        if batch.labels is None or self.numbers is None:
            return batch._replace(labels=None)
        return batch._replace(labels=torch.tensor(self.numbers)[batch.labels])

    def label(self, index: int) -> int | None:
        """Return the number of one example's class."""
        return self._number(self.inner.label(index))

    def _number(self, label: int | None) -> int | None:
        return None if label is None or self.numbers is None else self.numbers[label]


class Transformed(Wrapped):
    """A dataset that transforms the tensor of every example; `positions` are the examples' indices in the whole set."""

    def __init__(self, inner: Dataset) -> None:
        super().__init__(inner)
        self.positions: Sequence[int] = range(len(inner))

    @abstractmethod
    def transform(self, x0: Tensor, positions: Sequence[int], seeds: Sequence[int | None]) -> Tensor:
        """Return transformed data `(batch, channels, *grid)`, given each example's index and augmentation seed."""

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one transformed example."""
        example = self.inner.example(index, seed)
        return example._replace(x0=self.transform(example.x0[None], [self.positions[index]], [seed])[0])

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the transformed examples at `indices`."""
        batch = self.inner.batch(indices, seeds)
        pairs = pair(indices, seeds)
        positions = [self.positions[index] for index, _ in pairs]
        return batch._replace(x0=self.transform(batch.x0, positions, [seed for _, seed in pairs]))

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only, each transformed as before."""
        part = super().subset(indices)
        part.positions = [self.positions[index] for index in indices]
        return part


class Corrupted(Transformed):
    """A dataset in which the Gaussian noise of a corruption is added to every example.

    The corruption of example i is fixed, independent of crops and flips. If `redrawn` is True, the corruption depends
    on the augmentation seed instead, so it differs each time.
    """

    def __init__(self, inner: Dataset, corruption: Corruption, seed: int, redrawn: bool) -> None:
        super().__init__(inner)
        self.corruption, self.seed, self.redrawn = corruption, seed, redrawn

    def transform(self, x0: Tensor, positions: Sequence[int], seeds: Sequence[int | None]) -> Tensor:
        """Return the corrupted data."""
        own = [
            derive(self.seed, "corruption", index) if seed is None or not self.redrawn else derive(seed, "corruption")
            for index, seed in zip(positions, seeds, strict=True)
        ]
        return self.corruption.corrupt(x0, own)


class Restored(Transformed):
    """A dataset of corrupted examples restored to the conditional mean or, if `drawn` is True, to one fixed sample."""

    def __init__(self, inner: Dataset, restoration: GaussianRestoration, seed: int, drawn: bool) -> None:
        super().__init__(inner)
        self.restoration, self.seed, self.drawn = restoration, seed, drawn

    def transform(self, x0: Tensor, positions: Sequence[int], seeds: Sequence[int | None]) -> Tensor:
        """Return the restored data."""
        own = [derive(self.seed, "restoration", position) for position in positions] if self.drawn else None
        return self.restoration.restore(x0, own)


def transformed_alike(dataset: Dataset, other: Dataset) -> Dataset:
    """Return the dataset `other`, corrupted and restored like `dataset`, but with other random numbers."""
    if not isinstance(dataset, Corrupted | Restored):
        return other
    inner, seed = transformed_alike(dataset.inner, other), derive(dataset.seed, "other")
    if isinstance(dataset, Corrupted):
        return Corrupted(inner, dataset.corruption, seed, dataset.redrawn)
    return Restored(inner, dataset.restoration, seed, dataset.drawn)


def untouched(dataset: Dataset) -> Dataset:
    """Return the underlying dataset, without corruption or restoration, and without the sizes of its files."""
    return untouched(dataset.inner) if isinstance(dataset, Transformed | WithExtents) else dataset
