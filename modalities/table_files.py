"""Columns of numbers of CSV and Parquet files, as arrays along the dimension `time`."""

from __future__ import annotations

import csv
import math
import threading
from array import array
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modalities.base import UnusableFileError
from modalities.named_arrays import MAX_BYTES, ArrayFile, NamedArray, Part, check_size
from multisagd.files import check_file
from multisagd.libraries import check

ROWS = "time"
"""Name of the dimension along the rows of a table."""
DELIMITERS = ",;\t"
MAX_COLUMNS = 10_000
MAX_TEXT = 1 << 30
"""Maximum size of a CSV file, in bytes."""
EMPTY = {"", "na", "nan", "n/a", "null", "none"}
"""Texts, in lower case, that stand for a missing number."""


def open_csv(path: Path) -> ArrayFile:
    """Open a CSV file, delimited by commas, semicolons or tabs, and read it as a whole.

    If the first line has a text that is not a number, it has the names of the columns; otherwise they are named
    column_1, column_2, and so on. Empty fields are missing values. Columns with other texts cannot be used; the error
    names the first of these texts with its line and column.

    Raises:
        UnusableFileError: If it is empty or not UTF-8, a line has another number of fields than the first, or two
            columns have one name.
    """
    check_file(path, MAX_TEXT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline(1 << 20)
            file.seek(0)
            rows = csv.reader(file, delimiter=max(DELIMITERS, key=first.count))
            return _columns(rows)
    except UnicodeDecodeError as error:
        raise UnusableFileError(f"it is not UTF-8 text ({error.reason}): save it as UTF-8") from error
    except csv.Error as error:
        raise UnusableFileError(f"it is not a table ({error})") from error


def _columns(rows: Any) -> ArrayFile:
    head: list[str] = next(rows, [])
    if not head:
        raise UnusableFileError("its first line is empty: it must have the names of the columns, or numbers")
    if len(head) > MAX_COLUMNS:
        raise UnusableFileError(f"it has {len(head):,} columns, more than the limit of {MAX_COLUMNS:,}")
    has_names = any(_number(text) is None for text in head)
    names = [text.strip() for text in head] if has_names else [f"column_{1 + n}" for n in range(len(head))]
    if len(set(names)) < len(names):
        raise UnusableFileError(f"two of its columns have one name; they are named {', '.join(names)[:200]}")
    columns = [array("d") for _ in names]
    others: dict[str, str] = {}
    if not has_names:
        _add(head, columns, names, others, 1)
    for row in rows:
        if len(row) != len(names):
            if not row:
                continue
            raise UnusableFileError(f"its line {rows.line_num} has {len(row)} fields, but the first has {len(names)}")
        _add(row, columns, names, others, rows.line_num)
    arrays = [
        _column(name, np.frombuffer(column)) for name, column in zip(names, columns, strict=True) if name not in others
    ]
    return ArrayFile(arrays, others)


def _add(
    row: Sequence[str], columns: Sequence[array[float]], names: Sequence[str], others: dict[str, str], line: int
) -> None:
    """Append the numbers of a line to the columns; a text that is not a number is noted in `others`."""
    for text, column, name in zip(row, columns, names, strict=True):
        number = _number(text)
        if number is None:
            others.setdefault(name, f"its line {line} has {text!r:.60}, which is not a number")
            number = math.nan
        column.append(number)


def _number(text: str) -> float | None:
    """Return the number in a field, NaN if it is missing, or None if the field is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan if text.strip().lower() in EMPTY else None


def _column(name: str, values: NDArray[np.float64]) -> NamedArray:
    return NamedArray(name, values.shape, values.dtype, lambda index: values[index].copy(), (ROWS,), whole=True)


def open_parquet(path: Path) -> ArrayFile:
    """Open a Parquet file; columns of other types than numbers and texts cannot be used.

    Raises:
        UnusableFileError: If it has columns of extension types, or is larger than the limit.
        BrokenLibraryError: If pyarrow cannot be imported.
        Exception: If it is damaged; pyarrow raises errors of its own.
    """
    check("pyarrow.parquet", "Parquet files")
    import pyarrow
    from pyarrow import parquet, types

    file = parquet.ParquetFile(path)
    schema, rows = file.schema_arrow, file.metadata.num_rows
    if len(schema) > MAX_COLUMNS:
        raise UnusableFileError(f"it has {len(schema):,} columns, more than the limit of {MAX_COLUMNS:,}")
    check_size("", (rows,), np.dtype(np.float64))
    arrays, others, turn = [], {}, threading.Lock()
    for column in schema:
        if isinstance(column.type, pyarrow.BaseExtensionType):
            raise UnusableFileError(f"its column {column.name} has the extension type {column.type}, which is not read")
        if types.is_integer(column.type) or types.is_floating(column.type) or types.is_boolean(column.type):
            _check_stored(file.metadata, column.name)
            part = _parquet_column(file, column.name, turn)
            arrays.append(NamedArray(column.name, (rows,), np.dtype(np.float64), part, (ROWS,), whole=True))
        else:
            others[column.name] = f"its values have the type {column.type}, and not real numbers"
    return ArrayFile(arrays, others, close=file.close)


def _check_stored(metadata: Any, name: str) -> None:
    """Raise UnusableFileError if the file states that a part of a column takes more memory than the limit."""
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema == name and not 0 <= column.total_uncompressed_size <= MAX_BYTES:
                raise UnusableFileError(f"its column {name} would take more than {MAX_BYTES:,} bytes in memory")


def _parquet_column(file: Any, name: str, turn: threading.Lock) -> Part:
    """Return a function that reads parts of a column, which stays in memory once it was read."""
    import pyarrow

    @cache
    def whole() -> NDArray[np.float64]:
        column = file.read(columns=[name], use_threads=False).column(0)
        numbers: NDArray[np.float64] = column.cast(pyarrow.float64()).to_numpy(zero_copy_only=False)
        return numbers

    def part(index: tuple[slice, ...]) -> NDArray[Any]:
        with turn:
            values = whole()
        return values[index].copy()

    return part
