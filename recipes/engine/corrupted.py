"""A dataset whose examples are corrupted in a part of their spectrum, as a configuration says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from modalities.base import Batch, Dataset, Example, Groups, Modality, pair
from multisagd import Corruption
from multisagd.seeds import derive
from recipes.engine.build import Builder
from recipes.engine.errors import RecipeError
from recipes.engine.settings import Group


class Corrupted(Dataset):
    """Another dataset with Gaussian noise of a corruption added to every example.

    Example number i keeps its corruption for good, whatever is cropped or flipped around it; or, if it is `redrawn`,
    the corruption follows from the seed of the augmentation, and is another one each time. `places` are the numbers of
    the examples in the whole set, so that a part of it keeps them.
    """

    def __init__(
        self, clean: Dataset, corruption: Corruption, seed: int, redrawn: bool, places: Sequence[int] | None = None
    ) -> None:
        self.clean, self.corruption, self.seed, self.redrawn = clean, corruption, seed, redrawn
        self.places = range(len(clean)) if places is None else places
        self.modality, self.classes = clean.modality, clean.classes

    def __len__(self) -> int:
        return len(self.clean)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example, corrupted."""
        example = self.clean.example(index, seed)
        noise = self.corruption.noise((1, *example.x0.shape), [self._noise_seed(index, seed)])[0]
        return example._replace(x0=example.x0 + noise.to(example.x0))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the examples at `indices`, corrupted."""
        batch = self.clean.batch(indices, seeds)
        drawn = [self._noise_seed(index, seed) for index, seed in pair(indices, seeds)]
        return batch._replace(x0=self.corruption.corrupt(batch.x0, drawn))

    def _noise_seed(self, index: int, seed: int | None) -> int:
        if self.redrawn and seed is not None:
            return derive(seed, "corruption")
        return derive(self.seed, "corruption", self.places[index])

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only, each with the corruption it had."""
        places = [self.places[index] for index in indices]
        return type(self)(self.clean.subset(indices), self.corruption, self.seed, self.redrawn, places)

    def caption(self, index: int) -> str | None:
        """Return the text of one example."""
        return self.clean.caption(index)

    @property
    def groups(self) -> Groups | None:
        """Which examples are stored together."""
        return self.clean.groups

    @property
    def fingerprint(self) -> str:
        """That of the clean examples: the corruption is a function of the configuration."""
        return self.clean.fingerprint

    @property
    def unreadable(self) -> Mapping[str, str]:
        """Files that could not be read so far."""
        return self.clean.unreadable

    def save_unreadable(self, path: Path) -> None:
        """Write the files that could not be read so far."""
        self.clean.save_unreadable(path)


def build_corruption(group: Group, modality: Modality, builder: Builder) -> Corruption | None:
    """Return the corruption that a configuration describes on a modality's grid, None if it describes none.

    Raises:
        RecipeError: if it makes no sense there.
    """
    if group.get("_target_") is None:
        return None
    described = {key: value for key, value in group.items() if key != "redrawn"}
    return builder.build(described, Corruption, "corruption", grid=modality.grid())


def build_data(data: Group, corruption: Group, seed: int, modality: Modality, builder: Builder) -> Dataset:
    """Return the dataset that a configuration describes, corrupted if it says so.

    Raises:
        RecipeError: if either cannot be built.
    """
    dataset: Any = builder.build(data, Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    redrawn = corruption.get("redrawn", False)
    if not isinstance(redrawn, bool):
        raise RecipeError(f"corruption.redrawn: expected true or false, got {redrawn!r:.80}")
    described = build_corruption(corruption, modality, builder)
    return dataset if described is None else Corrupted(dataset, described, seed, redrawn)
