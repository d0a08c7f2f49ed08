"""The selection of the best checkpoint by the score on held-out examples, and early stopping."""

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from modalities.base import Dataset
from modalities.buckets import reference_bucket
from modalities.derived_conditions import WithDerivedCondition
from modalities.wrapped import Captioned, Standardised, untouched
from recipes.base.errors import RecipeError
from recipes.runs.best import Selected
from recipes.runs.settings import TrainSettings

Score = Callable[[Mapping[str, Any]], float]
"""A function that returns the score of a validation, given its losses; every rank must call it, and gets the same."""
MIN_EXAMPLES = 4
"""Minimum number of held-out examples for a Fréchet distance, as in `multisagd evaluate`."""


class Selection:
    """Decides which checkpoint is the best, and whether training ends because the score no longer improves."""

    def __init__(self, settings: TrainSettings, score: Score) -> None:
        self.score, self.kind, self.patience = score, settings.validation.score, settings.validation.patience
        self.keeps = settings.every.checkpoint > 0  # without checkpoints during training, there is none to select
        self.current = Selected(measure(settings))

    @property
    def ended(self) -> bool:
        """Whether none of the last `validation.patience` validations improved the score."""
        return self.ends(self.current)

    def ends(self, selected: Selected) -> bool:
        """Whether training ends with this selection."""
        return self.patience is not None and selected.since >= self.patience

    def summary(self, samples: int, loss: float, score: float) -> str:
        """Return the results of the validation after `samples` samples seen, as text."""
        result = f"validation loss {loss:.4f}"
        if self.kind != "loss":
            result += f", {self.kind} {score:.4g}"
        best = self.current.best
        return result if best is None or best.samples != samples else f"{result} (the best so far)"

    def ending(self) -> str:
        """Return a message about the end of training before all samples were seen."""
        best = self.current.best
        kept = "" if best is None else (
            f" The best score, {best.score:.4g}, was reached after {best.samples:,} samples: `multisagd sample` with "
            "checkpoint=best uses these weights."
        )  # fmt: skip
        return (
            f"training ends early: the score has not improved in the last {self.current.since} validations "
            f"(validation.patience={self.patience}).{kept}"
        )

    def restore(self, record: Mapping[str, Any]) -> str | None:
        """Restore the selection in a checkpoint's record; return a note if its scores are not comparable.

        Raises RecipeError if the record is invalid.
        """
        saved, own = Selected.of(record), self.current.measure
        self.current = saved if saved.measure == own else Selected(own)
        if saved.measure == own or saved.best is None:
            return None
        return "validation.score or settings that it depends on have changed, so earlier scores no longer count"


def measure(settings: TrainSettings) -> str:
    """Return a text that identifies how the score is computed, except for the data and the model."""
    validation, sampling = settings.validation, settings.sampling
    relevant: dict[str, list[Any]] = {
        "loss": [validation.items, validation.levels],
        "distance": [
            validation.samples, sampling.steps, sampling.spacing, sampling.ends, asdict(settings.guidance),
            settings.sampler,
        ],
        "likelihood": [validation.items],
    }  # fmt: skip
    text = json.dumps(relevant[validation.score], sort_keys=True, default=str)
    return f"{validation.score} {hashlib.sha256(text.encode()).hexdigest()[:12]}"


def check_score(settings: TrainSettings, training: Dataset, held_out: Dataset | None) -> None:
    """Check that a score can be computed on these parts of the data, before anything is measured.

    Raises:
        RecipeError: If a score or early stopping is requested without held-out examples, or the score needs classes
            or more held-out examples.
    """
    validation = settings.validation
    if held_out is None:
        requested = "" if validation.score == "loss" else f"validation.score={validation.score}"
        requested = requested if validation.patience is None else f"validation.patience={validation.patience}"
        if requested:
            given = untouched(training).splits is not None
            remedy = "mark some files of the manifest as validation" if given else "set validation.holdout=0.05"
            raise RecipeError(f"{requested} needs held-out examples, but there are none: {remedy}, for example")
        return
    if validation.score == "distance":
        problem = ""
        if without_captions(training).classes is None:
            problem = "classes, to train the classifier whose features are compared, but the data have none"
        elif (count := len(reference_bucket(held_out) or ())) < MIN_EXAMPLES:
            size = "" if held_out.modality.buckets is None else " of the size of the samples"
            problem = f"at least {MIN_EXAMPLES} held-out examples{size}, but there are {count}"
        if problem:
            raise RecipeError(f"validation.score=distance needs {problem}: use validation.score=loss")


def clean(dataset: Dataset) -> Dataset:
    """Return a dataset without corruption or restoration, but with all that its batches contain of the condition."""
    if isinstance(dataset, Captioned | Standardised | WithDerivedCondition):
        part = copy.copy(dataset)
        part.inner = clean(dataset.inner)
        return part
    return untouched(dataset)


def without_captions(dataset: Dataset) -> Dataset:
    """Return a dataset without corruption, restoration and embeddings, with its classes if it has any."""
    if isinstance(dataset, Captioned | Standardised | WithDerivedCondition):
        return without_captions(dataset.inner)
    return untouched(dataset)
