"""The columns of a table of media: which of them hold media, classes and captions, and the values of the small ones.

Columns are recognised by the features that the `datasets` library writes into a schema (Image, Audio, Video,
ClassLabel), or else by their names and types. A column of a type that another program has defined is refused, because
only that program knows what its bytes mean.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modalities.base import Split
from modalities.labels import number
from modalities.splits import named_split
from multisagd.files import parse_json

if TYPE_CHECKING:
    import pyarrow as pa

AUTO, NONE, LABELS = "auto", "none", "labels"
MEDIA_FEATURES = ("Image", "Audio", "Video")
CAPTION_COLUMNS = ("text", "caption", "captions")
"""Names of columns that hold captions, if none is named."""
LABEL_COLUMN, SPLIT_COLUMN, GROUP_COLUMN = "label", "split", "group"
LARGEST_TEXT = 1 << 20
"""Maximum size of a class or caption in bytes."""
MAX_COLUMN = 4 << 30
"""Maximum size of all classes or captions in bytes."""
LONGEST_PATH = 4096
"""Maximum number of bytes of a path: no system has longer ones, so a longer text names nothing."""
log = logging.getLogger("multisagd")


class Columns(NamedTuple):
    """The names of the columns in use; None for one that does not exist or is not wanted."""

    media: str
    labels: str | None
    captions: str | None
    splits: str | None
    groups: str | None


def features_of(schema: pa.Schema) -> Mapping[str, Mapping[str, Any]]:
    """Return the features that the `datasets` library has written into a schema, by column; empty if there are none."""
    content = (schema.metadata or {}).get(b"huggingface")
    if content is None:
        return {}
    try:
        features = parse_json(content)["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, Mapping)}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("the features that `datasets` has written cannot be read (%s), so they are ignored", error)
        return {}


def media_column(schema: pa.Schema, asked: str | None) -> str:
    """Return the name of the column that holds media: `asked`, or else the only one that can.

    Raises:
        ValueError: If there is no such column, or there are several.
    """
    import pyarrow as pa

    features = features_of(schema)
    if asked is not None:
        kind = _field(schema, asked, "media").type
        if not is_media(kind):
            files = "; paths of files are not followed: store the content of the files" * pa.types.is_string(kind)
            raise ValueError(
                f"data.media={asked}: the column has the type {kind}, but media are binary, or a struct with a binary "
                f"field `bytes`{files}"
            )
        return asked
    able = [field.name for field in schema if is_media(field.type)]
    marked = [name for name in able if features.get(name, {}).get("_type") in MEDIA_FEATURES]
    found = marked or able
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"several columns hold media ({', '.join(found)}): choose one with data.media=…")
    raise ValueError(
        f"no column holds media: it must be binary, or a struct with a binary field `bytes`, but there are "
        f"{_described(schema)}. The content of the files must be in the table: paths are not followed"
    )


def label_column(schema: pa.Schema, asked: str) -> str | None:
    """Return the name of the column of classes: `asked`, or for "auto" the one with ClassLabel, or named `label`.

    Raises:
        ValueError: If there is no such column, there are several, or its values are no classes.
    """
    if asked == NONE:
        return None
    name = asked
    if asked == AUTO:
        features = features_of(schema)
        marked = [each for each in schema.names if features.get(each, {}).get("_type") == "ClassLabel"]
        if LABEL_COLUMN in schema.names:
            marked = [LABEL_COLUMN]
        if len(marked) > 1:
            raise ValueError(f"several columns hold classes ({', '.join(marked)}): choose one with data.labels=…")
        if not marked:
            return None
        name = marked[0]
    _check_type(_field(schema, name, "labels"), "labels", "classes are whole numbers or text", numbers=True)
    return name


def caption_column(schema: pa.Schema, asked: str) -> str | None:
    """Return the name of the column of captions: `asked`, or for "auto" the one named text, caption or captions.

    Raises:
        ValueError: If there is no such column, there are several, or its values are no texts.
    """
    if asked in (NONE, LABELS):
        return None
    name = asked
    if asked == AUTO:
        found = [each for each in CAPTION_COLUMNS if each in schema.names]
        if len(found) > 1:
            raise ValueError(f"several columns may hold captions ({', '.join(found)}): choose one with data.captions=…")
        if not found:
            return None
        name = found[0]
    _check_type(_field(schema, name, "captions"), "captions", "captions are text, or lists of texts", lists=True)
    return name


def name_column(schema: pa.Schema, asked: str, setting: str, usual: str) -> str | None:
    """Return the name of the column for a setting: `asked`, or for "auto" the one named `usual`, if there is one.

    Raises:
        ValueError: If there is no such column, or its values are no names.
    """
    if asked == NONE or (asked == AUTO and usual not in schema.names):
        return None
    name = usual if asked == AUTO else asked
    _check_type(_field(schema, name, setting), setting, "names are whole numbers or text", numbers=True)
    return name


def class_numbers(values: pa.ChunkedArray, feature: Mapping[str, Any]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes and the class number of every row, int64 `(rows,)`.

    With the feature ClassLabel, numbers stand for its names, which keep their order; names without rows are left out.
    Otherwise the values are names, and sorted as such.

    Raises:
        ValueError: If a row has no class, or a number without a name.
    """
    import pyarrow as pa

    declared = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    if declared is None or not pa.types.is_integer(values.type):
        names, indices = distinct(values, "class", "labels")
        classes, order = number(names)
        return classes, np.array(order, np.int64)[indices]
    if not isinstance(declared, list) or not all(isinstance(name, str) for name in declared):
        raise ValueError("the names of its classes are no texts: set data.labels=none")
    if len(set(declared)) < len(declared):
        raise ValueError("two of its classes have the same name: set data.labels=none")
    _check_present(values, "class", "labels")
    numbers = values.to_numpy().astype(np.int64)
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(declared)))
    if len(wrong):
        # -1 is what `datasets` uses for the hidden classes of test data.
        raise ValueError(
            f"row {wrong[0]} has the class {numbers[wrong[0]]}, but there are names for 0 to {len(declared) - 1} only: "
            "set data.labels=none"
        )
    used = np.unique(numbers)
    return tuple(declared[each] for each in used), np.searchsorted(used, numbers)


