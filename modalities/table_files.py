"""Columns of numbers of CSV and Parquet files, as arrays along the dimension `time`."""

from __future__ import annotations

import csv
import math
import re
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
PANDAS_INDEX = re.compile(r"__index_level_\d+__")
"""Names that pandas gives to columns of row numbers, which are no data."""
EMPTY = {"", "na", "nan", "n/a", "null", "none"}
"""Texts, in lower case, that stand for a missing number."""


def open_csv(path: Path) -> ArrayFile:
    """Open a CSV file, delimited by commas, semicolons or tabs, and read it as a whole.

    If the first line has a text that is not a number, it has the names of the columns; otherwise they are named
    column_1, column_2, and so on. Empty fields are missing values. Columns without a name, such as the numbers of rows
    that pandas writes, and columns with other texts cannot be used; for these, the reason names the first text.

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
    names = [has_names * text.strip() or f"column_{1 + number}" for number, text in enumerate(head)]
    if len(set(names)) < len(names):
        raise UnusableFileError(f"two of its columns have one name; they are named {', '.join(names)[:200]}")
    columns = [array("d") for _ in names]
    unnamed = [name for name, text in zip(names, head, strict=True) if has_names and not text.strip()]
    others = dict.fromkeys(unnamed, "the first line has no name for it")
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
            point = ": write it with a decimal point" * (_number(text.replace(",", ".")) is not None)
            others.setdefault(name, f"its line {line} has {text!r:.60}, which is not a number{point}")
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
    """Open a Parquet file; columns of other types than numbers, and row numbers of pandas, cannot be used.

    Raises:
        UnusableFileError: If it has columns of extension types, two columns of one name, or is larger than the limit.
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
    if len(set(schema.names)) < len(schema):
        raise UnusableFileError(f"two of its columns have one name; they are named {', '.join(schema.names)[:200]}")
    check_size("", (rows,), np.dtype(np.float64))
    too_large = _too_large(file.metadata)
    arrays, others, turn = [], {}, threading.Lock()
    numbers = types.is_integer, types.is_floating, types.is_boolean, types.is_decimal
    for column in schema:
        if isinstance(column.type, pyarrow.BaseExtensionType):
            raise UnusableFileError(f"its column {column.name} has the extension type {column.type}, which is not read")
        if PANDAS_INDEX.fullmatch(column.name):
            others[column.name] = "it is the index of a pandas table"
        elif any(is_of(column.type) for is_of in numbers):
            if column.name in too_large:
                raise UnusableFileError(f"its column {column.name} would take more than {MAX_BYTES:,} bytes in memory")
            part = _parquet_column(file, column.name, turn)
            arrays.append(NamedArray(column.name, (rows,), np.dtype(np.float64), part, (ROWS,), whole=True))
        else:
            others[column.name] = f"its values have the type {column.type}, and not real numbers"
    return ArrayFile(arrays, others, close=file.close)


def _too_large(metadata: Any) -> set[str]:
    """Return the names of columns of which a part would take more memory than the limit, as the file states."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    parts = (group.column(place) for group in groups for place in range(group.num_columns))
    return {part.path_in_schema for part in parts if not 0 <= part.total_uncompressed_size <= MAX_BYTES}


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
