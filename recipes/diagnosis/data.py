"""Data and files: known data sets, the space and rights in a folder, memory, and the encoding of text."""

from __future__ import annotations

import locale
import os
import shutil
import sys
import tempfile
from pathlib import Path

from recipes.diagnosis.check import Finding


def data_folder() -> Finding:
    """Show which folders of data lie where the project's own configurations look for them, as `images/mnist`."""
    root = Path(os.environ.get("MULTISAGD_DATA", "data"))
    if found := sorted(path.relative_to(root).as_posix() for path in root.glob("*/*") if path.is_dir()):
        return Finding("ok", f"{root}: {', '.join(found[:20])}")
    message = f"no data sets in {root}/; data=digits needs no files, and data=folder reads your own"
    return Finding("absent", message, "export MULTISAGD_DATA=/path/to/data")


def writable(folder: str) -> Finding:
    """Check that files can be written into a folder, or where it would be made, and the free space there."""
    existing = next(each for each in (Path(folder).absolute(), *Path(folder).absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing, buffering=0) as file:
            file.write(b"x")
    except OSError as error:
        return Finding("broken", f"cannot write there: {error}", f"make {existing} writable, or work elsewhere")
    free = shutil.disk_usage(existing).free
    message = f"{existing}, {free / 2**30:,.1f} GiB free"
    if free < 5 * 2**30:
        return Finding("warning", f"{message}, which checkpoints soon fill", "keep=1, or a run_dir on another disk")
    return Finding("ok", message)


def memory() -> Finding:
    """Look at the memory, which a container may limit, and at what processes can share of it."""
    total, limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else total
    message = f"{total / 2**30:,.1f} GiB; /dev/shm has {shared / 2**30:,.1f} GiB"
    if shared < 2**28:  # NCCL, and processes that share tensors, need more
        return Finding("warning", message, "docker run --shm-size=8g, or in Kubernetes an emptyDir in memory")
    return Finding("ok" if total >= 3 * 2**30 else "warning", message)


def encoding() -> Finding:
    """Check that names of files and text are encoded in UTF-8."""
    encodings = {sys.getfilesystemencoding(), locale.getpreferredencoding(False)}
    if {name.lower().replace("-", "") for name in encodings} == {"utf8"}:
        return Finding("ok", "UTF-8")
    return Finding("warning", f"{', '.join(encodings)}: names beyond ASCII may fail", "export PYTHONUTF8=1")
