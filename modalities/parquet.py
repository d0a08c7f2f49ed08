"""A dataset of Parquet files with the content of media in one column, local or read through fsspec by byte ranges."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from modalities.base import Modality
from modalities.byte_ranges import find
from modalities.parquet_storage import ParquetStorage
from modalities.tables import MissingCaptions, TableDataset

SPLIT_NAME = re.compile("train|valid|test")
"""Begin of the names of files that hold one split, as on the Hugging Face Hub."""
log = logging.getLogger("multisagd")


class ParquetFiles(TableDataset):
    """The rows of Parquet files; see `TableDataset` for the other arguments and errors.

    The footers of the files, and the columns of classes, captions, splits and groups, are read once at the start; media
    are read row group by row group when they are needed. The order of training is the same for local and remote files.

    Args:
        modality: reads the media.
        urls: one or several paths or URLs that fsspec supports. Each may contain ranges
            (`data/train-{00000..00099}.parquet`), or be a pattern with * or a folder.
        media: see `TableDataset`, as for the arguments up to `group_column`.
        labels: the column of classes.
        captions: the column of captions.
        missing_captions: what happens to a row without a caption.
        splits: the column of splits.
        group_column: the column of groups.
        window: maximum number of row groups that training draws from at a time; more shuffle better. It is smaller if
            twice as many do not fit into `cache_bytes`.
        cache_bytes: maximum size in bytes of the media of the row groups that each process keeps in memory, and of one
            row group.
        max_member_bytes: maximum size of media in bytes.
        max_unreadable: maximum fraction of rows with unreadable media.
        threads: number of threads that read a batch.
        trusted: False if the settings came with another person's run: files are then read from plain local paths only,
            without fsspec.
    """

    def __init__(
        self,
        modality: Modality,
        urls: str | Sequence[str],
        media: str | None = None,
        labels: str = "auto",
        captions: str = "auto",
        missing_captions: MissingCaptions = "error",
        splits: str = "auto",
        group_column: str = "auto",
        window: int = 16,
        cache_bytes: int = 2 << 30,
        max_member_bytes: int = 1 << 30,
        max_unreadable: float = 0.05,
        threads: int = 4,
        trusted: bool = True,
    ) -> None:
        storage = ParquetStorage(find(urls, ".parquet", local=not trusted), window, cache_bytes)
        super().__init__(
            modality, storage, media, labels, captions, missing_captions, splits, group_column, max_member_bytes,
            max_unreadable, threads,
        )  # fmt: skip
        names = {source.url.rpartition("/")[2] for source in storage.stored()}
        marks = {match[0]: name for name in names if (match := SPLIT_NAME.match(name))}
        if len(marks) > 1 and self.splits is None:
            log.warning(
                "files are named after splits (%s), but all of them are used for training: name those for training in "
                "data.urls, or use data=hub with the folder as data.name", ", ".join(sorted(marks.values())),
            )  # fmt: skip
