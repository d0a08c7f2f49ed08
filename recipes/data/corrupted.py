"""The corruption of a run's data, and what is done about it, as a configuration says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from modalities.reading import UnreadableFilesError
from multisagd import Corruption, GaussianRestoration
from multisagd.seeds import derive
from recipes.base.errors import RecipeError
from recipes.config.build import Builder
from recipes.data.dataset import Chunks
from recipes.data.order import Order
from recipes.data.transformed import Corrupted, Restored
from recipes.runs.corruption import CorruptionOptions, build_corruption, corruption_options
from recipes.runs.located import build_dataset
from recipes.runs.settings import Group
from recipes.runtime.distribution import from_first, is_first, wait_patiently


def build_data(data: Group, corruption: Group, seed: int, modality: Modality, builder: Builder) -> Dataset:
    """Return the dataset that a configuration describes, corrupted if it says so.

    Raises:
        RecipeError: if either cannot be built.
    """
    dataset = build_dataset(data, modality, builder)
    options = corruption_options(corruption, builder)
    if not options.added:
        return dataset
    described = build_corruption(corruption, modality, builder)
    return dataset if described is None else Corrupted(dataset, described, seed, options.redrawn)


def as_trained_on(dataset: Dataset, corruption: Group, seed: int, builder: Builder) -> Dataset:
    """Return a corrupted dataset as a training on all of it would see it: restored, if the configuration says so.

    Raises:
        RecipeError: if it cannot be restored.
    """
    options = corruption_options(corruption, builder)
    described = build_corruption(corruption, dataset.modality, builder) if options.restored else None
    if described is None:
        return dataset
    fitted = fit_restoration(dataset, described, options, seed)
    return Restored(dataset, fitted, seed, options.restored == "sample")


def fit_restoration(
    training: Dataset, corruption: Corruption, options: CorruptionOptions, seed: int
) -> GaussianRestoration:
    """Measure the covariance of corrupted data on the first rank, for all.

    Raises:
        RecipeError: if the data cannot be read, are padded, too large or too few for a covariance, or contradict the
            corruption.
    """
    numbers = torch.zeros(2, dtype=torch.float64)
    found = None
    if is_first():
        count = len(training) if options.examples is None else min(options.examples, len(training))
        chosen = Order(len(training), derive(seed, "restoration")).indices(0, count)
        try:
            found = GaussianRestoration.fit(Unpadded(Chunks(training, chosen, seed)), corruption)
        except (ValueError, UnreadableFilesError) as error:
            raise RecipeError(f"corruption.restored: {error}") from error
        numbers = torch.tensor([found.root.shape[1], found.risk], dtype=torch.float64)
    wait_patiently()
    from_first(numbers)
    if found is None:
        shape = (training.modality.channels, *training.modality.grid().shape)
        size = torch.Size(shape).numel()
        mean, gain = torch.zeros(shape, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        root = torch.zeros(size, int(numbers[0]), dtype=torch.float64)
        found = GaussianRestoration(mean, gain, root, training.modality.grid(), float(numbers[1]))
    for tensor in (found.mean, found.gain, found.root):
        from_first(tensor)
    return found


@dataclass(frozen=True)
class Unpadded:
    """The data of batches that come with their masks, which must be none."""

    chunks: Chunks

    def __iter__(self) -> Iterator[Tensor]:
        for x0, mask in self.chunks:
            if mask is not None:
                raise ValueError("padded data have no covariance to be restored by: choose data without padding")
            yield x0
