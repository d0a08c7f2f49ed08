"""Progress display: a live bar on a terminal, plain lines elsewhere."""

from contextlib import suppress
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recipes.base.console import silence

SOON, PLAIN_INTERVAL, LONG_INTERVAL, LONG_AFTER = 2.0, 10.0, 60.0, 600.0
"""Seconds between plain lines: SOON between the first two, PLAIN_INTERVAL between later ones, and LONG_INTERVAL once
LONG_AFTER seconds have passed, so that a log of several days stays readable."""
SPEED_OVER = 3600.0
"""Seconds over which speed is averaged to estimate the remaining time; a step of a large model may take minutes."""


class PipeSafeConsole(Console):
    """A console that ignores a closed pipe: Ctrl-C also ends the `tee` that reads it, before the state is saved."""

    def on_broken_pipe(self) -> None:
        """Continue without output."""
        silence(self.file)


class Display:
    """Shows progress from `start` to `total` (in samples or steps), unless `quiet`; use it as a context manager.

    Without a terminal, work that takes less than `after` seconds prints nothing. Output that cannot be written (full
    disk, closed terminal) is dropped.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, console: Console | None = None, quiet: bool = False,
        after: float = 0.0,
    ) -> None:  # fmt: skip
        self._console = console or PipeSafeConsole(highlight=False, quiet=quiet)
        self._title, self._total, self._note, self._after = title, total, "", after
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self._console,
            speed_estimate_period=SPEED_OVER, disable=not self._live,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=total, completed=start, note="")
        self._bar.update(self._task, completed=start)  # the speed is measured from here
        self._begun, self._last, self._lines = self._console.get_time(), float("-inf"), 0
        self._done = start

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            with suppress(OSError):
                self._bar.stop()

    def advance(self, count: int) -> None:
        """Show that `count` more are done."""
        self.update(min(self._done + count, self._total))

    def update(self, done: int, note: str | None = None) -> None:
        """Show the progress with a short `note` such as the loss; None keeps the previous note."""
        self._done, self._note = done, self._note if note is None else note
        with suppress(OSError):
            self._bar.update(self._task, completed=done, note=self._note)
        now = self._console.get_time()
        if self._live or now - self._begun < self._after:
            return
        interval = PLAIN_INTERVAL if now - self._begun < LONG_AFTER else LONG_INTERVAL
        interval = min(interval, SOON) if self._lines < 2 else interval
        if now - self._last >= interval or done >= self._total:
            self._last, self._lines = now, self._lines + 1
            seconds = self._bar.tasks[0].time_remaining  # None at the end, or while the speed is unknown
            left = f"{timedelta(seconds=seconds)} left" if seconds else ""
            self.say("  ".join(filter(None, [f"{self._title} {done:,}/{self._total:,}", self._note, left])))

    def say(self, text: str) -> None:
        """Print a permanent line."""
        with suppress(OSError):
            self._console.print(text, markup=False, soft_wrap=True)
