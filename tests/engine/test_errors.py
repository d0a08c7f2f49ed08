"""Which errors are told in one line, and which keep their traceback."""

import pytest

from recipes.base.errors import RecipeError
from recipes.cli.command import run_command


@pytest.mark.parametrize(
    "message",
    ["cannot read /data/igloos/1.png", "NCCL error: invalid usage, Duplicate GPU", "Connection closed by peer"],
)
def test_errors_of_one_process_are_its_own(message: str) -> None:
    def fail() -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        run_command(fail, lambda told: "")


def test_mistakes_are_told_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RecipeError("there is no such thing")

    assert run_command(fail, lambda told: "") == 2
    assert capsys.readouterr().err == "error: there is no such thing\n"
