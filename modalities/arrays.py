"""A dataset of many examples in one or several files of arrays: NumPy, HDF5, NetCDF, zarr, NIfTI, CSV or Parquet."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor

from modalities.array_cache import OPEN_FILES, WINDOW, OpenFiles
from modalities.array_files import array_paths, open_arrays, stored_files
from modalities.array_forecasts import Forecasts, forecasts_of
from modalities.base import Groups, Modality
from modalities.byte_ranges import Source, local
from modalities.field import Field, Series
from modalities.field_layout import Placement, check_spacing, place
from modalities.forecasts import States, check_timeless, checked_reach
from modalities.image import Image
from modalities.labels import number
from modalities.latent import Latent
from modalities.named_arrays import ANNOTATIONS, ArrayFile
from modalities.pixel_arrays import pixels_of, place_images
from modalities.reading import FileReport, MediaFiles, UnreadableFilesError
from modalities.scalars import positions, recording
from modalities.splits import named_split
from modalities.stored_arrays import Stored, divided_field, part_counts
from modalities.time_sequences import times_of
from multisagd.libraries import BrokenLibraryError

MAX_EXAMPLES = 1 << 26
"""Maximum number of examples in a file, because a small file can state any number of them."""
HELD_OUT = 0.1
"""Fraction of the states that is held out of forecasts for validation, and for testing, if none is set."""


class Arrays(MediaFiles):
    """The examples in the files of arrays that `root` stands for, in the order of their paths and of their positions.

    Modalities are `Field` and `Series`, whose variables are arrays of these names, and `Image`, for an array (examples,
    height, width) with a further dimension for 1 or 3 channels, if any. Examples are numbered along the dimensions
    that the modality does not have. A file without such a dimension is one field; if it is much longer than the grid
    along an axis, it is divided into parts of at least two grids, and each part is an example, from which a window is
    taken: at random if there is a seed.

    Examples are read on demand. An unreadable one is reported and replaced by another, as in `Folder`.

    With a `lead`, an example is a forecast (see `modalities.forecasts`): its condition are the `history` states up to
    `lead` steps before it, read at the same place. Time is the dimension that numbers examples, or the one named time;
    files with one field each follow each other in the order of their names. Splits consist of whole sequences or blocks
    of time, unless the file states them.

    Args:
        modality: converts the values.
        root: a file, a zarr store, or a folder or pattern (`data/*.nc`) of these.
        array: name of the array of images; None: the only one that can be.
        example_axis: name of the dimension that numbers examples. "auto": all dimensions that the modality does not
            have. None: each file has one example.
        labels: name of the array with the class of each example, as integers or texts. "auto": `label` or `labels`, if
            there is such an array. None: no classes.
        captions: name of the array of captions. "auto": `captions`, `caption`, `texts` or `text`. None: no captions.
        split: name of the array of splits: train, validation or test. "auto": `split` or `splits`. None: no splits.
        group: name of the array of group names, for validation.group=manifest. "auto": `group` or `groups`. Forecasts
            stay within a group.
        max_unreadable: maximum fraction of unreadable examples.
        threads: number of threads that read a batch.
        lead: number of steps in time from the present state to the forecast. None: examples have no condition.
        history: number of known states: the present one, and others `lead` steps before each other.
        validation: fraction of the states, in order of time, that is held out of forecasts for validation; None: 0.1.
        test: fraction that is held out for testing; None: 0.1.

    Raises:
        FileNotFoundError: If `root` stands for nothing.
        ValueError: If a file is refused, lacks a variable or an axis, or its annotations do not match its examples; the
            message names it. Also if forecasts are impossible, because states are too few or not evenly spaced in time.
    """

    def __init__(
        self,
        modality: Modality,
        root: str | Path,
        array: str | None = None,
        example_axis: str | None = "auto",
        labels: str | None = "auto",
        captions: str | None = "auto",
        split: str | None = "auto",
        group: str | None = "auto",
        max_unreadable: float = 0.05,
        threads: int = 4,
        lead: int | None = None,
        history: int = 1,
        validation: float | None = None,
        test: float | None = None,
    ) -> None:
        self.modality, self.root, self.threads = modality, Path(root), threads
        self.array, self.example_axis = array, example_axis
        self._files = OpenFiles(self._placed)
        self._kind()
        self.lead, self.history = lead, history
        self._check_forecasts(validation, test)
        annotated = {"labels": labels, "captions": captions, "split": split, "group": group}
        read: dict[str, list[list[str]]] = {key: [] for key in annotated}
        self.files: list[Stored] = []
        paths = array_paths(root)
        common = self.root if self.root.is_dir() and paths != [self.root] else self.root.parent
        for path in paths:
            name = path.relative_to(common).as_posix() if path.is_relative_to(common) else path.name
            try:
                with open_arrays(path) as file:
                    self.files.append(self._described(path, name, file))
                    for key, chosen in annotated.items():
                        if (texts := _annotation(file, key, chosen, self.files[-1])) is not None:
                            read[key].append(texts)
            except BrokenLibraryError:
                raise
            except Exception as error:  # each library raises errors of its own
                raise ValueError(f"{path}: {error}") from error
        self._starts = list(accumulate((file.count for file in self.files), initial=0))
        self._positions: Sequence[int] = range(self._starts[-1])
        self._annotate(read)
        self._forecasts: Forecasts | None = None
        if lead is not None:
            fractions = HELD_OUT if validation is None else validation, HELD_OUT if test is None else test
            given = self.splits, self.listed_groups
            self._keep(forecasts_of(self.files, self._starts, *given, lead, history, fractions))
        self.report = FileReport(len(self), max_unreadable)

    def _kind(self) -> Field | Image:
        """Return the modality that converts values, which a latent modality contains."""
        inner = self.modality.modality if isinstance(self.modality, Latent) else self.modality
        if not isinstance(inner, Field | Image):
            raise ValueError(
                f"data=arrays does not support {type(inner).__name__}: use modality=field, series or image, or "
                "data=folder"
            )
        return inner

    def _check_forecasts(self, validation: float | None, test: float | None) -> None:
        """Raise ValueError if settings of forecasts are invalid, or do not fit the modality."""
        if self.lead is None:
            if self.history != 1 or validation is not None or test is not None:
                raise ValueError(
                    "history, validation and test are for forecasts: set lead, or hold out examples with "
                    "validation.holdout"
                )
            return
        checked_reach(self.lead, self.history)
        if not isinstance(self.modality, Field) or isinstance(self.modality, Series):
            raise ValueError(f"lead={self.lead}: forecasts are of fields (modality=field): set lead=null")
        check_timeless(self.modality)

    def _placed(self, path: Path) -> Placement:
        return self._placement(open_arrays(path))

    def _placement(self, file: ArrayFile) -> Placement:
        kind = self._kind()
        if isinstance(kind, Image):
            return place_images(file, self.array, kind)
        check_spacing(file, kind.axes, kind.spacing_tolerance)
        return place(file, kind.axes, kind.variables)

    def _described(self, path: Path, name: str, file: ArrayFile) -> Stored:
        """Return the examples of a file, after checking that they are along the requested dimension."""
        placement, kind = self._placement(file), self._kind()
        source = placement.sources[0]
        dimensions = [source.array.dimensions[where] for where in source.examples if source.array.shape[where] != 1]
        chosen = self.example_axis
        if chosen is None and placement.count != 1:
            raise ValueError(f"example_axis is null, but it has {placement.count} examples: {source.array.shown}")
        if chosen not in (None, "auto") and dimensions != [chosen]:
            raise ValueError(
                f"example_axis={chosen}, but its dimensions besides those of the modality are "
                f"{', '.join(str(each) for each in dimensions) or 'none'}: {source.array.shown}"
            )
        if not placement.count:
            raise ValueError(f"it has no examples: {source.array.shown}")
        divided = placement.count == 1 and isinstance(kind, Field)
        many = math.prod(part_counts(placement.sizes, kind.grid().shape)) if divided else placement.count
        if many > MAX_EXAMPLES:
            raise ValueError(
                f"it states {many:,} examples, more than the limit of {MAX_EXAMPLES:,}: {source.array.shown}. Divide it"
            )
        parts = divided_field(placement.sizes, kind.grid().shape) if divided else (None,)
        chunk = source.array.chunk if source.examples and source.examples[0] == 0 else 1
        # Only if the first dimension alone numbers examples, those of a chunk follow each other.
        times = None if self.lead is None else times_of(file, placement)
        return Stored(path, name, placement.count, parts, chunk if len(source.examples) == 1 else 1, times)

    def _keep(self, forecasts: Forecasts) -> None:
        """Reduce the dataset to the examples that are forecasts, and set their splits."""
        self._forecasts, self._positions = forecasts, sorted(forecasts.known)
        self.splits = [forecasts.splits[position] for position in self._positions]
        if self.listed_groups is not None:
            self.listed_groups = [self.listed_groups[position] for position in self._positions]

    @property
    def condition_modality(self) -> Modality | None:
        """The known states of forecasts, or None if examples have no condition."""
        forecasts = self._forecasts
        if forecasts is None or not isinstance(self.modality, Field):
            return None
        return States.known(self.modality, self.history, forecasts.lead, forecasts.unit)

    def condition(self, index: int, seed: int | None, scalars: Mapping[str, float]) -> Tensor | None:
        """Return the known states of one forecast, (states × variables, *grid), NaN where values are missing.

        Raises:
            ValueError: If one of them has infinite values, or values in another window than the example only.
        """
        if self._forecasts is None:
            return None
        states = []
        for position in self._forecasts.known[self._positions[index]]:
            with recording() as own:
                media = self._load_at(position, seed)
            if positions(own) != positions(scalars):
                raise ValueError("a state before it has no values at the same place: choose smaller windows")
            encoded, mask = self.modality.encode(media), self.modality.mask(media)
            if bool(encoded.isinf().any()):
                raise ValueError("a state before it contains infinity")
            states.append(encoded if mask is None else encoded.masked_fill(~mask, torch.nan))
        return torch.cat(states)

    def _annotate(self, read: dict[str, list[list[str]]]) -> None:
        """Set classes, captions, splits and groups from those of the files."""
        flat: dict[str, list[str] | None] = {}
        for key, lists in read.items():
            if lists and len(lists) < len(self.files):
                raise ValueError(
                    f"only {len(lists)} of {len(self.files)} files have an array for {key}: set data.{key}=null, or "
                    "add it to the others"
                )
            flat[key] = [text for texts in lists for text in texts] if lists else None
        self.classes, self._labels = None, None
        if (labels := flat["labels"]) is not None:
            self.classes, self._labels = number(labels)
        self.texts, self.listed_groups = flat["captions"], flat["group"]
        if (splits := flat["split"]) is not None:
            try:
                meant = {text: named_split(text) for text in sorted(set(splits))}
            except ValueError as error:
                raise ValueError(f"{error}: set data.split=null") from error
            self.splits = [meant[text] for text in splits]

    def __len__(self) -> int:
        return len(self._positions)

    def name(self, index: int) -> str:
        """Return the path of a file below the root, with the position of the example in it."""
        file, position = self._find(index)
        return f"{file.name}[{position}]"

    def path(self, index: int) -> str:
        """Return the path of the file of an example below the root."""
        return self._find(index)[0].name

    def load(self, index: int, seed: int | None) -> Any:
        """Return the values of one example, as the modality holds them in memory.

        Raises:
            UnreadableFilesError: If its file cannot be opened any more.
            Exception: If its values cannot be read.
        """
        return self._load_at(self._positions[index], seed)

    def _load_at(self, whole: int, seed: int | None) -> Any:
        """Return the values of the example at a position in the whole dataset; see `load`."""
        file, position = self._find_at(whole)
        example, part = divmod(position, len(file.parts))
        try:
            placement = self._files.placement(file.path)
        except Exception as error:  # it could be opened when the dataset was made
            raise UnreadableFilesError(f"{file.path} cannot be read any more: {error}") from error
        kind = self._kind()
        if isinstance(kind, Image):
            return pixels_of(kind, placement, example, seed)
        return kind.excerpt(placement, example, seed, file.parts[part])

    def label(self, index: int) -> int | None:
        """Return the class of one example."""
        return None if self._labels is None else self._labels[self._positions[index]]

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the caption of one example; none if there are no captions."""
        return () if self.texts is None else (self.texts[self._positions[index]],)

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these examples only; it shares the open files and the report of unreadable ones."""
        part = copy.copy(self)
        part._positions = [self._positions[index] for index in indices]
        if self.splits is not None:
            part.splits = [self.splits[index] for index in indices]
        if self.listed_groups is not None:
            part.listed_groups = [self.listed_groups[index] for index in indices]
        return part

    @property
    def groups(self) -> Groups | None:
        """Groups of consecutive examples that are stored in one chunk, or None if each is stored by itself.

        If there are more files than are kept open, all examples of a file belong together.
        """
        many = len(self.files) > OPEN_FILES
        sizes = [file.count if many else file.chunk for file in self.files]
        if all(size == 1 for size in sizes):
            return None
        lengths: list[int] = []
        before = None
        for position in self._positions:
            file = bisect_right(self._starts, position) - 1
            key = file, (position - self._starts[file]) // sizes[file]
            if key == before:
                lengths[-1] += 1
            else:
                lengths.append(1)
            before = key
        return Groups(lengths, WINDOW)

    def stored(self) -> Iterable[Source]:
        """Return the files, and those in the folders of zarr stores."""
        return (local(each) for file in self.files for each in stored_files(file.path))

    def has_changed(self, name: str, since: float) -> bool:
        """Whether the file of an example was changed or replaced after a time, or removed."""
        path = next((file.path for file in self.files if name.rpartition("[")[0] == file.name), None)
        return path is None or not path.exists() or path.stat().st_ctime > since

    @property
    def fingerprint(self) -> str:
        """A hash of the files' paths below the root, numbers of examples, and of all annotations."""
        files = [[file.name, file.stored, file.parts] for file in self.files]
        facts: list[Any] = [
            files,
            self.classes,
            self._labels,
            self.texts,
            self.splits,
            self.listed_groups,
            list(self._positions),
        ]
        facts += [] if self.lead is None else [self.lead, self.history]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def _find(self, index: int) -> tuple[Stored, int]:
        """Return the file of an example, and the position of the example in it."""
        return self._find_at(self._positions[index])

    def _find_at(self, whole: int) -> tuple[Stored, int]:
        file = bisect_right(self._starts, whole) - 1
        return self.files[file], whole - self._starts[file]


