"""Build, corrupt or restore, and measure the data of a run, and check them for likely mistakes."""

import copy
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from modalities.base import Dataset, Modality
from modalities.buckets import bucketed
from modalities.image import Image
from modalities.reading import FileReport, MediaFiles, UnreadableFilesError, read_batch
from modalities.video import Video
from modalities.wrapped import Corrupted, Restored, untouched
from multisagd import Corruption, DataStatistics, GaussianRestoration
from multisagd.channel_spectra import DataChannels
from multisagd.cross_spectra import measure_cross
from multisagd.multitaper import statistics_of_one
from multisagd.seeds import derive
from multisagd.statistics_of_sizes import measure_sizes
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.progress import SOON, Display
from recipes.config.build import Builder
from recipes.data.extents import UNRECORDED, Record, sorted_files
from recipes.data.order import order_of
from recipes.runs.assembly import build_corruption
from recipes.runs.settings import CorruptionOptions, Group, TrainSettings
from recipes.runtime.distribution import broadcast_from_rank0, is_first, long_barrier

LOCATION_KEYS = ("root", "urls")
"""Keys for the location of the data; every kind of dataset has one of them."""
MIN_STD = 1e-6
"""Standard deviation about the mean, in units of the data's range, below which examples are considered equal."""
PASSES = 2
"""Number of passes over the examples when measuring: one for the mean, one for the spectrum."""
COLOUR_EXAMPLES = 16
"""Number of examples whose colours are checked, evenly spaced over the data."""
DIFFERENCE = 0.1
"""Minimum difference between red, green and blue values (from -1 to 1) in a coloured pixel; JPEG errors are smaller."""
COLOURED = 0.01
"""Minimum fraction of coloured pixels in a coloured example."""


def build_dataset(
    data: Group, modality: Modality, builder: Builder, where: str = "data", extents: Record = UNRECORDED
) -> Dataset:
    """Return the dataset that the group `data` of a configuration describes; `where` names it in messages.

    If the modality sorts files by size, the dataset has the sizes of its files, and lacks those that are omitted;
    `extents` is a record of their sizes, if there is one.

    Raises:
        RecipeError: If it cannot be built; if files are missing, the message names the key of their location.
    """
    try:
        dataset = builder.build(data, Dataset, where, modality=modality)  # type: ignore[type-abstract]
    except RecipeError as error:
        key = next((key for key in LOCATION_KEYS if isinstance(data, Mapping) and key in data), None)
        path = None if key is None else data[key]
        missing = isinstance(path, str) and "://" not in path and not os.path.exists(path)  # noqa: PTH110 - no error
        if key is not None and (isinstance(error.__cause__, OSError) or missing):
            change = f"set {where} (for a trained run, in its config.yaml)"
            change = f"add data.{key}=… to the command" if where == "data" else change
            raise RecipeError(f"{error}. If the data are somewhere else, {change}") from error
        raise
    return sorted_files(dataset, extents)


def build_data(
    data: Group, corruption: Group, seed: int, modality: Modality, builder: Builder, extents: Record = UNRECORDED
) -> Dataset:  # fmt: skip
    """Return a configuration's dataset, with any added corruption.

    Raises:
        RecipeError: If it cannot be built, or data in buckets are corrupted.
    """
    if modality.buckets is not None and corruption.get("_target_") is not None:
        raise RecipeError(
            "corruption and modality.buckets exclude each other, because a corruption is measured and restored on one "
            "grid: set modality.buckets=null or corruption=none"
        )
    dataset = build_dataset(data, modality, builder, extents=extents)
    options = CorruptionOptions.of(corruption, builder)
    described = build_corruption(corruption, modality, builder) if options.added else None
    return dataset if described is None else Corrupted(dataset, described, seed, options.redrawn)


def configured_data(settings: TrainSettings, builder: Builder) -> Dataset:
    """Return a configuration's dataset, with any added corruption. Raises RecipeError if it cannot be built."""
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    return build_data(settings.data, settings.corruption, settings.seed, modality, builder)


def training_split(dataset: Dataset) -> Dataset:
    """Return the examples that the data assign to training, or all of them if the data come without splits.

    Raises RecipeError if there are no such examples.
    """
    splits = untouched(dataset).splits
    if splits is None:
        return dataset
    if "train" not in splits:
        raise RecipeError(
            "data: no example has the split train, so there are no training examples: put files into the folder train "
            "(data.splits=folders), or set the column split of some lines of the manifest to train"
        )
    return dataset.subset([number for number, each in enumerate(splits) if each == "train"])


def data_as_trained_on(dataset: Dataset, settings: TrainSettings, builder: Builder) -> Dataset:
    """Return the configured data that training would use if none were held out: the training split, restored."""
    dataset, modality = training_split(dataset), dataset.modality
    options = CorruptionOptions.of(settings.corruption, builder)
    described = build_corruption(settings.corruption, modality, builder) if options.restored else None
    if described is None:
        return dataset
    fitted = fit_restoration(dataset, described, options, settings.seed)
    return Restored(dataset, fitted, settings.seed, options.restored == "sample")


