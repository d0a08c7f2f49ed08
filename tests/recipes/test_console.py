"""Output that cannot be encoded, written or read changes neither the work nor its exit status; mistakes do."""

import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from recipes.base.console import escaped
from recipes.base.errors import RecipeError
from recipes.base.files import replace_file, write_text
from recipes.cli.command import run_command
from recipes.cli.main import main

ROOT = Path(__file__).parents[2]
PRINTING = """
import logging
from recipes.base.console import install_safe_streams
install_safe_streams()
from recipes.base.progress import Display
with Display("training \u732b", 10) as display:
    display.say("classes \u732b, \udcff, \u00e9\u2026")
    display.update(10, "\u72d7")
logging.getLogger("multisagd").warning("\u732b")
print("\u732b and done", flush=True)
"""
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")


def python(source: str, stdout: Any = subprocess.PIPE, shell: str = "", **environment: str) -> Any:
    escaped = source.encode("unicode_escape").decode().replace("\\n", "\n")
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, escaped], cwd=ROOT, stdout=stdout,
        stderr=subprocess.PIPE, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp1252:strict"])
def test_safe_streams_print_any_name_in_any_encoding(encoding: str) -> None:
    done = python(PRINTING, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    printed = done.stdout.decode(encoding.split(":")[0])
    assert printed.splitlines()[-1] == f"{chr(0x732B) if encoding == 'utf-8' else chr(92) + 'u732b'} and done"
    assert "\\udcff" in printed
    assert ("\u00e9" in printed) is (encoding != "ascii")
    assert b"Traceback" not in done.stderr


@needs_full
def test_safe_streams_ignore_a_full_disk() -> None:
    with Path("/dev/full").open("wb") as full:
        done = python(PRINTING, stdout=full)
    assert done.returncode == 0, done.stderr
    assert b"No space" not in done.stderr


def test_safe_streams_ignore_closed_outputs_and_readers() -> None:
    for shell in (">&-", "2>&-", "<&- >&- 2>&-"):
        assert python(PRINTING, shell=shell).returncode == 0, shell
    reading, writing = os.pipe()
    os.close(reading)
    done = python(PRINTING, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr


@needs_full
@pytest.mark.parametrize("words", [["version"], ["completion", "bash"], ["train", "--help"]])
def test_cli_fails_when_its_only_output_cannot_be_written(words: list[str]) -> None:
    command = [sys.executable, "-m", "recipes.cli", *words]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
    assert b"error: cannot write the output" in done.stderr


def test_main_keeps_the_streams_of_the_calling_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["version"]) == 0
    escaped()
    print("\u732b", flush=True)
    assert sys.stdout is stream
    assert stream.buffer.getvalue().endswith(b"\\u732b\n")


def test_files_keep_any_name_and_are_never_half_written(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        replace_file(tmp_path / "report.html", fails)
    assert not list(tmp_path.iterdir())
    write_text(tmp_path / "classes.json", json.dumps(["\udcff\u732b"], ensure_ascii=False))
    assert json.loads((tmp_path / "classes.json").read_text(encoding="utf-8")) == ["\udcff\u732b"]


def test_run_command_prints_mistakes_and_raises_other_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    assert run_command(partial(fail, RecipeError("there is no such thing")), lambda reported: "") == 2
    assert capsys.readouterr().err == "error: there is no such thing\n"
    for message in ("cannot read /data/igloos/1.png", "NCCL error: invalid usage, Duplicate GPU", "closed by peer"):
        with pytest.raises(RuntimeError, match=message):
            run_command(partial(fail, RuntimeError(message)), lambda reported: "")
    for kind, message in ((MemoryError, ""), (RuntimeError, "DefaultCPUAllocator: can't allocate memory: 80 bytes")):
        assert run_command(partial(fail, kind(message)), lambda reported: "") == 2
        assert "error: there is not enough memory" in capsys.readouterr().err