def _annotation(file: ArrayFile, key: str, chosen: str | None, described: Stored) -> list[str] | None:
    """Return a text for each example of a file, from the array `chosen` for the annotation `key`.

    Raises:
        ValueError: If the array is missing, its values are not integers or texts, or their number is another.
    """
    names = ANNOTATIONS[key] if chosen == "auto" else () if chosen is None else (chosen,)
    name = next((each for each in names if each in file.arrays), None)
    if name is None and chosen in (None, "auto"):
        return None
    array = file.array(cast(str, name or chosen))
    if not array.is_text and array.dtype.kind not in "biu":
        raise ValueError(
            f"the array {array.name} for {key} has {array.dtype} values, not integers or texts: set data.{key} to "
            "another array, or to null"
        )
    values = array.texts() if array.is_text else [str(int(value)) for value in array.read().ravel()]
    if len(values) == 1:
        values = values * described.stored
    if len(values) != described.stored:
        raise ValueError(
            f"the array {array.shown} for {key} has {len(values)} values, but there are {described.stored} examples: "
            f"set data.{key} to another array, or to null"
        )
    if key == "labels" and "" in values:
        raise ValueError(
            f"the array {array.name} for labels has an empty text at {values.index('')}: set data.labels=null"
        )
    return [value for value in values for _ in described.parts]
