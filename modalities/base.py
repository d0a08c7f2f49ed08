"""The interfaces of every medium (`Modality`) and of every dataset used in training (`Dataset`).

A modality converts one medium to tensors on a grid and back; a dataset lists examples of it. Nothing here is specific
to images, audio or video: a new medium needs one class with the abstract methods of `Modality`, and inherits the rest.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from modalities.sizes import Extent
from modalities.variables import Variable
from multisagd.condition import AnyCondition, Condition
from multisagd.grid import Grid
from multisagd.seeds import derive

if TYPE_CHECKING:
    from modalities.byte_ranges import Source

DatasetT = TypeVar("DatasetT", bound="Dataset")
Split = Literal["train", "validation", "test"]
"""What an example is used for: training, validation during training, or evaluation afterwards."""


class UnusableFileError(ValueError):
    """A file cannot be used, whatever the seed."""


class Modality(ABC):
    """Converts one medium to tensors and back.

    `media` is the form of the medium in memory: uint8 pixels for images. `decode(encode(media))` equals `media`, up to
    the losses that the modality declares. No state is kept between calls, so threads can share a modality. Frozen
    dataclasses are recommended, because their settings are then checked against the type hints.
    `multisagd.testing.check_modality` tests these properties.
    """

    @classmethod
    def resolved(cls, settings: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings of a configuration, with those that are to be taken from files replaced by their values.

        Commands call it once, before anything is built, and save the result with the run, so that a run does not need
        these files later. `data` is the configuration of the data. By default, the settings are returned unchanged.

        Raises:
            ValueError: If the settings cannot be taken from the files; the message names the key and the remedy.
        """
        return dict(settings)

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of channels of an encoded example."""

    @property
    @abstractmethod
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes that are read, in lower case and with the dot; files are written with the first one."""

    @abstractmethod
    def grid(self) -> Grid:
        """Return the grid of an encoded example: axes with their physical spacing, unit and corner frequency."""

    @property
    def variables(self) -> tuple[Variable, ...] | None:
        """The meaning of each channel, which figures show, or None if the channels are not variables of their own."""
        return None

    @property
    def meaningless_axes(self) -> Mapping[str, str]:
        """The axes along which frequencies mean nothing, each with the remedy; by default there are none.

        Noise should have equal power at all frequencies of such an axis, unless its power is measured from the data.
        """
        return {}

    @property
    def origins(self) -> Mapping[str, float]:
        """The position of the first sample along each axis, in its unit; it is 0 for axes that are not named."""
        return {}

    @property
    def reach(self) -> Mapping[str, float]:
        """How far from its own position a value of encoded data depends on the media, in the unit of the axis.

        It is 0 for axes that are not named. The values of a spectrogram depend on a window of the sound.
        """
        return {}

    @property
    def scalars(self) -> Mapping[str, str]:
        """The names of the numbers that `load` records (see `modalities.scalars`), each with its unit."""
        return {}

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The settings that determine the size of the grid and nothing else, such as `size`; by default there are none.

        Samples can be drawn with other values of them; see `at`.
        """
        return ()

    @property
    def buckets(self) -> Any:
        """The sizes of the buckets into which files are sorted for training, or None if all examples have one size."""
        return None

    @property
    def sorts_files(self) -> bool:
        """Whether files are sorted into buckets, or some are omitted, by the sizes that their headers state."""
        return self.buckets is not None

    def at(self, **sizes: Any) -> Self:
        """Return this modality, which must be a dataclass, with other values of its `size_keys` and without buckets.

        Raises:
            ValueError: If one of the names is not among the `size_keys`, or a value is invalid.
        """
        for name in sizes:
            if name not in self.size_keys:
                known = f"it has {' and '.join(self.size_keys)}" if self.size_keys else "its size is fixed"
                raise ValueError(f"{name}: {type(self).__name__} has no such size; {known}")
        without = {} if self.buckets is None else {"buckets": None}
        return dataclasses.replace(self, **sizes, **without) if sizes or without else self  # type: ignore[type-var]

    def in_buckets(self) -> tuple[Self, ...]:
        """Return this modality at the size of each bucket, its own size first, or only itself if there are no buckets.

        All have the same axes with the same spacing, and `grid()` is that of the first one, the reference.
        """
        return (self,)

    def extent(self, path: Path) -> Extent:
        """Return the size of a file, read from its header. Raises an error if the header cannot be read."""
        return Extent()

    def bucket_of(self, extent: Extent) -> int:
        """Return the index in `in_buckets()` of the size that suits a file of this extent best; 0 if it is unknown."""
        return 0

    def omitted(self, extent: Extent) -> str | None:
        """Return the setting because of which a file of this extent is not used, or None if it is used."""
        return None

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        """Shape of one encoded example as a tensor, (channels, *grid)."""
        return (self.channels, *self.grid().shape)

    @abstractmethod
    def load(self, path: Path, seed: int | None = None) -> Any:
        """Read one file, cropped to at most the size of the grid.

        Random choices (crop, flip, start of the excerpt) depend on `seed` only. If it is None, as in validation, the
        middle of the file is taken and nothing is augmented.

        Raises:
            UnusableFileError: If this file cannot be used with any seed, so that datasets need not try again.
            Exception: If this file cannot be used with this seed; datasets report the message and take another file.
        """

    @abstractmethod
    def encode(self, media: Any) -> Tensor:
        """Convert media to a float32 tensor of shape `(channels, *grid)`, with values approximately in [-1, 1]."""

    @abstractmethod
    def decode(self, x0: Tensor) -> Any:
        """Convert a tensor of shape `(channels, *grid)` to media; values outside the medium's range are clipped."""

    @abstractmethod
    def save(self, media: Any, path: Path) -> None:
        """Write one media file, creating its folder."""

    def mask(self, media: Any) -> Tensor | None:
        """Return a bool mask that is True where `encode(media)` is data, or None if there is no padding.

        Its shape is `(1, *grid)`, or `(channels, *grid)` if channels differ: sea temperature, for example, has no
        values on land. Masked values are omitted from losses and statistics, but must be finite.
        """
        return None

    def save_grid(self, media: Sequence[Any], path: Path, *, names: Sequence[str] | None = None) -> None:
        """Write several media as one PNG image, each with its name if given, and create its folder.

        The default is a plot of all channels of the encoded tensors, in the units of `variables`, with masked points in
        grey.
        """
        from modalities.figures import plot_tensors  # importing matplotlib takes a second

        tensors, masks = [self.encode(each) for each in media], [self.mask(each) for each in media]
        plot_tensors(tensors, self.grid(), path, names=names, masks=masks, variables=self.variables)


