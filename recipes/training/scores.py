"""The score of a validation, which selects the best checkpoint; lower is better.

`loss` is the validation loss. `distance` compares samples with held-out examples in the features of the classifier of
`multisagd evaluate`. `likelihood` is the number of bits per dimension of held-out examples. The last two are computed
on data without corruption or restoration, as in `multisagd evaluate`.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modalities.base import Dataset
from modalities.reading import UnreadableFilesError, read_batch
from modalities.wrapped import untouched
from multisagd.condition import AnyCondition, joined, mapped
from multisagd.metrics import frechet_distance
from multisagd.metrics.feature_network import FeatureNetwork, read_samples
from multisagd.seeds import derive_many
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.data.extents import of_reference_size
from recipes.evaluation.classifier import cached_network, read_dataset
from recipes.evaluation.likelihood import BATCH, BitsPerDimension
from recipes.evaluation.sets import as_files, fixed_order, published_test_set
from recipes.runtime.distribution import broadcast_from_rank0, gathered, long_barrier
from recipes.sampling.generate import generate
from recipes.training.selection import Score, clean, without_captions
from recipes.training.setup import Job, TrainingData, TrainingModel

MAX_REFERENCE = 10_000
"""Maximum number of held-out examples for a Fréchet distance."""
LIKELIHOOD_STEPS = 20
"""Number of ODE steps for a likelihood; each step evaluates the network and its gradient four times."""
log = logging.getLogger("multisagd")


def prepare_score(job: Job, data: TrainingData, model: TrainingModel) -> Score:
    """Return the function that computes the configured score. Every rank must call `prepare_score` and this function.

    Raises:
        RecipeError: If the process has no likelihood, the held-out data are padded, or no classifier can be trained.
    """
    kind = job.settings.validation.score
    if data.held_out is None or not job.settings.every.validation or kind == "loss":
        return validation_loss
    held_out = of_reference_size(data.held_out)
    if kind == "distance":
        return Distance(job, data, model, held_out)
    return Likelihood(job, data, model, held_out)


def validation_loss(values: Mapping[str, Any]) -> float:
    """Return the validation loss."""
    return float(values["loss"])


class Distance:
    """The Fréchet distance between samples, drawn with the averaged weights, and held-out examples.

    The samples always have the same seeds; classes or captions and padding are those of held-out examples. The first
    rank trains the classifier unless it is cached, and compares the features.
    """

    def __init__(self, job: Job, data: TrainingData, model: TrainingModel, held_out: Dataset) -> None:
        self.job, self.data, self.model = job, data, model
        count = job.settings.validation.samples
        order = fixed_order(held_out, MAX_REFERENCE)
        self.seeds = derive_many(job.settings.seed, "score", 0, range(count))
        self.condition, self.padding = _paired(clean(held_out), order, count, data.condition.learned)
        self.compared: tuple[FeatureNetwork, Tensor] | None = None
        with as_recipe_error(RecipeError, "validation.score=distance: "):  # not only at the first validation
            self._draw(1)
        if job.runtime.main:
            training, real = without_captions(of_reference_size(data.training)), without_captions(held_out)
            # The same sets as in `multisagd evaluate` (unless the data come with a test part), so that both share it.
            whole = held_out if data.parts.held_out is None else untouched(of_reference_size(data.parts.held_out))
            test = published_test_set(job.settings.data, data.modality, job.builder) or whole
            with as_recipe_error((ValueError, UnreadableFilesError), "validation.score=distance: "):
                network, _ = cached_network(training, test)
                self.compared = network, read_dataset(network, real, order, saved=True).features
        long_barrier()

    def __call__(self, values: Mapping[str, Any]) -> float:
        """Return the distance, or infinity if the samples are not finite."""
        x0 = self._draw(len(self.seeds))
        score = torch.tensor(math.inf, dtype=torch.float64)
        if self.compared is not None and bool(x0.isfinite().all()):  # early weights may produce infinite samples
            network, real = self.compared
            if self.padding is not None:
                x0 = torch.where(self.padding[1], x0, self.padding[0])
            try:
                saved = as_files(self.data.modality, x0)
                score.fill_(frechet_distance(read_samples(network, saved).features, real))
            except ValueError as error:  # finite samples may have infinite features
                log.warning("no score: %s", error)
        broadcast_from_rank0(score)
        return float(score)

    def _draw(self, count: int) -> Tensor:
        """Return the first `count` samples; every rank must call this."""
        condition = mapped(self.condition, lambda part: part[:count])
        shape, model = self.data.modality.tensor_shape, self.model
        return generate(model.averaged, model.request, shape, self.seeds[:count], condition, self.job.runtime)


def _paired(
    held_out: Dataset, order: Sequence[int], count: int, learned: bool
) -> tuple[AnyCondition, tuple[Tensor, Tensor] | None]:
    """Return conditions and padding for `count` samples, which use the held-out examples in `order` cyclically.

    Conditions are those of `Batch.condition`, with classes or text if they are `learned`. Padding is x0 and its mask,
    both `(count, channels, *grid)`, or None if no example is padded.
    """
    order = order[:count]
    with as_recipe_error(UnreadableFilesError):
        batches = [read_batch(held_out, order[start : start + BATCH]) for start in range(0, len(order), BATCH)]
    turn = torch.arange(count) % len(order)
    condition = joined([batch.condition(learned) for batch in batches])
    masks = [batch.mask for batch in batches]
    padding = None
    if any(mask is not None for mask in masks):
        x0 = torch.cat([batch.x0 for batch in batches])
        whole = [torch.ones_like(b.x0, dtype=torch.bool) if b.mask is None else b.mask.expand_as(b.x0) for b in batches]
        padding = x0[turn], torch.cat(whole)[turn]
    return mapped(condition, lambda part: part[turn]), padding


class Likelihood:
    """Bits per dimension of up to `validation.items` held-out examples, which are divided among the ranks."""

    def __init__(self, job: Job, data: TrainingData, model: TrainingModel, held_out: Dataset) -> None:
        process = job.runtime.process
        if process.world > 1 and job.settings.engine.distribution == "fsdp":
            raise RecipeError("validation.score=likelihood does not support engine.distribution=fsdp: use ddp")
        self.held_out, items = clean(held_out), job.settings.validation.items
        indices = fixed_order(held_out, items)
        self.own = list(enumerate(indices))[process.rank :: process.world]
        self.bits = BitsPerDimension(
            model.averaged, data.statistics, data.modality, data.condition.learned, job.runtime, LIKELIHOOD_STEPS
        )
        # A process without a likelihood, or padding, causes an error now, and not at the first validation.
        first = BitsPerDimension(
            model.averaged, data.statistics, data.modality, data.condition.learned, job.runtime, steps=1
        )
        with as_recipe_error((ValueError, UnreadableFilesError), "validation.score=likelihood: "):
            first(read_batch(self.held_out, indices[:1]), range(1))
            for start in range(0, len(indices), BATCH):
                first.check(read_batch(self.held_out, indices[start : start + BATCH]))

    def __call__(self, values: Mapping[str, Any]) -> float:
        """Return the mean over the examples."""
        sums = torch.zeros(2, dtype=torch.float64)
        for start in range(0, len(self.own), BATCH):
            part = self.own[start : start + BATCH]
            with as_recipe_error(UnreadableFilesError):
                batch = read_batch(self.held_out, [index for _, index in part])
            bits = self.bits(batch, [number for number, _ in part])
            sums += torch.stack([bits.sum(), torch.tensor(float(len(bits)), dtype=torch.float64)])
        total, count = torch.stack(gathered(sums)).sum(0).tolist()
        return float(total / count)
