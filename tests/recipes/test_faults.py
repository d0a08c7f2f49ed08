"""What can go wrong on a cluster: processes that die or hang, disks that are full, clocks that disagree."""

import os
import re
import resource
import sys
import threading
from pathlib import Path

import pytest
import torch

from recipes.base.errors import RecipeError
from recipes.runs.lock import check_shared, lock_run
from recipes.runtime.watchdog import report, where
from recipes.training.tracking import Journal
from tests.helpers.launching import ranks, torchrun
from tests.helpers.tiny import TINY, assert_same, last_state, read_metrics, tiny_run

ALLOWED = ["allow_targets=[tests.helpers.faulty]", "data._target_=tests.helpers.faulty.Faulty"]


def faulty(run_dir: Path, fault: str, rank: int, at: int, size: int) -> list[str]:
    keys = {"fault": fault, "rank": rank, "at": at, "size": size, "marks": run_dir.parent / "marks"}
    return [*ALLOWED, *(f"+data.{key}={value}" for key, value in keys.items())]


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_the_run_ends_complete(tmp_path: Path) -> None:
    """With shards; kill_and_continue has the rest."""
    exact = [
        "engine.precision=float64",
        "network.dropout=0",
        "every.checkpoint=16",
    ]  # so that one process is comparable
    run_dir, words = tmp_path / "run", ["engine.distribution=fsdp", "engine.workers=0", *exact]
    done = torchrun(
        2, "recipes.train", *TINY, *words, *faulty(run_dir, "kill", 1, 4, 8), f"run_dir={run_dir}", restarts=1
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert "continuing after" in done.stdout
    assert (tmp_path / "marks" / "done").exists()
    ours, theirs = last_state(run_dir), tiny_run(tmp_path / "whole", *exact)
    assert ours.samples == theirs.samples == 96
    for part, tensors in theirs.tensors.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(ours.tensors[part][name], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.slow  # torchrun gives a process that hangs half a minute to end
def test_a_process_that_hangs_is_named_before_a_timeout_ends_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [
        "engine.hang_report=2",
        "engine.timeout=8",
        "engine.workers=0",
        "every.checkpoint=16",
        f"run_dir={run_dir}",
    ]
    done = torchrun(2, "recipes.train", *TINY, *words, *faulty(run_dir, "hang", 1, 4, 8))
    assert done.returncode != 0
    assert "no training step for a while" in done.stderr
    told = {rank: re.search(rf"^  {rank}: 48 samples, \d+ s at (.*)$", done.stderr, re.MULTILINE) for rank in (0, 1)}
    assert all(told.values()), done.stderr[-4000:]
    lines = [found[1] for found in told.values() if found]
    assert "learner.py" in lines[0]
    assert "reading.py" in lines[1]
    assert "lost the connection to another process" in done.stderr
    assert last_state(run_dir).samples >= 32


@pytest.mark.slow
def test_a_process_that_is_frozen_is_told_from_one_that_waits(tmp_path: Path) -> None:
    """It cannot even say how long it has been where it is."""
    run_dir = tmp_path / "run"
    words = ["engine.hang_report=4", "engine.timeout=12", "engine.workers=0", f"run_dir={run_dir}"]
    done = torchrun(2, "recipes.train", *TINY, *words, *faulty(run_dir, "freeze", 1, 5, 8), "training.samples=1600")
    assert done.returncode != 0
    ages = re.findall(r"^  1: [\d,]+ samples, (\d+) s at", done.stderr, re.MULTILINE)
    assert ages, done.stderr[-4000:]
    assert int(ages[0]) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["ddp", "fsdp"])
def test_what_is_not_finite_on_one_process_is_skipped_by_all(tmp_path: Path, distribution: str) -> None:
    run_dir = tmp_path / "run"
    words = [
        f"engine.distribution={distribution}",
        "training.max_skips=2",
        "every.validation=48",
        "every.checkpoint=48",
    ]
    done = ranks(2, "recipes.train", *TINY, *words, *faulty(run_dir, "spoil", 1, 4, 8), f"run_dir={run_dir}")
    assert done.returncode == 0, done.stderr[-4000:]
    assert "returning to the checkpoint after 48" in done.stdout
    state = last_state(run_dir)
    assert (state.samples, state.record["skipped"], state.record["rollbacks"]) == (96, 2, 1)
    assert all(bool(tensor.isfinite().all()) for tensor in state.tensors["network"].values())
    # What was reported at the checkpoint's own step was cut off, and is made anew.
    assert [entry["samples"] for entry in read_metrics(run_dir, "validation")] == [48, 96]


def test_a_disk_that_is_full_leaves_out_metrics_and_no_half_lines(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "metrics.jsonl")
    journal.write({"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.position + 4, limits[1]))
    try:
        journal.write({"b": "x" * 40})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.write({"c": 3})
    journal.cut(10**6)  # what a checkpoint remembers may be more than is there
    assert (tmp_path / "metrics.jsonl").read_text() == '{"a": 1}\n{"c": 3}\n'


def test_machines_that_do_not_share_a_folder_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="use one that all machines share"):
        check_shared(tmp_path / "elsewhere", 0.2)


def test_a_process_that_fails_tells_why_and_the_others_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    done = torchrun(2, "recipes.train", *TINY, *faulty(run_dir, "error", 0, 3, 8), f"run_dir={run_dir}")
    assert done.returncode != 0
    assert "the disk fell out" in done.stderr


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_full_disk_warns_and_then_says_what_is_left(tmp_path: Path, background: str) -> None:
    words = [f"engine.save_in_background={background}", f"run_dir={tmp_path / 'run'}"]
    whole = tiny_run(tmp_path / "whole")
    tiny_run(tmp_path / "run", "training.samples=48")
    failed = ranks(1, "recipes.train", *TINY, *words, "every.checkpoint=16", largest_file=40_000)
    assert failed.returncode == 2
    assert failed.stdout.count("warning: cannot write the checkpoint") == 2  # after 64 and 80 samples
    assert "Training continues" in failed.stdout
    assert "The last intact one is 000000000048" in failed.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000048"]
    assert_same(whole, tiny_run(tmp_path / "run"))


@pytest.mark.slow
def test_a_full_disk_of_one_process_stops_all_of_them(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, "engine.distribution=fsdp", f"run_dir={run_dir}"]
    assert ranks(2, "recipes.train", *words, "training.samples=48").returncode == 0
    failed = ranks(2, "recipes.train", *words, largest_file=40_000)
    assert failed.returncode != 0
    assert "The last intact one is 000000000048" in failed.stderr
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["000000000048"]
    assert ranks(2, "recipes.train", *words).returncode == 0
    assert last_state(run_dir).samples == 96


@pytest.mark.slow
def test_the_clock_of_the_first_process_counts_for_all(tmp_path: Path) -> None:
    """Several processes save together, whenever it tells them to, and learn what they would have learned without."""
    words = [*TINY, "engine.distribution=fsdp", "every.checkpoint=96", "keep=9"]
    for name, minutes in (("often", 1e-9), ("seldom", 0)):
        done = ranks(2, "recipes.train", *words, f"every.checkpoint_minutes={minutes}", f"run_dir={tmp_path / name}")
        assert done.returncode == 0, done.stderr[-4000:]
    saved = {name: len(list((tmp_path / name / "checkpoints").iterdir())) for name in ("often", "seldom")}
    assert saved["often"] > saved["seldom"] == 1
    assert_same(last_state(tmp_path / "often"), last_state(tmp_path / "seldom"))


@pytest.mark.slow
def test_a_corrupted_shard_falls_back_on_every_process(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, "engine.distribution=fsdp", "every.checkpoint=48", f"run_dir={run_dir}"]
    assert ranks(2, "recipes.train", *words).returncode == 0
    newest = run_dir / "checkpoints" / "000000000096"
    shard = sorted((newest / "ema").glob("*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0\0")
    done = ranks(2, "recipes.train", *words)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "falling back to the previous checkpoint" in done.stderr
    assert "continuing after 48 samples" in done.stdout
    assert last_state(run_dir).samples == 96


def test_clocks_do_not_matter(tmp_path: Path) -> None:
    """The newest checkpoint is the one with the most samples, whatever the files' times say."""
    whole = tiny_run(tmp_path / "whole")
    tiny_run(tmp_path / "run", "training.samples=80", "every.checkpoint=16", "keep=9")
    for place, folder in enumerate(sorted((tmp_path / "run" / "checkpoints").iterdir())):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (4e9 - 1e6 * place, 4e9 - 1e6 * place))
    assert_same(whole, tiny_run(tmp_path / "run"))


def test_two_launches_on_one_folder_are_told_apart(tmp_path: Path) -> None:
    with lock_run(tmp_path / "run"):
        done = ranks(2, "recipes.train", *TINY, f"run_dir={tmp_path / 'run'}")
        assert done.returncode != 0
        assert "another process is using" in done.stderr
        with pytest.raises(RecipeError, match="another process is using"):
            tiny_run(tmp_path / "run")


def test_a_folder_is_waited_for(tmp_path: Path) -> None:
    holder = lock_run(tmp_path / "run")
    holder.__enter__()
    threading.Timer(0.3, holder.__exit__, (None, None, None)).start()
    with lock_run(tmp_path / "run", patience=20):
        pass


def test_reports_name_every_process() -> None:
    found = {0: {"samples": 1600, "seconds": 301.2, "where": where(sys._getframe())}}
    lines = report(found, 2).splitlines()
    assert lines[1:] == ["  0: 1,600 samples, 301 s at unknown", "  1: no report"]
