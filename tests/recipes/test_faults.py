"""Training survives or explains faults of a cluster: killed or hanging processes, full disks, wrong clocks."""

import os
import random
import re
import resource
import sys
import threading
import time
from pathlib import Path

import pytest

from recipes.base.errors import RecipeError
from recipes.runs.lock import check_shared, lock_run
from recipes.runtime.watchdog import report, where
from recipes.training.tracking import Journal
from tests.helpers.launching import Program, ranks, start, torchrun, wait_for_metrics
from tests.helpers.tiny import TINY, assert_close, assert_same, last_state, read_metrics, tiny_run, tiny_words

ALLOWED = ["allow_targets=[tests.helpers.faulty]", "data._target_=tests.helpers.faulty.Faulty"]


def faulty(folder: Path, fault: str, rank: int, at: int) -> list[str]:
    """Return the words of data with a fault of one process, in its batch number `at` of 8 samples."""
    keys = {"fault": fault, "rank": rank, "at": at, "size": 8, "marks": folder / "marks"}
    return [*ALLOWED, *(f"+data.{key}={value}" for key, value in keys.items())]


LENGTH = ["training.samples=960", "every.checkpoint=48", "every.log=48", "every.validation=240", "keep=3"]
"""A training with 20 checkpoints."""


def begun(run_dir: Path, count: int, distribution: str) -> Program:
    """Start a training, and wait until it has learned something."""
    words = [*TINY, *LENGTH, f"engine.distribution={distribution}", f"run_dir={run_dir}"]
    program = start(run_dir.parent, count, "recipes.train", *words)
    wait_for_metrics(run_dir, program.running)
    return program


def finish(run_dir: Path, count: int, distribution: str) -> float:
    """Run a training to its end and return how long it took from its first log on."""
    program, since = begun(run_dir, count, distribution), time.monotonic()
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


@pytest.mark.slow
@pytest.mark.parametrize(("count", "distribution", "times"), [(1, "ddp", 2), (2, "fsdp", 1)])
def test_train_continues_after_sigkill_as_if_never_killed(
    tmp_path: Path, count: int, distribution: str, times: int
) -> None:
    """At a random moment: on one process bit for bit, with the same metrics; on two, equal to 1e-6.

    For more kills, with a count of those within the writing of a checkpoint: KILLS=30 pytest -s --timeout=0 -k sigkill
    """
    chance, whole, writing = random.Random(0), tmp_path / "whole", 0
    seconds = finish(whole, count, distribution)
    for number in range(int(os.environ.get("KILLS", times))):  # every second one while it writes a checkpoint
        run_dir = tmp_path / f"killed{number}"
        while not kill(begun(run_dir, count, distribution), run_dir, seconds, chance, writing=number % 2 == 1):
            run_dir.rename(tmp_path / f"missed{number}-{chance.randint(0, 10**6)}")  # it was faster than the kill
        writing += writes_checkpoint(run_dir)
        finish(run_dir, count, distribution)
        print(f"{count} processes: {number + 1} killed and continued, {writing} of them while writing a checkpoint")
        ours, theirs = last_state(run_dir), last_state(whole)
        if count == 1:
            assert_same(ours, theirs)
            assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
        assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_train_restarts_after_a_killed_process_and_ends_complete(tmp_path: Path) -> None:
    exact = ["engine.precision=float64", "network.dropout=0", "every.checkpoint=16"]  # comparable with one process
    words = tiny_words(tmp_path / "run", "engine.distribution=fsdp", "engine.workers=0", *exact)
    done = torchrun(2, "recipes.train", *words, *faulty(tmp_path, "kill", 1, 4), restarts=1)
    assert done.returncode == 0, done.stderr[-6000:]
    assert "continuing after" in done.stdout
    assert (tmp_path / "marks" / "done").exists()
    assert_close(last_state(tmp_path / "run"), tiny_run(tmp_path / "whole", *exact), rtol=1e-9, atol=1e-12)


@pytest.mark.slow  # torchrun gives a process that hangs half a minute to end
def test_watchdog_names_a_process_that_hangs_before_a_timeout_ends_it(tmp_path: Path) -> None:
    words = ["engine.hang_report=2", "engine.timeout=8", "engine.workers=0", "every.checkpoint=16"]
    done = torchrun(2, "recipes.train", *tiny_words(tmp_path / "run", *words), *faulty(tmp_path, "hang", 1, 4))
    assert done.returncode != 0
    assert "no training step for a while" in done.stderr
    for rank, file in ((0, "learner.py"), (1, "reading.py")):
        line = re.search(rf"^  {rank}: 48 samples, \d+ s at (.*)$", done.stderr, re.MULTILINE)
        assert line, done.stderr[-4000:]
        assert file in line[1]
    assert "lost the connection to another process" in done.stderr
    assert last_state(tmp_path / "run").samples >= 32


@pytest.mark.slow
def test_watchdog_distinguishes_a_frozen_process_from_a_waiting_one(tmp_path: Path) -> None:
    """A frozen process cannot even report how long it has been where it is."""
    words = ["engine.hang_report=4", "engine.timeout=12", "engine.workers=0", "training.samples=1600"]
    done = torchrun(2, "recipes.train", *tiny_words(tmp_path / "run", *words), *faulty(tmp_path, "freeze", 1, 5))
    assert done.returncode != 0
    ages = re.findall(r"^  1: [\d,]+ samples, (\d+) s at", done.stderr, re.MULTILINE)
    assert ages, done.stderr[-4000:]
    assert int(ages[0]) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
