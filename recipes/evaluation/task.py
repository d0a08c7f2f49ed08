"""All that the kinds of metrics take their numbers from: the run's data, the sets, and a classifier if any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from multisagd.metrics.bootstrap import bootstrap_error
from multisagd.metrics.spectral import Curves, item_curves
from recipes.data.dataset import NOTHING_HELD_OUT
from recipes.evaluation.classifier import FeatureNetwork, Readings, Training, cached_network, read_samples
from recipes.evaluation.real import read_real
from recipes.evaluation.sets import Sets
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime


@dataclass(frozen=True)
class Likelihood:
    """How bits per dimension are computed: on so many held-out examples (0: not at all), steps and random probes."""

    items: int = 0
    steps: int = 50
    probes: int = 1

    def __post_init__(self) -> None:
        if self.items < 0 or min(self.steps, self.probes) < 1:
            raise ValueError(f"expected items >= 0, steps >= 1 and probes >= 1, got {self}")


@dataclass(frozen=True)
class Neighbours:
    """How many samples are looked up among how many training examples at most."""

    items: int = 1000
    examples: int = 60_000

    def __post_init__(self) -> None:
        if min(self.items, self.examples) < 2:
            raise ValueError(f"expected items and examples of at least 2, got {self.items} and {self.examples}")


@dataclass(frozen=True)
class Networks:
    """Files of pretrained weights, None to look where torch.hub keeps them."""

    inception: Path | None = None
    vggish: Path | None = None
    r3d: Path | None = None


@dataclass(frozen=True)
class EvaluateSettings(SampleSettings):
    """All keys of `configs/evaluate.yaml`: those of `configs/sample.yaml`, and how samples are judged."""

    samples: int
    samples_from: Path | None
    reference: int | None
    reference_split: Literal["train", "test"]
    metrics: tuple[str, ...] | Literal["all"]
    splits: int
    bootstrap: int
    bands: int
    directions: int
    neighbours: Neighbours
    likelihood: Likelihood
    networks: Networks
    download: bool
    cache: Path
    classifier: Training

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.samples < 4 or self.splits < 1 or self.bootstrap < 0 or min(self.bands, self.directions) < 1:
            raise ValueError(
                "expected samples >= 4, splits >= 1, bootstrap >= 0, bands >= 1 and directions >= 1, got "
                f"{self.samples}, {self.splits}, {self.bootstrap}, {self.bands} and {self.directions}"
            )
        if self.reference is not None and self.reference < 4:
            raise ValueError(f"reference is a number of real examples of at least 4, or null, got {self.reference}")

    def network(self, name: str) -> Path | None:
        """Return the file of weights given for a network, None if none was."""
        path: Path | None = getattr(self.networks, name)
        return path


@dataclass(eq=False)
class Task:
    """What is evaluated. `folder` is that of the samples, where pictures are left; `pictures` names those drawn."""

    settings: EvaluateSettings
    runtime: Runtime
    train: Dataset
    test: Dataset | None
    sets: Sets
    folder: Path
    pictures: list[str] = field(default_factory=list)

    @property
    def held_out(self) -> Dataset:
        """Examples that the run was not trained on.

        Raises:
            ValueError: if there are none.
        """
        if self.test is None:
            raise ValueError(NOTHING_HELD_OUT)
        return self.test

    @property
    def modality(self) -> Modality:
        """The modality of the data."""
        return self.train.modality

    @cached_property
    def curves(self) -> tuple[dict[str, Curves], dict[str, Curves]]:
        """Power over frequency of every sample, and of every real example."""
        grid, bands = self.modality.grid(), self.settings.bands
        made, real = (item_curves(self.sets.batches(real=each), grid, bands) for each in (False, True))
        return made, real

    def bootstrap(self, statistic: Callable[[Tensor, Tensor], float]) -> float | None:
        """Return how much `statistic(places of samples, places in the reference)` varies; see `bootstrap_error`."""
        return bootstrap_error(statistic, self.sets.sizes, self.settings.bootstrap, self.sets.references)

    @cached_property
    def halves(self) -> list[tuple[Tensor, Tensor]]:
        """Return divisions of the real examples into (reference, others), as `Sets.halves`."""
        return [self.sets.halves(number) for number in range(self.settings.splits)]

    def held_out_features(self) -> Tensor | None:
        """Return the classifier's features of as many held-out examples as samples; None if there are not so many."""
        if self.test is None:
            return None
        groups, _ = read_real(self.test, self.sets.sizes, self.sets.labels is not None, "reading held-out examples")
        enough = all(len(group) >= size for group, size in zip(groups, self.sets.sizes, strict=True))
        return self.read_features(torch.cat(groups)) if enough else None

    @cached_property
    def classifier(self) -> tuple[FeatureNetwork, dict[str, Any]]:
        """The classifier of the data and its record, trained now if it is not in the cache.

        Raises:
            ValueError: if it cannot be, or not be read.
        """
        return cached_network(self.train, self.test, self.settings.cache, self.settings.classifier)

    @cached_property
    def readings(self) -> tuple[Readings, Readings]:
        """What the classifier sees in the samples and in the real examples."""
        network, _ = self.classifier
        return read_samples(network, self.sets.samples, self.sets.labels), read_samples(network, self.sets.real)

    def picture(self, name: str) -> Path:
        """Return where to draw a picture, and remember that it was."""
        self.pictures.append(name)
        return self.folder / name

    def read_features(self, x0: Tensor) -> Tensor | None:
        """Return the classifier's features of data, None for data without classes."""
        return None if self.train.classes is None else read_samples(self.classifier[0], x0).features


def lacks_classes(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why no classifier can be trained on data, None if one can."""
    return "the data have no classes to train a classifier on" if train.classes is None else None


def flat(x0: Tensor) -> Tensor:
    """Return data as vectors `(count, channels * samples)`, float32."""
    return x0.flatten(1).to(torch.float32)
