"""The data of a run: what is held out, and what is measured before training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from modalities.base import Dataset, split
from modalities.reading import UnreadableFilesError, read_batch
from multisagd import DataStatistics
from multisagd.seeds import derive
from recipes.base.errors import RecipeError
from recipes.base.progress import SOON, Display
from recipes.data.order import Order
from recipes.data.single import statistics_of_one
from recipes.runs.settings import TrainSettings

LEAST_DEVIATION = 1e-6
"""Standard deviation about their mean, in units of the data's range, below which examples are all the same."""

READINGS = 2
"""How often the examples are read to be measured: for their mean, and for their spectrum."""


def hold_out(dataset: Dataset, settings: TrainSettings) -> tuple[Dataset, Dataset | None]:
    """Split a dataset into (training, held out), the same way each time; None if nothing is held out.

    A run that learns classes trains on all of them.

    Raises:
        RecipeError: if nothing would be left to train on, or classes cannot be read.
    """
    learns_classes = settings.training.conditional is not False and settings.text.get("_target_") is None
    try:
        return split(dataset, settings.validation.holdout, derive(settings.seed, "holdout"), learns_classes)
    except ValueError as error:
        raise RecipeError(f"validation.holdout: {error}; validation.holdout=0 trains on all") from error
    except UnreadableFilesError as error:
        raise RecipeError(f"data: {error}") from error


NOTHING_HELD_OUT = (
    "this run held no example out of its training to compare with: train one with validation.holdout=0.05, say"
)


def held_out_note(training: Dataset, held_out: Dataset | None, settings: TrainSettings) -> str | None:
    """Return what to say of a split: that a run does not validate, or on fewer examples than asked for."""
    wanted, found = settings.validation.holdout, 0 if held_out is None else len(held_out)
    if wanted == 0:
        return "validation.holdout=0: nothing is held out of training, so nothing is validated"
    asked = int(wanted) if wanted >= 1 else round(wanted * (len(training) + found))
    if 0 < asked <= found or (found and asked == 0):
        return None
    if len(training) == 1:
        return "the only example is trained on, so nothing is validated"
    names = training.classes or ()
    few = f"{found or 'no'} example{'s' * (found != 1)} held out, though validation.holdout={wanted:g}"
    return f"{few}: each of {len(names)} classes keeps one for training (data.labels=none trains without classes)"


def measure(dataset: Dataset, settings: TrainSettings) -> DataStatistics:
    """Measure mean and power spectrum on up to `training.statistics` examples, drawn and augmented as in training.

    One example, or several that are the same, have no power about their mean: then the spectrum is estimated from that
    one, as a stationary signal.

    Raises:
        RecipeError: if the data cannot be read, are not finite or the same everywhere.
    """
    count = min(settings.training.statistics, len(dataset))
    chosen = Order(len(dataset), derive(settings.seed, "statistics")).indices(0, count)
    grid = dataset.modality.grid()
    try:
        with Display("measuring the data", READINGS * count, after=SOON) as display, warnings.catch_warnings():
            chunks = Chunks(dataset, chosen, settings.seed, display)
            warnings.showwarning = lambda message, *_, **__: display.say(f"note: {message}")
            found = DataStatistics.measure(chunks, grid)
        if found.sigma_data > LEAST_DEVIATION:
            return found
        x0, mask = next(iter(chunks))
        return replace(statistics_of_one(x0[0], grid, None if mask is None else mask[0]), count=found.count)
    except (ValueError, UnreadableFilesError) as error:
        raise RecipeError(f"measuring the data: {error}") from error


class Chunks:
    """Examples in batches, as often as asked for, augmented in the same way each time; a display shows how many."""

    def __init__(
        self, dataset: Dataset, indices: Sequence[int], seed: int, display: Display | None = None, size: int = 256
    ) -> None:
        self.dataset, self.indices, self.seed, self.display, self.size = dataset, indices, seed, display, size
        self._read = 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for start in range(0, len(self.indices), self.size):
            chosen = self.indices[start : start + self.size]
            batch = read_batch(self.dataset, chosen, [derive(self.seed, "augmentation", index) for index in chosen])
            self._read += len(chosen)
            if self.display is not None:
                self.display.update(min(self._read, READINGS * len(self.indices)))
            yield batch.x0, batch.mask
