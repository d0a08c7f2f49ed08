"""A dataset whose captions come as embeddings, for models that learn from text."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self

from modalities.base import Batch, Dataset, Example, Groups
from modalities.byte_ranges import Source
from modalities.text import TextEncoder


class Captioned(Dataset):
    """The examples of a dataset with captions, and in every batch what a text encoder makes of them.

    Its classes are None: a model learns classes or text.

    Raises:
        ValueError: if the dataset has no captions.
    """

    def __init__(self, dataset: Dataset, encoder: TextEncoder) -> None:
        if dataset.caption(0) is None:
            raise ValueError(
                "the data have no captions: a folder takes them from data.manifest=FILE (with a column text), "
                "data.captions=sidecar or data.captions=labels; or leave out text"
            )
        self.modality, self.classes = dataset.modality, None
        self.dataset, self.encoder = dataset, encoder

    def __len__(self) -> int:
        return len(self.dataset)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example, with its caption as text."""
        return self.dataset.example(index, seed)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch with `embeddings`.

        Raises:
            ValueError: if an example has no caption; one that says nothing is an empty text.
        """
        batch = self.dataset.batch(indices, seeds)
        if batch.texts is None:
            raise ValueError(f"one of the examples {list(indices)} has no caption")
        return batch._replace(embeddings=self.encoder(batch.texts))

    def label(self, index: int) -> int | None:
        """Return the class that the example has in the dataset, though a model learns its text."""
        return self.dataset.label(index)

    def caption(self, index: int) -> str | None:
        """Return the text of one example."""
        return self.dataset.caption(index)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only."""
        part = copy.copy(self)
        part.dataset = self.dataset.subset(indices)
        return part

    @property
    def groups(self) -> Groups | None:
        """Which examples are stored together."""
        return self.dataset.groups

    @property
    def fingerprint(self) -> str:
        """That of the examples, captions included."""
        return self.dataset.fingerprint

    def stored(self) -> Iterable[Source]:
        """Return the files that the examples are read from."""
        return self.dataset.stored()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Files that could not be read so far."""
        return self.dataset.unreadable

    def save_unreadable(self, path: Path) -> None:
        """Write the files that could not be read so far, if there are any."""
        self.dataset.save_unreadable(path)
