"""Ctrl-C at every stage of commands: one clear message, no traceback, status 130, and what was done is kept."""

import importlib
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from recipes.base.commands import COMMANDS
from recipes.base.signals import ImmediateStop, StopRequest, handled, handled_signals
from recipes.training.learner import Learner
from tests.helpers.tiny import TINY, assert_same, last_state, tiny_run

ROOT = Path(__file__).parents[2]
EVERY = ["every.validation=32", "every.samples=48", "report=false"]


def interrupt(monkeypatch: pytest.MonkeyPatch, place: str, call: int = 1, times: int = 1, after: bool = False) -> None:
    """Send this process a real SIGINT at the beginning of a certain call of `module:name`, or after it."""
    module, _, name = place.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = name.split(".")
    for each in outer:
        owner = getattr(owner, each)
    real, calls = getattr(owner, name), 0

    def interrupted(*words: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and not after:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        found = real(*words, **more)
        if calls == call and after:
            signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(owner, name, interrupted)


def run(command: str, *words: str) -> int:
    return int(importlib.import_module(f"recipes.{command}").main(list(words)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    tiny_run(folder, *EVERY)
    return folder


@pytest.mark.parametrize(
    ("place", "call", "samples"),
    [
        ("recipes.training.setup:measured", 1, None),
        ("recipes.training.tracking:Journal.write", 3, 32),
        ("recipes.runs.checkpoint:Checkpoints.save", 1, 48),
        ("recipes.training.loop:validate", 3, 96),
        pytest.param("recipes.training.learner:Learner.step", 1, 16, marks=pytest.mark.slow),
        pytest.param("recipes.training.validation:generate", 1, 48, marks=pytest.mark.slow),
        pytest.param("recipes.training.learner:Learner.step", 6, 96, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_training_saves_and_the_command_that_is_told_continues(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    place: str, call: int, samples: int | None,
) -> None:  # fmt: skip
    """It ends where it would have, bit for bit. A signal within reports does not wait for their end."""
    run_dir, words = tmp_path / "a run", [*TINY, *EVERY, f"run_dir={tmp_path / 'a run'}"]
    with monkeypatch.context() as patched:
        interrupt(patched, place, call)
        assert run("train", *words) == 130
    told = capfd.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in told)
    if samples is None:
        assert told[:-1] == ["interrupted; nothing was saved yet, and the same command starts from the beginning:"]
        assert not run_dir.exists()
    else:
        assert told[0] == "saving the state before stopping; Ctrl-C again ends at once"
        assert told[1] == f"stopped; saved in {run_dir}/checkpoints/{samples:012d}. The same command continues."
        assert last_state(run_dir).samples == samples
    assert shlex.split(told[-1]) == ["multisagd", "train", *words]
    assert run("train", *shlex.split(told[-1])[2:]) == 0
    assert_same(last_state(run_dir), last_state(whole))
    assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGTERM, "recipes.training.setup.measured"),
        (signal.SIGUSR1, "recipes.training.setup.measured"),
        (signal.SIGUSR2, "recipes.train.introduction"),
        (signal.SIGTERM, "recipes.train.Loop"),
    ],
)
def test_a_scheduler_that_stops_a_training_before_its_first_step_is_answered_like_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    number: signal.Signals, place: str,
) -> None:  # fmt: skip
    real = pkgutil.resolve_name(place)

    def sent(*words: Any) -> Any:
        signal.raise_signal(number)
        return real(*words)

    monkeypatch.setattr(place, sent)
    words = [*TINY, f"run_dir={tmp_path / 'run'}"]
    assert run("train", *words) == 128 + number
    told = capfd.readouterr().err.strip().splitlines()
    assert told[0] == "interrupted; nothing was saved yet, and the same command starts from the beginning:"
    assert shlex.split(told[1]) == ["multisagd", "train", *words]
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("place", "call", "kept"),
    [
        ("recipes.training.learner:Learner.step", 1, None),
        ("recipes.runs.checkpoint:Checkpoints.save", 2, 48),
    ],
)
def test_a_second_ctrl_c_ends_at_once_and_does_no_damage(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    place: str, call: int, kept: int | None,
) -> None:  # fmt: skip
    run_dir = tmp_path / "run"
    words = [*TINY, *EVERY, "engine.save_in_background=false", "every.checkpoint=48", f"run_dir={run_dir}"]
    with monkeypatch.context() as patched:
        interrupt(patched, place, call, times=2)
        assert run("train", *words) == 130
    told = capfd.readouterr().err.strip().splitlines()
    if kept is None:
        assert told[1] == "interrupted; nothing was saved yet, and the same command starts from the beginning:"
    else:
        checkpoint = f"{run_dir}/checkpoints/{kept:012d}"
        assert (
            told[1] == f"interrupted; the last checkpoint is {checkpoint}, and the same command continues from there:"
        )
        assert last_state(run_dir).samples == kept
    assert run("train", *words) == 0
    assert_same(last_state(run_dir), last_state(whole))


