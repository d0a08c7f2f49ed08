"""Compute bits per dimension of held-out data by the probability-flow ODE (2011.13456).

For 8-bit images this is the value reported in the literature: uniform noise of one grey level is added to the pixels,
so that the result is an upper bound on the length of a lossless code based on the model. Other media have no such
levels: the result is the negative log density in the units of their tensors, which is comparable only among models with
the same representation.
"""

import math

import torch

from modalities.base import Dataset
from modalities.image import Image
from multisagd.likelihood import LEVEL, bits_per_dimension, dequantised, log_likelihood
from multisagd.metrics.bootstrap import mean_error
from multisagd.seeds import derive_many
from recipes.base.progress import Display
from recipes.config.build import Builder
from recipes.evaluation.sets import fixed_order
from recipes.evaluation.task import EvaluateSettings, Result, Row, Task
from recipes.runs.model import open_model, trained_denoiser

BATCH = 32


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
    runtime, images = task.runtime, isinstance(task.modality, Image)
    denoiser = trained_denoiser(assembly, weights, runtime)
    held_out = task.held_out
    indices = fixed_order(held_out, options.items)
    batches = []
    with Display("bits per dimension", len(indices)) as display:
        for start in range(0, len(indices), BATCH):
            numbers = range(start, min(start + BATCH, len(indices)))
            batch = held_out.batch([indices[number] for number in numbers])
            if batch.mask is not None and not bool(batch.mask.all()):
                raise ValueError("held-out data are padded, but padding would count as data: set likelihood.items=0")
            x0 = dequantised(batch.x0, derive_many(0, "evaluate/levels", 0, numbers)) if images else batch.x0
            condition = None if assembly.classes is None or batch.labels is None else runtime.put(batch.labels)
            nats = log_likelihood(
                denoiser, runtime.put(x0), steps=options.steps, probes=options.probes, condition=condition,
                seeds=derive_many(0, "evaluate/likelihood", 0, numbers), statistics=model.statistics,
            )  # fmt: skip
            batches.append(bits_per_dimension(nats.cpu(), x0[0].numel()))
            display.update(numbers.stop)
    bits = torch.cat(batches)
    kind, remark = "density in the units of the tensors", "they may be negative, because a density depends on the units"
    if images:
        bits = bits + math.log2(1 / LEVEL)
        kind, remark = "8 bits per value", "uniform noise of one grey level was added to the pixels"
    note = f"bits per dimension are the mean over {len(bits)} held-out examples ± its standard error; {remark}"
    row = Row(f"bits per dimension, {kind}", float(bits.mean()), mean_error(bits), ideal=None)
    return Result((row,), {"bits": bits.tolist()}, (note,))
