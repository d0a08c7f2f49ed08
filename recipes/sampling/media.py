"""The media of a sampling request: what samples start from, their dense conditions, and the values that they keep."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.unknown import marking_what_lacks
from multisagd.inpainting import put_back
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.runs.assembly import Assembly, follows_condition
from recipes.runs.model import TrainedModel
from recipes.runs.settings import SampleSettings, check_media
from recipes.runtime.distribution import is_first
from recipes.sampling.condition import NO_DENSE, DenseConditions
from recipes.sampling.dense import (
    DROPPED,
    Source,
    check_requested,
    condition_suffixes,
    dense_rows,
    is_part_of_data,
    media_of,
    stated_modality,
)
from recipes.sampling.generate import SamplingRequest
from recipes.sampling.held_out import HELD_OUT, HeldOut, read_held_out
from recipes.sampling.media_files import COUNT, NamedFiles, named_files, paired
from recipes.sampling.start import Start
from recipes.sampling.unknown import MISSING, Unknown, known_values

STRENGTH = 0.7
"""Fraction of the steps for variations, unless it is given: on digits, it keeps the layout but not the strokes."""
log = logging.getLogger("multisagd")


@dataclass(frozen=True, eq=False)
class MediaOptions:
    """Which media samples are drawn with; see configs/sample.yaml. Tensors are for pipelines.

    `own_labels` says whether held-out examples come with their classes.
    """

    initial: str | Path | Tensor | None = None
    condition: str | Path | Tensor | None = None
    strength: float | None = None
    unknown: Unknown | None = None
    keep_known: bool = True
    count: int | None = None
    seed: int = 0
    own_labels: bool = True
    members: int | None = None

    @classmethod
    def of(cls, settings: SampleSettings) -> Self:
        """Return the options in the settings of a command."""
        return cls(
            settings.initial, settings.condition, settings.strength, settings.unknown, settings.keep_known,
            settings.count, settings.seed, settings.labels == "all", settings.members,
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class SamplingMedia:
    """The media of `count` samples: their dense conditions, what they start from, and what they keep.

    `kept` are values (count, channels, *grid), NaN where samples are free, that are put back into the samples; `start`
    and `kept` may be None.
    """

    count: int
    dense: DenseConditions
    start: Start | None = None
    kept: Tensor | None = None

    def check(self, request: SamplingRequest) -> None:
        """Raise RecipeError if samples that start from media cannot be drawn as requested."""
        if self.start is not None and request.refinement.iterations:
            raise RecipeError("initial and refine exclude each other, as refine starts from noise: set refine=none")

    def finished(self, x0: Tensor) -> Tensor:
        """Return samples (count, channels, *grid) with the values that they keep."""
        return x0 if self.kept is None else put_back(x0, self.kept, ~self.kept.isnan())


def sampling_media(options: MediaOptions, model: TrainedModel, assembly: Assembly, modality: Modality) -> SamplingMedia:
    """Return the media of samples.

    Without `options.count`, there are `options.members` samples (by default one) for each file, or else `COUNT`
    samples. More samples than media have the media in turn; with both, only the first `count / members` media are used.

    Raises:
        RecipeError: If media are requested that the model does not take, or lacks, or that cannot be read.
    """
    given = options.condition
    check_requested(model, "a tensor" if isinstance(given, Tensor) else None if given is None else str(given))
    _check(options, assembly)
    reader = _Reader(options, model, assembly, modality)
    files = {key: reader.files(key) for key in ("initial", "condition")}
    naming, each = paired(files["initial"], files["condition"]), options.members or 1
    count = options.count or (max(1, COUNT // each) * each if naming is None else each * len(naming.named))
    rows = count if options.members is None else count // each
    naming = None if naming is None else naming.first(rows)
    sources = {key: reader.source(key, files[key], rows) for key in files}
    start = reader.start(sources["initial"], count)
    dense = reader.dense(sources["condition"], count)
    labels = [each.labels for each in sources.values() if isinstance(each, HeldOut) and each.labels is not None]
    own = labels[0] if labels and options.own_labels and assembly.classes is not None else None
    dense = replace(
        dense, names=None if naming is None else naming.names(count),
        labels=None if own is None else own[_turn(count, len(own))].tolist(),
    )  # fmt: skip
    return SamplingMedia(count, dense, start, reader.kept(start, dense.dense))


def _check(options: MediaOptions, assembly: Assembly) -> None:
    """Check that a run supports the options.

    Raises:
        RecipeError: If it does not, or options exclude each other.
    """
    with as_recipe_error(ValueError):
        check_media(options.initial, options.condition, options.strength, options.unknown)
    _check_members(options)
    if options.initial is None:
        return
    if assembly.corruption() is not None:
        raise RecipeError(
            "initial: a run on corrupted data cannot start from media, because the noise of its process is that of the "
            "corruption: remove initial"
        )
    if options.unknown is not None and follows_condition(assembly.settings.covariance):
        raise RecipeError(
            "unknown: the noise of this run follows the condition of each sample (covariance=…), so known values "
            "cannot guide it: train with covariance=shared, or with condition=masked"
        )
    if options.unknown is not None and any((assembly.settings.padding or {}).values()):
        raise RecipeError(
            "unknown: the noise of this run is drawn on a larger grid (padding), so known values cannot guide it: "
            "train without padding, or with condition=masked"
        )


def _check_members(options: MediaOptions) -> None:
    """Check that samples can be drawn in ensembles of `options.members`.

    Raises:
        RecipeError: If their count is another, or the members of an ensemble have nothing in common.
    """
    members = options.members
    if members is None:
        return
    if (options.count or members) % members:
        raise RecipeError(f"count={options.count} is not a whole multiple of members={members}: change one")
    if options.initial is None and (options.condition is None or str(options.condition) == DROPPED):
        raise RecipeError(
            f"members={members}: without media, samples have nothing in common: set members=null, add initial=FOLDER, "
            f"or condition=FOLDER or {HELD_OUT} for a run that was trained with a dense condition"
        )


@dataclass(frozen=True, eq=False)
class _Reader:
    options: MediaOptions
    model: TrainedModel
    assembly: Assembly
    modality: Modality

    def files(self, key: str) -> NamedFiles | None:
        """Return the files of a setting, or None if it has another value."""
        value = getattr(self.options, key)
        if value is None or isinstance(value, Tensor) or str(value) in (HELD_OUT, DROPPED):
            return None
        suffixes = self.modality.suffixes
        if key == "condition" and (self.options.initial is not None or self.options.unknown is None):
            suffixes = condition_suffixes(self.model, self.assembly, self.modality)
        return named_files(Path(value), suffixes, key)

    def source(self, key: str, files: NamedFiles | None, count: int) -> Source | None:
        """Return what the media of a setting are read from for `count` samples."""
        value = getattr(self.options, key)
        if isinstance(value, Tensor):
            return value
        if files is not None:
            return files.first(count)
        if str(value) != HELD_OUT:
            return None
        if key == "condition":
            stated_modality(self.model, self.assembly, self.modality)  # refuses a size that conditions do not have
        return read_held_out(self.model, self.assembly, self.modality, count, self.options.seed, key)

    def start(self, source: Source | None, count: int) -> Start | None:
        """Return what `count` samples start from."""
        if source is None:
            return None
        options, reading = self.options, self.modality
        if isinstance(options.unknown, str) and options.unknown == MISSING:
            reading = marking_what_lacks(reading)
        media = media_of(source, reading, "initial")
        turn = _turn(count, len(media.x0))
        known = None
        if options.unknown is not None:
            known = known_values(options.unknown, self.modality, media)[turn]
        elif media.present is not None and is_first():
            lacking = int((~media.present).flatten(1).any(1).sum())
            log.warning(
                "initial: %d of %d media are shorter than the samples or lack values; what they lack is filled with "
                "silence, a still or zeros and varied like the rest. unknown=%s fills it in instead",
                lacking, len(media.x0), MISSING,
            )  # fmt: skip
        strength = options.strength or (STRENGTH if known is None else 1.0)
        return Start(media.x0[turn], strength, self.model.statistics, known)

    def dense(self, source: Source | None, count: int) -> DenseConditions:
        """Return the dense conditions of `count` samples."""
        if source is None:
            return NO_DENSE
        unknown = self.options.unknown if self.options.initial is None else None
        rows = dense_rows(source, unknown, self.model, self.assembly, self.modality, self.options.seed)
        assert rows.dense is not None
        return replace(rows, dense=rows.dense[_turn(count, len(rows.dense))])

    def kept(self, start: Start | None, dense: Tensor | None) -> Tensor | None:
        """Return the values that samples keep (count, channels, *grid), NaN elsewhere, or None."""
        if not self.options.keep_known:
            return None
        if start is not None and start.known is not None:
            return start.x0.masked_fill(~start.known, torch.nan)
        if dense is None or not is_part_of_data(self.assembly):
            return None
        if tuple(dense.shape[1:]) != self.modality.tensor_shape:
            raise RecipeError(
                f"condition: the known values are of shape {tuple(dense.shape[1:])}, but the samples of "
                f"{self.modality.tensor_shape}: pass values of that shape, or set keep_known=false"
            )
        return dense


def _turn(count: int, rows: int) -> Tensor:
    """Return the row of each of `count` samples."""
    return torch.arange(count) % rows
