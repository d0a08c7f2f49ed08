"""The dense condition of each sample: from media files, or from the held-out examples of the run."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.base import Batch, Dataset, Modality, stack_masks
from modalities.buckets import reference_bucket
from modalities.derived_conditions import DerivedCondition
from modalities.endings import ending_of
from modalities.file_walk import find_files
from modalities.forecasts import States
from modalities.pairs import check_sizes, read_condition
from modalities.reading import UnreadableFilesError, read_batch
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.config.build import Builder
from recipes.data.dataset import build_data
from recipes.data.extents import FILES, Record, of_reference_size
from recipes.data.order import Order
from recipes.data.parts import NOTHING_HELD_OUT, hold_out
from recipes.runs.assembly import Assembly, build_derived_condition
from recipes.runs.model import TrainedModel
from recipes.runs.settings import SampleSettings, TrainSettings
from recipes.sampling.condition import DenseConditions
from recipes.sampling.sample_files import CONDITIONS, save_grid

HELD_OUT, DROPPED = "held_out", "none"
"""Values of the setting `condition` that are not files: those of held-out examples, and no condition."""
COUNT = 64
"""Number of samples, unless it is given or there is one for each file; also of conditions that are shown."""
LONGEST_NAME = 200
"""Maximum number of bytes of the name of a sample, of which the last ones are kept."""


@dataclass(frozen=True)
class MediaFiles:
    """Files of conditions, by names for the samples that are drawn with them."""

    named: Mapping[str, Path]

    def names(self, count: int) -> list[str]:
        """Return the names of `count` samples, which have the files in turn."""
        rounds = -(-count // len(self.named))
        pairs = itertools.product(range(rounds), self.named)
        return [name if rounds == 1 else f"{name}_{turn}" for turn, name in itertools.islice(pairs, count)]


def check_requested(model: TrainedModel, condition: str | None) -> None:
    """Check that samples are requested with a dense condition if and only if the model takes one.

    Raises:
        RecipeError: If there is one too many or too few, or none though the model was never trained without.
    """
    if model.dense is None:
        if condition not in (None, DROPPED):
            raise RecipeError(f"condition={condition}: this run was trained without a dense condition: remove it")
        return
    if condition is None:
        raise RecipeError(
            f"this run was trained with a dense condition ({condition_in_words(model)}): add condition=FOLDER or "
            f"condition=FILE with {media_in_words(model)}, condition={HELD_OUT} for the conditions of held-out "
            f"examples, or condition={DROPPED} to draw without"
        )
    if condition == DROPPED and not model.config["training"]["condition_dropout"]:
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
    """Return the modality that reads the conditions of samples: the run's own for conditions, or that of the samples.

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
    if modality.channels != model.dense:
        raise RecipeError(
            f"this run takes conditions of {model.dense} channels, but its modality encodes {modality.channels}: files "
            "cannot be read for it. The class of its data must read them with a setting data.condition_modality"
        )
    return modality


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


def media_files(path: Path, modality: Modality) -> MediaFiles:
    """Return the file at a path, or those under a folder that the modality reads, with a name for each.

    The name is the path under the folder without its ending, with _ for /.

    Raises:
        RecipeError: If there is no such file, or two have one name.
    """
    with as_recipe_error(OSError, "condition: "):
        if path.is_dir():
            root, files = path, find_files(path, modality.suffixes).media
        elif ending_of(path.name, modality.suffixes) and path.is_file():
            root, files = path.parent, [path.name]
        else:
            problem = "is not a file that is read" if path.exists() else "does not exist"
            known = ", ".join(modality.suffixes)
            raise RecipeError(f"condition={path} {problem}: choose a folder, or a file that ends in {known}")
    named: dict[str, Path] = {}
    for file in files:
        stem = file[: len(file) - len(ending_of(file, modality.suffixes))].replace("/", "_")
        name = stem.encode("utf-8", "surrogateescape")[-LONGEST_NAME:].decode("utf-8", "ignore")
        if name in named:
            raise RecipeError(f"condition: {named[name]} and {root / file} would give samples of one name: rename one")
        named[name] = root / file
    return MediaFiles(named)


