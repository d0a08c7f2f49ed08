"""A training run killed with SIGKILL at a random moment, and continued by the same command, ends as if never killed.

For more kills, with a count of those within the writing of a checkpoint: KILLS=30 pytest -s --timeout=0 FILE
"""

import os
import random
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.launching import Program, start, wait_for_metrics
from tests.helpers.tiny import TINY, assert_same, last_state

pytestmark = pytest.mark.slow
LENGTH = ["training.samples=960", "every.checkpoint=48", "every.log=48", "every.validation=240", "keep=3"]
"""A training with 20 checkpoints."""


def begun(run_dir: Path, ranks: int, distribution: str) -> Program:
    """Start a training, and wait until it has learned something."""
    words = [*TINY, *LENGTH, f"engine.distribution={distribution}", f"run_dir={run_dir}"]
    program = start(run_dir.parent, ranks, "recipes.train", *words)
    wait_for_metrics(run_dir, program.running)
    return program


def finish(run_dir: Path, ranks: int, distribution: str) -> float:
    """Run a training to its end and return how long it took from its first log on."""
    program, since = begun(run_dir, ranks, distribution), time.monotonic()
    done = program.wait()
    assert done.returncode == 0, f"{done.stdout[-3000:]}{done.stderr[-6000:]}"
    return time.monotonic() - since


def kill(program: Program, run_dir: Path, seconds: float, chance: random.Random, writing: bool) -> bool:
    """Kill the processes of a training; return whether it was at work, and writing a checkpoint if that is wanted."""
    if writing:
        seen, wanted, before = 0, chance.randint(1, 12), False
        while program.running() and seen < wanted:
            now = writes_checkpoint(run_dir)
            seen, before = seen + (now and not before), now
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, 0.6 * seconds))
    at_work = program.running()
    program.kill()
    program.wait()
    return at_work and (writes_checkpoint(run_dir) or not writing)


def writes_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / "checkpoints").glob(".writing-*"))


@pytest.mark.parametrize(("ranks", "distribution", "times"), [(1, "ddp", 2), (2, "fsdp", 1)])
def test_train_continues_after_sigkill_as_if_never_killed(
    tmp_path: Path, ranks: int, distribution: str, times: int
) -> None:
    """Bit for bit on one process, with the same metrics; on two, equal to 1e-6."""
    chance, whole, writing = random.Random(0), tmp_path / "whole", 0
    seconds = finish(whole, ranks, distribution)
    for number in range(int(os.environ.get("KILLS", times))):  # every second one while it writes a checkpoint
        run_dir = tmp_path / f"killed{number}"
        while not kill(begun(run_dir, ranks, distribution), run_dir, seconds, chance, writing=number % 2 == 1):
            run_dir.rename(tmp_path / f"missed{number}-{chance.randint(0, 10**6)}")  # it was faster than the kill
        writing += writes_checkpoint(run_dir)
        finish(run_dir, ranks, distribution)
        print(f"{ranks} processes: {number + 1} killed and continued, {writing} of them while writing a checkpoint")
        ours, theirs = last_state(run_dir), last_state(whole)
        if ranks == 1:
            assert_same(ours, theirs)
            assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        assert ours.samples == theirs.samples
        for part, tensors in theirs.tensors.items():
            for name, tensor in tensors.items():
                torch.testing.assert_close(ours.tensors[part][name], tensor, rtol=1e-6, atol=1e-6)
