"""Datasets of `datasets` are the same whether downloaded, saved or streamed, and a stranger's run names no hub."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import datasets
import pyarrow as pa
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from modalities import hub_data
from modalities.byte_ranges import Source
from modalities.hub_data import HubData
from modalities.image import Image
from modalities.parquet import ParquetFiles
from tests.helpers.tables import CLASSES, picture, pictures, write_parquet, write_saved

IMAGE = Image(size=8, flip=True)
NAMES = ["train-00000-of-00001", "validation-00000-of-00001"]


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without network, and with caches of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    refuse = Mock(side_effect=OSError("no network here"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Parquet files of two splits, as in a repository of the Hub."""
    return write_parquet(pictures(16), tmp_path / "photos", names=NAMES)


@pytest.mark.parametrize("stream", [False, True])
def test_hub_data_reads_a_folder_of_splits(folder: Path, stream: bool) -> None:
    data = HubData(IMAGE, str(folder), validation_split="validation", stream=stream)
    assert data.splits == ["train"] * 8 + ["validation"] * 8
    assert data.classes == CLASSES
    assert (data.groups is not None) == stream
    expected = ParquetFiles(IMAGE, str(folder)).batch(range(16), range(16))
    read = data.batch(range(16), range(16))
    assert torch.equal(read.x0, expected.x0)
    assert read.labels is not None
    assert read.labels.tolist() == [number % 4 for number in range(16)]
    one = HubData(IMAGE, str(folder), split="validation", stream=stream)
    assert (len(one), one.splits, one.path(1)) == (8, None, "0/9.png")
    assert one.fingerprint != data.fingerprint
    for settings, message in (
        ({"split": "test"}, "has no split 'test'; its splits are train, validation"),
        ({"config": "other"}, "BuilderConfig 'other' not found"),
        ({"test_split": "train"}, "split, validation_split and test_split must differ"),
        ({"media": "picture"}, "data.media=picture: there is no such column"),
    ):
        with pytest.raises(ValueError, match=message):
            HubData(IMAGE, str(folder), stream=stream, **settings)  # type: ignore[arg-type]


