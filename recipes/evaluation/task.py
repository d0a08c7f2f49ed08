"""All that the kinds of metrics take their numbers from: the run's data, the sets, and a classifier if any."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from multisagd.metrics.bootstrap import bootstrap_error
from multisagd.metrics.feature_network import FeatureNetwork, Readings, read_samples
from multisagd.metrics.spectral import Curves, item_curves
from recipes.data.dataset import NOTHING_HELD_OUT
from recipes.evaluation.classifier import Training, cached_network
from recipes.evaluation.rows import Row, spread
from recipes.evaluation.sets import Sets, read_real
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

    @cached_property
    def halves(self) -> list[tuple[Tensor, Tensor]]:
        """Return divisions of the real examples into (reference, others), as `Sets.halves`."""
        return [self.sets.halves(number) for number in range(self.settings.splits)]

    def row(
        self, name: str, statistic: Callable[[Tensor, Tensor], float], made: Tensor, real: Tensor,
        ideal: float | None = 0.0, unit: str = "",
    ) -> Row:  # fmt: skip
        """Return the row of `statistic(samples, reference)`, with its bootstrap error and its noise floor.

        `made` has one entry for each sample and `real` one for each real example. In the unit % the statistic is a
        share from 0 to 1.
        """
        sets, scale = self.sets, 100 if unit == "%" else 1
        floors = [scale * statistic(real[other], real[one]) for one, other in self.halves]
        reference = real[: sets.reference_count]
        error = bootstrap_error(
            lambda a, b: statistic(made[a], reference[b]), sets.sizes, self.settings.bootstrap, sets.references
        )
        value = scale * statistic(made, reference)
        return Row(name, value, None if error is None else scale * error, *spread(floors), ideal, unit)

    def read_held_out(self, wanted: Sequence[int]) -> list[Tensor]:
        """Return up to `wanted` held-out examples of each of the samples' classes, as files.

        Raises:
            ValueError: if nothing was held out.
        """
        return read_real(self.held_out, wanted, self.sets.labels is not None, "reading held-out examples")[0]

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


def flat(x0: Tensor) -> Tensor:
    """Return data as vectors `(count, channels * samples)`, float32."""
    return x0.flatten(1).to(torch.float32)