class Example(NamedTuple):
    """One example: `x0` (channels, *grid) float32, its class and caption if it has them, and a mask of valid data.

    `mask` is bool, shape `(1 or channels, *grid)`, False on padding (which losses and statistics omit); None means
    that all values are valid. An empty caption counts as no caption. `scalars` are numbers by their names, in the units
    that `Modality.scalars` states. `condition` is a dense condition: values (channels of the condition, *grid) float32,
    on the grid of x0 or one that has a whole factor fewer samples along some axes, dimensionless as x0; NaN is unknown.
    """

    x0: Tensor
    label: int | None = None
    mask: Tensor | None = None
    text: str | None = None
    scalars: Mapping[str, float] | None = None
    condition: Tensor | None = None


class Batch(NamedTuple):
    """Stacked examples: `x0` (batch, channels, *grid) float32, `labels` (batch,) int64.

    `mask` (batch, 1 or channels, *grid) is bool, True where data are valid; None means that all are valid.
    `texts` are the examples' captions; `embeddings` is the output of a text encoder, (batch, tokens, width) float32.
    Rows of zeros are padding. `scalars` contains a tensor (batch,) float64 for every name, NaN where it is unknown;
    `standardised` (batch, scalars) are those that a network takes, dimensionless float32. `dense` contains the
    conditions of the examples, (batch, channels of the condition, *grid or coarser) float32, NaN where unknown.
    """

    x0: Tensor
    labels: Tensor | None = None
    mask: Tensor | None = None
    texts: tuple[str, ...] | None = None
    embeddings: Tensor | None = None
    scalars: Mapping[str, Tensor] | None = None
    standardised: Tensor | None = None
    dense: Tensor | None = None

    def condition(self, classes_or_text: bool = True) -> AnyCondition:
        """Return what a network knows about the examples: embeddings or labels, if requested, scalars and `dense`.

        Without the last two it is a tensor, labels (batch,) or embeddings (batch, tokens, width), or None.
        """
        text, labels = (self.embeddings, self.labels) if classes_or_text else (None, None)
        if self.standardised is not None or self.dense is not None:
            return Condition(labels if text is None else None, text, self.standardised, self.dense)
        return labels if text is None else text


