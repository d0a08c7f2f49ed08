"""Changes with a known effect, for controls and for data whose images differ in brightness."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from modalities import image_sets
from modalities.base import Batch, Dataset
from modalities.image import Image
from modalities.wrapped import Wrapped
from multisagd.networks import UNet
from multisagd.seeds import derive

SMALL = 0.02
"""Standard deviation of initial class embeddings in DiT, with which classes are learned late."""
LEAST_GAIN = 0.5
"""The least gain of images of Fashion-MNIST, which makes them differ in brightness and contrast."""
PLANTED_GAIN = 0.95
"""The least gain of the control, chosen in a pilot: its effect must be found although it is small."""


class SmallClassEmbeddings(UNet):
    """A U-Net whose class embeddings are initially small, as in DiT: it learns classes later."""

    @functools.wraps(UNet.__init__)  # type: ignore[misc]
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        labels = self.conditioning.labels
        if labels is None:
            raise ValueError("small class embeddings need data with classes")
        with torch.no_grad():
            labels.weight.mul_(SMALL)  # their usual deviation is 1


class RandomGain(Wrapped):
    """Multiplies each image by a gain of its own, which is the same in every epoch, also in a `subset`.

    Gains are uniform from `least` to 1, so that no value leaves [-1, 1].
    """

    def __init__(self, inner: Dataset, least: float) -> None:
        super().__init__(inner)
        generator = torch.Generator().manual_seed(derive(0, "random gain"))
        self.least, self.gains = least, least + (1 - least) * torch.rand(len(inner), generator=generator)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the examples at `indices`, multiplied by their gains."""
        batch = super().batch(indices, seeds)
        gains = self.gains[torch.as_tensor(indices)].reshape(-1, *(1,) * (batch.x0.dim() - 1))
        return batch._replace(x0=gains * batch.x0)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only, with their gains."""
        part = super().subset(indices)
        part.gains = self.gains[torch.as_tensor(indices, dtype=torch.int64)]
        return part

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the images, marked as multiplied."""
        return f"{self.inner.fingerprint} with random gain from {self.least:g}"


class GainMNIST(RandomGain):
    """MNIST with a random gain per image; the arguments are those of `MNIST`."""

    def __init__(self, modality: Image, root: str | Path, train: bool = True, download: bool = False) -> None:
        super().__init__(image_sets.MNIST(modality, root, train, download), PLANTED_GAIN)


class GainFashionMNIST(RandomGain):
    """Fashion-MNIST with a random gain per image; the arguments are those of `FashionMNIST`."""

    def __init__(self, modality: Image, root: str | Path, train: bool = True, download: bool = False) -> None:
        super().__init__(image_sets.FashionMNIST(modality, root, train, download), LEAST_GAIN)
