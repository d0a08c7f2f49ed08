"""Ctrl-C at every stage of commands: one clear message, no traceback, status 130, and what was done is kept."""

import itertools
import os
import pkgutil
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from recipes.base.commands import COMMANDS
from recipes.base.signals import ImmediateStop, StopRequest, handled, handled_signals, like_ctrl_c
from recipes.cli.main import main
from recipes.training.learner import Learner
from tests.helpers.tiny import TINY, assert_same, last_state, tiny_run

ROOT = Path(__file__).parents[2]
EVERY = ["every.validation=32", "every.samples=48", "report=false"]
NOTHING_SAVED = "interrupted; nothing was saved yet, and the same command starts from the beginning:"


Interrupt = Callable[..., list[str]]


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Interrupt:
    """Return a function that runs a command, which gets a signal at a certain call of `module:name`.

    It checks the status, and returns the lines of standard error.
    """

    def interrupted_run(
        command: str, words: list[str], place: str, call: int = 1, times: int = 1, number: int = signal.SIGINT
    ) -> list[str]:
        real, calls = pkgutil.resolve_name(place), itertools.count(1)

        def interrupted(*words: Any, **more: Any) -> Any:
            for _ in range(times if next(calls) == call else 0):
                signal.raise_signal(number)
            return real(*words, **more)

        with monkeypatch.context() as patched:
            patched.setattr(place.replace(":", "."), interrupted)
            assert main([command, *words]) == 128 + number
        errors = capfd.readouterr().err
        assert "Traceback" not in errors
        return errors.strip().splitlines()

    return interrupted_run


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
        ("recipes.runs.checkpoint:Checkpoints.save", 1, 32),
        ("recipes.training.loop:validate", 3, 96),
        pytest.param("recipes.training.learner:Learner.step", 1, 16, marks=pytest.mark.slow),
        pytest.param("recipes.training.validation:generate", 1, 48, marks=pytest.mark.slow),
        pytest.param("recipes.training.learner:Learner.step", 6, 96, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_train_saves_and_the_printed_command_continues_bit_for_bit(
    tmp_path: Path, whole: Path, interrupt: Interrupt, place: str, call: int, samples: int | None
) -> None:
    """A signal within reports does not wait for their end."""
    run_dir = tmp_path / "a run"
    words = [*TINY, *EVERY, f"run_dir={run_dir}"]
    lines = interrupt("train", words, place, call)
    if samples is None:
        assert lines[:-1] == [NOTHING_SAVED]
        assert not run_dir.exists()
    else:
        assert lines[0] == "saving the state before stopping; Ctrl-C again ends at once"
        assert lines[1] == f"stopped; saved in {run_dir}/checkpoints/{samples:012d}. Run the same command to continue."
        assert last_state(run_dir).samples == samples
    assert shlex.split(lines[-1]) == ["multisagd", "train", *words]
    assert main(shlex.split(lines[-1])[1:]) == 0
    assert_same(last_state(run_dir), last_state(whole))
    assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("number", "place"),
    [
        (signal.SIGTERM, "recipes.training.setup:measured"),
        (signal.SIGUSR1, "recipes.training.setup:measured"),
        (signal.SIGUSR2, "recipes.train:introduction"),
        (signal.SIGTERM, "recipes.train:Loop"),
    ],
)
def test_train_answers_a_scheduler_like_ctrl_c_before_its_first_step(
    tmp_path: Path, interrupt: Interrupt, number: signal.Signals, place: str
) -> None:
    words = [*TINY, f"run_dir={tmp_path / 'run'}"]
    message, command = interrupt("train", words, place, number=number)
    assert message == NOTHING_SAVED
    assert shlex.split(command) == ["multisagd", "train", *words]
    assert not (tmp_path / "run").exists()
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("place", "call", "kept"),
    [
        ("recipes.training.learner:Learner.step", 1, None),
        ("recipes.runs.checkpoint:Checkpoints.save", 2, 32),
    ],
)
def test_train_ends_at_once_and_undamaged_on_a_second_ctrl_c(
    tmp_path: Path, whole: Path, interrupt: Interrupt, place: str, call: int, kept: int | None
) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, *EVERY, "engine.save_in_background=false", "every.checkpoint=48", f"run_dir={run_dir}"]
    message = interrupt("train", words, place, call, times=2)[1]
    if kept is None:
        assert message == NOTHING_SAVED
    else:
        checkpoint = f"{run_dir}/checkpoints/{kept:012d}"
        assert message.startswith(f"interrupted; the last checkpoint is {checkpoint}, and the same command continues")
        assert last_state(run_dir).samples == kept
    assert main(["train", *words]) == 0
    assert_same(last_state(run_dir), last_state(whole))


