"""A dataset whose captions come as embeddings, for models that learn from text."""

from __future__ import annotations

from collections.abc import Sequence

from modalities.base import Batch, Dataset
from modalities.text import TextEncoder
from modalities.wrapped import Wrapped


class Captioned(Wrapped):
    """The examples of a dataset with captions; each batch has the embeddings of its captions.

    Its `classes` attribute is None: a model learns either classes or text.

    Raises:
        ValueError: if the dataset has no captions.
    """

    def __init__(self, dataset: Dataset, encoder: TextEncoder) -> None:
        if dataset.caption(0) is None:
            raise ValueError(
                "the data have no captions: a folder takes them from data.manifest=FILE (with a column text), "
                "data.captions=sidecar or data.captions=labels; or leave out text"
            )
        super().__init__(dataset)
        self.classes, self.encoder = None, encoder

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch with `embeddings`.

        Raises:
            ValueError: if an example has no caption; an empty text is a valid caption.
        """
        batch = super().batch(indices, seeds)
        if batch.texts is None:
            raise ValueError(f"one of the examples {list(indices)} has no caption")
        return batch._replace(embeddings=self.encoder(batch.texts))