class Groups(NamedTuple):
    """The examples that are stored together: the first `lengths[0]` of a dataset, the next `lengths[1]`, and so on.

    Reading is fastest if examples come from only `window` groups at a time. If `whole` is True, a group is read as a
    whole even for one of its examples.
    """

    lengths: Sequence[int]
    window: int
    whole: bool = False


class Dataset(ABC):
    """A list of examples on one grid, in a fixed order, with no randomness except through the seeds passed in.

    `batch(indices, seeds)` is what training calls; a subclass may override it with something faster.
    `classes` names the labels 0, 1, ..., and is None for a dataset without labels. `splits` has the split of every
    example, and is None if the data come without splits.
    """

    modality: Modality
    classes: tuple[str, ...] | None
    splits: Sequence[Split] | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example.

        Its augmentation depends on `seed` only; if that is None, there is no augmentation.

        Raises:
            IndexError: If the index is outside `[0, len(self))`.
        """

    @abstractmethod
    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only, in this order."""

    @property
    def scalars(self) -> Mapping[str, str]:
        """The names of the scalars that the examples have, each with its unit."""
        return {}

    @property
    def condition_modality(self) -> Modality | None:
        """The modality that reads and encodes the examples' conditions, or None, the default, if they have none.

        Its grid is that of the data, or has a whole factor fewer samples along some axes.
        """
        return None

    def with_modality(self, modality: Modality) -> Self:
        """Return this dataset with another modality of the same medium."""
        part = copy.copy(self)
        part.modality = modality
        return part

    def extent(self, index: int) -> Extent:
        """Return the size of the file of one example, as its header states it.

        Raises:
            NotImplementedError: If the examples are not media files.
        """
        raise NotImplementedError(f"{type(self).__name__} has no media files whose sizes could be read")

    def __getitem__(self, index: int) -> Example:
        return self.example(index)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the examples at `indices`, each augmented with its own seed.

        If `seeds` is None, there is no augmentation.

        Raises:
            IndexError: If an index is outside `[0, len(self))`.
            ValueError: If there are no indices, or the number of seeds differs from the number of indices.
        """
        return collate([self.example(index, seed) for index, seed in pair(indices, seeds)])

    def label(self, index: int) -> int | None:
        """Return the class of one example, or None if there are no classes.

        Override this method if the class can be found without reading the example.
        """
        return self.example(index).label

    def captions(self, index: int) -> tuple[str, ...]:
        """Return all captions of one example, without reading its media; none if the dataset has no captions.

        A dataset with captions overrides this method. An empty caption counts as no caption.
        """
        return ()

    def caption(self, index: int, seed: int | None = None) -> str | None:
        """Return the caption that one example has with this seed, or None if there are no captions.

        One of several captions is drawn by the seed; without a seed, it is the first.
        """
        captions = self.captions(index)
        if len(captions) < 2 or seed is None:
            return captions[0] if captions else None
        return captions[derive(seed, "caption") % len(captions)]

    @property
    def groups(self) -> Groups | None:
        """Groups of examples that are stored together; None if there are no groups."""
        return None

    @property
    def weights(self) -> Sequence[tuple[int, float]] | None:
        """The length of each block of consecutive examples and its share of the samples in training, up to a factor.

        None, the default, means that every example is seen equally often.
        """
        return None

    @property
    def fingerprint(self) -> str:
        """A string that changes with the examples, their order, classes or captions.

        It is computed without reading media.
        """
        return ""

    def stored(self) -> Iterable[Source]:
        """Return the files whose contents the fingerprint does not cover, in fixed order.

        For data in memory there are no such files.
        """
        return ()

    @property
    def unreadable(self) -> Mapping[str, str]:
        """A mapping from the name of each file that could not be read so far to the reason.

        It is always empty for a dataset held in memory.
        """
        return {}

    @property
    def remarks(self) -> Mapping[str, int]:
        """Remarks about files that were read, such as that only the first page is, with the number of files so far.

        There are none for a dataset held in memory.
        """
        return {}

    def recall_unreadable(self, reasons: Mapping[str, str], since: float) -> None:  # noqa: B027 - as below
        """Add files that could not be read in another process, except those that have changed `since` (a time)."""

    def save_unreadable(self, path: Path) -> None:  # noqa: B027 - not abstract: most sets have nothing to write
        """Write a JSON list of the files that could not be read so far; write nothing if all could be read."""


def collate(examples: Sequence[Example]) -> Batch:
    """Stack examples into a batch.

    An example without a mask counts as fully valid. Labels and captions are kept if every example has one. A scalar
    that an example lacks is NaN, and so are all values of a condition that it lacks.

    Raises:
        ValueError: If a mask has a shape that `Example` does not allow, or conditions differ in shape.
    """
    labels = [example.label for example in examples if example.label is not None]
    texts = tuple(example.text for example in examples if example.text is not None)
    names = dict.fromkeys(name for example in examples for name in example.scalars or ())
    scalars = {name: [(example.scalars or {}).get(name, math.nan) for example in examples] for name in names}
    return Batch(
        torch.stack([example.x0 for example in examples]),
        torch.tensor(labels) if len(labels) == len(examples) else None,
        stack_masks([example.mask for example in examples], examples[0].x0.shape),
        texts if len(texts) == len(examples) else None,
        scalars={name: torch.tensor(each, dtype=torch.float64) for name, each in scalars.items()} or None,
        dense=stack_conditions([example.condition for example in examples]),
    )


def stack_conditions(conditions: Sequence[Tensor | None]) -> Tensor | None:
    """Stack the conditions of examples, each (channels, *grid), into one tensor (count, channels, *grid).

    A missing one is NaN, unknown; if all are missing, None is returned.

    Raises:
        ValueError: If their shapes differ.
    """
    given = [each for each in conditions if each is not None]
    if not given:
        return None
    shapes = sorted({tuple(each.shape) for each in given})
    if len(shapes) > 1:
        raise ValueError(f"the conditions of a batch must have one shape, got {shapes[0]} and {shapes[1]}")
    unknown = torch.full_like(given[0], math.nan)
    return torch.stack([unknown if each is None else each for each in conditions])


def stack_masks(masks: Sequence[Tensor | None], shape: Sequence[int]) -> Tensor | None:
    """Stack the masks of data of shape `(channels, *grid)` into one tensor `(count, 1 or channels, *grid)`.

    A missing mask counts as all valid; if all are missing, None is returned. If only some masks differ among channels,
    the others are repeated.

    Raises:
        ValueError: If the shape of a mask is neither `(1, *grid)` nor `(channels, *grid)`.
    """
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    one = (1, *shape[1:])
    for mask in given:
        if tuple(mask.shape) not in (one, tuple(shape)):
            raise ValueError(
                f"a mask must have shape {one}, or {tuple(shape)} if it differs among channels, got {tuple(mask.shape)}"
            )
    channels = max(len(mask) for mask in given)
    full = torch.ones(one, dtype=torch.bool)
    return torch.stack([(full if mask is None else mask).expand(channels, *shape[1:]) for mask in masks])


def pair(indices: Sequence[int], seeds: Sequence[int] | None) -> list[tuple[int, int | None]]:
    """Return each index with its seed, or with None.

    Raises:
        ValueError: If there are no indices, or the number of seeds differs from the number of indices.
    """
    if len(indices) == 0:
        raise ValueError("a batch needs at least one index")
    if seeds is not None and len(seeds) != len(indices):
        raise ValueError(f"a batch needs one seed per index: got {len(seeds)} seeds for {len(indices)} indices")
    return [(int(i), None if seeds is None else int(seeds[n])) for n, i in enumerate(indices)]


def split(
    dataset: DatasetT, validation: float | int, seed: int = 0, keep_classes: bool = True
) -> tuple[DatasetT, DatasetT | None]:
    """Split a dataset into disjoint training and validation parts, drawn at random by `seed` alone.

    `validation` below 1 is a fraction of the examples, rounded so that each part has at least one if the dataset has
    two; otherwise it is a number of examples. If `keep_classes` is True, every class keeps an example for training, so
    fewer examples may be held out. The validation part is None if nothing is held out.

    Raises:
        ValueError: If the number is negative, or nothing would be left for training.
    """
    total = len(dataset)
    count = _held_out_count(total, validation)
    order = _shuffled(total, seed)
    held, kept = order[:count], order[count:]
    if keep_classes and dataset.classes is not None and len(distinct_classes(dataset, kept)) < len(dataset.classes):
        held, kept = _keeping_classes(dataset, order, count)
    return dataset.subset(sorted(kept)), dataset.subset(sorted(held)) if held else None


def split_groups(
    dataset: DatasetT, groups: Sequence[str], validation: float | int, seed: int = 0, keep_classes: bool = True
) -> tuple[DatasetT, DatasetT | None]:
    """Split a dataset like `split`, but keep the examples of each group together.

    `groups` contains the name of each example's group. Groups are drawn at random by `seed`, until about the requested
    number of examples is held out; a group with at least twice as many examples as are still missing is skipped. At
    least one group is held out: the smallest, if all are skipped. If `keep_classes` is True, a group that has all
    remaining examples of a class stays in the training part.

    Raises:
        ValueError: If `validation` is negative or too large, there are fewer than two groups, or none can be held out.
    """
    count = _held_out_count(len(dataset), validation)
    if not count:
        return dataset, None
    sizes, classes = Counter(groups), {name: Counter[int]() for name in groups}
    if len(sizes) < 2:
        raise ValueError(
            f"all {len(dataset)} examples are in one group, {groups[0]!r}, but at least two groups are required: one "
            "for training, and one to hold out"
        )
    if keep_classes and dataset.classes is not None:
        for index, name in enumerate(groups):
            if (label := dataset.label(index)) is not None:
                classes[name][label] += 1
    names = sorted(sizes)
    held = _drawn_groups([names[number] for number in _shuffled(len(names), seed)], sizes, classes, count)
    kept = [index for index, name in enumerate(groups) if name not in held]
    return dataset.subset(kept), dataset.subset([index for index, name in enumerate(groups) if name in held])


def _drawn_groups(
    order: Sequence[str], sizes: Mapping[str, int], classes: Mapping[str, Mapping[int, int]], count: int
) -> set[str]:
    """Return the groups to hold out, taken in order, with about `count` examples in total; every class keeps a group.

    `sizes` contains the number of examples of each group, and `classes` the number of its examples in each class.

    Raises:
        ValueError: If each group has all examples of a class.
    """
    left: Counter[int] = Counter()
    for each in classes.values():
        left.update(each)
    movable = [name for name in order if all(left[label] > number for label, number in classes[name].items())]
    if not movable:
        raise ValueError(
            f"each of the {len(order)} groups has all examples of a class, so none can be held out from training with "
            "classes: train without them (data.labels=none or training.conditional=false)"
        )
    held: set[str] = set()
    for name in movable:
        remain = all(left[label] > number for label, number in classes[name].items())
        if sizes[name] < 2 * count and remain and len(held) < len(order) - 1:
            held.add(name)
            left.subtract(classes[name])
            count -= sizes[name]
    return held or {min(movable, key=lambda name: sizes[name])}


def _held_out_count(total: int, validation: float | int) -> int:
    """Return the number of examples to hold out. Raises ValueError if none of `total` would remain for training."""
    count = int(validation)
    if 0 < validation < 1:
        count = min(max(round(validation * total), 1), total - 1)
    if not 0 <= count < total:
        raise ValueError(
            f"{validation:g} of {total} examples cannot be held out: at least one must remain for training"
        )
    return count


def _shuffled(count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    return order


def distinct_classes(dataset: Dataset, indices: Iterable[int]) -> set[int]:
    """Return the set of classes of these examples; stop as soon as every class has occurred."""
    classes: set[int] = set()
    for index in indices:
        if (label := dataset.label(index)) is not None:
            classes.add(label)
        if len(classes) == len(dataset.classes or ()):
            break
    return classes


def _keeping_classes(dataset: Dataset, order: Sequence[int], count: int) -> tuple[list[int], list[int]]:
    """Return up to `count` indices to hold out, taken in order, and the rest, in which every class occurs."""
    labels = [dataset.label(index) for index in order]
    left = Counter(labels)
    held: list[int] = []
    kept: list[int] = []
    for index, label in zip(order, labels, strict=True):
        if len(held) < count and (label is None or left[label] > 1):
            left[label] -= 1
            held.append(index)
        else:
            kept.append(index)
    return held, kept
