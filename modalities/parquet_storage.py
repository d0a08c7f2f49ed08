"""Reading of Parquet files by byte ranges: their footers and small columns at first, then media by row group.

A Parquet file is a sequence of row groups, which are compressed as a whole: to read one row of media, its row group is
read. So the most recently read row groups are kept, in a cache of limited size.
"""

from __future__ import annotations

import io
import logging
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from modalities import table_columns as columns
from modalities.byte_ranges import AccessError, PartsError, Source
from modalities.reading import UnreadableFilesError
from modalities.tables import Storage
from multisagd.libraries import importing

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

log = logging.getLogger("multisagd")
S = TypeVar("S")
T = TypeVar("T")

THREADS = 8
"""Number of files whose footers and small columns are read at a time."""
MAX_FOOTER = 1 << 28
"""Maximum size of a footer in bytes; each row group takes about a hundred bytes per column."""
MANY_ROWS, FEW_ROWS = 1 << 16, 1 << 10
"""Rows of small columns that are read at once; few of lists."""
KEPT = 1 << 28
"""Maximum size in bytes of the media that are kept one by one, because validation reads them again and again."""
RESTORE = "restore it, or remove it from the data"


class _RangeFile(io.RawIOBase):
    """A file of known size as pyarrow reads it, which reads at most `most` bytes at once.

    `failure` is the error of the storage, if there was one: pyarrow raises the same type for damaged content.
    """

    def __init__(self, source: Source, size: int, most: int) -> None:
        self.source, self.size, self.most = source, size, most
        self.failure: OSError | None = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        self._position = min(max(base + offset, 0), self.size)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = self.size - self._position
        count = left if size is None or size < 0 else min(size, left)
        if count > self.most:
            raise ValueError(f"a part of it has {count:,} bytes, more than the limit of {self.most:,}")
        try:
            content = self.source.read(self._position, self._position + count)
        except OSError as error:
            self.failure = error
            raise
        self._position += count
        return content


@dataclass(frozen=True)
class ParquetFile:
    """An opened file: its size and state when it was opened (see `Source.state`), its metadata, and its schema."""

    source: Source
    size: int
    state: str
    metadata: pq.FileMetaData
    schema: pa.Schema

    @classmethod
    def open(cls, source: Source) -> ParquetFile:
        """Read the footer of a file.

        Raises:
            OSError: If the file cannot be reached.
            ValueError: If it is not a Parquet file, is encrypted, or declares impossible numbers of rows.
        """
        import pyarrow.parquet as pq

        size, state = source.state()
        file = _RangeFile(source, size, MAX_FOOTER)
        with _reading(file, "it is not a readable Parquet file"), pq.ParquetFile(file) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
        rows = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        # Even a column with only one value takes a bit for every row.
        if any(count < 0 for count in rows) or sum(rows) != metadata.num_rows or sum(rows) > 8 * size:
            raise ValueError(
                f"{source.url} declares {metadata.num_rows:,} rows in {size:,} bytes, so it is damaged: {RESTORE}"
            )
        return cls(source, size, state, metadata, schema)

    def leaves(self, column: str) -> list[int]:
        """Return the places of the parts of a column among all parts of columns."""
        paths = [self.metadata.schema.column(place).path for place in range(self.metadata.num_columns)]
        return [place for place, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]

    def bytes_of(self, group: int, places: Sequence[int]) -> int:
        """Return the size that parts of columns declare for one row group, uncompressed, or as stored if larger."""
        chunks = [self.metadata.row_group(group).column(place) for place in places]
        return sum(max(0, chunk.total_uncompressed_size, chunk.total_compressed_size) for chunk in chunks)


