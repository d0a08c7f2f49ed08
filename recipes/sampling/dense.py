"""The dense condition of each sample: from media files, or from the held-out examples of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.derived_conditions import DerivedCondition, FirstFrames, Masked
from modalities.forecasts import States
from modalities.pairs import check_sizes, read_condition
from modalities.reading import UnreadableFilesError
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.runs.assembly import Assembly, build_derived_condition, follows_condition
from recipes.runs.model import TrainedModel
from recipes.sampling.condition import DenseConditions
from recipes.sampling.held_out import HELD_OUT, HeldOut
from recipes.sampling.media_files import Media, NamedFiles, media_of_tensor, read_media, told_remarks
from recipes.sampling.sample_files import CONDITIONS, save_grid
from recipes.sampling.unknown import Unknown, known_values

DROPPED = "none"
"""Value of the setting `condition` for samples without a condition."""
SHOWN = 64
"""Maximum number of conditions in an image."""
Source = Tensor | NamedFiles | HeldOut
"""What media are read from."""


def check_requested(model: TrainedModel, condition: str | None) -> None:
    """Check that samples are requested with a dense condition if and only if the model takes one.

    Raises:
        RecipeError: If there is one too many or too few, or none though the model was never trained without.
    """
    if model.dense is None:
        if condition not in (None, DROPPED):
            raise RecipeError(f"condition={condition}: this run was trained without a dense condition: remove it")
        return
    follows = follows_condition(model.config.get("covariance") or {})
    dropped = bool(model.config["training"]["condition_dropout"]) and not follows
    if condition is None:
        raise RecipeError(
            f"this run was trained with a dense condition ({condition_in_words(model)}): add condition=FOLDER or "
            f"condition=FILE with {media_in_words(model)}, or condition={HELD_OUT} for the conditions of held-out "
            f"examples{f', or condition={DROPPED} to draw without' * dropped}"
        )
    if condition == DROPPED and follows:
        raise RecipeError(
            f"condition={DROPPED}: the noise of this run follows the condition of each sample (covariance=…): add "
            f"condition=FOLDER or condition={HELD_OUT}"
        )
    if condition == DROPPED and not dropped:
        raise RecipeError(
            f"condition={DROPPED}: this run was never trained without its condition (training.condition_dropout=0): "
            "add condition=FOLDER"
        )


def condition_in_words(model: TrainedModel) -> str:
    """Return how a model's dense condition is made, as text."""
    target = model.config.get("condition", {}).get("_target_")
    stated = (model.metadata.get("condition") or {}).get("modality") or {}
    if str(stated.get("_target_")).endswith(f".{States.__name__}"):
        return "the states before a forecast"
    return "files of its own" if target is None else f"{str(target).rsplit('.', 1)[-1]} of the data"


def media_in_words(model: TrainedModel) -> str:
    """Return which media the conditions are read from, as text."""
    derived = model.config.get("condition", {}).get("_target_") is not None
    return "media like those that it was trained on" if derived else "such media"


def condition_modality(model: TrainedModel, assembly: Assembly, modality: Modality) -> Modality:
    """Return the modality of the conditions of samples: the run's own for conditions, or else that of the samples.

    Conditions that are derived from media may have another one than the media.

    Raises:
        RecipeError: If it has other channels than the condition that the network takes, a size that does not fit the
            data, or one size for samples of another size than the data.
    """
    stated = stated_modality(model, assembly, modality)
    if stated is not None:
        modality = assembly.builder.build(stated, Modality, "data.condition_modality")  # type: ignore[type-abstract]
        # The record may come from someone else: the size of conditions is bounded before a file is read.
        with as_recipe_error(ValueError, "data."):
            check_sizes(assembly.modality, modality)
    elif (derived := build_derived_condition(assembly.settings.condition, modality, assembly.builder)) is not None:
        modality = derived.modality(modality)
    if modality.channels != model.dense:
        raise RecipeError(
            f"this run takes conditions of {model.dense} channels, but its modality encodes {modality.channels}: files "
            "cannot be read for it. The class of its data must read them with a setting data.condition_modality"
        )
    return modality


def condition_suffixes(model: TrainedModel, assembly: Assembly, modality: Modality) -> tuple[str, ...]:
    """Return the endings of files that conditions of samples are read or derived from.

    Raises:
        RecipeError: If they cannot be read, see `condition_modality`.
    """
    conditions = condition_modality(model, assembly, modality)
    derived = build_derived_condition(assembly.settings.condition, modality, assembly.builder)
    return conditions.suffixes if derived is None else derived.suffixes(modality)


