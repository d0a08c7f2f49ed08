"""Mistakes end a command with one message, and unexpected errors keep their traceback."""

import pytest

from recipes.base.errors import RecipeError
from recipes.cli.command import run_command


def failing(error: Exception) -> int:
    def fail() -> None:
        raise error

    return run_command(fail, lambda reported: "")


def test_run_command_prints_mistakes_and_raises_other_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(RecipeError("there is no such thing")) == 2
    assert capsys.readouterr().err == "error: there is no such thing\n"
    for message in ("cannot read /data/igloos/1.png", "NCCL error: invalid usage, Duplicate GPU", "closed by peer"):
        with pytest.raises(RuntimeError, match=message):
            failing(RuntimeError(message))
