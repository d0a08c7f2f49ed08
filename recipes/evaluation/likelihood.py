"""Bits per dimension: how well the model predicts held-out data, through the probability-flow ODE (2011.13456).

For images of 8 bits this is the number of the literature: noise uniform within a level is added to the pixels, which
makes the result an upper bound of what a lossless code based on the model would need. Other media have no levels, and
get the negative log density in their own scale, which compares only among models of the same representation.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from modalities.base import Dataset
from modalities.image import Image
from multisagd.likelihood import bits_per_dimension, log_likelihood
from multisagd.metrics.bootstrap import mean_error
from multisagd.seeds import derive, derive_many
from recipes.base.progress import Display
from recipes.config.build import Builder
from recipes.evaluation.real import fixed_order
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import EvaluateSettings, Task
from recipes.runs.model import open_model, trained_denoiser

LEVEL = 2 / 255
"""Distance of two grey levels of 8 bits in the scale of the tensors, [-1, 1]."""
BATCH = 32


def lacks_likelihood(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why there are no bits per dimension, None if there are."""
    if settings.likelihood.items == 0:
        return "it is slow, and off: ask for it by likelihood.items=64"
    return None


def likelihood(task: Task) -> Result:
    """Return bits per dimension of held-out examples, without augmentation, each with the class it has.

    Raises:
        ValueError: for a run whose noise has no likelihood, or that learned from text, and for padded data.
    """
    settings = task.settings.likelihood
    builder = Builder(task.settings.allow_targets)
    model = open_model(task.settings.run_dir, builder, task.settings.data, task.settings.checkpoint)
    if model.facts.get("text"):
        raise ValueError("this run learned from text, and held-out texts are not embedded here: leave it out")
    assembly = model.assembly(builder)
    weights = model.weights(task.settings.weights, assembly.check_outline)
    denoiser = trained_denoiser(assembly, weights, task.runtime)
    images = isinstance(task.modality, Image)
    places = fixed_order(task.held_out, settings.items)
    found = []
    with Display("bits per dimension", len(places)) as display:
        for start in range(0, len(places), BATCH):
            numbers = range(start, min(start + BATCH, len(places)))
            batch = task.held_out.batch([places[number] for number in numbers])
            if batch.mask is not None and not bool(batch.mask.all()):
                raise ValueError(
                    "held-out data are padded, and padding, which no model learns, would count as data: leave it out"
                )
            x0 = dequantised(batch.x0, derive_many(0, "evaluate/levels", 0, numbers)) if images else batch.x0
            condition = None if assembly.classes is None or batch.labels is None else task.runtime.put(batch.labels)
            nats = log_likelihood(
                denoiser, task.runtime.put(x0), steps=settings.steps, probes=settings.probes, condition=condition,
                seeds=derive_many(0, "evaluate/likelihood", 0, numbers), statistics=model.statistics,
            )  # fmt: skip
            found.append(bits_per_dimension(nats.cpu(), x0[0].numel()))
            display.update(numbers.stop)
    bits = torch.cat(found) + (math.log2(1 / LEVEL) if images else 0.0)
    what = "bits per dimension, 8 bits a value" if images else "bits per dimension, density in the tensors' scale"
    notes = [
        f"bits per dimension are the mean over {len(bits)} held-out examples ± its standard error, "
        + (
            "of pixels with noise uniform within a level"
            if images
            else "and may be negative, for densities have a scale"
        )
    ]
    return Result((Row(what, float(bits.mean()), mean_error(bits), ideal=None),), {"bits": bits.tolist()}, tuple(notes))


def dequantised(x0: Tensor, seeds: list[int]) -> Tensor:
    """Return images of 8 bits `(batch, channels, height, width)` with noise uniform within a level, one seed each."""
    noise = [torch.rand(x0.shape[1:], generator=torch.Generator().manual_seed(derive(seed, "level"))) for seed in seeds]
    return x0 + LEVEL * (torch.stack(noise) - 0.5)
