"""Kills trainings with SIGKILL at random moments, and checks that the same command ends them as if nothing had been.

    python -m tests.helpers.kill_and_continue --times 30
    python -m tests.helpers.kill_and_continue --times 30 --ranks 2 --distribution fsdp

Half of the moments are anywhere in training, and half within the writing of a checkpoint. On one process weights,
averages, optimiser state and metrics must be bit for bit those of the run that was let be; on two, equal to 1e-6.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import torch

from tests.helpers.launching import Program, start
from tests.helpers.tiny import TINY, assert_same, last_state

LENGTH = ["training.samples=960", "every.checkpoint=48", "every.log=48", "every.validation=240", "keep=3"]


def words_of(run_dir: Path, distribution: str) -> list[str]:
    """Return the words of a training with 20 checkpoints."""
    return [*TINY, *LENGTH, f"engine.distribution={distribution}", f"run_dir={run_dir}"]


def begun(folder: Path, ranks: int, words: list[str]) -> Program:
    """Start a training, and wait until it has learned something."""
    program = start(folder, ranks, "recipes.train", *words)
    metrics = Path(words[-1].split("=", 1)[1]) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while program.running() and not (metrics.exists() and metrics.stat().st_size):
        if time.monotonic() > deadline:
            raise AssertionError("training does not begin")
        time.sleep(0.005)
    if not metrics.exists():
        raise AssertionError(f"training ended before it began\n{program.wait().stderr[-6000:]}")
    return program


def finish(folder: Path, ranks: int, words: list[str]) -> float:
    """Run a training to its end and return how long it took from its first log on."""
    program, since = begun(folder, ranks, words), time.monotonic()
    done = program.wait()
    if done.returncode:
        raise AssertionError(f"{' '.join(words)}\n{done.stdout[-3000:]}{done.stderr[-6000:]}")
    return time.monotonic() - since


def kill(folder: Path, ranks: int, words: list[str], seconds: float, chance: random.Random, writing: bool) -> bool:
    """Start a training and kill its processes; return whether that met it at work, and as it was wanted."""
    program, run_dir = begun(folder, ranks, words), Path(words[-1].split("=", 1)[1])
    if writing:
        seen, wanted, before = 0, chance.randint(1, 12), False
        while program.running() and seen < wanted:
            now = any((run_dir / "checkpoints").glob(".writing-*"))
            seen, before = seen + (now and not before), now
        time.sleep(chance.uniform(0, 0.02))
    else:
        time.sleep(chance.uniform(0, 0.6 * seconds))
    at_work = program.running()
    program.kill()
    program.wait()
    return at_work and (half_written(run_dir) or not writing)


def half_written(run_dir: Path) -> bool:
    """Tell whether a checkpoint was being written."""
    return any((run_dir / "checkpoints").glob(".writing-*"))


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
    seconds = finish(folder, ranks, words_of(folder / "whole", distribution))
    for number in range(times):
        run_dir = folder / f"killed{number}"
        words = words_of(run_dir, distribution)
        while not kill(folder, ranks, words, seconds, chance, writing=number % 2 == 1):
            run_dir.rename(folder / f"missed{number}-{chance.randint(0, 10**6)}")  # it was faster than the kill
        within = half_written(run_dir)
        torn += within
        last = max((int(path.name) for path in (run_dir / "checkpoints").glob("[0-9]*")), default=0)
        finish(folder, ranks, words)
        check(run_dir, folder / "whole", ranks)
        during = ", while it wrote the next one" if within else ""
        print(f"{number + 1}: killed after checkpoint {last}{during}; continued, and equal", flush=True)
    return torn


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--distribution", choices=["ddp", "fsdp"], default="ddp")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as found:
        torn = main(Path(found), options.times, options.ranks, options.distribution, options.seed)
        print(
            f"{options.times} killed and continued on {options.ranks} processes, {torn} while a checkpoint was written"
        )