def read_media(files: Sequence[Path], modality: Modality, derived: DerivedCondition | None, seed: int) -> Tensor:
    """Return the conditions in files, or those derived from them: (files, channels, *grid or coarser), dimensionless.

    Raises RecipeError if a file cannot be read; the message names it.
    """
    conditions = []
    for number, path in enumerate(files):
        with as_recipe_error((ValueError, OSError, UnreadableFilesError), "condition: "):
            condition = read_condition(path, modality, None)
            if derived is not None:
                condition = derived.derive(condition, modality.grid(), derive(seed, "condition", number))
        conditions.append(condition)
    return torch.stack(conditions)


def held_out_examples(
    settings: SampleSettings, model: TrainedModel, assembly: Assembly, modality: Modality, count: int
) -> tuple[Batch, Modality | None]:
    """Return up to `count` held-out examples of a run, at the size of the modality, with their conditions.

    They are the first ones of an order that depends on `settings.seed`. The second result is the modality of the
    conditions.

    Raises:
        RecipeError: If the run has no held-out examples, its data cannot be read, or the size does not fit conditions.
    """
    if model.exported is not None:
        raise RecipeError(
            f"condition={HELD_OUT}: {model.folder} is an exported model, which has no data: add condition=FOLDER"
        )
    stated_modality(model, assembly, modality)
    build_derived_condition(assembly.settings.condition, modality, assembly.builder)  # refuses sizes that do not fit
    run = assembly.builder.settings(TrainSettings, model.located, "")
    known, other = (Record(settings.run_dir / name) for name in FILES)
    dataset = build_data(run.data, run.corruption, run.seed, assembly.modality, assembly.builder, known)
    held_out = hold_out(dataset, run, assembly.builder, other).held_out
    if held_out is None:
        raise RecipeError(f"condition={HELD_OUT}: {NOTHING_HELD_OUT}; or add condition=FOLDER")
    examples = assembly.conditioned(of_sample_size(held_out, modality, settings.sizes))
    indices = Order(len(examples), derive(settings.seed, "condition")).indices(0, min(count, len(examples)))
    with as_recipe_error(UnreadableFilesError):
        parts = [read_batch(examples, indices[start : start + COUNT]) for start in range(0, len(indices), COUNT)]
    dense, labels = [part.dense for part in parts], [part.labels for part in parts]
    if all(each is None for each in dense):
        raise RecipeError(
            f"condition={HELD_OUT}: the held-out examples have no conditions any more: restore data.condition_root"
        )

    def whole(tensors: Sequence[Tensor | None]) -> Tensor | None:
        given = [each for each in tensors if each is not None]
        return torch.cat(given) if len(given) == len(tensors) else None

    x0 = torch.cat([part.x0 for part in parts])
    masks = [row for part in parts for row in ([None] * len(part.x0) if part.mask is None else part.mask)]
    mask = stack_masks(masks, x0.shape[1:])
    return Batch(x0, whole(labels), mask, dense=whole(dense)), examples.condition_modality


def of_sample_size(dataset: Dataset, modality: Modality, sizes: Mapping[str, Any]) -> Dataset:
    """Return examples at the size of a modality: those of its bucket, or all if a size was requested."""
    if sizes:
        return dataset.with_modality(modality)
    return dataset if reference_bucket(dataset) is dataset else of_reference_size(dataset)


