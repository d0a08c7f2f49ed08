"""Compute bits per dimension of held-out data by the probability-flow ODE (2011.13456).

For 8-bit images this is the value reported in the literature: uniform noise of one grey level is added to the pixels,
so that the result is an upper bound on the length of a lossless code based on the model. Other media have no such
levels: the result is the negative log density in the units of their tensors, which is comparable only among models with
the same representation.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modalities.base import Batch, Dataset, Modality
from modalities.image import Image
from multisagd import DataStatistics, Denoiser
from multisagd.condition import mapped
from multisagd.likelihood import LEVEL, bits_per_dimension, dequantised, log_likelihood
from multisagd.metrics.bootstrap import mean_error
from multisagd.seeds import derive_many
from recipes.base.progress import Display
from recipes.config.build import Builder
from recipes.evaluation.sets import fixed_order
from recipes.evaluation.task import EvaluateSettings, Result, Row, Task
from recipes.runs.model import open_model, trained_denoiser
from recipes.runtime.device import Runtime

BATCH = 32


@dataclass(frozen=True, eq=False)
class BitsPerDimension:
    """Computes bits per dimension of batches of data, with an ODE of `steps` steps.

    If `conditional`, each example is conditioned on its own class or caption. The divergence of each example is
    estimated with `probes` random vectors.
    """

    denoiser: Denoiser
    statistics: DataStatistics
    modality: Modality
    conditional: bool
    runtime: Runtime
    steps: int
    probes: int = 1

    def check(self, batch: Batch) -> None:
        """Raise ValueError if the examples are padded."""
        if batch.mask is not None and not bool(batch.mask.all()):
            raise ValueError("held-out data are padded, but padding would count as data: use another metric or score")

    def __call__(self, batch: Batch, numbers: Sequence[int]) -> Tensor:
        """Return the bits per dimension of each example, `(batch,)`; random numbers depend only on the `numbers`.

        Raises:
            ValueError: If the data are padded, or the noise has no likelihood.
        """
        self.check(batch)
        images = isinstance(self.modality, Image)
        x0 = dequantised(batch.x0, derive_many(0, "evaluate/levels", 0, numbers)) if images else batch.x0
        nats = log_likelihood(
            self.denoiser, self.runtime.put(x0), steps=self.steps, probes=self.probes,
            condition=mapped(batch.condition(self.conditional), self.runtime.put),
            seeds=derive_many(0, "evaluate/likelihood", 0, numbers), statistics=self.statistics,
        )  # fmt: skip
        bits = bits_per_dimension(nats.cpu(), x0[0].numel())
        return bits + math.log2(1 / LEVEL) if images else bits


def likelihood_unavailable(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why bits per dimension are unavailable, or None if they are available."""
    if settings.likelihood.items == 0:
        return "it is slow and off by default: likelihood.items=64 turns it on"
    return None


def likelihood(task: Task) -> Result:
    """Compute bits per dimension of held-out examples, without augmentation, each conditioned on its own class.

    Raises:
        ValueError: If the run's noise has no likelihood, if the run was trained on text, or if the data are padded.
    """
    settings, options = task.settings, task.settings.likelihood
    builder = Builder(settings.allow_targets)
    model = open_model(settings.run_dir, builder, settings.data, settings.checkpoint)
    if model.metadata.get("text"):
        raise ValueError("this run was trained on captions, which this metric does not embed: set likelihood.items=0")
    assembly = model.assembly(builder)
    weights = model.weights(settings.chosen_weights, assembly.check_weight_shapes)
    compute = BitsPerDimension(
        trained_denoiser(assembly, weights, task.runtime), model.statistics, task.modality,
        assembly.classes is not None, task.runtime, options.steps, options.probes,
    )  # fmt: skip
    held_out = assembly.conditioned(task.held_out)
    indices = fixed_order(held_out, options.items)
    batches = []
    with Display("bits per dimension", len(indices)) as display:
        for start in range(0, len(indices), BATCH):
            numbers = range(start, min(start + BATCH, len(indices)))
            batch = held_out.batch([indices[number] for number in numbers])
            batches.append(compute(batch, numbers))
            display.update(numbers.stop)
    bits = torch.cat(batches)
    kind, remark = "density in the units of the tensors", "they may be negative, because a density depends on the units"
    if isinstance(task.modality, Image):
        kind, remark = "8 bits per value", "uniform noise of one grey level was added to the pixels"
    note = f"bits per dimension are the mean over {len(bits)} held-out examples ± its standard error; {remark}"
    row = Row(f"bits per dimension, {kind}", float(bits.mean()), mean_error(bits), ideal=None)
    return Result((row,), {"bits": bits.tolist()}, (note,))
