"""Files made to harm whoever reads them, and the check that a command refuses them without any side effect.

A hostile folder is `TMP/inside/NAME`; whatever else comes to be in `TMP` shows that code of the folder ran, or that
something was written out of it.
"""

import contextlib
import io
import json
import os
import pickle
import re
import resource
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.base.errors import RecipeError

Poison = Callable[[Path], object]
"""Harms a folder, given as `TMP/inside/NAME`."""


def canary(folder: Path) -> Path:
    """The path that comes to be if code of a hostile folder runs."""
    return folder.parents[1] / "canary"


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def torch_bomb(path: Path) -> bytes:
    content = io.BytesIO()
    torch.save({"w": Bomb(path)}, content)
    return content.getvalue()


def header(described: Any, data: bytes = b"") -> bytes:
    """A safetensors file with this header, which need not make sense."""
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TENSOR_FILES: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda path: pickle.dumps(Bomb(path)),
    "torch.save": torch_bomb,
    "header of 2^60 bytes": lambda path: struct.pack("<Q", 1 << 60) + b"{}",
    "overlapping tensors": lambda path: header({"a": tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, bytes(12)),
    "negative offsets": lambda path: header({"a": tensor([2], [-8, 0])}, bytes(8)),
    "tensor beyond the end": lambda path: header({"a": tensor([10**15], [0, 4 * 10**15])}, bytes(8)),
    "shape that is not its bytes": lambda path: header({"a": tensor([10**15], [0, 8])}, bytes(8)),
    "shape that overflows": lambda path: header({"a": tensor([1 << 62, 1 << 62], [0, 0])}),
    "deep header": lambda path: header(b'{"a":' * 100_000),
    "unknown dtype": lambda path: header({"a": tensor([1], [0, 4], "OBJECT")}, bytes(4)),
}
"""Files that are not safetensors as they should be, by kind; code in them would make the given path."""


def write_sparse_tensor(path: Path, name: str) -> None:
    """Write a tensor of 64 GiB into a file without blocks on the disk."""
    described = header({name: tensor([1 << 34], [0, 1 << 36])})
    path.write_bytes(described)
    os.truncate(path, len(described) + (1 << 36))


def written(name: str | Path, content: str | bytes) -> Poison:
    """Write a file; `CANARY` in it becomes the path of the canary."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data.replace(b"CANARY", str(canary(folder)).encode()))


def replaced(name: str | Path, old: str, new: str) -> Poison:
    """Replace text in a file once, which then need not be valid."""
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def weights(name: str | Path, content: Callable[[Path], bytes]) -> Poison:
    """Write one of `TENSOR_FILES`."""
    return lambda folder: (folder / name).write_bytes(content(canary(folder)))


def edited(name: str | Path, change: Callable[[dict[str, Any]], object]) -> Poison:
    """Change the object in a JSON file."""

    def poison(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return poison


def updated(name: str | Path, **changes: Any) -> Poison:
    """Set keys of the object in a JSON file."""
    return edited(name, lambda content: content.update(changes))


def pipe(name: str | Path) -> Poison:
    """Replace a file by a pipe, whose reader waits for ever."""
    return _instead(name, os.mkfifo)


def link(name: str | Path, target: str | Path) -> Poison:
    """Replace a file by a link."""
    return _instead(name, lambda path: path.symlink_to(target))


def _instead(name: str | Path, make: Callable[[Path], object]) -> Poison:
    def poison(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return poison


def _outside(folder: Path) -> dict[str, tuple[int, int]]:
    """What lies outside `TMP/inside`, with the time and size by which a change would be seen."""
    root = folder.parents[1]
    paths = [path for path in root.rglob("*") if not path.is_symlink() and not path.is_relative_to(root / "inside")]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in paths}


@contextlib.contextmanager
def _limits(seconds: int = 60, memory: int = 4 << 30) -> Iterator[None]:
    """Fail, instead of hanging or allocating, in what takes too much: refusals take seconds, even on a busy machine."""

    def fail(number: int, frame: object) -> None:
        raise AssertionError(f"not refused within {seconds} seconds")

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    (used,) = re.findall(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    resource.setrlimit(resource.RLIMIT_DATA, ((int(used) << 10) + memory, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def assert_refused(act: Callable[..., object], folder: Path, *words: str, match: str) -> None:
    """Check that a command ends in one message, in little memory, and that nothing outside its folder changed."""
    before = _outside(folder)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _limits(), pytest.raises(RecipeError, match=match) as caught:
        act(folder, *words)
    assert len(str(caught.value)) < 3000
    assert not canary(folder).exists()
    assert _outside(folder) == before
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident < 400 << 10, "hundreds of megabytes were used"
