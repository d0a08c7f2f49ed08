"""Divide the data of a run into parts for training, validation and testing; equal settings give equal parts.

The held-out part is one of: the data in `validation.root`; the examples that the data assign to validation (with
folders, or the column `split` of a manifest); groups that are drawn at random (`validation.group`); or examples that
are drawn at random.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from modalities.base import Dataset, split, split_groups
from modalities.labels import marked
from modalities.latent import Latent
from modalities.mixture import Mixture
from modalities.reading import MediaFiles, UnreadableFilesError
from modalities.tables import TableDataset
from modalities.tars import TarShards
from modalities.wrapped import Relabelled, transformed_alike, untouched
from multisagd.addresses import is_address, without_secrets
from multisagd.seeds import derive
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.config.build import Builder
from recipes.data.dataset import LOCATION_KEYS, build_dataset, training_split
from recipes.data.extents import UNRECORDED, Record
from recipes.data.order import Order
from recipes.runs.settings import TrainSettings
from recipes.runtime.distribution import is_first

ROOT, GROUP, MANIFEST = "validation.root", "validation.group", "manifest"
NOTHING_HELD_OUT = (
    "this run has no held-out examples to compare with: train a run with validation data, for example with "
    "validation.holdout=0.05"
)
log = logging.getLogger("multisagd")
DIFFERENT = 0.5
"""Maximum difference from the requested number of held-out examples, as a fraction of it, without a note."""


class Parts(NamedTuple):
    """The parts of a run's data; `held_out` is for validation, and `test` for evaluation only.

    `separate` is the dataset in `validation.root`, or None. `groups` is the number of groups held out: 0 if single
    examples are held out. As text, the parts other than `training` with their sizes.
    """

    training: Dataset
    held_out: Dataset | None
    test: Dataset | None = None
    separate: Dataset | None = None
    groups: int = 0

    def stored_in(self, dataset: Dataset) -> tuple[Dataset, ...]:
        """Return the divided dataset, and the one in `validation.root` if there is one."""
        return (dataset,) if self.separate is None else (dataset, self.separate)

    def __str__(self) -> str:
        count = 0 if self.held_out is None else len(self.held_out)
        if self.separate is not None:
            return f"{count:,} others for validation"
        if untouched(self.training).splits is not None:
            validation = f"{count:,} more for validation" if count else "none for validation"
            return validation if self.test is None else f"{validation}, {len(self.test):,} for testing"
        whole = f" in {self.groups} whole group{'s' * (self.groups != 1)}" if self.groups else ""
        return f"{count:,} more held out{whole}" if count else "none held out"


def hold_out(dataset: Dataset, settings: TrainSettings, builder: Builder, extents: Record = UNRECORDED) -> Parts:
    """Return the parts of a dataset, which may be corrupted or restored.

    `extents` is a record of the sizes of the files in `validation.root`, if there is one.

    If examples are drawn at random, and the run is conditional on classes, every class keeps an example for training.

    Raises:
        RecipeError: If nothing would remain to train on, the settings contradict the data, classes cannot be read, or
            the validation data cannot be used.
    """
    options, seed = settings.validation, derive(settings.seed, "holdout")
    learns_classes = settings.training.conditional is not False and settings.text.get("_target_") is None
    splits = untouched(dataset).splits
    if splits is not None:
        return _given_parts(dataset, splits, settings)
    if options.root is not None:
        apart = separate(untouched(dataset), options.root, ROOT, settings, builder, extents)
        alike = transformed_alike(dataset, apart)
        return Parts(dataset, alike, separate=alike)
    remedy = "; validation.holdout=0 trains on all examples"
    if options.group is None:
        with (
            as_recipe_error(UnreadableFilesError, "data: "),
            as_recipe_error(ValueError, "validation.holdout: ", remedy),
        ):
            return Parts(*split(dataset, options.holdout, seed, learns_classes))
    with as_recipe_error(ValueError):
        names = group_names(dataset, options.group)
    remedy = f"; change {GROUP} or validation.holdout; {GROUP}=null holds out single examples"
    with as_recipe_error(UnreadableFilesError, "data: "), as_recipe_error(ValueError, f"{GROUP}: ", remedy):
        training, held_out = split_groups(dataset, names, options.holdout, seed, learns_classes)
    return Parts(training, held_out, groups=0 if held_out is None else len(set(group_names(held_out, options.group))))


def validated(held_out: Dataset, settings: TrainSettings) -> Dataset:
    """Return the held-out examples, in a fixed random order if validation uses only the first `validation.items`.

    In the order of their paths, the first ones would belong to only a few classes or people.
    """
    if len(held_out) <= settings.validation.items:
        return held_out
    indices = Order(len(held_out), derive(settings.seed, "validation")).indices(0, len(held_out))
    groups, items = held_out.groups, settings.validation.items
    if groups is not None and groups.whole:  # so that each group is read once
        indices[:items] = sorted(indices[:items])
    return held_out.subset(indices)


def held_out_note(parts: Parts, settings: TrainSettings) -> str | None:
    """Return a note if there are no examples for validation, or their number is not as requested, or else None."""
    training, count = parts.training, 0 if parts.held_out is None else len(parts.held_out)
    holdout = settings.validation.holdout
    if parts.separate is not None:
        return None
    if untouched(training).splits is not None:
        missing = (
            "the data come with splits, but no example has the split validation, so there is no validation "
            "(validation.holdout is not used)"
        )
        return None if count else missing
    if holdout == 0:
        return "validation.holdout=0: no examples are held out of training, so there is no validation"
    requested = int(holdout) if holdout >= 1 else round(holdout * (len(training) + count))
    few = f"{count or 'no'} example{'s' * (count != 1)} held out, though validation.holdout={holdout:g}"
    if parts.groups:
        near = abs(count - requested) <= DIFFERENT * max(1, requested)
        whole = f"{few} requests {requested}: groups are not divided, and every class keeps an example for training"
        return None if near else whole
    if 0 < requested <= count or (count and requested == 0):
        return None
    if len(training) == 1:
        return "the only example is used for training, so there is no validation"
    names = training.classes or ()
    return (
        f"{few}: each of {len(names)} classes keeps one example for training (data.labels=none trains without classes)"
    )


def group_names(dataset: Dataset, group: str) -> list[str]:
    """Return the name of every example's group, which the regular expression `group` finds in its path.

    If `group` is MANIFEST, the names are those in the manifest's column `group`.

    Raises:
        ValueError: If the dataset has no paths or no such column, or the expression is invalid or finds no group in a
            path; the message names the first one.
    """
    files = untouched(dataset)
    if group == MANIFEST:
        if not isinstance(files, MediaFiles | Mixture) or files.listed_groups is None:
            raise ValueError(
                f"{GROUP}={MANIFEST} needs a manifest with a column group: add the column, and set data.manifest (or "
                "data.group_column, for data in Parquet files or from the Hub; or data.group, for arrays)"
            )
        return list(files.listed_groups)
    if not isinstance(files, MediaFiles | Mixture):
        raise ValueError(
            f"{GROUP}={group}: {type(files).__name__} has no files whose paths could be searched for groups. Use a "
            f"folder of files or tar shards, or {GROUP}=null, which holds out single examples"
        )
    search = marked(GROUP, group, "group", "group")
    names: list[str] = []
    for path in map(files.path, range(len(files))):
        name = search(path)
        if not name:
            raise ValueError(
                f"{GROUP}={group!r} finds no group in {path}: change the expression so that it finds one in every path"
            )
        names.append(name)
    return names


def check_kept(dataset: Dataset, written: str) -> None:
    """Raise RecipeError if data come with splits, weights or conditions, which the files to be `written` do not keep.

    A warning names the columns of numbers and of groups that they do not keep.
    """
    files = untouched(dataset)
    columns = [name for name in dataset.scalars if name not in dataset.modality.scalars]
    if isinstance(files, MediaFiles | Mixture) and files.listed_groups is not None:
        columns.append("group")
    if columns and is_first():
        log.warning("%s do not keep these columns of the manifest: %s", written, ", ".join(columns))
    if dataset.condition_modality is not None:
        raise RecipeError(f"{written} do not keep the conditions of examples: remove data.condition_root or data.lead")
    if dataset.weights is not None:
        raise RecipeError(f"{written} do not keep the proportions of a mixture: remove data.weights and data.repeats")
    if dataset.splits is not None:
        raise RecipeError(
            f"the data come with splits, which {written} do not keep, so test data would be used for training: "
            "write each split to its own folder, selected by data.match (with data.splits=auto) or by a manifest "
            f"without the column split, and train with {ROOT} set to the folder of the validation data"
        )


def _given_parts(dataset: Dataset, splits: Sequence[str], settings: TrainSettings) -> Parts:
    """Return the parts that the data themselves define."""
    for key, value in ((ROOT, settings.validation.root), (GROUP, settings.validation.group)):
        if value is not None:
            raise RecipeError(
                f"{key}={value}, but the data come with splits (folders, the column split of a manifest, or those of "
                "forecasts, data.lead), which define the validation data: remove one of them"
            )

    def part(name: str) -> Dataset | None:
        numbers = [number for number, each in enumerate(splits) if each == name]
        return dataset.subset(numbers) if numbers else None

    return Parts(training_split(dataset), part("validation"), part("test"))


def separate(
    dataset: Dataset, root: str, named: str, settings: TrainSettings, builder: Builder, extents: Record
) -> Dataset:
    """Return the data in the folder `root`, with the modality and the classes of the training data.

    `named` is the setting with this folder, for messages, and `extents` the record of the sizes of its files. Raises
    RecipeError if the data cannot be used.
    """
    data = settings.data
    key = next((key for key in LOCATION_KEYS if key in data), None)
    if key is None:
        raise RecipeError(
            f"{named}={root} replaces the location of the data, but {type(dataset).__name__} has no key data.root: "
            f"use {named}=null, and validation.holdout to hold out examples"
        )
    if isinstance(data.get("train"), bool):
        # Another copy of the same files is no other data.
        raise RecipeError(
            f"{named}={without_secrets(root)}: {type(dataset).__name__} reads the same published examples from every "
            f"folder: remove it. validation.holdout holds examples out, and `multisagd evaluate` uses the test part"
        )
    if is_address(root):
        # Sampling and evaluation open no address of a run that the command line does not repeat.
        raise RecipeError(f"{named}={without_secrets(root)} is an address: use a folder on this machine")
    if key == "root":
        _check_apart(Path(str(data[key])), Path(root), named)
    modality = dataset.modality
    if isinstance(modality, Latent) and modality.statistics is not None:
        # The folder's own scale is replaced below: all latents need the scale of the training data.
        with as_recipe_error(ValueError, f"{named}={root}: "):
            modality = dataclasses.replace(modality, statistics=Path(root))
    _check_unpaired(dataset, root, named)
    own = {**data, key: root}
    if data.get("splits") == "folders":
        own["splits"] = "auto"  # this folder is one split
    files = build_dataset(own, modality, builder, named, extents)
    if files.classes is None and dataset.classes is not None and data.get("labels") == "auto":
        # All files may be in the folder of one class.
        files = build_dataset({**own, "labels": "folder"}, modality, builder, named, extents)
    files.modality = dataset.modality
    if files.splits is not None:
        raise RecipeError(
            f"{named}={root}: its manifest has a column split, but all its files are used alike: remove this column"
        )
    if settings.text.get("_target_") is not None and dataset.captions(0) and not files.captions(0):
        raise RecipeError(f"{named}={root}: these data have no captions, but those in {data[key]} have: add captions")
    if isinstance(dataset, TarShards | TableDataset):
        ours, theirs = (
            {Path(source.path).resolve() for source in each.stored() if source.local} for each in (dataset, files)
        )
        if ours & theirs:
            raise RecipeError(f"{named}={root}: {min(ours & theirs)} is also used for training: move it")
    remedy = (
        f" (training data: {data[key]}). Give every file a class of the training data, or train without classes "
        "(data.labels=none)"
    )
    with as_recipe_error(ValueError, f"{named}={root}: ", remedy):
        return Relabelled(files, dataset.classes)


def _check_unpaired(dataset: Dataset, root: str, named: str) -> None:
    """Raise RecipeError if examples have conditions: files of equal names would be paired with those of others."""
    if dataset.condition_modality is not None:
        raise RecipeError(
            f"{named}={without_secrets(root)}: the examples have conditions (data.condition_root), which those in "
            "another folder lack: hold out examples (validation.holdout), or set data.splits=folders and put the "
            "folders train, validation and test into both data.root and data.condition_root"
        )


def _check_apart(training: Path, other: Path, named: str) -> None:
    """Raise RecipeError if two folders are the same, or one contains the other; `named` is the setting of the other."""
    ours, theirs = training.resolve(), other.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        how = "is the same folder as" if ours == theirs else "is inside" if theirs.is_relative_to(ours) else "contains"
        raise RecipeError(
            f"{named}={other} {how} data.root={training}, so some files would be used both for training and for "
            "comparison: move one of the folders, set data.splits=folders if data.root consists of the folders train, "
            "validation and test, or mark the files in the column split of a manifest"
        )