def test_ctrl_c_that_ends_the_reader_of_the_output_too_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As in `multisagd train … 2>&1 | tee log`, where a terminal sends the signal to both."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as pipe, monkeypatch.context() as patched:
        for stream in ("stdout", "stderr"):
            patched.setattr(sys, stream, pipe)
        before = os.dup(2)
        os.dup2(writing, 2)
        real = Learner.step

        def step(self: Learner, batch: Any) -> None:
            os.close(reading)
            signal.raise_signal(signal.SIGINT)
            real(self, batch)

        patched.setattr(Learner, "step", step)
        try:
            assert run("train", *TINY, *EVERY, "every.log=16", f"run_dir={tmp_path / 'run'}") == 130
        finally:
            os.dup2(before, 2)
            os.close(before)
    assert last_state(tmp_path / "run").samples == 16
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["sample", "count=4", "steps=2"], "recipes.sample:generate"),
        (["evaluate", "samples=20", "steps=2", "metrics=[spectrum]"], "recipes.evaluate:real_data"),
        (["export"], "recipes.export:open_model"),
        (["inspect"], "recipes.inspect:measure"),
        (["encode", "modality=image", "data=digits"], "recipes.encode:earlier"),
        (["launch"], "recipes.launch:planned"),
        (["demo"], "recipes.demo:train"),
    ],
)
def test_other_commands_say_what_is_kept_and_how_to_go_on(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    words: list[str], place: str,
) -> None:  # fmt: skip
    command, *settings = words
    folder = whole if command in ("sample", "evaluate", "compare", "export") else tmp_path / "new"
    settings.append(f"run_dir={folder}")
    if command in ("sample", "export"):
        settings.append(f"out={tmp_path / 'out'}")
    interrupt(monkeypatch, place)
    assert run(command, *settings) == 130
    told = capfd.readouterr().err.strip().splitlines()
    kept = COMMANDS[command].interrupted
    assert told == [f"interrupted; {kept}", f"  {shlex.join(['multisagd', command, *settings])}"]
    assert not (tmp_path / "out").exists()


def test_what_can_be_done_again_does_not_keep_a_person_waiting() -> None:
    with StopRequest() as stop:
        with stop.interruptible(False):
            pass
        with pytest.raises(ImmediateStop), stop.interruptible():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(ImmediateStop), stop.interruptible():
            pytest.fail("the signal has come before")
        with stop.interruptible(False):
            assert stop.signal_number == signal.SIGTERM


def test_the_end_of_a_terminal_is_a_request_to_stop_but_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal_number == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with (
            StopRequest() as stop,
            handled(lambda number, frame: pytest.fail("it is to be ignored"), handled_signals()),
        ):
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal_number is None
    finally:
        signal.signal(signal.SIGHUP, before)


@contextmanager
def process(*words: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command for which no signal is ignored, as in a terminal, whatever started the tests; end it at last."""
    with subprocess.Popen(
        [sys.executable, "-m", "recipes.cli", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as begun:  # fmt: skip
        try:
            yield begun
        finally:
            begun.kill()


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_within_imports_is_neither_lost_nor_garbled(tmp_path: Path, number: str) -> None:
    """As some libraries do, the one that is imported swallows whatever is raised."""
    (tmp_path / "torch.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{number})\nexcept BaseException:\n    pass\n"
    )
    with process("train", "run_dir=r", PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}") as begun:
        out, errors = begun.communicate(timeout=60)
    # `-m` looks in the working folder first, where there is no torch.
    status = 128 + signal.Signals[number]
    assert (begun.returncode, out, errors) == (status, "", "interrupted before anything began\n")


@pytest.mark.slow
def test_a_terminal_is_answered(tmp_path: Path) -> None:
    """The whole of it, as from a keyboard: a training, then a sampling, each interrupted while at work."""
    run_dir = tmp_path / "run"
    words = [*TINY, "every.log=16", "every.checkpoint=0", "report=false", f"run_dir={run_dir}"]
    with process("train", *words, "training.samples=1000000") as begun:
        deadline = time.monotonic() + 120
        while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").stat().st_size:
            assert begun.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        begun.send_signal(signal.SIGINT)
        _, errors = begun.communicate(timeout=60)
    assert begun.returncode == 130, errors
    assert "stopped; saved in" in errors
    assert "Traceback" not in errors
    with process("sample", f"run_dir={run_dir}", "count=100000", "steps=50", "batch=8", "engine.device=cpu") as begun:
        assert begun.stdout is not None
        assert "sampling" in begun.stdout.readline()
        begun.send_signal(signal.SIGINT)
        _, errors = begun.communicate(timeout=60)
    assert begun.returncode == 130, errors
    assert errors.startswith("interrupted; no sample was written")
    assert "Traceback" not in errors
    assert not (run_dir / "sampled").exists()
