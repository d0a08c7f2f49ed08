"""`multisagd launch` composes and checks jobs before any runs, and runs or submits one for every value."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.base.commands import CONFIGURED
from recipes.base.errors import RecipeError
from recipes.clusters.cluster import Job
from recipes.clusters.slurm import Slurm, SlurmJob, job_id, requeue
from recipes.launch import main, planned
from tests.helpers.launching import ranks, wait_for_metrics
from tests.helpers.tiny import TINY, last_state, tiny_run

ROOT = Path(__file__).parents[2]


def words_of(*words: str) -> list[list[str]]:
    return [list(job.words) for job in planned(words)[1]]


def test_planned_gives_words_to_the_cluster_or_to_the_command() -> None:
    settings, jobs = planned(["run_dir=r", "cluster=local", "seed=3", "cluster.processes=4", "command=train"])
    assert settings.cluster.world == 4
    assert jobs == [Job("train", ("run_dir=r", "seed=3"))]
    for choice in ("local", "slurm"):
        assert planned([f"cluster={choice}", "run_dir=r"])[0].cluster.world == 1


def test_planned_makes_a_job_of_every_value() -> None:
    run_dir, several = "run_dir=r/${seed}/${spectrum.exponent}", ["seed=range(0,2)", "spectrum.exponent=-1,-2"]
    assert words_of(run_dir, "spectrum=power_law", *several) == [
        [run_dir, "spectrum=power_law", f"seed={seed}", f"spectrum.exponent={exponent}"]
        for seed in (0, 1)
        for exponent in (-1, -2)
    ]
    assert [words[0] for words in words_of("spectrum=white,power_law", "run_dir=r/${spectrum._target_}")] == [
        "spectrum=white",
        "spectrum=power_law",
    ]
    assert words_of("run_dir='a, b'") == [["run_dir='a, b'"]]
    # Several jobs may read one run.
    assert words_of("command=export", "run_dir=r", "out=a,b") == [["run_dir=r", "out=a"], ["run_dir=r", "out=b"]]
    assert len(words_of("command=sample", "seed=0,1", "run_dir=r")) == 2


def test_planned_accepts_every_command_with_its_own_settings() -> None:
    needed = {
        "export": ["out=model"], "pack": ["data.root=photos"], "encode": ["data.root=photos"],
        "design": ["statistics=s.safetensors"], "adopt": ["model=unet", "out=adopted"],
    }  # fmt: skip
    for command in CONFIGURED.keys() - {"launch"}:
        words = [] if command in ("design", "explore", "adopt") else ["run_dir=r"]
        assert words_of(f"command={command}", *words, *needed.get(command, [])), command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("sed=1 run_dir=r", "unknown key 'sed'; did you mean 'seed'"),
        ("run_dir=r cluster=slurm cluster.nods=2", "did you mean 'cluster.nodes'"),
        ("run_dir=r cluster.processes=0", "cluster: processes must be at least 1, got 0"),
        ("run_dir=r cluster._target_=os.system", "not under an allowed package"),
        ("run_dir=r command=trian", "command=trian: there is no such command; did you mean 'train'"),
        ("run_dir=r command=inspect cluster.processes=2", "inspect runs in one process"),
        ("run_dir=r command=evaluate bands=0", "bands >= 1 and directions >= 1, got"),
        ("run_dir=r training.batch=0", "training: batch must be above 0"),
        ("run_dir=r cluster.processes=3", "training.batch=64 cannot be split over 3 processes"),
        (
            "run_dir=r cluster.processes=4 training.accumulation=32",
            "each of 4 processes 16 samples, which cannot be split into training.accumulation=32 equal parts",
        ),
        ("run_dir=r cluster=slurm cluster.nodes=3 cluster.gpus=2", "cannot be split over 6 processes"),
        ("run_dir=r cluster=slurm cluster.processes=4 cluster.gpus=2", "processes=4 per node cannot share gpus=2"),
        ("run_dir=r cluster=slurm cluster.hours=0", "hours must be above 0"),
        ("run_dir=r seed=0,1", "two jobs would use r: multisagd train run_dir=r seed=0 and"),
        ("run_dir=r/${seed} seed=0,1 training.batch=64,7 cluster.processes=2", "cannot be split over 2 processes"),
        ("run_dir=r seed=glob(*)", "list the values"),
        ("run_dir=r cluster.processes=1,2", "Ambiguous value"),
    ],
)
def test_launch_refuses_mistakes_before_anything_runs(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words.split()) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_launch_refuses_words_and_settings_of_several_lines(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A comment of the script would end there, and a command of the shell begin."""
    for character in "\n\r\0\x1b\t\x85\u2028\u2029\udcff":
        assert main([f"cluster={cluster}", f"run_dir='/runs/a{character}rm -r b'", "--show"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert f"has the control character {character!a}" in error
        assert len(error.splitlines()) == 1, repr(character)
    for setting in ("partition='a\nb'", "setup=['a\nb']", "extra={comment:'a\nb'}"):
        assert main(["cluster=slurm", f"cluster.{setting}", "run_dir=r", "--show"]) == 2
        assert "which could start a new line" in capsys.readouterr().err, setting
    with pytest.raises(ValueError, match="'exclusive --wrap' is not an option of sbatch"):
        Slurm(extra={"exclusive --wrap": "x"})


@pytest.mark.parametrize("cluster", ["slurm", "local cluster.processes=2"])
def test_launch_quotes_words_that_a_shell_would_change(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run_dir='/runs/a b $(id) ${seed}'", "data.root='photos;*'"]
    assert main([*f"cluster={cluster}".split(), "experiment=image_folder", *words, "--show"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last)[-2:] == words


def test_planned_refuses_the_folder_of_another_run(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(RecipeError, match="seed: 0 -> 1"):
        planned([*TINY, f"run_dir={tmp_path / 'run'}", "seed=1"])
    assert planned([*TINY, f"run_dir={tmp_path / 'run'}", "training.samples=128"])[1]


def test_local_jobs_run_in_turn_and_one_failure_fails_the_launch(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The first of two fails, in a way that only shows when it runs."""
    (tmp_path / "0" / ".lock").mkdir(parents=True)
    status = main([*TINY, "seed=0,1", f"run_dir={tmp_path}/${{seed}}"])
    printed = capfd.readouterr()
    assert status == 1, printed.err
    assert "error: 1 of 2 jobs failed: 1 (status 1)" in printed.err
    assert "job 2 of 2: multisagd train" in printed.out
    assert last_state(tmp_path / "1").samples == 96


def test_local_job_in_two_processes_stops_saves_and_continues(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    words = [*TINY, "every.log=16", "every.checkpoint=0", f"run_dir={run_dir}"]
    command = [sys.executable, "-m", "recipes.cli", "launch", "cluster=local", "cluster.processes=2", *words]
    with subprocess.Popen([*command, "training.samples=1000000"], cwd=ROOT, stderr=subprocess.PIPE, text=True) as first:
        try:
            wait_for_metrics(run_dir, lambda: first.poll() is None)
            first.send_signal(signal.SIGUSR1)
            _, errors = first.communicate(timeout=60)
        finally:
            first.terminate()
    assert first.returncode == 128 + signal.SIGUSR1, errors
    stopped = last_state(run_dir).samples
    assert 0 < stopped < 1000000
    # The launched command continues without a launcher.
    done = ranks(2, "recipes.train", *words, f"training.samples={stopped + 32}")
    assert done.returncode == 0, done.stderr
    assert last_state(run_dir).samples == stopped + 32


def test_launch_reports_which_jobs_a_stop_leaves_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("recipes.clusters.cluster.run", lambda command: (130, signal.SIGINT))
    assert main(["seed=0,1", "run_dir=r/${seed}"]) == 130
    assert capsys.readouterr().err == "stopped in job 1 of 2; the same command continues from there\n"


def test_slurm_shows_the_script_for_sbatch(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster=slurm", "cluster.nodes=2", "cluster.gpus=4", "cluster.hours=1.5", "cluster.memory=100GB",
             "cluster.partition=long", 'cluster.setup=["module load cuda"]', "cluster.extra={mail-type:FAIL}",
             "cluster.logs=/tmp/logs", "run_dir=r/${seed}", "--show"]  # fmt: skip
    assert main([*words, "seed=1"]) == 0
    script = capsys.readouterr().out
    for line in ("nodes=2", "ntasks-per-node=4", "gpus-per-node=4", "cpus-per-task=8", "time=90", "mem=100GB",
                 "partition=long", "signal=USR2@120", "requeue", "open-mode=append", "mail-type=FAIL"):  # fmt: skip
        assert f"\n#SBATCH --{line}\n" in script
    assert "\nmodule load cuda\n" in script
    assert "srun --unbuffered --output /tmp/logs/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1" in script
    assert script.endswith("# job 0: multisagd train 'run_dir=r/${seed}' seed=1\n")
    assert main([*words, "seed=1,2,3", "cluster.parallel=2"]) == 0
    assert "\n#SBATCH --array=0-2%2\n" in capsys.readouterr().out


def test_slurm_names_a_missing_sbatch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["cluster=slurm", "run_dir=r"]) == 2
    assert "there is no sbatch on this machine" in capsys.readouterr().err


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch, state: str) -> Path:
    """Put a `scontrol` first on the path that reports a state and records its other commands in a file."""
    commands = folder / "commands"
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\n[ "$1" = show ] && echo JobId=7 JobState={state} || echo "$@" >> {commands}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return commands


def test_requeue_acts_while_the_job_runs_and_has_restarts_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state, restarts in (("COMPLETING", 0), ("RUNNING", 5)):
        commands = fake_slurm(tmp_path, monkeypatch, state)
        assert "is requeued" not in requeue(restarts, maximum=5)
        assert not commands.exists()
    assert "is requeued" in requeue(0, maximum=5)
    assert commands.read_text() == "requeue 7\n"


def test_requeue_reports_a_slurm_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No `scontrol`, as in a container, and one that times out."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert "job 7 is unknown to scontrol ([Errno 2] No such file" in requeue(0, maximum=5)
    fake_slurm(tmp_path, monkeypatch, "RUNNING")
    real = subprocess.run

    def impatient(command: list[str], **more: Any) -> subprocess.CompletedProcess[str]:
        if command[1] == "requeue":
            raise subprocess.TimeoutExpired(command, 60)
        return real(command, **more)

    monkeypatch.setattr(subprocess, "run", impatient)
    assert "job 7 could not be requeued: Command" in requeue(0, maximum=5)


def test_job_id_names_jobs_of_an_array_by_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    assert job_id() == "8"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert job_id() == "7_3"


SLURM_VARIABLES = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "n[1-2]"}


@pytest.mark.parametrize(("rank", "status"), [("0", 140), ("1", 0)])
def test_slurm_job_requeues_on_a_signal_outside_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, status: int
) -> None:
    """Whatever the command was doing; the other processes exit with status 0."""
    commands = fake_slurm(tmp_path, monkeypatch, "RUNNING")
    places = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"), "1")
    for name, value in {"SLURM_PROCID": rank, **SLURM_VARIABLES, **places}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("recipes.cli.main.main", lambda words: signal.raise_signal(signal.SIGUSR2))
    monkeypatch.setattr(sys, "argv", [])
    with contextlib.ExitStack() as handlers:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            handlers.callback(signal.signal, number, signal.getsignal(number))
        with pytest.raises(SystemExit) as stopped:
            SlurmJob("train", ("run_dir=r",), 5)()
    assert stopped.value.code == status
    assert commands.exists() == (rank == "0")


LOST = "try:\n        signal.raise_signal(signal.SIGUSR2)\n    except BaseException:\n        pass\n    "
SIGNALS = {
    "swallowed": f"{LOST}time.sleep(300)",
    # A lock that is taken twice waits in C for ever, whatever signals come; Python is not blocked meanwhile.
    "blocked in C": (
        "libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)\n    libc.pthread_mutex_lock(lock)\n"
        "    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR2)).start()\n    libc.pthread_mutex_lock(lock)"
    ),
    "training": (
        f"{LOST}with StopRequest() as stop:\n        while stop.signal_number is None:\n            time.sleep(0.05)\n"
        "    print('saved')\n    return 128 + stop.signal_number"
    ),
    "importing": "import importing\n    time.sleep(300)",
}


@pytest.mark.parametrize(
    ("situation", "output", "by_thread"),
    [("swallowed", "", True), ("blocked in C", "", True), ("training", "saved\n", False),
     ("importing", "imported\n", False)],
)  # fmt: skip
def test_slurm_job_acts_on_signals_that_get_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, situation: str, output: str, by_thread: bool
) -> None:
    """Swallowed by a library, sent while C code blocks, swallowed before training began, sent during an import."""
    commands = fake_slurm(tmp_path, monkeypatch, "RUNNING")
    (tmp_path / "job.py").write_text(
        "import ctypes, os, signal, sys, threading, time\n"
        "from recipes.base.signals import StopRequest\n"
        "from recipes.clusters import slurm\n"
        "import recipes.cli.main\n"
        f"def main(words):\n    {SIGNALS[situation]}\n"
        f"recipes.cli.main.main, slurm.GRACE = main, {300 if situation == 'importing' else 0.3}\n"
        "slurm.SlurmJob('train', ('run_dir=r',), 5)()\n"
    )
    (tmp_path / "importing.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGUSR2)\n    print('imported')\n"
        "except BaseException:\n    print('an exception within an import')\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "SLURM_JOB_ID": "7", **SLURM_VARIABLES}
    environment |= {"SLURM_LOCALID": "0", "SLURM_JOB_NUM_NODES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "job.py")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environment, "SLURM_PROCID": rank, "SLURM_NODEID": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for process, status in zip(processes, (140, 0), strict=True):
        out, errors = process.communicate(timeout=100)
        assert process.returncode == status, errors
        assert out.startswith(output)
        assert "an exception within an import" not in out
        assert ("could not be handled" in errors) == by_thread
    assert commands.read_text() == "requeue 7\n"  # once, by the first process


def test_planned_gives_jobs_the_folder_of_own_choices(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "ours.yaml").write_text("defaults: [slurm]\npartition: long\ngpus: 4\n")
    settings, jobs = planned(["cluster=ours", "run_dir=r"], str(tmp_path))
    assert settings.cluster.world == 4
    assert jobs[0].words == ("run_dir=r", "--config-dir", str(tmp_path))
