"""Kills trainings with SIGKILL at random moments, and checks that the same command ends them as if nothing had been.

    python tests/recipes/kill_and_continue.py --times 30
    python tests/recipes/kill_and_continue.py --times 30 --ranks 2 --distribution fsdp

Half of the moments are anywhere in training, and half within the writing of a checkpoint. On one process weights,
averages, optimiser state and metrics must be bit for bit those of the run that was let be; on two, equal to 1e-6.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import torch
from launching import ENVIRONMENT, ROOT
from tiny import TINY, assert_same, last_state

LENGTH = ["training.samples=1600", "every.checkpoint=80", "every.log=80", "every.validation=400", "keep=3"]


def command(run_dir: Path, ranks: int, distribution: str) -> list[str]:
    """Return the command of a training with 20 checkpoints."""
    spread = [] if ranks == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    words = [*TINY, *LENGTH, f"engine.distribution={distribution}", f"run_dir={run_dir}"]
    return [sys.executable, "-m", *spread, "recipes.train", *words]


def finish(words: list[str]) -> float:
    """Run a command to its end and return how long it trained for, from its first log on."""
    run_dir = Path(words[-1].split("=", 1)[1])
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for_start(process, run_dir)
    begun = time.monotonic()
    output, _ = process.communicate(timeout=300)
    if process.returncode:
        raise AssertionError(f"{' '.join(words)}\n{output.decode(errors='replace')[-6000:]}")
    return time.monotonic() - begun


def wait_for_start(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    metrics = run_dir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        if time.monotonic() > deadline:
            raise AssertionError("training does not begin")
        time.sleep(0.005)
    if not metrics.exists():
        raise AssertionError(f"training ended with status {process.returncode} before it began")


def kill(words: list[str], run_dir: Path, seconds: float, chance: random.Random, writing: bool) -> bool:
    """Start a command and kill it and its children; return whether that met it at work, and as it was wanted."""
    process = subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_start(process, run_dir)
    if writing:
        seen, wanted, before = 0, chance.randint(1, 12), False
        while process.poll() is None and seen < wanted:
            now = any((run_dir / "checkpoints").glob(".writing-*"))
            seen, before = seen + (now and not before), now
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, 0.6 * seconds))
    at_work = process.poll() is None
    for number in [process.pid, *descendants(process.pid)] if at_work else ():
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    process.wait()
    return at_work and (half_written(run_dir) or not writing)


def half_written(run_dir: Path) -> bool:
    """Tell whether a checkpoint was being written."""
    return any((run_dir / "checkpoints").glob(".writing-*"))


def descendants(number: int) -> list[int]:
    """Return the processes that a process has started, and those that they have."""
    children = [int(each) for each in Path(f"/proc/{number}/task/{number}/children").read_text().split()]
    return [*children, *(below for child in children for below in descendants(child))]


def check(run_dir: Path, whole: Path, ranks: int) -> None:
    """Compare a run that was killed and continued with one that was not."""
    ours, theirs = last_state(run_dir), last_state(whole)
    if ranks == 1:
        assert_same(ours, theirs)
        assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        return
    assert ours.samples == theirs.samples
    for part, tensors in theirs.tensors.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(ours.tensors[part][name], tensor, rtol=1e-6, atol=1e-6)


def main(folder: Path, times: int, ranks: int = 1, distribution: str = "ddp", seed: int = 0) -> int:
    """Kill and continue `times` trainings; return how many were killed within the writing of a checkpoint."""
    chance, torn = random.Random(seed), 0
    seconds = finish(command(folder / "whole", ranks, distribution))
    for number in range(times):
        run_dir = folder / f"killed{number}"
        words = command(run_dir, ranks, distribution)
        while not kill(words, run_dir, seconds, chance, writing=number % 2 == 1):
            run_dir.rename(folder / f"missed{number}-{chance.randint(0, 10**6)}")  # it was faster than the kill
        within = half_written(run_dir)
        torn += within
        last = max((int(path.name) for path in (run_dir / "checkpoints").glob("[0-9]*")), default=0)
        finish(words)
        check(run_dir, folder / "whole", ranks)
        told = ", while it wrote the next one" if within else ""
        print(f"{number + 1}: killed after checkpoint {last}{told}; continued, and equal", flush=True)
    return torn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--distribution", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    wishes = parser.parse_args()
    with tempfile.TemporaryDirectory() as found:
        torn = main(Path(found), wishes.times, wishes.ranks, wishes.distribution, wishes.seed)
        print(f"{wishes.times} killed and continued on {wishes.ranks} processes, {torn} while a checkpoint was written")