def fit_restoration(
    training: Dataset, corruption: Corruption, options: CorruptionOptions, seed: int
) -> GaussianRestoration:
    """Return a restoration, fitted on rank 0 to the covariance of corrupted data and broadcast to all ranks.

    Raises:
        RecipeError: If the data cannot be read, are padded, are too large or too few for a covariance, or contradict
            the corruption.
    """
    numbers = torch.zeros(2, dtype=torch.float64)
    restoration = None
    if is_first():
        count = len(training) if options.examples is None else min(options.examples, len(training))
        indices = drawn(training, derive(seed, "restoration"), count)
        with as_recipe_error((ValueError, UnreadableFilesError), "corruption.restored: "):
            restoration = GaussianRestoration.fit(_Unpadded(Chunks(training, indices, seed)), corruption)
        numbers = torch.tensor([restoration.root.shape[1], restoration.risk], dtype=torch.float64)
    long_barrier()
    broadcast_from_rank0(numbers)
    if restoration is None:
        shape = training.modality.tensor_shape
        size = math.prod(shape)
        mean, gain = torch.zeros(shape, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        root = torch.zeros(size, int(numbers[0]), dtype=torch.float64)
        restoration = GaussianRestoration(mean, gain, root, training.modality.grid(), float(numbers[1]))
    for tensor in (restoration.mean, restoration.gain, restoration.root):
        broadcast_from_rank0(tensor)
    return restoration


def drawn(dataset: Dataset, seed: int, count: int) -> list[int]:
    """Return the indices of `count` examples drawn at random: from few groups, if groups are read as a whole."""
    groups = dataset.groups
    return order_of(dataset, seed, grouped=groups is not None and groups.whole).indices(0, count)


class Chunks:
    """Examples in batches of `size`, augmented identically in every pass. Progress is shown on `display`, if given."""

    def __init__(
        self, dataset: Dataset, indices: Sequence[int], seed: int, display: Display | None = None, size: int = 256
    ) -> None:
        self.dataset, self.indices, self.seed, self.display, self.size = dataset, indices, seed, display, size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        for start in range(0, len(self.indices), self.size):
            indices = self.indices[start : start + self.size]
            batch = read_batch(self.dataset, indices, [derive(self.seed, "augmentation", index) for index in indices])
            if self.display is not None:
                self.display.advance(len(indices))
            yield batch.x0, batch.mask


@dataclass(frozen=True)
class _Unpadded:
    """The batches of `chunks` without masks; iteration raises ValueError if there are masks."""

    chunks: Chunks

    def __iter__(self) -> Iterator[Tensor]:
        for x0, mask in self.chunks:
            if mask is not None:
                raise ValueError(
                    "padded data are not supported, because their covariance is not estimated: "
                    "choose data without padding"
                )
            yield x0


def needs_cross(spectrum: Group) -> bool:
    """Whether the noise of a configuration group depends on how the channels of the data are correlated."""
    target = f"{DataChannels.__module__}.{DataChannels.__qualname__}"
    return spectrum.get("_target_") == target and spectrum.get("channels", "each") != "each"


def measure(dataset: Dataset, settings: TrainSettings) -> DataStatistics:
    """Return the mean and power spectrum of up to `training.statistics` examples, drawn and augmented as in training.

    The cross power of their channels is included if the configured noise depends on it, which takes a third pass. A
    single example, or several equal ones, have no power about their mean. In that case, the spectrum is estimated from
    one example as a stationary signal.

    Raises:
        RecipeError: If the data cannot be read, are not finite or are constant.
    """
    count = min(settings.training.statistics, len(dataset))
    indices = drawn(dataset, derive(settings.seed, "statistics"), count)
    grid, sizes = dataset.modality.grid(), dataset.modality.in_buckets()
    cross = needs_cross(settings.spectrum)
    if cross and len(sizes) > 1:
        raise RecipeError(
            "spectrum.channels: the cross power of channels is measured on data of one size only: set "
            "modality.buckets=null or spectrum.channels=each"
        )
    with as_recipe_error((ValueError, UnreadableFilesError), "measuring the data: "):
        with Display("measuring the data", (PASSES + cross) * count, after=SOON) as display, warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: display.say(f"note: {message}")
            if len(sizes) > 1:
                parts = bucketed(dataset.subset(indices))
                read = [Chunks(part, range(len(part)), settings.seed, display) for part in parts]
                grids = [size.grid() for size in sizes]
                pairs = [(chunks, part.modality.grid()) for chunks, part in zip(read, parts, strict=True)]
                return measure_sizes(pairs, grid, grids)
            chunks = Chunks(dataset, indices, settings.seed, display)
            statistics = DataStatistics.measure(chunks, grid)
            if cross:
                statistics = measure_cross(chunks, statistics)
        if statistics.sigma_data > MIN_STD:
            return statistics
        if cross:
            raise RecipeError(
                "spectrum.channels: all examples are equal, so they do not show how their channels are related: set "
                "spectrum.channels=each"
            )
        x0, mask = next(iter(chunks))
        return replace(statistics_of_one(x0[0], grid, None if mask is None else mask[0]), count=statistics.count)


def colour_note(dataset: Dataset) -> str | None:
    """Return a note if coloured images are loaded in grey, or grey images in colour, or else None."""
    files = untouched(dataset)
    modality = files.modality
    if not isinstance(modality, Image | Video):
        return None
    count = min(COLOUR_EXAMPLES, len(files))
    in_colour = copy.copy(files)
    in_colour.modality = replace(modality, channels=3)
    if isinstance(in_colour, MediaFiles):
        in_colour.report = FileReport(len(files), 1.0)  # unreadable files are not counted here
    try:
        x0 = in_colour.batch([number * len(files) // count for number in range(count)]).x0
    except Exception:  # any error of a decoder or of a user's dataset; training will report it
        return None
    if x0.shape[1] != 3:
        return None
    coloured = int((((x0.amax(1) - x0.amin(1)) > DIFFERENCE).flatten(1).float().mean(1) > COLOURED).sum())
    if modality.channels == 1 and coloured:
        loaded = "are in colour, but loaded in grey: modality.channels=3 keeps colours"
        return f"{coloured} of {count} checked examples {loaded}"
    if modality.channels == 3 and not coloured:
        return f"all {count} checked examples are grey: modality.channels=1 would need a third of the values"
    return None
