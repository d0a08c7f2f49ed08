"""Remote storage on this machine: a web server, and a file system in memory that can fail."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
from flask import Flask
from fsspec.implementations.memory import MemoryFileSystem
from werkzeug.serving import make_server

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


@contextmanager
def serving(folder: Path, parts: bool = True) -> Iterator[str]:
    """Serve a folder on this machine and yield its address; without `parts`, only whole files."""
    folder.mkdir(exist_ok=True)
    if parts:
        server = make_server("127.0.0.1", 0, Flask("files", static_folder=folder, static_url_path="/"), threaded=True)
    else:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
