"""What is printed where letters, room or readers are missing: the work goes on, and its exit status is its own."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes.base.console import escaped
from recipes.base.files import replace_file, write_text
from recipes.cli.main import main

ROOT = Path(__file__).parents[2]
SPEAKS = """
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


def python(source: str, stdout: Any = subprocess.PIPE, shell: str = "", **environment: str) -> Any:
    escaped = source.encode("unicode_escape").decode().replace("\\n", "\n")
    return subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, escaped], cwd=ROOT, stdout=stdout,
        stderr=subprocess.PIPE, check=False, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "cp1252:strict"])
def test_any_encoding_prints_any_name(encoding: str) -> None:
    done = python(SPEAKS, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    told = done.stdout.decode(encoding.split(":")[0])
    assert told.splitlines()[-1] == f"{chr(0x732B) if encoding == 'utf-8' else chr(92) + 'u732b'} and done"
    assert "\\udcff" in told
    assert ("\u00e9" in told) is (encoding != "ascii")
    assert b"Traceback" not in done.stderr


def test_a_terminal_that_knows_few_letters_has_a_bar_too() -> None:
    source = SPEAKS.replace("with Display(", "with Display(console=Console(force_terminal=True), title=").replace(
        "10)", "total=10)"
    )
    done = python(
        f"from rich.console import Console\n{source}", PYTHONIOENCODING="latin-1", TERM="xterm", PYTHONUTF8="0"
    )
    assert done.returncode == 0, done.stderr
    assert b"10/10" in done.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_without_room_changes_nothing_of_the_exit_status() -> None:
    with Path("/dev/full").open("wb") as full:
        done = python(SPEAKS, stdout=full)
    assert done.returncode == 0, done.stderr
    assert b"No space" not in done.stderr


@pytest.mark.parametrize("shell", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_an_output_that_is_closed_changes_nothing_either(shell: str) -> None:
    assert python(SPEAKS, shell=shell).returncode == 0


def test_a_reader_that_has_enough_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = python(SPEAKS, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr.count(b"\n")) == (0, 1), done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["version"], ["completion", "bash"], ["train", "--help"]])
def test_what_is_only_printed_fails_where_it_cannot_be(words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "recipes.cli", *words], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1), done.stderr
    assert b"error: cannot write what was to be printed" in done.stderr


def test_a_process_of_somebody_else_keeps_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), "latin-1")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["version"]) == 0
    escaped()
    print("\u732b", flush=True)
    assert sys.stdout is stream
    assert stream.buffer.getvalue().endswith(b"\\u732b\n")


def test_names_that_are_no_utf8_are_written_so_that_they_can_be_read(tmp_path: Path) -> None:
    write_text(tmp_path / "classes.json", json.dumps(["\udcff\u732b"], ensure_ascii=False))
    assert json.loads((tmp_path / "classes.json").read_text(encoding="utf-8")) == ["\udcff\u732b"]


def test_half_a_file_is_not_left_behind(tmp_path: Path) -> None:
    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        replace_file(tmp_path / "report.html", fails)
    assert not list(tmp_path.iterdir())
