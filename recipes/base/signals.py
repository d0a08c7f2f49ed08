"""Stop requests: after the first signal, the training loop saves its state before it ends."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Self

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Signals that request a stop: Ctrl-C, a scheduler's warning before a time limit or pre-emption, and a closed
terminal or connection."""
NOTICE = b"\nsaving the state before stopping; Ctrl-C again ends at once\n"


class ImmediateStop(BaseException):
    """Raised when a signal arrives where stopping at once loses nothing; a BaseException, like KeyboardInterrupt."""


class Ended(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does; `number` is the number of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Inside the context, a signal ends the process without an exception, which an import may swallow or change."""

    def leave(number: int, frame: FrameType | None) -> None:
        try:
            os.write(2, b"interrupted before the command started\n")
        finally:
            os._exit(128 + number)

    # Ignored signals stay ignored, as for a background process or under nohup.
    plain = (signal.default_int_handler, signal.SIG_DFL)
    with handled(leave, [number for number in STOPS if signal.getsignal(number) in plain]):
        yield


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Inside the context, signals that would end the process raise `Ended`, which ends the command as Ctrl-C does.

    Neither they nor Ctrl-C interrupt an import: they act after it.
    """
    outer = imports_under_way(sys._getframe())

    def end(number: int, frame: FrameType | None) -> None:
        if not postponed(number, frame, outer):
            raise KeyboardInterrupt if number == signal.SIGINT else Ended(number)

    plain = (signal.default_int_handler, signal.SIG_DFL)
    with handled(end, [number for number in handled_signals() if signal.getsignal(number) in plain]):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], numbers: Sequence[int]) -> Iterator[None]:
    """Inside the context, `handler` handles these signals, if this is the main thread: others cannot set handlers."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def postponed(number: int, frame: FrameType | None, outer: int = 0) -> bool:
    """Send a signal again later if it arrived during an import, and return whether it did.

    `outer` is the number of import-system calls that enclose the command itself. An exception that a handler raises
    during an import reaches the C code that loads an extension module, which may swallow it or end the process with a
    segmentation fault.
    """
    if imports_under_way(frame) <= outer:
        return False
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    return True


def imports_under_way(frame: FrameType | None) -> int:
    """Return the number of import-system calls that enclose a frame."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return the signals to handle: `STOPS`, without SIGHUP if that is ignored, as under `nohup`."""
    return tuple(each for each in STOPS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN)


class StopRequest:
    """A context manager that stores the first signal of `STOPS` in `signal_number`; Ctrl-C also prints a notice.

    A second signal ends the process at once only if it is SIGINT: a scheduler that waits for a process to save may
    send other signals several times. No exception is raised during an import, but after it.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._handling = ExitStack()
        self._interruptible = False
        self._postponed: type[BaseException] | None = None
        self._outer = 0

    def __enter__(self) -> Self:
        self._outer = imports_under_way(sys._getframe())
        self._handling.enter_context(handled(self._note, handled_signals()))
        return self

    def __exit__(self, *error: object) -> None:
        self._handling.close()

    @contextmanager
    def interruptible(self, enabled: bool = True) -> Iterator[None]:
        """Inside the context, a signal stops the work at once: the work may take minutes, and can be repeated.

        Raises:
            ImmediateStop: If `enabled`, at the first signal, or immediately if there was one before.
        """
        if enabled and self.signal_number is not None:
            raise ImmediateStop
        self._interruptible = enabled
        try:
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        error, self._postponed = self._postponed or self._answer(number), None
        if error is None or (error is ImmediateStop and not self._interruptible):
            return
        if postponed(number, frame, self._outer):
            self._postponed = error
        else:
            raise error

    def _answer(self, number: int) -> type[BaseException] | None:
        """Store the first signal, and return what to raise."""
        if self.signal_number is not None:
            return KeyboardInterrupt if number == signal.SIGINT else None
        self.signal_number = number
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            # `print` is not reentrant and may be active. Ctrl-C may already have ended the reader of a pipe,
            # such as `tee` in `multisagd train … 2>&1 | tee log`.
            with suppress(OSError):
                os.write(2, NOTICE)
        return ImmediateStop