def distinct(values: pa.ChunkedArray, what: str, setting: str) -> tuple[list[str], NDArray[np.int64]]:
    """Return the distinct values of a column as texts, and the index of each row's value among them.

    Raises:
        ValueError: If a row has no value.
    """
    import pyarrow as pa

    _check_present(values, what, setting)
    encoded = values.cast(pa.large_string()).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    if "" in names:
        row = int(np.flatnonzero(encoded.indices.to_numpy() == names.index(""))[0])
        raise ValueError(f"row {row} has an empty {what}: set data.{setting}=none")
    return names, encoded.indices.to_numpy().astype(np.int64)


def splits_of(values: pa.ChunkedArray) -> list[Split]:
    """Return the split of every row.

    Raises:
        ValueError: If a row has none, or one that means no split.
    """
    names, indices = distinct(values, "split", "splits")
    try:
        meant = [named_split(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{error}: set data.splits=none, or name another column") from error
    return [meant[index] for index in indices]


def captions_in(values: pa.ChunkedArray, row: int) -> tuple[str, ...]:
    """Return the captions in one row, without those that are empty."""
    value = values[row].as_py()
    given = value if isinstance(value, list) else [value]
    return tuple(text for each in given if each is not None and (text := each.strip()))


class Media(NamedTuple):
    """The content of one media file, or None if the table has none; `path` is the name that the table gives it."""

    content: memoryview | None
    path: str | None


def parts_of(kind: pa.DataType) -> list[str]:
    """Return the fields that are read of a media column of this type, the content first; none if it is no struct."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return []
    place = kind.get_field_index("path")
    return ["bytes", "path"] if place >= 0 and is_text(kind.field(place).type) else ["bytes"]


def media_in(values: pa.Array, row: int, parts: Sequence[str]) -> Media:
    """Return the media in one row of a media column, of which `parts_of` its type are read."""
    if not values[row].is_valid:
        return Media(None, None)
    content = (values.field("bytes") if parts else values)[row]
    path = values.field("path")[row] if "path" in parts else None
    named = path.as_buffer() if path is not None and path.is_valid else None
    if named is not None and len(named) > LONGEST_PATH:
        named = None
    return Media(
        memoryview(content.as_buffer()) if content.is_valid else None,
        None if named is None else bytes(named).decode(errors="replace"),
    )


def sizes_of(values: pa.Array, parts: Sequence[str]) -> NDArray[np.int64]:
    """Return the sizes in bytes of the media in a media column, int64 `(rows,)`, -1 for a row without content."""
    import pyarrow.compute as pc

    content = values.flatten()[values.type.get_field_index("bytes")] if parts else values
    return pc.fill_null(pc.binary_length(content), -1).to_numpy(zero_copy_only=False).astype(np.int64)


class Budget:
    """Counts the bytes of the values of a column; thread-safe."""

    def __init__(self, column: str) -> None:
        self.column = column
        self._left = MAX_COLUMN
        self._lock = threading.Lock()

    def take(self, size: int, longest: int) -> None:
        """Count values of `size` bytes in total, the longest of which has `longest` bytes.

        Raises:
            ValueError: If one value, or all together, exceed the limits.
        """
        with self._lock:
            self._left -= size
            if longest > LARGEST_TEXT or self._left < 0:
                limit = f"one of {longest:,} bytes (the limit is {LARGEST_TEXT:,})"
                limit = limit if longest > LARGEST_TEXT else f"more than {MAX_COLUMN:,} bytes in total"
                raise ValueError(f"the column {self.column} has values of {limit}: choose another column, or none")


def plain(values: pa.Array, budget: Budget) -> pa.Array:
    """Return values without dictionaries, with texts as large_string and lists as large_list; sizes are checked first.

    Of a struct, its only field is returned.

    Raises:
        ValueError: If the values are too large.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_struct(values.type):
        (values,) = values.flatten()
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    inner = values.flatten() if is_list else values
    if is_text(value_type(inner.type)):
        lengths = pc.binary_length(_lengths_of(inner))
        if pa.types.is_dictionary(inner.type):
            lengths = lengths.take(inner.indices)
        budget.take((pc.sum(lengths).as_py() or 0) + 8 * len(values), pc.max(lengths).as_py() or 0)
    else:
        budget.take(8 * len(inner), 0)
    if is_list:
        return values.cast(pa.large_list(pa.large_string()))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return values.cast(pa.large_string()) if is_text(values.type) else values


def _lengths_of(values: pa.Array) -> pa.Array:
    import pyarrow as pa

    texts = values.dictionary if pa.types.is_dictionary(values.type) else values
    return texts.cast(pa.large_string())


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is a text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_media(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold media."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        kind = kind.field(place).type if place >= 0 else kind
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def check_field(field: pa.Field) -> None:
    """Check that a column does not have a type that another program has defined.

    Raises:
        ValueError: If it has one; the message names it.
    """
    import pyarrow as pa

    name = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode(errors="replace")
    if isinstance(field.type, pa.BaseExtensionType):
        name = field.type.extension_name
    if name:
        raise ValueError(
            f"the column {field.name!r:.100} has the extension type {name[:100]!r}, which is not read: write plain "
            "binary, text or numbers"
        )
    kind = value_type(field.type)
    for index in range(kind.num_fields):
        check_field(kind.field(index))


def value_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a dictionary, or the type itself."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _field(schema: pa.Schema, name: str, setting: str) -> pa.Field:
    places = schema.get_all_field_indices(name)
    if len(places) != 1:
        problem = "there are several columns of this name" if places else "there is no such column"
        raise ValueError(f"data.{setting}={name}: {problem}; the columns are {_described(schema)}")
    return schema.field(places[0])


def _check_type(field: pa.Field, setting: str, rule: str, numbers: bool = False, lists: bool = False) -> None:
    import pyarrow as pa

    kind = value_type(field.type)
    if lists and (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        kind = value_type(kind.value_type)
    if not is_text(kind) and not (numbers and (pa.types.is_integer(kind) or pa.types.is_boolean(kind))):
        raise ValueError(
            f"the column {field.name} has the type {field.type}, but {rule}: set data.{setting} to another column, or "
            "to none"
        )


def _check_present(values: pa.ChunkedArray, what: str, setting: str) -> None:
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        raise ValueError(f"row {row} has no {what}: set data.{setting}=none")


def _described(schema: pa.Schema, shown: int = 20) -> str:
    rest = len(schema) - shown
    columns = [f"{field.name[:60]} ({str(field.type)[:60]})" for field in list(schema)[:shown]]
    return f"{', '.join(columns) or 'none'}{f', and {rest} more' if rest > 0 else ''}"


def all_of(columns: Sequence[str | None]) -> list[str]:
    """Return the names that are given, each once."""
    return list(dict.fromkeys(name for name in columns if name is not None))
