"""Read several samples for each of some held-out examples, together with these and a plain estimate of them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.derived_conditions import Coarse, DerivedCondition, FirstFrames, Masked
from modalities.forecasts import States
from modalities.mel_condition import MelSpectrogram
from multisagd.metrics.interpolation import cubic_interpolation, last_known, linear_fill
from recipes.base.progress import Display
from recipes.config.build import Builder
from recipes.evaluation.sets import as_files, load_samples
from recipes.evaluation.task import Task
from recipes.runs.model import open_model
from recipes.sampling.dense import dense_rows
from recipes.sampling.generate import chosen_modality
from recipes.sampling.held_out import read_held_out
from recipes.sampling.sample_files import TENSORS
from recipes.sampling.vocoder import VocoderOptions, vocoded

CUBIC = {1: "cubic interpolation", 2: "bicubic interpolation", 3: "tricubic interpolation"}
"""Names of cubic interpolation along some axes."""
GRIFFIN_LIM = "Griffin-Lim"
"""Name of the estimate of a waveform from its mel spectrogram."""


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Samples `members` (members, items, channels, *grid) of every item of the `truth` (items, channels, *grid).

    All data are encoded, and rounded as in decoded files. `plain` (items, channels, *grid) is an estimate of the truth
    without a network, called `plain_name`. `valid` (items, channels, *grid) is False where the truth has no value, or
    None, and `compared` of the same shape is True where samples are compared with it. `condition` is what the samples
    were drawn with, (items, channels of the condition, *grid or coarser), NaN where unknown, and `hides` says whether
    only what is unknown of it is compared.
    """

    members: Tensor
    truth: Tensor
    plain: Tensor
    plain_name: str
    compared: Tensor
    valid: Tensor | None
    condition: Tensor
    hides: bool


def read_ensemble(task: Task) -> Ensemble:
    """Return the samples in the folder `task.members`, and the held-out examples whose conditions they were drawn with.

    Raises:
        RecipeError: If the samples or the held-out examples cannot be read.
        ValueError: If nothing was drawn.
    """
    if task.members is None:
        raise ValueError("no samples were drawn for it")
    settings, builder = task.settings, Builder(task.settings.allow_targets)
    model = open_model(settings.run_dir, builder, settings.data, settings.checkpoint)
    assembly = model.assembly(builder)
    modality = chosen_modality(assembly, settings.sizes)
    modality = vocoded(modality, VocoderOptions.of(settings, builder), builder, task.runtime)
    x0 = load_samples(Path(task.members) / TENSORS, task.train)[0]
    held_out = read_held_out(model, assembly, modality, settings.conditions, settings.seed, "condition")
    media, items = held_out.media, len(held_out.media.x0)
    rows = dense_rows(held_out, settings.unknown, model, assembly, modality, settings.seed)
    assert rows.dense is not None
    condition = rows.dense
    # If there are fewer held-out examples than requested, some have more samples.
    x0 = x0[: items * (settings.members or 1)]
    with Display("reading ensembles", len(x0)) as display:
        members = as_files(modality, x0, display.update).reshape(-1, items, *x0.shape[1:])
    truth = as_files(modality, media.x0)
    derived = assembly.derived_condition()
    valid = None if media.present is None else media.present.expand_as(truth)
    if isinstance(held_out.conditions, States):  # whose last one is the present
        plain, name = condition[:, -truth.shape[1] :].nan_to_num(0.0), "persistence"
    else:
        plain, name = plain_estimate(derived, condition, truth.shape, modality, model.statistics.mean)
    compared = torch.ones_like(truth, dtype=torch.bool) if valid is None else valid
    hides = isinstance(derived, FirstFrames | Masked)
    if hides:
        compared = compared & condition.isnan()
    return Ensemble(members, truth, as_files(modality, plain), name, compared, valid, condition, hides)


def plain_estimate(
    derived: DerivedCondition | None, condition: Tensor, shape: torch.Size, modality: Modality, mean: Tensor
) -> tuple[Tensor, str]:
    """Return an estimate of data of a shape (items, channels, *grid) from their condition, and the name of the method.

    A coarse version is interpolated, the last of the first frames repeated, and what is hidden filled in linearly. A
    mel spectrogram is inverted by the Griffin-Lim algorithm with 32 iterations. For conditions that are not derived
    from the data, the estimate is the mean of the training data (channels, *grid).
    """
    grid = modality.grid()
    if isinstance(derived, MelSpectrogram):
        frames = derived.modality(modality)
        known = condition.nan_to_num(-1.0)  # what is unknown counts as silence
        return torch.stack([modality.encode(frames.decode(each)) for each in known]), GRIFFIN_LIM
    if isinstance(derived, Coarse):
        refined = sum(factor > 1 for factor in derived.factors(grid))
        known = linear_fill(condition, grid.periodic)
        return cubic_interpolation(known, grid.shape, grid.periodic), CUBIC[refined]
    if isinstance(derived, FirstFrames):
        return last_known(condition), "persistence"
    if isinstance(derived, Masked):
        return linear_fill(condition, grid.periodic), "linear interpolation"
    if mean.shape[1:] != shape[2:]:  # samples of another size than the training data
        mean = mean.flatten(1).mean(1).reshape(-1, *[1] * grid.dimensions)
    return mean.to(torch.float32).expand(shape).clone(), "the mean of the data"