def dense_conditions(
    settings: SampleSettings, model: TrainedModel, assembly: Assembly, modality: Modality
) -> tuple[int, DenseConditions]:
    """Return the number of samples, and their dense conditions.

    Without `settings.count`, there are `settings.members` samples for each file, or else `COUNT` samples. More samples
    than files have the files in turn.

    Raises:
        RecipeError: If a condition is requested that the model does not take, or lacks, or cannot be read.
    """
    check_requested(model, settings.condition)
    members = settings.members
    if members is not None and (settings.count or members) % members:
        raise RecipeError(f"count={settings.count} is not a whole multiple of members={members}: change one")
    if settings.condition in (None, DROPPED):
        if members is not None:
            raise RecipeError(
                f"members={members}: without a dense condition, samples have nothing in common: set members=null, or "
                f"condition=FOLDER or {HELD_OUT} for a run that was trained with one"
            )
        return settings.count or COUNT, DenseConditions()
    if settings.condition == HELD_OUT:
        each = members or 1
        count = settings.count or max(1, COUNT // each) * each
        batch, shown = held_out_examples(settings, model, assembly, modality, count // each)
        turn = torch.arange(count) % len(batch.x0)
        own = batch.labels if assembly.classes is not None and settings.labels == "all" else None
        dense = None if batch.dense is None else batch.dense[turn]
        return count, DenseConditions(dense, shown, labels=None if own is None else own[turn].tolist())
    path = Path(str(settings.condition))
    conditions = from_files(path, model, assembly, modality, settings.count, settings.seed, members)
    return len(conditions.names or ()), conditions


def from_files(
    path: Path, model: TrainedModel, assembly: Assembly, modality: Modality, count: int | None, seed: int,
    members: int | None = None,
) -> DenseConditions:  # fmt: skip
    """Return the conditions of `count` samples, or `members` for each file, from the files at a path in turn.

    With both, only the first `count / members` files are used.

    Raises:
        RecipeError: If they cannot be read, or not for this model.
    """
    reading = condition_modality(model, assembly, modality)
    files = media_files(path, reading)
    each = members or 1
    if count is not None and members is not None:
        files = MediaFiles(dict(itertools.islice(files.named.items(), count // each)))
    paths, count = list(files.named.values()), count or each * len(files.named)
    derived = build_derived_condition(assembly.settings.condition, modality, assembly.builder)
    dense = read_media(paths[:count], reading, derived, seed)
    return DenseConditions(dense[torch.arange(count) % len(dense)], reading, files.names(count))


def pipeline_conditions(
    condition: str | Path | Tensor | None, model: TrainedModel, builder: Builder, modality: Modality, count: int,
    seed: int,
) -> DenseConditions:  # fmt: skip
    """Return the dense conditions of `count` samples that a pipeline draws, in turn from files or rows of a tensor.

    A tensor is (conditions, channels, *grid or coarser), dimensionless.

    Raises:
        RecipeError: If a condition is requested that the model does not take, or lacks, or cannot be read.
    """
    named = "a tensor" if isinstance(condition, Tensor) else condition
    check_requested(model, None if named is None else str(named))
    if condition is None or named == DROPPED:
        return DenseConditions()
    if isinstance(condition, Tensor):
        if not len(condition):
            raise RecipeError("condition: the tensor has no rows, one for each condition")
        return DenseConditions(condition[torch.arange(count) % len(condition)])
    return from_files(Path(condition), model, model.assembly(builder), modality, count, seed)


def save_conditions(out: Path, conditions: DenseConditions) -> None:
    """Write the first conditions of a set of samples as one image to its folder, if there are any.

    Samples of a coarser grid are repeated, and unknown values are shown as 0.

    Raises RecipeError if they cannot be shown.
    """
    if conditions.dense is None or conditions.modality is None:
        return
    with as_recipe_error(ValueError, "the samples are complete, but their conditions cannot be shown: "):
        media = pictured(conditions.dense[:COUNT], conditions.modality)
        save_grid(conditions.modality, media, out / CONDITIONS, None)


def pictured(dense: Tensor, modality: Modality) -> list[Any]:
    """Return conditions (count, channels, *grid or coarser) as media of a modality with as many channels."""
    for axis, size in enumerate(modality.grid().shape, start=2):
        dense = dense.repeat_interleave(size // dense.shape[axis], dim=axis)
    return [modality.decode(each) for each in dense.nan_to_num(0.0)]
