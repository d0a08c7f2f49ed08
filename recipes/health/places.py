"""Where files go and come from: folders and their space, memory, limits, data, and the encoding of names."""

from __future__ import annotations

import fcntl
import locale
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from recipes.health.findings import Finding, Wishes

LITTLE = 5 * 2**30
"""Bytes of free space below which a folder of runs is soon full."""
KNOWN_DATA = {
    "images/mnist": "data=mnist",
    "images/fashion_mnist": "data=fashion_mnist",
    "images/cifar10": "data=cifar10",
    "images/sign_digits": "experiment=ablation_sign_digits",
    "audio/fsdd/recordings": "experiment=audio_spoken_digits",
}
"""What the project's own configurations look for below MULTISAGD_DATA, and which of them does."""


def folders(wishes: Wishes) -> Iterator[Finding]:
    """Write into the folders that commands write into, and look how much more would fit."""
    torch_home = os.environ.get("TORCH_HOME", str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"))
    for name, folder, vital in (
        ("working folder", Path.cwd(), True),
        ("runs/", Path("runs"), True),
        (".cache/features", Path(".cache/features"), False),
        ("torch.hub", Path(torch_home).expanduser() / "hub", False),
        ("temporary", Path(tempfile.gettempdir()), True),
    ):
        yield writable(name, folder, vital)


def writable(name: str, folder: Path, vital: bool) -> Finding:
    """Tell whether files can be made and locked in a folder, or where it would be made, and the free space there."""
    there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        return Finding("broken", name, f"{there} is a file and no folder")
    free = shutil.disk_usage(there).free
    told = f"{there}{'' if there == folder.absolute() else f' (where {folder} would be made)'}, {size(free)} free"
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
            locks = _locks(file.fileno())
    except OSError as error:
        told, remedy = f"cannot write there: {error}", f"make {there} writable, or work elsewhere"
        return Finding("broken" if vital else "warning", name, told, remedy)
    if free < LITTLE:
        return Finding("warning", name, f"{told}, which checkpoints soon fill", "keep=1, or a run_dir on another disk")
    if not locks:
        return Finding("warning", name, f"{told}; it has no locks, so do not start two trainings on one run_dir")
    return Finding("ok", name, told)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def size(amount: float) -> str:
    """Write a number of bytes as a person reads it."""
    return f"{amount / 2**30:,.1f} GiB" if amount >= 2**30 else f"{amount / 2**20:,.1f} MiB"


def memory(wishes: Wishes) -> Iterator[Finding]:
    """Look at memory, shared memory, and how many files may be open."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    few = total < 3 * 2**30
    yield Finding("warning" if few else "ok", "memory", f"{size(total)}{', which is little' if few else ''}")
    shared = Path("/dev/shm")
    if shared.is_dir():
        space = shutil.disk_usage(shared).total
        if space < 2**28:
            told = f"{size(space)}; NCCL and processes that share tensors need more"
            yield Finding(
                "warning", "/dev/shm", told, "docker run --shm-size=8g, or in Kubernetes an emptyDir in memory"
            )
        else:
            yield Finding("ok", "/dev/shm", size(space))
    import resource

    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= files < 1024:
        told = f"{files}; a large shard or folder and many threads need more"
        yield Finding("warning", "open files", told, f"ulimit -n {min(most, 65536) if most > 0 else 65536}")
    else:
        yield Finding("ok", "open files", "without limit" if files < 0 else f"at most {files:,}")


def data(wishes: Wishes) -> Iterator[Finding]:
    """Look for the data that the project's own configurations name."""
    named = os.environ.get("MULTISAGD_DATA")
    root = Path(named or "data")
    here = {path: use for path, use in KNOWN_DATA.items() if (root / path).is_dir() and any((root / path).iterdir())}
    if here:
        told = f"{root}: {', '.join(f'{path} ({use})' for path, use in here.items())}"
        yield Finding("ok", "MULTISAGD_DATA", told)
    elif named and not root.is_dir():
        yield Finding("warning", "MULTISAGD_DATA", f"{root} is no folder", "export MULTISAGD_DATA=/path/to/data")
    else:
        told = f"{f'{named} has' if named else 'not set, and ./data has'} none of {', '.join(KNOWN_DATA)}"
        yield Finding("absent", "MULTISAGD_DATA", f"{told}; data=digits needs none, data=folder takes your own")


def encoding(wishes: Wishes) -> Iterator[Finding]:
    """Look at how names of files and output are encoded."""
    kinds = {"file names": sys.getfilesystemencoding(), "text": locale.getpreferredencoding(False)}
    other = {what: kind for what, kind in kinds.items() if kind.lower().replace("-", "") != "utf8"}
    if other:
        told = ", ".join(f"{what} in {kind}" for what, kind in other.items())
        yield Finding("warning", "encoding", f"{told}: names beyond ASCII may fail", "export PYTHONUTF8=1")
    else:
        yield Finding("ok", "encoding", "UTF-8")
