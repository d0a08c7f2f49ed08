"""What a person sees while a command runs: a live bar on a terminal, plain lines anywhere else."""

from contextlib import suppress
from datetime import timedelta
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recipes.base.console import silence

SOON, PLAIN_INTERVAL, LONG_INTERVAL, LONG_AFTER = 2.0, 10.0, 60.0, 600.0
"""Seconds between the first two plain lines, of which the second knows how fast it goes; between any others; and
between any after so many seconds, for a log of days should stay readable."""
SPEED_OVER = 3600.0
"""Seconds over which the speed is measured that tells the time left; steps of large models may take minutes."""


class Patient(Console):
    """A console that does not end the work when its reader is gone: Ctrl-C ends a `tee` too, before all is saved."""

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        silence(self.file)


class Display:
    """Shows progress from `start` to `total` (in samples, or steps), unless `quiet`; use it as a context manager.

    Where there is no terminal, what takes less than `after` seconds is not worth a line.
    What cannot be shown, because the disk of a log is full or the terminal gone, is left out.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, console: Console | None = None, quiet: bool = False,
        after: float = 0.0,
    ) -> None:  # fmt: skip
        self._console = console or Patient(highlight=False, quiet=quiet)
        self._title, self._total, self._note, self._after = title, total, "", after
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self._console,
            speed_estimate_period=SPEED_OVER, disable=not self._live,
        )  # fmt: skip
        self._task = self._bar.add_task(title, total=total, completed=start, note="")
        self._bar.update(self._task, completed=start)  # the speed counts from here
        self._begun, self._last, self._lines = self._console.get_time(), float("-inf"), 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            with suppress(OSError):
                self._bar.stop()

    def update(self, done: int, note: str | None = None) -> None:
        """Show how far the work is, with a short note such as the loss; without one, the last stays."""
        self._note = self._note if note is None else note
        with suppress(OSError):
            self._bar.update(self._task, completed=done, note=self._note)
        now = self._console.get_time()
        if self._live or now - self._begun < self._after:
            return
        interval = PLAIN_INTERVAL if now - self._begun < LONG_AFTER else LONG_INTERVAL
        interval = min(interval, SOON) if self._lines < 2 else interval
        if now - self._last >= interval or done >= self._total:
            self._last, self._lines = now, self._lines + 1
            seconds = self._bar.tasks[0].time_remaining  # none at the end, or as long as nothing is known
            left = f"{timedelta(seconds=seconds)} left" if seconds else ""
            self.say("  ".join(filter(None, [f"{self._title} {done:,}/{self._total:,}", self._note, left])))

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with suppress(OSError):
            self._console.print(text, markup=False, soft_wrap=True)
