"""Remote storage on this machine: a web server, and a file system in memory that can fail."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from modalities import byte_ranges


class AliasedMemory(MemoryFileSystem):
    """The file system in memory under the name of another protocol."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace(f"{cls.protocol}://", "memory://")))


class Flaky(AliasedMemory):
    """Storage in memory whose next `failures` reads fail."""

    protocol = "flaky"
    failures = 0
    error: Exception = TimeoutError("too busy")

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **more: Any) -> bytes:
        if Flaky.failures:
            Flaky.failures -= 1
            raise Flaky.error
        return bytes(super().cat_file(path, start=start, end=end, **more))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Provide an empty file system in memory, without pauses between attempts."""
    monkeypatch.setattr(byte_ranges, "PAUSE", 0.0)
    system = fsspec.filesystem("memory")
    system.store.clear()
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    yield system
    system.store.clear()
    Flaky.failures, Flaky.error = 0, TimeoutError("too busy")


class RangeHandler(BaseHTTPRequestHandler):
    """Serve byte ranges of the files of a folder, or, without `parts`, only whole files."""

    root: Path
    parts = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        file = self.root / self.path.lstrip("/")
        if not file.is_file():
            self.send_error(404)
            return
        data = file.read_bytes()
        range_ = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.parts else None
        first, last = (int(range_[1]), int(range_[2])) if range_ else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if range_ else 200)
        if range_:
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        if self.parts:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Provide a folder and the address of its web server."""
    with serving(tmp_path / "served") as address:
        yield tmp_path / "served", address


@contextmanager
def serving(folder: Path, parts: bool = True) -> Iterator[str]:
    """Serve a new folder on this machine and yield its address."""
    folder.mkdir()
    handler = type("Handler", (RangeHandler,), {"root": folder, "parts": parts})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
