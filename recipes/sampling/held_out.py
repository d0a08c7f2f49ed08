"""The held-out examples of a run, with which its samples can be drawn."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from modalities.base import Dataset, Modality, stack_masks
from modalities.buckets import reference_bucket
from modalities.reading import UnreadableFilesError, read_batch
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.data.dataset import build_data
from recipes.data.extents import FILES, Record, of_reference_size
from recipes.data.order import Order
from recipes.data.parts import NOTHING_HELD_OUT, hold_out
from recipes.runs.assembly import Assembly, build_derived_condition
from recipes.runs.model import TrainedModel
from recipes.runs.settings import TrainSettings
from recipes.sampling.media_files import Media

HELD_OUT = "held_out"
"""Value of the settings `initial` and `condition` for the held-out examples of the run."""
BATCH = 64
"""Number of examples read at a time."""


class HeldOut(NamedTuple):
    """Held-out examples: their `media`, class numbers, and dense conditions (rows, channels, *grid or coarser).

    `conditions` is the modality of the conditions. Labels and conditions may be None.
    """

    media: Media
    labels: Tensor | None
    dense: Tensor | None
    conditions: Modality | None


def read_held_out(
    model: TrainedModel, assembly: Assembly, modality: Modality, count: int, seed: int, key: str
) -> HeldOut:
    """Return up to `count` held-out examples of a run, drawn by `seed`, at the size of the modality.

    `key` is the setting, for messages.

    Raises:
        RecipeError: If the run has no held-out examples, its data cannot be read, or the size does not fit conditions.
    """
    if model.exported is not None:
        raise RecipeError(f"{key}={HELD_OUT}: {model.folder} is an exported model, which has no data: add {key}=FOLDER")
    build_derived_condition(assembly.settings.condition, modality, assembly.builder)  # refuses sizes that do not fit
    run = assembly.builder.settings(TrainSettings, model.located, "")
    known, other = (Record(model.folder / name) for name in FILES)
    dataset = build_data(run.data, run.corruption, run.seed, assembly.modality, assembly.builder, known)
    held_out = hold_out(dataset, run, assembly.builder, other).held_out
    if held_out is None:
        raise RecipeError(f"{key}={HELD_OUT}: {NOTHING_HELD_OUT}; or add {key}=FOLDER")
    examples = assembly.conditioned(_of_sample_size(held_out, modality, assembly.modality))
    indices = Order(len(examples), derive(seed, "condition")).indices(0, min(count, len(examples)))
    with as_recipe_error(UnreadableFilesError):
        parts = [read_batch(examples, indices[start : start + BATCH]) for start in range(0, len(indices), BATCH)]
    masks = [mask for part in parts for mask in ([None] * len(part.x0) if part.mask is None else part.mask)]
    x0 = torch.cat([part.x0 for part in parts])
    media = Media(x0, stack_masks(masks, x0.shape[1:]))
    labels, dense = _whole([part.labels for part in parts]), _whole([part.dense for part in parts])
    return HeldOut(media, labels, dense, examples.condition_modality)


def _whole(tensors: Sequence[Tensor | None]) -> Tensor | None:
    given = [each for each in tensors if each is not None]
    return torch.cat(given) if given and len(given) == len(tensors) else None


def _of_sample_size(dataset: Dataset, modality: Modality, trained: Modality) -> Dataset:
    """Return examples at the size of the modality of samples: those of its bucket, or all if it is another modality."""
    if modality is not trained:
        return dataset.with_modality(modality)
    return dataset if reference_bucket(dataset) is dataset else of_reference_size(dataset)
