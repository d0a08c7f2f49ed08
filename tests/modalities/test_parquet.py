"""Parquet files are the same dataset as a folder of the same files, wherever they lie, and whatever strangers write."""

import json
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
import torch

from modalities import parquet_storage
from modalities.base import Batch, Dataset
from modalities.byte_ranges import Source
from modalities.files import Folder
from modalities.image import Image
from modalities.parquet import ParquetFiles
from modalities.parquet_storage import Cache, ParquetStorage
from modalities.reading import UnreadableFilesError
from multisagd.seeds import derive
from tests.helpers.batches import assert_equal
from tests.helpers.tables import CLASSES, FEATURES, picture, pictures, write_parquet
from tests.helpers.web_server import serving

IMAGE = Image(size=8, flip=True)
COUNT = 20
TEXTS = [f"“number” {number}" for number in range(COUNT)]


def batch_of(dataset: Dataset, seeds: bool = True) -> Batch:
    return dataset.batch(range(len(dataset)), range(100, 100 + len(dataset)) if seeds else None)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    return write_parquet(pictures(COUNT, text=TEXTS), tmp_path / "tables")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    rows = ["file,label,text"]
    (tmp_path / "photos").mkdir()
    for number, text in enumerate(TEXTS):
        (tmp_path / "photos" / f"{number:02}.png").write_bytes(picture(number))
        rows.append(f"{number:02}.png,{CLASSES[number % 4]},{text}")
    (tmp_path / "photos" / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    return Folder(IMAGE, tmp_path / "photos", manifest="list.csv")


@pytest.mark.parametrize("threads", [1, 4])
def test_parquet_files_equal_the_folder(folder: Folder, tables: Path, threads: int) -> None:
    data = ParquetFiles(IMAGE, str(tables), threads=threads, cache_bytes=20_000)
    assert len(data) == COUNT
    assert data.classes == CLASSES, "the order of the names is that of the features"
    expected = [(folder.classes or ())[folder.label(index) or 0] for index in range(COUNT)]
    for seeds in (False, True):
        mine, theirs = batch_of(data, seeds), batch_of(folder, seeds)
        assert torch.equal(mine.x0, theirs.x0)
        assert mine.texts == theirs.texts == tuple(TEXTS)
        assert mine.labels is not None
        assert [CLASSES[label] for label in mine.labels] == expected
    assert (data.path(9), data.name(9)) == ("0/9.png", f"{tables}/001.parquet: row 1")
    with pytest.raises(IndexError, match="20"):
        data.example(COUNT)


def test_parquet_files_are_the_same_from_a_web_server_and_any_storage(tables: Path) -> None:
    data = ParquetFiles(IMAGE, str(tables))
    memory = fsspec.filesystem("memory")
    for path in tables.iterdir():
        memory.pipe_file(f"/parquet/{path.name}", path.read_bytes())
    with serving(tables) as address:
        for urls in (f"{address}/{{000..002}}.parquet", "memory://parquet", [f"{tables}/*.parquet"]):
            other = ParquetFiles(IMAGE, urls)
            assert_equal(batch_of(other), batch_of(data))
            assert (other.fingerprint, other.groups) == (data.fingerprint, data.groups)
        with pytest.raises(OSError, match=r"009.parquet: FileNotFoundError"):
            ParquetFiles(IMAGE, f"{address}/009.parquet")
    memory.rm("/parquet", recursive=True)


def test_groups_are_row_groups_also_of_a_subset(tables: Path) -> None:
    data = ParquetFiles(IMAGE, str(tables), window=4)
    assert data.groups == ([3, 3, 2, 3, 3, 2, 3, 1], 4, True)
    part = data.subset([0, 2, 7, 8, 19])
    assert part.groups == ([2, 1, 1, 1], 4, True)
    assert part.captions(3) == (TEXTS[8],)
    assert torch.equal(part[4].x0, data[19].x0)
    largest = max(size for _, size in data.storage.facts())
    assert ParquetFiles(IMAGE, str(tables), cache_bytes=2 * largest).groups == ([3, 3, 2, 3, 3, 2, 3, 1], 1, True)
    with pytest.raises(ValueError, match=r"row group . of .* declares .* bytes of media.*smaller row groups"):
        ParquetFiles(IMAGE, str(tables), cache_bytes=largest - 1)


def test_fingerprint_changes_with_examples_classes_and_captions(tables: Path, tmp_path: Path) -> None:
    first = ParquetFiles(IMAGE, str(tables)).fingerprint
    other = write_parquet(pictures(COUNT, text=[*TEXTS[:-1], "other"]), tmp_path / "text")
    larger = write_parquet(pictures(COUNT, text=TEXTS), tmp_path / "groups", group=4)
    for urls, more in ((tables, {"labels": "none"}), (tables, {"captions": "labels"}), (other, {}), (larger, {})):
        assert ParquetFiles(IMAGE, str(urls), **more).fingerprint != first, (urls, more)  # type: ignore[arg-type]
    assert ParquetFiles(IMAGE, str(tables)).subset(range(5)).fingerprint != first


@pytest.mark.parametrize(("labels", "features", "classes"), [
    ([3, 10, 9, 3], None, ("3", "9", "10")),
    (["b", "a", "b", "a"], None, ("a", "b")),
    (pa.array(["b", "a", "b", "a"]).dictionary_encode(), None, ("a", "b")),
    ([3, 1, 1, 3], FEATURES, ("cat", "9")),
], ids=str)  # fmt: skip
def test_labels_are_numbers_names_or_features(tmp_path: Path, labels: Any, features: Any, classes: Any) -> None:
    data = ParquetFiles(IMAGE, str(write_parquet(pictures(4, features, label=labels), tmp_path / "tables")))
    assert data.classes == classes
    values = labels.to_pylist() if isinstance(labels, pa.Array) else labels
    names = [CLASSES[value] for value in values] if features else [str(value) for value in values]
    assert [classes[data.label(index) or 0] for index in range(4)] == names


def test_captions_are_drawn_from_a_list_by_the_seed(tmp_path: Path) -> None:
    texts = [["one", "two", " "], ["three"], [], None]  # row groups differ in their dictionaries
    tables = str(write_parquet(pictures(4, text=texts), tmp_path / "tables"))
    with pytest.raises(ValueError, match=r"row 2 has no caption, and so have 1 more rows: .*missing_captions"):
        ParquetFiles(IMAGE, tables)
    data = ParquetFiles(IMAGE, tables, missing_captions="empty")
    assert [data.captions(index) for index in range(4)] == [("one", "two"), ("three",), ("",), ("",)]
    assert data.batch(range(4)).texts == ("one", "three", "", "")
    assert {data.example(0, seed).text for seed in range(20)} == {"one", "two"}
    assert data.example(0, 5).text == ("one", "two")[derive(5, "caption") % 2]
    assert len(ParquetFiles(IMAGE, tables, missing_captions="skip")) == 2
    assert ParquetFiles(IMAGE, tables, captions="labels").captions(1) == ("cat",)


def test_splits_and_groups_are_columns(tmp_path: Path) -> None:
    splits, speakers = ["train", "test", "train", "val"], ["ann", "ben", "ann", "eve"]
    tables = str(write_parquet(pictures(4, split=splits, group=speakers), tmp_path / "tables"))
    data = ParquetFiles(IMAGE, tables)
    assert (data.splits, data.listed_groups) == ([*splits[:3], "validation"], speakers)
    part = data.subset([3, 1])
    assert (part.splits, part.listed_groups) == (["validation", "test"], ["eve", "ben"])
    assert ParquetFiles(IMAGE, tables, splits="none", group_column="none").splits is None


IMAGES = pa.struct({"bytes": pa.binary(), "path": pa.string()})
COLUMNS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"other": [picture(1)] * 4}, {"features": None}, r"several columns hold media \(image, other\)"),
    ({"image": None}, {}, r"no column holds media: .* there are label \(int64\)"),
    ({"image": ["a.png"] * 4}, {"media": "image"}, "paths of files are not followed"),
    ({"image": pa.array([{"bytes": None, "path": "/etc/x"}] * 4, IMAGES)}, {}, "paths of files, but not their content"),
    ({}, {"media": "picture"}, r"data.media=picture: there is no such column; the columns are image \(struct.*label"),
    ({"label": [0, 1, None, 1]}, {}, "the column label: row 2 has no class: set data.labels=none"),
    ({"label": [0, 1, -1, 1]}, {}, "row 2 has the class -1"),
    ({"label": [[0], [1], [2], [3]]}, {}, r"label has the type list<.*classes are whole numbers or text"),
    ({"text": ["a"] * 4, "caption": ["b"] * 4}, {}, r"several columns may hold captions \(text, caption\)"),
    ({"text": [1, 2, 3, 4]}, {}, "captions are text"),
    ({"text": ["x" * (2 << 20)] * 4}, {}, "the column text has values of one of 2,097,152 bytes"),
    ({"split": ["train", "train", "dev", "test"]}, {}, "a split is one of train, .*, got 'dev': set data.splits=none"),
    ({"split": ["test"] * 4}, {}, "has no row for train"),
    ({}, {"missing_captions": "no"}, "must be error, empty or skip"),
    ({}, {"window": 0}, "window and cache_bytes must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "settings", "message"), COLUMNS, ids=[case[2][:30] for case in COLUMNS])
def test_parquet_files_name_the_column_that_is_wrong(tmp_path: Path, more: Any, settings: Any, message: str) -> None:
    kept = {key: value for key, value in settings.items() if key != "features"}
    table = pictures(4, settings.get("features", FEATURES), **more)
    with pytest.raises(ValueError, match=message):
        ParquetFiles(IMAGE, str(write_parquet(table, tmp_path / "tables")), **kept)


def test_files_must_have_the_same_types_and_features(tmp_path: Path) -> None:
    write_parquet(pictures(4), tmp_path, names=["a"])
    write_parquet(pictures(4, label=["a"] * 4), tmp_path, names=["b"])
    with pytest.raises(ValueError, match=r"the column label is string in .*b.parquet, but int64 in .*a.parquet"):
        ParquetFiles(IMAGE, str(tmp_path))
    features = {**FEATURES, "label": {"names": ["9", "10", "cat", "dog"], "_type": "ClassLabel"}}
    write_parquet(pictures(4, features), tmp_path, names=["b"])
    with pytest.raises(ValueError, match="the column label has other features in"):
        ParquetFiles(IMAGE, str(tmp_path))


def test_files_that_differ_in_columns_or_are_named_after_splits_are_used_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_parquet(pictures(4, label=None), tmp_path, names=["train-0"])
    write_parquet(pictures(4), tmp_path, names=["train-1"])
    assert ParquetFiles(IMAGE, str(tmp_path)).classes is None
    (warning,) = caplog.messages
    assert re.search(r"train-1\.parquet has columns that .*train-0\.parquet lacks \(label\), which are not", warning)
    write_parquet(pictures(4), tmp_path, names=["train-0"])
    write_parquet(pictures(4), tmp_path, names=["test-0"])
    caplog.clear()
    assert len(ParquetFiles(IMAGE, str(tmp_path))) == 12
    (warning,) = caplog.messages
    assert re.search(r"named after splits \(test-0\.parquet, train-\d\.parquet\), but all .* data\.urls", warning)
    caplog.clear()
    ParquetFiles(IMAGE, f"{tmp_path}/train-*.parquet")
    assert not caplog.messages


def test_plain_binary_columns_and_rows_without_content(tmp_path: Path) -> None:
    table = pictures(6, None, image=None, jpg=[*map(picture, range(4)), b"no picture", None])
    data = ParquetFiles(IMAGE, str(write_parquet(table, tmp_path / "tables")), max_unreadable=1)
    assert data.batch(range(6)).x0.shape == (6, 3, 8, 8)
    reasons = [data.unreadable[f"{tmp_path}/tables/000.parquet: row {row}"] for row in (4, 5)]
    assert "has no content" in reasons[1]
    assert len(data.unreadable) == 2
    small = ParquetFiles(IMAGE, str(tmp_path / "tables"), max_member_bytes=20, max_unreadable=1)
    with pytest.raises(UnreadableFilesError, match=r"max_member_bytes=20: raise that limit"):
        small[0]


def test_every_row_group_is_read_once_in_any_number_of_threads(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    original = ParquetStorage._read

    def counted(self: ParquetStorage, file: Any, group: int) -> Any:
        read.append((file.source.url, group))
        return original(self, file, group)

    monkeypatch.setattr(ParquetStorage, "_read", counted)
    data = ParquetFiles(IMAGE, str(tables), threads=8)
    for _ in range(3):
        batch_of(data)
    assert len(read) == len(set(read)) == 8
    # Examples for validation are kept by themselves.
    largest = max(size for _, size in data.storage.facts())
    small = ParquetFiles(IMAGE, str(tables), cache_bytes=largest, threads=1)
    for expected in (8, 8):
        batch_of(small, seeds=False)
        assert len(read) == 8 + expected


def test_cache_keeps_the_latest_values_and_the_errors_of_contents() -> None:
    cache: Cache[int] = Cache(10)
    made: list[int] = []

    def make(key: int) -> Callable[[], tuple[int, int]]:
        def value() -> tuple[int, int]:
            made.append(key)
            if key >= 100:
                raise (ValueError if key == 100 else OSError)(key)
            return key, 4

        return value

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: cache.get(n % 2, make(n % 2)), range(50))) == [0, 1] * 25
    assert sorted(made) == [0, 1]
    for key in (2, 1, 0):
        assert cache.get(key, make(key)) == key
    assert made[2:] == [2, 0], "0 was the oldest"
    for key, times in ((100, 1), (101, 2)):
        for _ in range(2):
            with pytest.raises((ValueError, OSError)):
                cache.get(key, make(key))
        assert made.count(key) == times


