"""Progress is a bar on a terminal and a few lines in a log, and work continues when neither can be written."""

import errno
import io
import os

import pytest
from rich.console import Console

from recipes.base import progress
from recipes.base.progress import Display


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    with Display("training", 1000, console=console) as display:
        display.say("a line [that] stays")
        for done in (100, 500, 1000):
            display.update(done, f"loss {done}")
    return out.getvalue()


def test_display_shows_a_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("a line [that] stays", "1,000/1,000", "loss 1000"):
        assert words in shown(terminal=True)
    lines = ["a line [that] stays", "training 100/1,000  loss 100", "training 1,000/1,000  loss 1000"]
    assert shown(terminal=False).splitlines() == lines
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    assert "training 500/1,000  loss 500" in shown(terminal=False)


def test_display_prints_lines_at_growing_intervals_with_the_time_left() -> None:
    """Lines come soon, then every ten seconds, then every minute, and a note stays until there is another."""
    clock, out = [0.0], io.StringIO()
    console = Console(file=out, width=100, highlight=False, get_time=lambda: clock[0])
    with Display("training", 10**6, console=console) as display:
        for second in range(1800):
            clock[0] = float(second)
            display.update(10 * (second + 1), "loss 1" if second == 5 else None)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training 10/1,000,000"
    assert lines[1] == "training 30/1,000,000  1 day, 3:46:37 left"
    assert lines[2] == "training 130/1,000,000  loss 1  1 day, 3:46:27 left"
    assert len(lines) == 2 + 60 + 19


def test_display_prints_nothing_of_short_work() -> None:
    out = io.StringIO()
    with Display("measuring", 2, console=Console(file=out), after=2.0) as display:
        display.update(1)
        display.update(2)
    assert not out.getvalue()


class Failing(io.StringIO):
    """Fails from some moment on, like a full disk or a closed terminal."""

    failing = False

    def write(self, text: str) -> int:
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().write(text)


# The thread that draws a bar ends, and the work does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("terminal", [False, True])
def test_display_lets_work_continue_when_output_fails(terminal: bool) -> None:
    out = Failing()
    with Display("training", 1000, console=Console(file=out, force_terminal=terminal)) as display:
        display.say("before")
        out.failing = True
        display.say("after")
        display.update(1000, "done")
    assert "before" in out.getvalue()
    assert "after" not in out.getvalue()
