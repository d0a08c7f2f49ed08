"""Datasets whose examples are the rows of a table: media in one column, classes, captions and splits in others."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from modalities import table_columns as columns
from modalities.base import Groups, Modality, Split
from modalities.byte_ranges import Source
from modalities.endings import ending_of
from modalities.reading import FileReport, MediaFiles
from modalities.tars import in_memory

if TYPE_CHECKING:
    import pyarrow as pa

MissingCaptions = Literal["error", "empty", "skip"]
log = logging.getLogger("multisagd")


class Storage(ABC):
    """Where the rows of a table are; `schema` has the types of its columns."""

    schema: pa.Schema

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @abstractmethod
    def column(self, name: str) -> pa.ChunkedArray:
        """Return all values of a column of names, numbers, texts or lists of texts, without dictionaries.

        Raises:
            OSError: If the table cannot be reached.
            ValueError: If the column is damaged or too large, or has not the same type everywhere.
        """

    @abstractmethod
    def use(self, column: str) -> None:
        """Set the column that holds media.

        Raises:
            ValueError: If the column has no content, is too large, or has not the same type everywhere.
        """

    @abstractmethod
    def media(self, row: int, keep: bool = False) -> columns.Media:
        """Return the media in one row; with `keep`, keep it in memory, because it will be read again.

        Raises:
            UnreadableFilesError: If the table cannot be reached, or has changed.
            ValueError: If this part of the table is damaged.
        """

    @abstractmethod
    def paths(self) -> Sequence[str | None]:
        """Return the name that the table gives the media of each row, without reading media. Raises as `column`."""

    @abstractmethod
    def name(self, row: int) -> str:
        """Return the unique name of one row, for messages."""

    @property
    @abstractmethod
    def groups(self) -> tuple[NDArray[np.int64], int] | None:
        """First rows of the groups that are read together, int64, and the number to read at a time, or None."""

    @abstractmethod
    def stored(self) -> Sequence[Source]:
        """Return the files."""

    @abstractmethod
    def facts(self) -> Any:
        """Return JSON values that change with the media, without reading them, for the fingerprint."""


class TableDataset(MediaFiles):
    """The rows of a table, with their classes and captions; `load` is documented in `MediaFiles`.

    Args:
        modality: reads the media.
        storage: where the rows are.
        media: the column that holds media; None: the only one that can.
        labels: the column of classes; "auto": the one that `datasets` has marked as such, or `label`, if there is one;
            "none": no classes.
        captions: the column of captions: texts, or lists of texts; "auto": `text`, `caption` or `captions`, if there is
            one; "labels": the names of the classes, with spaces for underscores; "none": no captions.
        missing_captions: what happens to a row without a caption, if others have one: "error"; "empty": it is used
            with an empty caption; "skip": it is not used.
        splits: the column of splits (train, validation or test), or the split of every row; "auto": `split`, if there
            is one; "none": no splits.
        group_column: the column of groups, for validation.group=manifest; "auto": `group`, if there is one; "none": no
            groups.
        max_member_bytes: maximum size of media in bytes; larger media are reported as unreadable.
        max_unreadable: maximum fraction of rows with unreadable media.
        threads: number of threads that read a batch.

    Raises:
        OSError: If the table cannot be reached.
        ValueError: If there are no rows, a setting is out of range, a column is missing or ambiguous, or has another
            type than needed, or a value is missing in it; the message names the column and the row.
    """

    def __init__(
        self,
        modality: Modality,
        storage: Storage,
        media: str | None = None,
        labels: str = columns.AUTO,
        captions: str = columns.AUTO,
        missing_captions: MissingCaptions = "error",
        splits: str | Sequence[Split] = columns.AUTO,
        group_column: str = columns.AUTO,
        max_member_bytes: int = 1 << 30,
        max_unreadable: float = 0.05,
        threads: int = 4,
    ) -> None:
        if max_member_bytes < 1:
            raise ValueError(f"max_member_bytes must be at least 1, got {max_member_bytes}")
        if not len(storage):
            raise ValueError("the table has no rows: choose another file or split")
        self.modality, self.storage, self.threads = modality, storage, threads
        self.max_member_bytes = max_member_bytes
        schema = storage.schema
        self.columns = columns.Columns(
            columns.media_column(schema, media),
            columns.label_column(schema, labels),
            columns.caption_column(schema, captions),
            columns.name_column(schema, splits, "splits", columns.SPLIT_COLUMN) if isinstance(splits, str) else None,
            columns.name_column(schema, group_column, "group_column", columns.GROUP_COLUMN),
        )
        for name in columns.all_of(self.columns):
            columns.check_field(schema.field(name))
        storage.use(self.columns.media)
        self._rows: NDArray[np.int64] = np.arange(len(storage), dtype=np.int64)
        self._set_classes()
        self._set_captions(captions, missing_captions)
        self._set_splits(splits)
        self.report = FileReport(len(self), max_unreadable)

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return the name of the table's file, and the number of the row in it."""
        return self.storage.name(int(self._rows[index]))

    def path(self, index: int) -> str:
        """Return the path that the table gives for the media of one row, or else the name of the row."""
        return self._paths[self._rows[index]] or self.name(index)

    @cached_property
    def _paths(self) -> Sequence[str | None]:
        return self.storage.paths()

    def load(self, index: int, seed: int | None) -> Any:
        """Return one row's media, as read by the modality.

        Raises:
            UnreadableFilesError: If the table cannot be reached, or has changed since it was opened.
            Exception: If the media cannot be read.
        """
        content, path = self.storage.media(int(self._rows[index]), keep=seed is None)
        if content is None:
            named = f", only the path {path[:200]!r}" if path else ""
            raise ValueError(
                f"it has no content{named}: paths are not followed. Write the table again with the content of the "
                "files (to_parquet, save_to_disk and push_to_hub of `datasets` do so)"
            )
        if len(content) > self.max_member_bytes:
            raise ValueError(
                f"it has {len(content)} bytes, but max_member_bytes={self.max_member_bytes}: raise that limit to read "
                "it"
            )
        # Readers recognise the format by content; the ending matters for modalities of users only.
        ending = ending_of(path or "", self.modality.suffixes) or self.modality.suffixes[0]
        with in_memory(content, ending) as file:
            return self.modality.load(file, seed)

    def label(self, index: int) -> int | None:
        """Return the class of one row."""
        return None if self._labels is None else int(self._labels[self._rows[index]])

    def captions(self, index: int) -> tuple[str, ...]:
        """Return all captions of one row, without reading its media; none if the dataset has no captions."""
        row = int(self._rows[index])
        if self._texts is not None:
            return columns.captions_in(self._texts, row) or ("",)
        if self._caption_classes and self.classes is not None and self._labels is not None:
            return (self.classes[self._labels[row]].replace("_", " "),)
        return ()

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these rows only.

        It shares the report of unreadable media, so that the limit applies to the whole dataset.
        """
        part, chosen = copy.copy(self), np.asarray(indices, np.int64)
        part._rows = self._rows[chosen]
        part.splits = None if self.splits is None else [self.splits[index] for index in chosen]
        groups = self.listed_groups
        part.listed_groups = None if groups is None else [groups[index] for index in chosen]
        return part

    @property
    def groups(self) -> Groups | None:
        """Groups of consecutive rows that are read together."""
        if self.storage.groups is None:
            return None
        starts, window = self.storage.groups
        numbers = np.searchsorted(starts, self._rows, side="right")
        ends = np.flatnonzero(np.diff(numbers, append=-1)) + 1
        return Groups(np.diff(ends, prepend=0).tolist(), window, whole=True)

    def stored(self) -> Iterable[Source]:
        """Return the files of the table."""
        return self.storage.stored()

    @property
    def fingerprint(self) -> str:
        """A hash of the sizes of the media, and of classes, captions, splits and groups, wherever the table is."""
        facts = [self.storage.facts(), self.classes, self._caption_classes, self.splits, self.listed_groups]
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(self._rows.tobytes())
        if self._labels is not None:
            digest.update(self._labels.tobytes())
        digest.update(self._texts_digest)
        return digest.hexdigest()

    def _set_classes(self) -> None:
        self.classes: tuple[str, ...] | None = None
        self._labels: NDArray[np.int64] | None = None
        name = self.columns.labels
        if name is not None:
            feature = columns.features_of(self.storage.schema).get(name, {})
            try:
                self.classes, self._labels = columns.class_numbers(self.storage.column(name), feature)
            except ValueError as error:
                raise ValueError(f"the column {name}: {error}") from error

    def _set_captions(self, asked: str, missing: str) -> None:
        self._texts: pa.ChunkedArray | None = None
        self._texts_digest = b""
        self._caption_classes = asked == columns.LABELS
        if missing not in ("error", "empty", "skip"):
            raise ValueError(f"missing_captions must be error, empty or skip, got {missing!r}")
        if self._caption_classes and self.classes is None:
            raise ValueError("captions=labels requires classes, but this table has none: set data.labels to a column")
        name = self.columns.captions
        if name is None:
            return
        texts = self.storage.column(name)
        given, digest = np.zeros(len(texts), bool), hashlib.sha256()
        for row in range(len(texts)):
            captions = columns.captions_in(texts, row)
            given[row] = bool(captions)
            digest.update(json.dumps(captions).encode())
        if not given.any():
            log.warning("the column %s has no captions, so the examples have none", name)
            return
        if missing == "error" and not given.all():
            row = int(np.argmin(given))
            raise ValueError(
                f"the column {name}: {self.storage.name(row)} has no caption, and so have {(~given).sum() - 1} more "
                "rows: set data.missing_captions to empty or skip, or data.captions=none"
            )
        self._texts, self._texts_digest = texts, digest.digest()
        if missing == "skip":
            self._rows = self._rows[given]

    def _set_splits(self, asked: str | Sequence[Split]) -> None:
        self.splits: Sequence[Split] | None = None if isinstance(asked, str) else [asked[row] for row in self._rows]
        if self.columns.splits is not None:
            try:
                every = columns.splits_of(self.storage.column(self.columns.splits))
            except ValueError as error:
                raise ValueError(f"the column {self.columns.splits}: {error}") from error
            self.splits = [every[row] for row in self._rows]
            if "train" not in self.splits:
                raise ValueError(
                    f"the column {self.columns.splits} has no row for train: set data.splits=none to train on all rows"
                )
        self.listed_groups: Sequence[str] | None = None
        if self.columns.groups is not None:
            try:
                names, indices = columns.distinct(self.storage.column(self.columns.groups), "group", "group_column")
            except ValueError as error:
                raise ValueError(f"the column {self.columns.groups}: {error}") from error
            self.listed_groups = [names[index] for index in indices[self._rows]]
