"""Run checks one by one in a process of their own, so that one that crashes or hangs does not end the others.

A library built for another processor ends a process without a word, and a file system that is gone makes it wait for
ever. Where the process ends, the check at work is at fault, and the next process goes on after it.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO

from recipes.health.findings import Check, Finding, Wishes, run

PATIENCE = 60.0
"""Seconds for one check."""
DEEP_PATIENCE = 600.0


START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from recipes.health.isolation import main; main()"
"""Begins a process that finds the packages that this one finds."""


def examine(module: str, wishes: Wishes, patience: float = PATIENCE) -> Iterator[tuple[Check, list[Finding]]]:
    """Return every check of a module's `CHECKS` with what it found, in order and as soon as it is known."""
    checks: Sequence[Check] = importlib.import_module(module).CHECKS
    done = 0
    while done < len(checks):
        for findings in _one_process(module, checks[done:], done, wishes, patience):
            yield checks[done], findings
            done += 1


def _one_process(
    module: str, checks: Sequence[Check], first: int, wishes: Wishes, patience: float
) -> Iterator[list[Finding]]:
    """Run checks, of which `first` is the number of the first; the last finding may be that the process ended."""
    words = [json.dumps(sys.path), module, str(first), str(wishes.run_dir or ""), str(int(wishes.deep))]
    lines: queue.Queue[str] = queue.Queue()
    with (
        tempfile.TemporaryFile() as noise,
        subprocess.Popen(
            [sys.executable, "-c", START, *words], stdout=subprocess.PIPE, stderr=noise, encoding="utf-8"
        ) as process,
    ):
        assert process.stdout is not None
        threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
        try:
            for check in checks:
                before = os.fstat(noise.fileno()).st_size
                line = _next(lines, DEEP_PATIENCE if wishes.deep else patience)
                if not line.endswith("\n"):
                    yield [Finding("broken", check.name, line or _ending(process, noise, before))]
                    return
                yield [Finding(**each) for each in json.loads(line)]
        finally:
            process.kill()


def _read(stream: IO[str], lines: queue.Queue[str]) -> None:
    for line in stream:
        lines.put(line)
    lines.put("")


def _next(lines: queue.Queue[str], seconds: float) -> str:
    """Return the next line; without its end, why there is none, and nothing if the process has ended."""
    try:
        return lines.get(timeout=seconds)
    except queue.Empty:
        return f"it hangs: nothing came of it within {seconds:.0f} s"


def _ending(process: subprocess.Popen[str], noise: IO[bytes], before: int) -> str:
    """Say how a process ended, and what it said last, if anything since `before`."""
    status = process.wait()
    noise.seek(before)
    last = noise.read().decode(errors="replace").strip().splitlines()[-1:]
    how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
    return ": ".join([f"it ended the process {how}", *last])


def main() -> None:
    """Run the checks of a module from a number on, and print the findings of each on a line."""
    module, first, run_dir, deep = sys.argv[2:]
    # Whatever libraries print goes elsewhere.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        wishes = Wishes(Path(run_dir) if run_dir else None, deep == "1")
        for check in importlib.import_module(module).CHECKS[int(first) :]:
            print(json.dumps([asdict(finding) for finding in run(check, wishes)]), file=out, flush=True)
        os._exit(0)  # threads of libraries are not waited for