def test_train_saves_when_ctrl_c_also_ends_the_reader_of_its_output(
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
            assert main(["train", *TINY, *EVERY, "every.log=16", f"run_dir={tmp_path / 'run'}"]) == 130
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
def test_commands_print_what_is_kept_and_how_to_continue(
    tmp_path: Path, whole: Path, interrupt: Interrupt, words: list[str], place: str
) -> None:
    command, *settings = words
    settings.append(f"run_dir={whole if command in ('sample', 'evaluate', 'export') else tmp_path / 'new'}")
    if command in ("sample", "export"):
        settings.append(f"out={tmp_path / 'out'}")
    message = f"interrupted; {COMMANDS[command].interrupted}"
    assert interrupt(command, settings, place) == [message, f"  {shlex.join(['multisagd', command, *settings])}"]
    assert not (tmp_path / "out").exists()


def test_stop_request_interrupts_work_that_can_be_repeated() -> None:
    with StopRequest() as stop:
        with stop.interruptible(False):
            pass
        with pytest.raises(ImmediateStop), stop.interruptible():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(ImmediateStop), stop.interruptible():
            pytest.fail("the signal has come before")
        with stop.interruptible(False):
            assert stop.signal_number == signal.SIGTERM


@pytest.fixture
def module_that_is_signalled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that gets a signal while it is imported, and makes of any exception another, as matplotlib may."""
    lines = ["import signal", "try:", "    signal.raise_signal(signal.SIGINT)", "except BaseException as error:"]
    (tmp_path / "signalled.py").write_text("\n".join([*lines, "    raise ImportError from error"]))
    monkeypatch.syspath_prepend(tmp_path)
    yield "signalled"
    sys.modules.pop("signalled", None)


def import_and_wait(name: str) -> None:
    import_module(name)
    time.sleep(10)  # until the signal ends it


def test_stop_request_waits_for_the_end_of_an_import(module_that_is_signalled: str) -> None:
    with StopRequest() as stop:
        with pytest.raises(ImmediateStop), stop.interruptible():
            import_and_wait(module_that_is_signalled)
        assert stop.signal_number == signal.SIGINT
        del sys.modules[module_that_is_signalled]
        with pytest.raises(KeyboardInterrupt):
            import_and_wait(module_that_is_signalled)


def test_stop_request_in_an_import_is_no_second_one_when_the_work_has_ended(module_that_is_signalled: str) -> None:
    with StopRequest() as stop:
        with stop.interruptible():
            import_module(module_that_is_signalled)
        time.sleep(0.2)  # as long as the signal takes to come again
        assert stop.signal_number == signal.SIGINT


def test_commands_are_interrupted_after_an_import(module_that_is_signalled: str) -> None:
    with pytest.raises(KeyboardInterrupt), like_ctrl_c():
        import_and_wait(module_that_is_signalled)


def test_stop_request_includes_the_end_of_a_terminal_except_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with StopRequest() as stop:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal_number == signal.SIGHUP
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        fail = handled(lambda number, frame: pytest.fail("it is to be ignored"), handled_signals())
        with StopRequest() as stop, fail:
            signal.raise_signal(signal.SIGHUP)
        assert stop.signal_number is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_main_acts_on_a_signal_within_imports(tmp_path: Path, number: str) -> None:
    """As some libraries do, the one that is imported swallows whatever is raised."""
    (tmp_path / "torch.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{number})\nexcept BaseException:\n    pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "recipes.cli", "train", "run_dir=r"], cwd=ROOT, capture_output=True, text=True,
        timeout=60, env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    # `-m` looks in the working folder first, where there is no torch.
    status = 128 + signal.Signals[number]
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "interrupted before the command started\n")