def test_hub_data_reads_what_datasets_has_saved(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    rows = {"image": [{"bytes": picture(n), "path": None} for n in range(8)], "label": [n % 4 for n in range(8)]}
    written = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": written, "test": written.select(range(3))}).save_to_disk(tmp_path / "saved")
    written.save_to_disk(tmp_path / "one", num_shards=2)
    data = HubData(IMAGE, str(tmp_path / "saved"), test_split="test", trusted=False)
    one = HubData(IMAGE, str(tmp_path / "one"), trusted=False)
    assert data.splits == ["train"] * 8 + ["test"] * 3
    read = data.batch(range(8), range(8))
    assert torch.equal(read.x0, one.batch(range(8), range(8)).x0)
    assert torch.equal(read.x0, HubData(IMAGE, str(tmp_path / "one")).batch(range(8), range(8)).x0)
    assert [CLASSES[data.label(index) or 0] for index in range(8)] == [CLASSES[n % 4] for n in range(8)]
    assert len(list(one.stored())) == 2


def test_fingerprint_does_not_depend_on_the_place(tmp_path: Path) -> None:
    first, second = (HubData(IMAGE, str(write_saved(pictures(8), tmp_path / name))) for name in "ab")
    assert first.fingerprint == second.fingerprint
    other = HubData(IMAGE, str(write_saved(pictures(8, label=[0] * 8), tmp_path / "c")))
    assert other.fingerprint != first.fingerprint


@pytest.mark.parametrize("name", ["someone/photos", "photos", "s3://bucket/photos", "../photos"])
def test_a_strangers_run_names_no_hub(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    load = Mock(side_effect=AssertionError("datasets was used"))
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(
        ValueError, match=rf"contacts no hub: if you trust it, repeat it in the command, such as data.name={name}"
    ):
        HubData(IMAGE, name, trusted=False)


def test_hub_data_says_what_is_wrong_with_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Mock()
    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    missing, offline = datasets.exceptions.DatasetNotFoundError("not there"), ConnectionError("no route")
    for error, kind, message in (
        (missing, FileNotFoundError, "there is no dataset someone/photos on the Hugging Face Hub.*set HF_TOKEN"),
        (
            offline,
            OSError,
            "the Hugging Face Hub cannot be reached for someone/photos .no route.: run the same command",
        ),
    ):
        load.side_effect = error
        with pytest.raises(kind, match=message):
            HubData(IMAGE, "someone/photos")
    with pytest.raises(ValueError, match=r"neither a folder nor the name of a dataset.*use data=parquet"):
        HubData(IMAGE, "https://huggingface.co/datasets/someone/photos")
    # The name of a file is not sent to the Hub.
    (folder / "photos.parquet").touch()
    monkeypatch.chdir(folder)
    with pytest.raises(ValueError, match=r"'photos\.parquet' is a file.*use data=parquet"):
        HubData(IMAGE, "photos.parquet")


def test_hub_data_streams_from_the_commit_that_was_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a repository are those that `datasets` names, through fsspec's file system for hf://."""
    place = "hf://datasets/someone/photos@0a1b"
    builder = Mock(dataset_name="photos")
    builder.config.data_files = {"train": [f"{place}/{NAMES[0]}.parquet"], "more": ["https://evil.example/x.parquet"]}
    monkeypatch.setattr(datasets, "load_dataset_builder", load := Mock(return_value=builder))

    def at_home(urls: list[str], _: str) -> list[Source]:
        return [Source(url, LocalFileSystem(), url.replace(place, str(folder))) for url in urls]

    monkeypatch.setattr(hub_data, "find", at_home)
    data = HubData(IMAGE, "someone/photos", "large", revision="v1", stream=True)
    load.assert_called_once_with("someone/photos", "large", revision="v1")
    builder.download_and_prepare.assert_not_called()
    assert torch.equal(data.batch([3]).x0, ParquetFiles(IMAGE, str(folder)).batch([3]).x0)
    assert data.name(3) == f"{place}/{NAMES[0]}.parquet: row 3"
    for stream in (False, True):
        with pytest.raises(ValueError, match=r"names a file that is somewhere else \(https://evil.example/x.parquet\)"):
            HubData(IMAGE, "someone/photos", split="more", stream=stream)
    builder.config.data_files = {"train": [f"{place}/0.tar"]}
    with pytest.raises(ValueError, match=r"not Parquet, such as .*0.tar.*@~parquet/CONFIG/SPLIT/\*.parquet"):
        HubData(IMAGE, "someone/photos", stream=True)
    builder.config.data_files = None
    with pytest.raises(ValueError, match="photos has no data files, but a script, which is not run"):
        HubData(IMAGE, "someone/photos")


def test_a_folder_does_not_lead_elsewhere(folder: Path, tmp_path: Path) -> None:
    """The description of a dataset can name any files."""
    write_parquet(pictures(4), tmp_path / "elsewhere", names=["train"])
    text = f"configs:\n- config_name: default\n  data_files: {tmp_path}/elsewhere/train.parquet\n"
    (folder / "README.md").write_text(f"---\n{text}---\n")
    with pytest.raises(ValueError, match=r"names a file that is somewhere else \(.*elsewhere/train.parquet\)"):
        HubData(IMAGE, str(folder))


def state(**changes: Any) -> Callable[[Path], object]:
    def write(saved: Path) -> None:
        content = json.loads((saved / "state.json").read_text())
        (saved / "state.json").write_text(json.dumps({**content, **changes}))

    return write


def compressed(saved: Path) -> None:
    table = pa.table({"image": pa.array([bytes(24 << 20)] * 2)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(str(saved / "data-00000-of-00002.arrow"), table.schema, options=options) as stream:
        stream.write_table(table, max_chunksize=1)


def wrong_offsets(saved: Path) -> None:
    """Let the last text begin far behind the end of the file."""
    label = pa.array(["a", "b"] * 4)
    offsets = bytearray(label.buffers()[1])
    offsets[4 * 7 : 4 * 8] = (1 << 30).to_bytes(4, "little")
    broken = pa.Array.from_buffers(pa.string(), 8, [None, pa.py_buffer(bytes(offsets)), label.buffers()[2]])
    table = pictures(8, None, label=None).append_column("label", broken)
    with pa.ipc.new_stream(str(saved / "data-00000-of-00002.arrow"), table.schema) as stream:
        stream.write_table(table)
    state(_data_files=[{"filename": "data-00000-of-00002.arrow"}])(saved)


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "file elsewhere": (state(_data_files=[{"filename": "../../secret.arrow"}]), "is not the name of a file in this"),
    "absolute": (state(_data_files=[{"filename": "/etc/passwd"}]), "'/etc/passwd' is not the name of a file"),
    "no files": (state(_data_files=3), "names no files"),
    "rows selected": (state(_indices_data_files=[{"filename": "i.arrow"}]), "selects rows of its files"),
    "nested": (lambda saved: (saved / "state.json").write_text("{" * 100000), "nested too deeply|Expecting"),
    "text": (lambda saved: (saved / "data-00001-of-00002.arrow").write_text("no"), "is not a readable Arrow file"),
    "compressed": (compressed, "is not a readable Arrow file .it is compressed"),
    "offsets": (wrong_offsets, "the column label of .* is damaged"),
    "splits elsewhere": (
        lambda saved: (saved / "dataset_dict.json").write_text('{"splits": ["../other"]}'),
        "'../other' is not the name of a file",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hub_data_refuses_hostile_folders(tmp_path: Path, kind: str) -> None:
    poison, message = HOSTILE[kind]
    saved = write_saved(pictures(8), tmp_path / "saved")
    poison(saved)
    with pytest.raises(ValueError, match=message):
        HubData(IMAGE, str(saved), trusted=False)
