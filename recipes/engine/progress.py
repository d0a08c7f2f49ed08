"""What a person sees while a command runs: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from recipes.engine.printing import silence

PLAIN_INTERVAL = 10.0
"""Seconds between two plain lines."""


class Patient(Console):
    """A console that does not end the work when its reader is gone: Ctrl-C ends a `tee` too, before all is saved."""

    def on_broken_pipe(self) -> None:
        """Go on in silence."""
        silence(self.file)


class Display:
    """Shows progress from `start` to `total` (in samples, or steps), unless `quiet`; use it as a context manager.

    What cannot be shown, because the disk of a log is full or the terminal gone, is left out.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, console: Console | None = None, quiet: bool = False
    ) -> None:
        self._console = console or Patient(highlight=False, quiet=quiet)
        self._title, self._total, self._start = title, total, start
        self._bar: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            )
            self._bar = Progress(
                *columns, TextColumn("{task.fields[note]}"), TimeRemainingColumn(), console=self._console
            )
            self._task = self._bar.add_task(title, total=total, completed=start, note="")
        self._last = float("-inf")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()

    def update(self, done: int, note: str = "") -> None:
        """Show how far the work is, with a short note such as the loss."""
        if self._bar is not None:
            with suppress(OSError):
                self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._last >= PLAIN_INTERVAL or done >= self._total:
            self._last = now
            self.say(f"{self._title} {done:,}/{self._total:,}  {note}")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        with suppress(OSError):
            self._console.print(text, markup=False, soft_wrap=True)
