"""Tar shards are the same dataset as a folder of the same files, wherever the byte ranges of storage are read from."""

import errno
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import numpy as np
import PIL.Image
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from moto.server import ThreadedMotoServer

from modalities import byte_ranges, tar_catalogue, tars
from modalities.base import Batch, Dataset, Groups
from modalities.byte_ranges import ATTEMPTS, expanded, find
from modalities.files import Folder
from modalities.image import Image
from modalities.reading import UnreadableFilesError
from modalities.tar_index import ShardIndex
from modalities.tar_packing import Packing, divided, shard_size, write_tar
from modalities.tars import TarShards, in_memory
from tests.helpers.archives import TIME, archive, changed
from tests.helpers.batches import assert_equal
from tests.helpers.web_server import serving

IMAGE = Image(size=8, flip=True)
COUNT, EACH = 23, 5
CONTENT = bytes(range(256)) * 40
DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Provide an empty file system in memory."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_expanded_lists_ranges_of_numbers_and_alternatives() -> None:
    assert expanded("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expanded("{0..1}/{5..6}") == ["0/5", "0/6", "1/5", "1/6"]
    assert expanded("{train,more}-{00,7}.tar") == ["train-00.tar", "train-7.tar", "more-00.tar", "more-7.tar"]
    assert expanded("s3://b/{x}.tar") == ["s3://b/{x}.tar"]
    with pytest.raises(ValueError, match="the range from 5 to 4 is descending"):
        expanded("{5..4}")


def test_find_lists_local_files(tmp_path: Path) -> None:
    folder, plain = tmp_path / "with [brackets]", tmp_path / "plain"
    for name in ("1.tar", "2.tar", "10.tar", "other.txt", "._1.tar"):
        for each in (folder, plain):
            each.mkdir(exist_ok=True)
            (each / name).write_bytes(CONTENT)
    for urls, expected in (
        (str(folder), ["1.tar", "10.tar", "2.tar"]),
        (f"file://{folder}", ["1.tar", "10.tar", "2.tar"]),
        ([str(folder / "2.tar")], ["2.tar"]),
        (f"{plain}/*.tar", ["1.tar", "10.tar", "2.tar"]),
        ([f"{plain}/{{1..2}}.tar"], ["1.tar", "2.tar"]),
    ):
        assert [Path(source.url).name for source in find(urls, ".tar")] == expected
    for urls, message in (
        ([], "no URL"),
        (f"{plain}/x*.tar", r"there is no file .*x\*\.tar"),
        ([f"{plain}/1.tar", f"{plain}/{{1..2}}.tar"], r"1.tar is named twice"),
        ("nonsense://bucket/1.tar", "nonsense"),
    ):
        with pytest.raises((OSError, ValueError), match=message):
            find(urls, ".tar")


@pytest.mark.parametrize("cache", ["filecache", "simplecache"])
def test_source_waits_until_a_cache_has_fetched_its_file(
    memory: MemoryFileSystem, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch_slowly(self: MemoryFileSystem, rpath: str, lpath: str, **more: Any) -> None:
        with Path(lpath).open("wb", buffering=0) as file:
            for start in range(0, len(CONTENT), 1024):
                file.write(CONTENT[start : start + 1024])
                time.sleep(0.005)

    monkeypatch.setattr(MemoryFileSystem, "get_file", fetch_slowly)
    memory.pipe_file("/a.tar", CONTENT)
    (source,) = find(f"{cache}::memory://a.tar", ".tar")
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda n: source.read(n * 1000, n * 1000 + 1000), range(10)))
    assert b"".join(parts) == CONTENT[:10000]


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="open files are counted in /proc")
def test_source_keeps_few_files_open_in_any_number_of_threads(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(byte_ranges, "OPEN_FILES", 3)
    for number in range(10):
        (tmp_path / f"{number}.tar").write_bytes(bytes([number]) * 100)
    sources = find(str(tmp_path), ".tar")
    byte_ranges.OPENED._files.clear()
    before = len(list(DESCRIPTORS.iterdir()))
    with ThreadPoolExecutor(8) as pool:
        for number, data in enumerate(pool.map(lambda n: sources[n * 7 % 10].read(n % 5, 90), range(2000))):
            assert data == bytes([number * 7 % 10]) * (90 - number % 5)
    assert len(byte_ranges.OPENED._files) == 3
    assert len(list(DESCRIPTORS.iterdir())) <= before + 3


def test_source_read_retries_storage_that_fails(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/a.tar", CONTENT)
    (source,) = find("memory://a.tar", ".tar")
    monkeypatch.setattr(byte_ranges.time, "sleep", sleep := Mock())

    def failing(count: int, error: Exception) -> Mock:
        reads = Mock(side_effect=[*[error] * count, CONTENT[100:200]])
        monkeypatch.setattr(memory, "cat_file", reads)
        return reads

    for count in (1, ATTEMPTS - 1):
        reads = failing(count, TimeoutError("too busy"))
        assert source.read(100, 200) == CONTENT[100:200]
        assert reads.call_count == count + 1
    pauses = [call.args[0] for call in sleep.call_args_list[1:]]
    assert [0.25 * 2**n <= pause <= 0.5 * 2**n for n, pause in enumerate(pauses)] == [True] * (ATTEMPTS - 1)
    failing(ATTEMPTS, TimeoutError("too busy"))
    with pytest.raises(OSError, match=rf"^memory://a.tar: TimeoutError: too busy, in {ATTEMPTS} attempts"):
        source.read(100, 200)
    missing = type("NoCredentialsError", (Exception,), {})("no key")
    denied = type("ClientResponseError", (Exception,), {"status": 403})()
    for error, message in (
        (PermissionError("no key"), "access is denied .no key.: check that you may read it"),
        (missing, "access is denied .no key."),
        (denied, "denies access .status 403."),
        (NotImplementedError("never"), "NotImplementedError: never"),
    ):
        reads = failing(2, error)
        with pytest.raises(OSError, match=message):
            source.read(100, 200)
        assert reads.call_count == 1, "a permanent error is raised at once"


@pytest.mark.parametrize(("address", "message"), [
    ("http://127.0.0.1:1/a.tar", r"Cannot connect .*Run the same command again once the storage can be reached"),
    ("ADDRESS/missing.tar", r"FileNotFound.*Restore the damaged or missing shards"),
])  # fmt: skip
def test_tar_shards_tell_what_is_wrong_with_a_web_server(tmp_path: Path, address: str, message: str) -> None:
    with serving(tmp_path / "served") as place, pytest.raises(ValueError, match=message):
        TarShards(IMAGE, address.replace("ADDRESS", place), index=tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Random pictures in four classes, each with a caption."""
    rows = ["file,label,text"]
    for number in range(COUNT):
        file = f"{('dog', 'cat', '10', '9')[number % 4]}/{number:02}.{('png', 'JPG')[number % 2]}"
        path = tmp_path / "photos" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 12, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(path, quality=95)
        rows.append(f"{file},{path.parent.name},“number” {number}")
    (tmp_path / "photos" / "list.csv").write_text("\n".join(rows), encoding="utf-8")
    return Folder(IMAGE, tmp_path / "photos", manifest="list.csv")


def packed(folder: Folder, out: Path, each: int = EACH) -> Path:
    """Pack a folder in its order, `each` files to a shard."""
    out.mkdir(parents=True, exist_ok=True)
    packing = Packing(folder, range(len(folder)), 1)
    for start in range(0, len(folder), each):
        shard = out / f"{start // each:03}.tar"
        examples = [packing.example(number) for number in range(start, min(start + each, len(folder)))]
        write_tar(shard, examples)
        assert shard.stat().st_size == shard_size(examples)
    return out


@pytest.fixture
def shards(folder: Folder, tmp_path: Path) -> Path:
    return packed(folder, tmp_path / "shards")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(memory: MemoryFileSystem, shards: Path, pattern: str = "*.tar") -> None:
    for path in shards.glob(pattern):
        memory.pipe_file(f"bucket/{path.name}", path.read_bytes())


def all_of(dataset: Dataset, seeds: bool = True) -> Batch:
    return dataset.batch(range(len(dataset)), range(100, 100 + len(dataset)) if seeds else None)


@pytest.mark.parametrize("threads", [1, 4])
def test_tar_shards_equal_the_folder(folder: Folder, shards: Path, threads: int) -> None:
    data = TarShards(IMAGE, str(shards), threads=threads)
    assert len(data) == COUNT
    assert data.classes == folder.classes == ("9", "10", "cat", "dog")
    for seeds in (False, True):
        assert_equal(all_of(data, seeds), all_of(folder, seeds))
    assert [data.captions(place) for place in range(COUNT)] == folder.texts
    assert torch.equal(data.example(3, 9).x0, folder.example(3, 9).x0)
    for index in (-1, COUNT):
        with pytest.raises(IndexError, match=str(index)):
            data.example(index)


def test_tar_shards_are_read_from_s3(folder: Folder, shards: Path, bucket: Any) -> None:
    upload(bucket, shards)
    fingerprint = TarShards(IMAGE, str(shards)).fingerprint
    for urls in ("s3://bucket", "s3://bucket/*.tar", "s3://bucket/{000..004}.tar", "filecache::s3://bucket/*.tar"):
        data = TarShards(IMAGE, urls)
        assert_equal(all_of(data), all_of(folder))
        assert data.fingerprint == fingerprint, urls
    with pytest.raises(ValueError, match=r"s3://bucket/005.tar: FileNotFoundError"):
        TarShards(IMAGE, "s3://bucket/005.tar")


def test_tar_shards_are_read_from_a_web_server_or_its_cache(folder: Folder, tmp_path: Path) -> None:
    with serving(tmp_path / "parts") as address:
        packed(folder, tmp_path / "parts")
        assert_equal(all_of(TarShards(IMAGE, f"{address}/{{000..004}}.tar")), all_of(folder))
        with pytest.raises(ValueError, match=r"005.tar: FileNotFoundError.*remove them from urls"):
            TarShards(IMAGE, address + "/{000..005}.tar")
    with serving(tmp_path / "whole", parts=False) as address:
        packed(folder, tmp_path / "whole")
        with pytest.raises(UnreadableFilesError, match=r"sends whole files.*simplecache::.*disk$"):
            all_of(TarShards(IMAGE, f"{address}/000.tar"))
        for cache in ("simplecache", "filecache"):
            assert_equal(all_of(TarShards(IMAGE, f"{cache}::{address}/{{000..004}}.tar")), all_of(folder))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """S3 on this machine: an empty bucket called `bucket`, and the client that fills it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    system = fsspec.filesystem("s3")
    system.mkdir("bucket")
    yield system
    system.rm("bucket", recursive=True)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


def test_tar_shards_take_labels_and_captions_from_the_given_keys(shards: Path, folder: Folder) -> None:
    data = partial(TarShards, IMAGE, str(shards))
    name = Path(folder.files[0]).parent.name
    assert all_of(data(labels="none"))[1:5] == (None, None, tuple(text for (text,) in folder.texts), None)
    assert data(captions="none").caption(0) is None
    assert data(captions="labels").caption(0) == name
    other = data(label_key="text", text_key="label")
    assert (len(other.classes), other.caption(0)) == (COUNT, name)
    assert data(label_key="x", text_key="y").classes is None
    for settings, message in (
        ({"labels": "name"}, "labels must be auto, folder, parent or none"),
        ({"captions": "sidecar"}, "captions must be auto, labels or none"),
        ({"captions": "labels", "labels": "none"}, "captions=labels requires classes"),
        ({"window": 0}, "window"),
    ):
        with pytest.raises(ValueError, match=message):
            data(**settings)


def add(shard: Path, **files: bytes) -> None:
    """Append files to a shard; `__` in a name stands for the dot."""
    with tarfile.open(shard, "a") as tar:
        for name, content in files.items():
            header = tarfile.TarInfo(name.replace("__", "."))
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))


def test_tar_shards_refuse_classes_or_captions_of_only_some_examples(shards: Path) -> None:
    add(shards / "004.tar", new__png=b"", new__txt=b"text")
    with pytest.raises(ValueError, match=r"004.tar/new.png has no class .*labels=none"):
        TarShards(IMAGE, str(shards))
    assert TarShards(IMAGE, str(shards), labels="none").caption(COUNT) == "text"
    add(shards / "003.tar", new__png=b"", new__cls=b"cat")
    with pytest.raises(ValueError, match=r"003.tar/new.png has no caption .*captions=none"):
        TarShards(IMAGE, str(shards), labels="none")
    assert len(TarShards(IMAGE, str(shards), labels="none", captions="none")) == COUNT + 2


def test_tar_shards_keep_several_captions_and_skip_examples_without(tmp_path: Path) -> None:
    for number, name in enumerate(["x/a/1", "y/a/2", "y/b/3", "z/4"]):
        IMAGE.save(torch.full((3, 8, 8), number, dtype=torch.uint8), tmp_path / f"{name}.png")
    (tmp_path / "x/a/1.json").write_text('{"caption": ["one", "two"]}')
    (tmp_path / "z/4.caption").write_text("four")
    folder = Folder(IMAGE, tmp_path, captions="sidecar", labels="parent", missing_captions="empty")
    write_tar(tmp_path / "0.tar", [Packing(folder, range(4), 10**9).example(number) for number in range(4)])
    data = TarShards(IMAGE, str(tmp_path / "0.tar"))
    assert [data.captions(index) for index in range(4)] == [("one", "two"), ("",), ("",), ("four",)]
    assert_equal(all_of(data), all_of(folder))
    skipped = TarShards(IMAGE, str(tmp_path / "0.tar"), missing_captions="skip")
    assert [skipped.caption(index) for index in range(2)] == ["one", "four"]
    assert (len(skipped), skipped.report.total) == (2, 2)
    with tarfile.open(tmp_path / "1.tar", "w") as shard:
        for path in sorted([*tmp_path.rglob("*.png"), tmp_path / "z/4.caption"]):
            shard.add(path, path.relative_to(tmp_path))
    data = TarShards(IMAGE, str(tmp_path / "1.tar"), labels="parent", missing_captions="empty")
    assert [data.caption(index) for index in range(4)] == ["", "", "", "four"]
    assert [data.classes[data.label(index)] for index in range(4)] == ["a", "a", "b", "z"]


def test_tar_shards_need_no_json_that_nobody_asked_for(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(shards / "001.tar", boxes__json=b"[[1, 2]]", more__json=b'{"label": "x", "text": [1]}', x__1__png=b"")
    with pytest.raises(ValueError, match=r"001.tar: 'more.json': text must be text.*or set data.captions=none"):
        TarShards(IMAGE, str(shards))
    data = TarShards(IMAGE, str(shards), captions="labels")
    assert (len(data), len(data.classes)) == (COUNT, 4)
    assert "1 files in 5 shards are passed over" in caplog.text
    assert r"1 × .*.png" in caplog.text
    add(shards / "001.tar", bad__json=b"{", large__json=b" " * (2 << 20))
    with pytest.raises(ValueError, match=r"'bad.json' is not valid JSON.*data.labels=none"):
        TarShards(IMAGE, str(shards), captions="none")
    assert len(TarShards(IMAGE, str(shards), labels="none", captions="none")) == COUNT


def test_tar_shards_choose_one_of_several_media(folder: Folder, tmp_path: Path) -> None:
    one, two = sorted(folder.root.rglob("*.png"))[:2]
    shard, image = tmp_path / "0.tar", Image(size=8)
    shard.write_bytes(archive(("a.png", one.read_bytes()), ("a.seg.png", two.read_bytes()), ("a.wav", b"sound")))
    for media, path in ((None, one), ("png", one), (".seg.PNG", two)):
        assert torch.equal(TarShards(image, str(shard), media=media)[0].x0, image.encode(image.load(path)))
    with pytest.raises(ValueError, match=r"the 1 shards contain no file that ends in \.gif"):
        TarShards(image, str(shard), media="gif")


def test_tar_shards_subsets_keep_examples_and_groups(shards: Path) -> None:
    data = TarShards(IMAGE, str(shards), window=3)
    assert data.groups == Groups([5, 5, 5, 5, 3], 3)
    part = data.subset([0, 1, 4, 6, 20, 22])
    assert part.groups == Groups([3, 1, 2], 3)
    assert part.subset([5, 0, 1]).groups == Groups([1, 2], 3)
    assert torch.equal(part.subset([5, 0]).example(0, 3).x0, data.example(22, 3).x0)
    assert (part.caption(3), part.label(3)) == (data.caption(6), data.label(6))
    assert part.fingerprint != data.fingerprint


def test_tar_shards_fingerprint_ignores_the_location(shards: Path, folder: Folder, tmp_path: Path) -> None:
    first = TarShards(IMAGE, str(shards)).fingerprint
    moved = Path(shutil.copytree(shards, tmp_path / "moved"))
    assert TarShards(IMAGE, f"{moved}/{{000..004}}.tar").fingerprint == first
    for urls, settings in (
        ([str(path) for path in sorted(moved.glob("*.tar"), reverse=True)], {}),
        (str(shards), {"captions": "none"}),
        (str(shards), {"labels": "none"}),
        (str(packed(folder, tmp_path / "other", 6)), {}),  # other groups, hence another order
    ):
        assert TarShards(IMAGE, urls, **settings).fingerprint != first, (urls, settings)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the shards whose index has been built, in order."""
    sizes: list[int] = []
    build = ShardIndex.build

    def counted(read: Any, size: int, *more: Any) -> ShardIndex:
        sizes.append(size)
        return build(read, size, *more)

    monkeypatch.setattr(ShardIndex, "build", counted)
    return sizes


def test_tar_index_is_built_once_and_again_for_changed_shards_and_other_keys(
    shards: Path, folder: Folder, built: list[int]
) -> None:
    for _ in range(2):
        TarShards(IMAGE, str(shards))
    assert len(built) == len(list(shards.glob("*.index"))) == 5
    for _ in range(2):
        TarShards(IMAGE, str(shards), text_key="caption")
    assert len(built) == 10
    built.clear()
    # Other classes in a shard of the same size, a shard of another size, and a damaged index.
    data = (shards / "002.tar").read_bytes()
    assert b'"cat"' in data
    (shards / "002.tar").write_bytes(data.replace(b'"cat"', b'"cow"'))
    add(shards / "003.tar", extra__json=b"{}")
    for index in shards.glob("004.tar.*.index"):
        index.write_bytes(b"damaged")
    data = TarShards(IMAGE, str(shards))
    assert sorted(built) == sorted((shards / f"00{n}.tar").stat().st_size for n in (2, 3, 4))
    assert data.classes == ("9", "10", "cat", "cow", "dog")
    assert torch.equal(all_of(data).x0, all_of(folder).x0)
    built.clear()
    TarShards(IMAGE, str(shards))
    assert built == []


def test_tar_index_of_read_only_shards_is_stored_elsewhere(
    shards: Path, cache: Path, tmp_path: Path, built: list[int], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refusing(path: Path, content: bytes) -> None:
        if path.parent in refused:
            raise PermissionError("read-only")
        write(path, content)

    write, refused = tar_catalogue.write_index, {shards}
    monkeypatch.setattr(tar_catalogue, "write_index", refusing)
    for _ in range(2):
        TarShards(IMAGE, str(shards))
    assert len(built) == 5
    assert len(list((cache / "multisagd" / "index").iterdir())) == 5
    assert not list(shards.glob("*.index"))
    for _ in range(2):
        TarShards(IMAGE, str(shards), index=tmp_path / "named")
    assert len(built) == 10
    assert len(list((tmp_path / "named").iterdir())) == 5
    # Shards of the same name elsewhere have indices of their own.
    TarShards(IMAGE, str(shutil.copytree(shards, tmp_path / "copy")), index=tmp_path / "named")
    assert len(list((tmp_path / "named").iterdir())) == 10
    assert caplog.text == ""
    refused.add(tmp_path / "nowhere")
    assert len(TarShards(IMAGE, str(shards), index=tmp_path / "nowhere")) == COUNT
    assert "could not be stored: set data.index" in caplog.text


def test_tar_index_is_written_atomically(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", Mock(side_effect=OSError(errno.ENOSPC, "no space left")))
        assert len(TarShards(IMAGE, str(shards))) == COUNT
    assert sorted(path.suffix for path in shards.iterdir()) == [".tar"] * 5
    TarShards(IMAGE, str(shards))
    index = next(shards.glob("*.index"))
    assert stat.S_IMODE(index.stat().st_mode) == stat.S_IMODE((shards / "000.tar").stat().st_mode)


def test_tar_index_is_uploaded_with_shards(
    shards: Path, folder: Folder, memory: MemoryFileSystem, built: list[int]
) -> None:
    TarShards(IMAGE, str(shards))
    upload(memory, shards, "*")
    built.clear()
    assert_equal(all_of(TarShards(IMAGE, "memory://bucket")), all_of(folder))
    assert built == []
    # An index of another size or another last header is not used.
    content = (shards / "001.tar").read_bytes()
    add(shards / "002.tar", extra__json=b"{}" + b" " * 9999)
    memory.pipe_file("/bucket/002.tar", (shards / "002.tar").read_bytes())
    header = content.rindex(b"000000009.", 0, content.rindex(b"000000009.json"))
    other = changed(content, header, TIME, b"00000000001")
    memory.pipe_file("/bucket/001.tar", other)
    TarShards(IMAGE, "memory://bucket")
    assert sorted(built) == sorted([len(other), (shards / "002.tar").stat().st_size])


def test_tar_shards_name_damaged_and_missing_shards_before_work_begins(shards: Path) -> None:
    (shards / "001.tar").write_bytes((shards / "001.tar").read_bytes()[:-11_000])
    (shards / "003.tar").write_bytes(b"nonsense" * 1000)
    with pytest.raises(ValueError, match=r"001.tar: it is truncated.*; .*003.tar: it is not a tar archive\. Restore"):
        TarShards(IMAGE, str(shards))
    with pytest.raises(ValueError, match="FileNotFoundError") as caught:
        TarShards(IMAGE, f"{shards}/{{100..999}}.tar")
    assert str(caught.value).count("FileNotFoundError") == 3, "not all failing shards are tried"


def test_tar_shards_that_change_during_a_run_end_it(shards: Path) -> None:
    data = TarShards(IMAGE, str(shards))
    content = (shards / "000.tar").read_bytes()
    for now, message in (
        (changed(content, 0, TIME, b"00000000001"), r"000.tar has changed since this command started: run it again"),
        (content[:600], r"000.tar: EOFError: received 600 of the .*Run the same command again"),
    ):
        (shards / "000.tar").write_bytes(now)
        with pytest.raises(UnreadableFilesError, match=message):
            data.batch([0, 7])
    assert data.unreadable == {}
    assert data.batch([7]).x0.shape == (1, 3, 8, 8)


def test_tar_shards_name_and_replace_unreadable_media_like_a_folder(folder: Folder, tmp_path: Path) -> None:
    file = folder.files[6]
    (folder.root / file).write_bytes(b"broken")
    shards = packed(folder, tmp_path / "shards")
    data = TarShards(IMAGE, str(shards))
    assert_equal(all_of(data), all_of(folder))
    name = f"{shards}/001.tar/000000006{Path(file).suffix.lower()}"
    assert list(data.unreadable) == [name]
    data.save_unreadable(tmp_path / "unreadable.json")
    assert json.loads((tmp_path / "unreadable.json").read_text())["unreadable"][0]["path"] == name
    with pytest.raises(UnreadableFilesError, match=r"1 of 23 files .* allows 0: .*001.tar/000000006"):
        TarShards(IMAGE, str(shards), max_unreadable=0).batch([6])


def test_tar_shards_do_not_read_media_beyond_the_limit(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = TarShards(IMAGE, str(shards), max_member_bytes=20, max_unreadable=1)
    monkeypatch.setattr(byte_ranges.Source, "read", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UnreadableFilesError, match="bytes, but max_member_bytes=20"):
        data.batch(range(COUNT))


def test_in_memory_uses_the_disk_without_free_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Mock(side_effect=[OSError(errno.ENOSPC, "no space left"), tempfile.mkstemp(".x")])
    for memory, make in ((tmp_path, tempfile.mkstemp), (Path("/nowhere"), tempfile.mkstemp), (tmp_path, full)):
        monkeypatch.setattr(tars, "MEMORY", memory)
        monkeypatch.setattr(tempfile, "mkstemp", make)
        with in_memory(b"content", ".x") as path:
            assert (path.read_bytes(), path.suffix) == (b"content", ".x")
            assert (path.parent == tmp_path) == (memory == tmp_path and make is not full)
        assert not path.exists()


def test_divided_fills_shards_up_to_their_size() -> None:
    assert list(divided([4, 4, 4, 4, 4], 8)) == [range(2), range(2, 4), range(4, 5)]
    assert list(divided([9, 1, 9, 2], 8)) == [range(1), range(1, 2), range(2, 3), range(3, 4)]


def test_tar_shards_take_classes_from_names_like_a_folder(tmp_path: Path) -> None:
    for number, names in enumerate((["./cat/1.png"], ["./cat/2.png", "./dog/1.png"])):
        for name in names:
            IMAGE.save(torch.zeros(3, 8, 8, dtype=torch.uint8), tmp_path / "photos" / name)
        files = [(name, (tmp_path / "photos" / name).read_bytes()) for name in names]
        (tmp_path / f"{number}.tar").write_bytes(archive(*files))
    data, folder = TarShards(IMAGE, str(tmp_path), captions="labels"), Folder(IMAGE, tmp_path / "photos")
    assert data.classes == folder.classes == ("cat", "dog")
    assert [data.label(place) for place in range(3)] == folder.labels == [0, 0, 1]
    assert [data.caption(place) for place in range(3)] == ["cat", "cat", "dog"]
