"""Reading of Arrow files on this machine, which the library `datasets` writes: the tables are mapped into memory."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from modalities import table_columns as columns
from modalities.byte_ranges import Source, local
from modalities.tables import Storage
from multisagd.files import check_file

if TYPE_CHECKING:
    import pyarrow as pa

MAX_ALLOCATED = 16 << 20
"""Maximum number of bytes of a table that are not mapped."""


def read_arrow(path: Path) -> pa.Table:
    """Return the table in an Arrow file (a stream of record batches), mapped into memory.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is damaged or compressed; the message names it.
    """
    import pyarrow as pa

    check_file(path)
    try:
        # What is mapped takes no memory, but what is compressed may take any amount: first it is read batch by batch.
        with pa.ipc.open_stream(pa.memory_map(str(path)), memory_pool=_counting_pool()) as reader:
            for _ in reader:
                if _counting_pool().bytes_allocated() > MAX_ALLOCATED:
                    raise ValueError("it is compressed: `datasets` writes it without compression")
        with pa.ipc.open_stream(pa.memory_map(str(path))) as reader:
            return reader.read_all()
    except (pa.ArrowException, ValueError, OSError, MemoryError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} is not a readable Arrow file ({reason}): write the folder again") from error


@cache
def _counting_pool() -> pa.MemoryPool:
    """Return the pool whose bytes are counted; it stays, because Arrow's memory must not outlive its pool."""
    import pyarrow as pa

    return pa.proxy_memory_pool(pa.default_memory_pool())


class ArrowStorage(Storage):
    """The rows of tables, which are those in `files`.

    Raises:
        ValueError: If the tables have different columns.
    """

    def __init__(self, files: Sequence[Path], tables: Sequence[pa.Table]) -> None:
        import pyarrow as pa

        self.schema = tables[0].schema
        for file, table in zip(files, tables, strict=True):
            if not table.schema.equals(self.schema, check_metadata=True):
                raise ValueError(f"{file} has other columns or features than {files[0]}: use the splits one by one")
        self._table, self._files = pa.concat_tables(tables), files
        self._first_rows = list(accumulate((table.num_rows for table in tables), initial=0))
        self._media: pa.ChunkedArray

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def groups(self) -> None:
        """None, because every row is read by itself."""
        return

    def column(self, name: str) -> pa.ChunkedArray:
        """Return all values of a small column; see `Storage.column`."""
        import pyarrow as pa

        budget, values = columns.Budget(name), self._checked(name)
        if not values.num_chunks:
            return values
        return pa.chunked_array([columns.plain(chunk, budget) for chunk in values.chunks])

    def use(self, column: str) -> None:
        """Set the column that holds media; see `Storage.use`."""
        self._media = self._checked(column)
        self._parts = columns.parts_of(self._media.type)
        self._starts = list(accumulate(map(len, self._media.chunks), initial=0))
        self._sizes = [columns.sizes_of(chunk, self._parts) for chunk in self._media.chunks]
        if all((sizes < 0).all() for sizes in self._sizes):
            raise ValueError(
                f"the column {column} has paths of files, but not their content: paths are not followed. Write it "
                "again with save_to_disk, or use data=folder with the folder of the files"
            )

    def media(self, row: int, keep: bool = False) -> columns.Media:
        """Return the media in one row, which the system keeps in memory; see `Storage.media`."""
        place = bisect_right(self._starts, row) - 1
        return columns.media_in(self._media.chunk(place), row - self._starts[place], self._parts)

    def paths(self) -> Sequence[str | None]:
        """Return the paths beside the media; see `Storage.paths`."""
        return [self.media(row).path for row in range(len(self))]

    def name(self, row: int) -> str:
        """Return the name of a file, and the number of a row in it."""
        place = bisect_right(self._first_rows, row) - 1
        return f"{self._files[place]}: row {row - self._first_rows[place]}"

    def stored(self) -> Sequence[Source]:
        """Return the Arrow files."""
        return [local(file) for file in self._files]

    def facts(self) -> Any:
        """Return a hash of the sizes of the media of all rows."""
        return hashlib.sha256(np.concatenate(self._sizes).tobytes()).hexdigest()

    def _checked(self, name: str) -> pa.ChunkedArray:
        """Return a column after checking that no offset in it points outside of the file."""
        import pyarrow as pa

        values = self._table.column(name)
        try:
            values.validate(full=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"the column {name} of {self._files[0]} is damaged: {error}") from error
        return values