def test_storage_errors_stop_and_damage_is_reported(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ParquetFiles(IMAGE, str(tables))
    with monkeypatch.context() as patch:
        patch.setattr(Source, "read", Mock(side_effect=OSError("the disk is gone")))
        with pytest.raises(UnreadableFilesError, match=r"the disk is gone.*Run the same"):
            data[0]
    path = tables / "001.parquet"
    content = path.read_bytes()
    path.write_bytes(content + b" ")
    with pytest.raises(UnreadableFilesError, match=r"001.parquet has changed since this command started"):
        data[8]
    start = pq.read_metadata(tables / "000.parquet").row_group(0).column(0).data_page_offset
    damaged = bytearray((tables / "000.parquet").read_bytes())
    damaged[start : start + 40] = b"\xff" * 40
    (tables / "000.parquet").write_bytes(damaged)
    path.write_bytes(content)
    data = ParquetFiles(IMAGE, str(tables), max_unreadable=0.2)
    assert data.batch(range(8)).x0.shape[0] == 8
    assert len(data.unreadable) == 3, "the three rows of the row group"
    assert "is damaged" in next(iter(data.unreadable.values()))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def encrypted(path: Path) -> None:
    class Keys(pe.KmsClient):
        def __init__(self, *_: object) -> None:
            super().__init__()

        def wrap_key(self, key: bytes, _: str) -> bytes:
            return key.hex().encode()

        def unwrap_key(self, key: bytes, _: str) -> bytes:
            return bytes.fromhex(key.decode())

    settings = pe.EncryptionConfiguration(footer_key="k", column_keys={"k": ["jpg"]})
    properties = pe.CryptoFactory(Keys).file_encryption_properties(pe.KmsConnectionConfig(), settings)
    table = pa.table({"jpg": [picture(1)]})
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


class Canary:
    """A pickle that leaves a trace when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def extension(path: Path, name: str = "arrow.py_extension_type", column: str = "image") -> None:
    """Let a column have a type that Arrow once read with pickle."""
    table = pictures(4)
    code = pickle.dumps(Canary(path.parents[1] / "canary"))
    place = table.schema.get_field_index(column)
    marks = {"ARROW:extension:name": name, "ARROW:extension:metadata": code}
    schema = table.schema.set(place, table.schema.field(place).with_metadata(marks))
    pq.write_table(table.cast(schema), path)


def many_rows(path: Path) -> None:
    """Ten million rows of one value take about a kilobyte."""
    values = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**7, np.int32)), pa.array([b"x"]))
    pq.write_table(pa.table({"jpg": values}), path, store_schema=False, row_group_size=10**7)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncated, "not a readable Parquet file"),
    "text": (lambda path: path.write_text("no table" * 10), "not a readable Parquet file"),
    "encrypted": (encrypted, "is encrypted: write it without encryption"),
    "pickle": (extension, r"the column 'image' has the extension type 'arrow.py_extension_type', which is not read"),
    "unknown extension": (lambda path: extension(path, "own.type", "label"), "has the extension type 'own.type'"),
    "many rows": (many_rows, "declares 10,000,000 rows in .* bytes, so it is damaged"),
    "footer of gigabytes": (
        lambda path: path.write_bytes(b"PAR1" + bytes(4096) + (1 << 31).to_bytes(4, "little") + b"PAR1"),
        "not a readable Parquet file",
    ),
    "features": (
        lambda path: pq.write_table(
            pictures(4, {**FEATURES, "label": {"names": [{"x": 1}], "_type": "ClassLabel"}}), path
        ),
        "the names of its classes are no texts",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_parquet_files_refuse_hostile_files(tmp_path: Path, kind: str) -> None:
    write, message = HOSTILE[kind]
    path = write_parquet(pictures(4), tmp_path / "tables") / "000.parquet"
    write(path)
    with pytest.raises(ValueError, match=message) as refused:
        ParquetFiles(IMAGE, str(path))
    assert re.search(r"000\.parquet|column", str(refused.value))
    assert not (tmp_path / "canary").exists()


def test_dictionaries_that_stand_for_terabytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes with one long value, which every row repeats."""
    zeros, rows = bytes(1 << 20), 5000
    jpg = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([zeros]))
    text = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array(["x" * 60_000]))
    path = tmp_path / "0.parquet"
    pq.write_table(pa.table({"jpg": jpg, "text": text}), path, store_schema=False, dictionary_pagesize_limit=1 << 30)
    before = pa.default_memory_pool().max_memory()
    monkeypatch.setattr("modalities.table_columns.MAX_COLUMN", 100 << 20)
    with pytest.raises(ValueError, match="the column text has values of more than 104,857,600 bytes in total"):
        ParquetFiles(IMAGE, str(path))
    data = ParquetFiles(IMAGE, str(path), captions="none", cache_bytes=32 << 20)
    with pytest.raises(UnreadableFilesError, match="has more media than cache_bytes"):
        data[0]
    assert pa.default_memory_pool().max_memory() - before < 200 << 20


def test_parts_beyond_the_limit_are_not_allocated(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_storage, "MAX_FOOTER", 100)
    with pytest.raises(ValueError, match=r"a part of it has .* bytes, more than the limit of 100"):
        ParquetFiles(IMAGE, str(tables))


def test_a_strangers_run_reads_plain_paths_only(tables: Path) -> None:
    with serving(tables) as address, pytest.raises((OSError, ValueError), match=r"no such file|No such file"):
        ParquetFiles(IMAGE, f"{address}/000.parquet", trusted=False)
    assert len(ParquetFiles(IMAGE, str(tables), trusted=False)) == COUNT


def test_features_that_cannot_be_read_are_ignored_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = pictures(4).replace_schema_metadata({"huggingface": json.dumps({"info": 3})})
    data = ParquetFiles(IMAGE, str(write_parquet(table, tmp_path / "tables")))
    assert data.classes == ("0", "1", "2", "3")
    assert "features that `datasets` has written cannot be read" in caplog.text