def stated_modality(model: TrainedModel, assembly: Assembly, samples: Modality) -> Mapping[str, Any] | None:
    """Return the configuration of a modality of its own that reads a run's conditions, or None, for `samples`.

    Raises:
        RecipeError: If it has one size, but the samples have another size than the data.
    """
    stated: Mapping[str, Any] | None = (model.metadata.get("condition") or {}).get("modality")
    size, trained = samples.grid().shape, assembly.modality.grid().shape
    if stated is not None and size != trained:
        raise RecipeError(
            f"the samples have the size {size}, but {trained} in training: the conditions of this run have one size "
            "(data.condition_modality), so remove the size, or pass conditions of another size as a tensor to Pipeline"
        )
    return stated


def dense_rows(
    source: Source, unknown: Unknown | None, model: TrainedModel, assembly: Assembly,
    modality: Modality, seed: int,
) -> DenseConditions:  # fmt: skip
    """Return dense conditions (rows, channels, *grid or coarser), from files, a tensor, or held-out examples.

    With `unknown`, for runs with condition=masked, they are the media without their unknown part.

    Raises:
        RecipeError: If they cannot be read, or not for this model.
    """
    derived = build_derived_condition(assembly.settings.condition, modality, assembly.builder)
    if unknown is not None:
        if not isinstance(derived, Masked):
            raise RecipeError(
                f"unknown: this run's condition ({condition_in_words(model)}) has no unknown part to choose: remove "
                "unknown, or add initial=FOLDER, of which it is a part"
            )
        media = media_of(source, modality, "condition")
        known = known_values(unknown, modality, media)
        return DenseConditions(media.x0.masked_fill(~known, torch.nan), modality)
    if isinstance(source, Tensor):
        if not len(source):
            raise RecipeError("condition: the tensor has no rows, one for each condition")
        return DenseConditions(source)
    if isinstance(source, HeldOut):
        if source.dense is None:
            raise RecipeError(
                f"condition={HELD_OUT}: the held-out examples have no conditions any more: restore data.condition_root"
            )
        return DenseConditions(source.dense, source.conditions)
    conditions = condition_modality(model, assembly, modality)
    reading = conditions if derived is None else modality
    return DenseConditions(_read_conditions(source, reading, derived, seed), conditions)


def media_of(source: Source, modality: Modality, key: str) -> Media:
    """Return the media of a source; `key` is the setting, for messages.

    Raises:
        RecipeError: If they cannot be read, or a tensor has another shape than one of the modality's media.
    """
    if isinstance(source, Tensor):
        return media_of_tensor(source, modality, key)
    return source.media if isinstance(source, HeldOut) else read_media(source, modality, key)


def _read_conditions(files: NamedFiles, modality: Modality, derived: DerivedCondition | None, seed: int) -> Tensor:
    """Return the conditions in files, or those derived from them: (files, channels, *grid or coarser), dimensionless.

    Raises RecipeError if a file cannot be read; the message names it.
    """
    conditions = []
    for number, path in enumerate(files.paths):
        with as_recipe_error((ValueError, OSError, UnreadableFilesError)), told_remarks("condition", path):
            if derived is None:
                condition = read_condition(path, modality, None)
            else:
                condition = derived.read(path, modality, derive(seed, "condition", number))
        conditions.append(condition)
    return torch.stack(conditions)


def is_part_of_data(assembly: Assembly) -> bool:
    """Whether the known values of a run's dense condition are values of the data, at the same points."""
    return isinstance(assembly.derived_condition(), FirstFrames | Masked)


def save_conditions(out: Path, conditions: DenseConditions) -> None:
    """Write the first conditions of a set of samples as one image to its folder, if there are any.

    Samples of a coarser grid are repeated, and unknown values are shown as 0.

    Raises RecipeError if they cannot be shown.
    """
    if conditions.dense is None or conditions.modality is None:
        return
    with as_recipe_error(ValueError, "the samples are complete, but their conditions cannot be shown: "):
        media = pictured(conditions.dense[:SHOWN], conditions.modality)
        save_grid(conditions.modality, media, out / CONDITIONS, None)


def pictured(dense: Tensor, modality: Modality) -> list[Any]:
    """Return conditions (count, channels, *grid or coarser) as media of a modality with as many channels."""
    for axis, size in enumerate(modality.grid().shape, start=2):
        dense = dense.repeat_interleave(size // dense.shape[axis], dim=axis)
    return [modality.decode(each) for each in dense.nan_to_num(0.0)]