class ParquetStorage(Storage):
    """The rows of Parquet files, in the order of the files.

    Up to `cache_bytes` of media are kept, and training draws from at most `window` row groups at a time: so many that
    two windows are kept.

    Raises:
        BrokenLibraryError: If pyarrow is missing.
        OSError: If a file cannot be reached.
        ValueError: If a setting is out of range, or a file is not a readable Parquet file.
    """

    def __init__(self, sources: Sequence[Source], window: int, cache_bytes: int) -> None:
        with importing("pyarrow.parquet", "Parquet files"):
            import pyarrow.parquet  # noqa: F401 - to have one message if it is missing
        if window < 1 or cache_bytes < 1:
            raise ValueError(f"window and cache_bytes must be at least 1, got {window} and {cache_bytes}")
        self.cache_bytes, self._most_groups, self._column = cache_bytes, window, ""
        self.files = _in_threads(ParquetFile.open, sources)
        self.schema = self.files[0].schema
        for file in self.files[1:]:
            if more := [name for name in file.schema.names if name not in self.schema.names]:
                log.warning(
                    "%s has columns that %s lacks (%.200s), which are not used: write all files with the same columns",
                    file.source.url, self.files[0].source.url, ", ".join(more),
                )  # fmt: skip
                break
        self._groups = [
            (file, number) for file in self.files for number in range(file.metadata.num_row_groups)
            if file.metadata.row_group(number).num_rows
        ]  # fmt: skip
        counts = [file.metadata.row_group(number).num_rows for file, number in self._groups]
        ends = np.cumsum(counts, dtype=np.int64)
        self._starts, self._rows = ends - np.array(counts, np.int64), int(ends[-1]) if counts else 0
        self._first_rows = np.cumsum([0, *(file.metadata.num_rows for file in self.files)]).tolist()
        self._cache: Cache[list[columns.Media]] = Cache(cache_bytes)
        self._kept: Cache[columns.Media] = Cache(KEPT)

    def __len__(self) -> int:
        return self._rows

    @property
    def groups(self) -> tuple[NDArray[np.int64], int] | None:
        """First rows of the row groups, and the number of row groups that training draws from at a time."""
        return self._starts, self._window

    def use(self, column: str) -> None:
        """Set the column that holds media, and check its declared sizes; see `Storage.use`."""
        self._check_types(column)
        self._column, self._parts = column, columns.parts_of(self.schema.field(column).type)
        declared = []
        for file, group in self._groups:
            size = file.bytes_of(group, self._media_leaves(file))
            if size > self.cache_bytes:
                raise ValueError(
                    f"row group {group} of {file.source.url} declares {size:,} bytes of media, but "
                    f"cache_bytes={self.cache_bytes:,}: raise that limit, or write smaller row groups (row_group_size "
                    "of pyarrow.parquet.write_table)"
                )
            declared.append(size)
        # Twice, because a batch may begin in one window and end in the next.
        largest = np.cumsum(sorted(declared, reverse=True)[: self._most_groups])
        self._window = max(1, int(np.searchsorted(largest, self.cache_bytes // 2, side="right")))
        if all(self._is_empty(file, group) for file, group in self._groups):
            raise ValueError(
                f"the column {column} has paths of files, but not their content: paths are not followed. Write it "
                "again with the content (to_parquet and push_to_hub of `datasets` do so)"
            )

    def column(self, name: str) -> pa.ChunkedArray:
        """Return all values of a small column; see `Storage.column`."""
        import pyarrow as pa

        self._check_types(name)
        budget = columns.Budget(name)
        parts = _in_threads(lambda file: _small_column(file, name, budget), self.files)
        return pa.chunked_array([chunk for part in parts for chunk in part])

    def paths(self) -> Sequence[str | None]:
        """Return the paths beside the media; see `Storage.paths`."""
        if "path" not in self._parts:
            return [None] * len(self)
        budget = columns.Budget(f"{self._column}.path")
        parts = _in_threads(lambda file: _small_column(file, f"{self._column}.path", budget), self.files)
        return [value for part in parts for chunk in part for value in chunk.to_pylist()]

    def media(self, row: int, keep: bool = False) -> columns.Media:
        """Return the media in one row, from the cache of row groups; see `Storage.media`."""
        if keep:
            return self._kept.get(row, lambda: _copied(self.media(row)))
        place = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._cache.get(place, lambda: self._decoded(*self._groups[place]))[row - int(self._starts[place])]

    def name(self, row: int) -> str:
        """Return the URL of a file, and the number of a row in it."""
        place = bisect_right(self._first_rows, row) - 1
        return f"{self.files[place].source.url}: row {row - self._first_rows[place]}"

    def stored(self) -> Sequence[Source]:
        """Return the Parquet files."""
        return [file.source for file in self.files]

    def facts(self) -> Any:
        """Return the number of rows and the size of the media of each row group."""
        return [
            [file.metadata.row_group(group).num_rows, file.bytes_of(group, self._media_leaves(file))]
            for file, group in self._groups
        ]

    def _check_types(self, name: str) -> None:
        expected = self.schema.field(name)
        feature = columns.features_of(self.schema).get(name)
        for file in self.files:
            places = file.schema.get_all_field_indices(name)
            kind = file.schema.field(places[0]).type if len(places) == 1 else "missing"
            if kind != expected.type:
                raise ValueError(
                    f"the column {name} is {kind} in {file.source.url}, but {expected.type} in "
                    f"{self.files[0].source.url}: write all files with the same columns"
                )
            if columns.features_of(file.schema).get(name) != feature:
                raise ValueError(
                    f"the column {name} has other features in {file.source.url} than in {self.files[0].source.url}: "
                    "write all files with the same features"
                )

    def _media_leaves(self, file: ParquetFile) -> list[int]:
        wanted = self._media_paths()
        return [place for place in file.leaves(self._column) if file.metadata.schema.column(place).path in wanted]

    def _media_paths(self) -> list[str]:
        """Return the names of the parts of the media column that are read, the content first."""
        return [f"{self._column}.{part}" for part in self._parts] or [self._column]

    def _is_empty(self, file: ParquetFile, group: int) -> bool:
        """Whether a row group declares that none of its media has content."""
        wanted = self._media_paths()[0]
        for place in self._media_leaves(file):
            chunk = file.metadata.row_group(group).column(place)
            if chunk.path_in_schema == wanted and chunk.statistics is not None and chunk.statistics.has_null_count:
                return bool(chunk.statistics.null_count == file.metadata.row_group(group).num_rows)
        return False

    def _decoded(self, file: ParquetFile, group: int) -> tuple[list[columns.Media], int]:
        """Return the media of one row group, and their size in bytes."""
        try:
            if file.source.state() != (file.size, file.state):
                raise UnreadableFilesError(f"{file.source.url} has changed since this command started: run it again")
            return self._read(file, group)
        except (PartsError, AccessError) as error:
            raise UnreadableFilesError(str(error)) from error
        except OSError as error:
            raise UnreadableFilesError(f"{error}. Run the same command again once the file can be reached") from error

    def _read(self, file: ParquetFile, group: int) -> tuple[list[columns.Media], int]:
        rows, total = file.metadata.row_group(group).num_rows, 0
        media: list[columns.Media] = []
        # Row by row, because a dictionary of a few values can stand for any number of bytes in a batch of rows.
        for batch in _batches(file, self._media_paths(), 1, [group]):
            media.append(columns.media_in(batch.column(0), 0, self._parts))
            total += len(media[-1].content or b"")
            if len(media) > rows or total > self.cache_bytes:
                break
        if total > self.cache_bytes:
            raise UnreadableFilesError(
                f"row group {group} of {file.source.url} has more media than cache_bytes={self.cache_bytes:,}, and "
                "more than it declares: raise that limit, or remove the file"
            )
        if len(media) != rows:
            raise ValueError(f"row group {group} of {file.source.url} is damaged: it has not the declared {rows} rows")
        return media, total


class Cache(Generic[T]):
    """The most recently used values, up to `limit` bytes in total, but at least one; thread-safe.

    Every value is made once, also if several threads need it at the same time. An error is kept like a value if it is a
    ValueError, because the content will be the same next time.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._values: OrderedDict[int, Future[T]] = OrderedDict()
        self._sizes: dict[int, int] = {}

    def get(self, key: int, make: Callable[[], tuple[T, int]]) -> T:
        """Return the value of a key, which `make` returns with its size in bytes if it is not kept."""
        with self._lock:
            known = self._values.get(key)
            future: Future[T] = Future() if known is None else known
            self._values[key] = future
            self._values.move_to_end(key)
        if known is None:
            self._make(key, future, make)
        return future.result()

    def _make(self, key: int, future: Future[T], make: Callable[[], tuple[T, int]]) -> None:
        size = 0
        try:
            value, size = make()
            future.set_result(value)
        except BaseException as error:
            future.set_exception(error)
            if not isinstance(error, ValueError):
                with self._lock:
                    del self._values[key]
                return
        with self._lock:
            self._sizes[key] = size
            for other in list(self._values):
                if sum(self._sizes.values()) <= self.limit:
                    break
                if other != key and other in self._sizes:  # others are being made
                    del self._values[other], self._sizes[other]


@contextmanager
def _reading(file: _RangeFile, problem: str) -> Iterator[None]:
    """Convert errors of pyarrow in the `with` block: those of the storage are raised as such, others as ValueError."""
    try:
        yield
    except (ValueError, OSError, TypeError, KeyError, MemoryError, RuntimeError) as error:
        if file.failure is not None:
            raise file.failure from error
        url, reason = file.source.url, " ".join(str(error).split())[:300] or type(error).__name__
        if "crypt" in reason.lower():
            raise ValueError(f"{url} is encrypted: write it without encryption ({reason})") from error
        raise ValueError(f"{url}: {problem} ({reason}): {RESTORE}") from error


def _batches(
    file: ParquetFile, names: Sequence[str], rows: int, groups: Sequence[int] | None = None, texts: Sequence[str] = ()
) -> Iterator[pa.RecordBatch]:
    """Yield record batches of some columns, each with up to `rows` rows; those of `texts` keep their dictionaries.

    Raises:
        OSError: If the file cannot be reached.
        ValueError: If it is damaged.
    """
    import pyarrow.parquet as pq

    source = _RangeFile(file.source, file.size, file.size)
    with _reading(source, "it is damaged"):
        opened = pq.ParquetFile(
            source, metadata=file.metadata, read_dictionary=list(texts), pre_buffer=False,
            page_checksum_verification=True,
        )  # fmt: skip
        yield from opened.iter_batches(rows, groups, list(names), use_threads=False)


def _small_column(file: ParquetFile, name: str, budget: columns.Budget) -> list[pa.Array]:
    """Return the values of a column, or of a part of a column, of names, numbers, texts or lists of texts."""
    kind = file.schema.field(name).type if name in file.schema.names else None
    # A dictionary of a few texts can stand for any number of bytes, so it is kept until its size is known. Arrow does
    # not keep it within lists and structs, but refuses batches of these with more than 2 GiB.
    texts = [name] if kind is not None and columns.is_text(columns.value_type(kind)) else []
    rows = MANY_ROWS if texts or kind is None or not kind.num_fields else FEW_ROWS
    arrays = [columns.plain(batch.column(0), budget) for batch in _batches(file, [name], rows, None, texts)]
    if sum(map(len, arrays)) != file.metadata.num_rows:
        raise ValueError(
            f"{file.source.url} is damaged: the column {name} has not the declared {file.metadata.num_rows} rows: "
            f"{RESTORE}"
        )
    return arrays


def _copied(media: columns.Media) -> tuple[columns.Media, int]:
    """Return media with their size in bytes, without a reference to the row group that they are from."""
    content = None if media.content is None else memoryview(bytes(media.content))
    return columns.Media(content, media.path), len(content or b"")


def _in_threads(action: Callable[[S], T], items: Sequence[S]) -> list[T]:
    """Return the results for all items in order; the first error ends the work on items that are not begun."""
    pool = ThreadPoolExecutor(min(THREADS, len(items)))
    try:
        return [future.result() for future in [pool.submit(action, item) for item in items]]
    finally:
        pool.shutdown(cancel_futures=True)
