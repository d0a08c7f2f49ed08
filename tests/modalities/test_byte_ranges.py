"""Byte ranges are read from local files and remote storage alike, also from storage that fails occasionally."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import fsspec
import pytest

from modalities import byte_ranges
from modalities.byte_ranges import ATTEMPTS, PartsError, expanded, find
from tests.helpers.web_server import AliasedMemory, Flaky, serving

CONTENT = bytes(range(256)) * 40
DESCRIPTORS = Path("/proc/self/fd")


def test_expanded_lists_ranges_of_numbers() -> None:
    assert expanded("a{08..11}.tar") == ["a08.tar", "a09.tar", "a10.tar", "a11.tar"]
    assert expanded("{0..1}/{5..6}") == ["0/5", "0/6", "1/5", "1/6"]
    assert expanded("s3://b/{x}.tar") == ["s3://b/{x}.tar"]
    with pytest.raises(ValueError, match="the range from 5 to 4 is descending"):
        expanded("{5..4}")


def test_find_lists_local_files(tmp_path: Path) -> None:
    folder, plain = tmp_path / "with [brackets]", tmp_path / "plain"
    for name in ("1.tar", "2.tar", "10.tar", "other.txt"):
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


def test_find_lists_remote_files(memory: Any) -> None:
    for name in ("/b/1.tar", "/b/2.tar", "/b/2.txt"):
        memory.pipe_file(name, CONTENT)
    for urls in ("memory://b", "memory://b/*.tar", "memory://b/{1..2}.tar", "simplecache::memory://b/*.tar"):
        sources = find(urls, ".tar")
        assert [source.path for source in sources] == ["/b/1.tar", "/b/2.tar"]
        assert sources[0].read(1, 4) == CONTENT[1:4]
        assert sources[0].state()[0] == len(CONTENT)
        assert not sources[0].local


class Slow(AliasedMemory):
    """Storage in memory that delivers a whole file slowly."""

    protocol = "slow"

    def get_file(self, rpath: str, lpath: str, **more: Any) -> None:
        with Path(lpath).open("wb") as file:
            for start in range(0, len(CONTENT), 1024):
                file.write(CONTENT[start : start + 1024])
                file.flush()
                time.sleep(0.005)


@pytest.mark.parametrize("cache", ["filecache", "simplecache"])
def test_source_waits_until_a_cache_has_fetched_its_file(memory: Any, cache: str) -> None:
    fsspec.register_implementation("slow", Slow, clobber=True)
    memory.pipe_file("/a.tar", CONTENT)
    (source,) = find(f"{cache}::slow://a.tar", ".tar")
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


def test_source_read_retries_storage_that_fails(memory: Any) -> None:
    memory.pipe_file("/a.tar", CONTENT)
    (source,) = find("flaky://a.tar", ".tar")
    for failures in (1, ATTEMPTS - 1):
        Flaky.failures = failures
        assert source.read(100, 200) == CONTENT[100:200]
        assert Flaky.failures == 0
    Flaky.failures = ATTEMPTS
    with pytest.raises(OSError, match=rf"^flaky://a.tar: TimeoutError: too busy, in {ATTEMPTS} attempts"):
        source.read(100, 200)
    # A permanent error is raised at once.
    Flaky.failures, Flaky.error = 2, PermissionError("no key")
    with pytest.raises(OSError, match="PermissionError: no key"):
        source.read(100, 200)
    assert Flaky.failures == 1


def test_source_read_refuses_a_file_that_became_shorter(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "a.tar").write_bytes(CONTENT)
    memory.pipe_file("/a.tar", CONTENT)
    for url in (str(tmp_path / "a.tar"), "memory://a.tar"):
        (source,) = find(url, ".tar")
        with pytest.raises(OSError, match=r"a.tar: EOFError: 10 bytes received where 20 were requested"):
            source.read(len(CONTENT) - 10, len(CONTENT) + 10)


def test_with_retries_doubles_its_pauses_to_half_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(byte_ranges.time, "sleep", slept.append)
    with pytest.raises(OSError, match="busy"):
        byte_ranges.with_retries("x", Mock(side_effect=TimeoutError("busy")))
    assert [0.25 * 2**n <= pause <= 0.5 * 2**n for n, pause in enumerate(slept)] == [True] * (ATTEMPTS - 1)


def test_source_reads_parts_from_a_web_server_or_its_cache(tmp_path: Path) -> None:
    with serving(tmp_path / "parts") as address:
        (tmp_path / "parts" / "a.tar").write_bytes(CONTENT)
        (source,) = find(f"{address}/a.tar", ".tar")
        size, state = source.state()
        assert size == len(CONTENT)
        assert state
        assert source.read(1000, 1010) == CONTENT[1000:1010]
        with pytest.raises(OSError, match="FileNotFoundError"):
            find(f"{address}/b.tar", ".tar")[0].state()
    with serving(tmp_path / "whole", parts=False) as address:
        (tmp_path / "whole" / "a.tar").write_bytes(CONTENT)
        with pytest.raises(PartsError, match=r"a\.tar: its server sends whole files.*simplecache::"):
            find(f"{address}/a.tar", ".tar")[0].read(1000, 1010)
        for cache in ("simplecache", "filecache"):
            (cached,) = find(f"{cache}::{address}/a.tar", ".tar")
            assert cached.state()[0] == len(CONTENT)
            assert cached.read(1000, 1010) == CONTENT[1000:1010]
