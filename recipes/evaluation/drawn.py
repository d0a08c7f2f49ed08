"""The samples that are judged: found where `multisagd sample` has left them, and read as a person would see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from multisagd.files import read_json
from recipes.base.errors import RecipeError
from recipes.base.files import as_stored
from recipes.base.untrusted import read_tensors
from recipes.config.addresses import shareable
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.model import open_model
from recipes.runs.settings import SampleSettings
from recipes.sampling.condition import chosen_prompts
from recipes.sampling.sample_files import NOTES, TENSORS, default_folder


def drawing_keys(config: Config) -> Config:
    """Return what a configuration of `multisagd evaluate` says about drawing: one of `multisagd sample`."""
    return {field.name: config[field.name] for field in fields(SampleSettings)}


def already_drawn(config: Config, builder: Builder) -> Path | None:
    """Return the folder in which `multisagd sample` with these settings has left its samples, None if it has not.

    Raises:
        RecipeError: as that command does, for settings that are wrong.
    """
    sampling = drawing_keys(config)
    settings = builder.settings(SampleSettings, sampling, "")
    model = open_model(settings.run_dir, builder, settings.data, settings.checkpoint)
    assembly = model.assembly(builder)
    seen = model.weights(settings.weights, assembly.check_outline).samples
    prompts = chosen_prompts(settings, model.facts.get("text") is not None)
    folder = settings.out or default_folder(sampling, settings, seen, prompts, assembly.process())
    try:
        made = read_json(folder / NOTES, finite=False)
    except (OSError, ValueError):
        return None
    # A folder of the user's own choice may hold samples of other settings; by default its name is that of the settings.
    same = isinstance(made, dict) and made.get("samples_seen") == seen
    same = same and (settings.out is None or made.get("settings") == as_stored(shareable(sampling)))
    return folder if same and (folder / TENSORS).is_file() else None


def load_samples(path: Path, dataset: Dataset) -> tuple[Tensor, Tensor | None]:
    """Read `x0` (count, channels, *grid) and `labels` (count,), None if there are none.

    Raises:
        RecipeError: if the file is unreadable, or does not hold finite samples of the dataset's shape and classes.
    """
    try:
        tensors = read_tensors(path)
        x0, labels = tensors["x0"], tensors.get("labels")
        if not len(x0) or not x0.is_floating_point() or (labels is not None and labels.dtype != torch.int64):
            raise ValueError("it holds none, or of another kind")
    except (OSError, KeyError, ValueError) as error:
        raise RecipeError(f"cannot read samples from {path} ({error}): make them with multisagd sample") from error
    shape = (dataset.modality.channels, *dataset.modality.grid().shape)
    if tuple(x0.shape[1:]) != shape:
        raise RecipeError(f"{path} holds samples of shape {tuple(x0.shape[1:])}, the run's data have {shape}")
    if broken := int((~x0.flatten(1).isfinite()).any(1).sum()):
        raise RecipeError(f"{broken} of {len(x0)} samples in {path} are not finite: sample again with more steps")
    if labels is not None and (
        labels.shape != x0.shape[:1] or not 0 <= int(labels.min()) <= int(labels.max()) < len(dataset.classes or ())
    ):
        raise RecipeError(f"the labels in {path} are not those of the run's {len(dataset.classes or ())} classes")
    return x0, labels


def as_files(modality: Modality, x0: Tensor, report: Callable[[int], None] | None = None) -> Tensor:
    """Return data decoded and encoded again, clipped and rounded as the modality saves them; `report` hears counts."""
    seen = torch.empty_like(x0, dtype=torch.float32)
    for number, each in enumerate(x0):
        seen[number] = modality.encode(modality.decode(each))
        if report is not None:
            report(number + 1)
    return seen
