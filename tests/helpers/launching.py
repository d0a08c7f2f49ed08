"""Starts recipes as processes: by torchrun, or forked from one that has imported what they need."""

import multiprocessing
import os
import resource
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
IMPORTED = [
    *("torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp", "sklearn.datasets"),
    *("modalities.image", "recipes.train", "recipes.sample", "recipes.report"),
]
PATIENCE = 10
"""Seconds that the others have to end after one has failed."""


def torchrun(ranks: int, module: str, *words: str, restarts: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", f"--max-restarts={restarts}"]
    command += ["--standalone", "-m", module, *words]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300, **more
    )


@dataclass
class Program:
    """A module that runs as several processes, and the files of their output."""

    processes: list[BaseProcess]
    outputs: list[tuple[Path, Path]]
    words: tuple[str, ...]

    def running(self) -> bool:
        """Whether any of the processes has not ended."""
        return any(process.exitcode is None for process in self.processes)

    def kill(self) -> None:
        """End all processes at once, as a power cut does."""
        for process in self.processes:
            process.kill()

    def wait(self, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Wait for the end and return all outputs; once a process fails, the others have `PATIENCE` seconds to end."""
        deadline = time.monotonic() + seconds
        while self.running():
            if any(process.exitcode for process in self.processes):
                deadline = min(deadline, time.monotonic() + PATIENCE)
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.02)
        outputs = ["".join(path.read_text() for path in paths) for paths in zip(*self.outputs, strict=True)]
        status = max(abs(process.exitcode or 0) for process in self.processes)
        return subprocess.CompletedProcess(self.words, status, *outputs)


def start(folder: Path, count: int, module: str, *words: str, largest_file: int | None = None) -> Program:
    """Start a module as `count` ranks with the environment that torchrun gives them; they write into a folder.

    Importing takes most of the time of a small training: these are forked from a process that has done it. Where it
    matters who starts, watches or ends them, use `torchrun`. `largest_file` is the maximum size of a file in bytes: a
    process meets it like a full disk.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Program([], [(folder / f"{rank}.out", folder / f"{rank}.err") for rank in range(count)], (module, *words))
    for rank, output in enumerate(program.outputs):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = ENVIRONMENT | {name: str(value) for name, value in place.items()}
        process = _server().Process(target=_run, args=(module, words, environment, output, largest_file))
        process.start()
        program.processes.append(process)
    return program


def ranks(count: int, module: str, *words: str, largest_file: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run what `start` starts to its end."""
    with tempfile.TemporaryDirectory() as folder:
        return start(Path(folder), count, module, *words, largest_file=largest_file).wait()


@cache
def _server() -> ForkServerContext:
    """Return the context whose processes are forked from one that has imported what recipes need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        context.Process(target=int).start()  # it keeps the environment it starts with, such as the number of threads
    return context


def _run(
    module: str, words: tuple[str, ...], environment: dict[str, str], output: tuple[Path, Path], limit: int | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.path[:0] = [environment["PYTHONPATH"]]
    for number, path in zip((1, 2), output, strict=True):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [module, *words]
    sys.modules.pop(module, None)  # it runs again, as the program
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def wait_for_metrics(run_dir: Path, running: Callable[[], bool], seconds: float = 300) -> None:
    """Return once `metrics.jsonl` has a line; AssertionError if the process ends first, or takes too long."""
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + seconds
    while not (metrics.exists() and metrics.stat().st_size):
        assert running(), "training ended before its first step"
        assert time.monotonic() < deadline, f"no training step within {seconds} s"
        time.sleep(0.005)