def test_train_skips_on_all_processes_what_is_not_finite_on_one(tmp_path: Path, distribution: str) -> None:
    words = ["training.max_skips=2", "every.validation=48", "every.checkpoint=48"]
    words = tiny_words(tmp_path / "run", f"engine.distribution={distribution}", *words)
    done = ranks(2, "recipes.train", *words, *faulty(tmp_path, "spoil", 1, 4))
    assert done.returncode == 0, done.stderr[-4000:]
    assert "returning to the checkpoint after 48" in done.stdout
    state = last_state(tmp_path / "run")
    assert (state.samples, state.record["skipped"], state.record["rollbacks"]) == (96, 2, 1)
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors["network"].values())
    # The report at the checkpoint's own step was cut off, and is made again.
    assert [entry["samples"] for entry in read_metrics(tmp_path / "run", "validation")] == [48, 96]


def test_train_gives_the_reason_of_a_process_that_fails_and_ends_the_others(tmp_path: Path) -> None:
    done = torchrun(2, "recipes.train", *tiny_words(tmp_path / "run"), *faulty(tmp_path, "error", 0, 3))
    assert done.returncode != 0
    assert "the disk fell out" in done.stderr


def test_journal_leaves_out_lines_that_a_full_disk_cuts(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.position + 4, limits[1]))
    try:
        journal.write({"b": "x" * 40})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.write({"c": 3})
    journal.cut(10**6)  # a checkpoint may remember more than is there
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1}\n{"c": 3}\n'


@pytest.mark.parametrize("background", ["true", "false"])
def test_train_warns_of_a_full_disk_and_then_names_the_last_intact_checkpoint(tmp_path: Path, background: str) -> None:
    run_dir = tmp_path / "run"
    whole = tiny_run(tmp_path / "whole")
    tiny_run(run_dir, "training.samples=48")
    words = tiny_words(run_dir, f"engine.save_in_background={background}", "every.checkpoint=16")
    failed = ranks(1, "recipes.train", *words, largest_file=40_000)
    assert failed.returncode == 2
    assert failed.stdout.count("warning: cannot write the checkpoint") == 2  # after 64 and 80 samples
    assert "Training continues" in failed.stdout
    assert "The last intact one is 000000000048" in failed.stderr
    assert [path.name for path in (run_dir / "checkpoints").glob("0*")] == ["000000000048"]
    assert_same(whole, tiny_run(run_dir))


@pytest.mark.slow
def test_train_stops_all_processes_on_one_full_disk_and_falls_back_from_a_corrupted_shard(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = tiny_words(run_dir, "engine.distribution=fsdp", "every.checkpoint=48")
    assert ranks(2, "recipes.train", *words, "training.samples=48").returncode == 0
    failed = ranks(2, "recipes.train", *words, largest_file=40_000)
    assert failed.returncode != 0
    assert "The last intact one is 000000000048" in failed.stderr
    assert [path.name for path in (run_dir / "checkpoints").glob("0*")] == ["000000000048"]
    assert ranks(2, "recipes.train", *words).returncode == 0
    assert last_state(run_dir).samples == 96
    shard = sorted((run_dir / "checkpoints" / "000000000096" / "ema").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0\0")
    done = ranks(2, "recipes.train", *words)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "falling back to the previous checkpoint" in done.stderr
    assert "continuing after 48 samples" in done.stdout
    assert last_state(run_dir).samples == 96


@pytest.mark.slow
def test_train_saves_on_all_processes_by_the_clock_of_the_first(tmp_path: Path) -> None:
    """However often they save, they learn the same."""
    words = ["engine.distribution=fsdp", "every.checkpoint=96", "keep=9"]
    for name, minutes in (("often", 1e-9), ("seldom", 0)):
        all_words = tiny_words(tmp_path / name, *words, f"every.checkpoint_minutes={minutes}")
        done = ranks(2, "recipes.train", *all_words)
        assert done.returncode == 0, done.stderr[-4000:]
    saved = {name: len(list((tmp_path / name / "checkpoints").glob("0*"))) for name in ("often", "seldom")}
    assert saved["often"] > saved["seldom"] == 1
    assert_same(last_state(tmp_path / "often"), last_state(tmp_path / "seldom"))


def test_train_continues_from_the_most_samples_whatever_the_times_of_files(tmp_path: Path) -> None:
    whole = tiny_run(tmp_path / "whole")
    tiny_run(tmp_path / "run", "training.samples=80", "every.checkpoint=16", "keep=9")
    for place, folder in enumerate(sorted((tmp_path / "run" / "checkpoints").glob("0*"))):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (4e9 - 1e6 * place, 4e9 - 1e6 * place))
    assert_same(whole, tiny_run(tmp_path / "run"))


def test_lock_refuses_a_second_launch_and_waits_for_the_first(tmp_path: Path) -> None:
    with lock_run(tmp_path / "run"):
        done = ranks(2, "recipes.train", *tiny_words(tmp_path / "run"))
        assert done.returncode != 0
        assert "another process is using" in done.stderr
    holder = lock_run(tmp_path / "run")
    holder.__enter__()
    threading.Timer(0.3, holder.__exit__, (None, None, None)).start()
    with lock_run(tmp_path / "run", patience=20):
        pass


def test_check_shared_refuses_machines_without_a_common_folder(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="use a folder that all machines share"):
        check_shared(tmp_path / "elsewhere", 0.2)


def test_report_of_the_watchdog_names_every_process() -> None:
    reports = {0: {"samples": 1600, "seconds": 301.2, "where": where(sys._getframe())}}
    lines = report(reports, 2).splitlines()
    assert lines[1:] == ["  0: 1,600 samples, 301 s at unknown", "  1: no report"]
