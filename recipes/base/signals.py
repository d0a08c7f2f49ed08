"""Stop requests: the first signal asks politely, and the loop saves its state before it leaves."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Self

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
"""Signals that ask a process to stop: a person's Ctrl-C, what schedulers send before they take a machine away, and the
end of a terminal or of the connection to it."""
NOTICE = b"\nstopping in good order; Ctrl-C again ends at once\n"


class ImmediateStop(BaseException):
    """A signal that came where nothing is lost by stopping at once; like KeyboardInterrupt, nothing should catch it."""


class Ended(KeyboardInterrupt):
    """A signal that ends a command as Ctrl-C does; `number` says which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """While importing, let a signal end the process at once: an exception may get lost within an import, or garbled."""

    def leave(number: int, frame: FrameType | None) -> None:
        try:
            os.write(2, b"interrupted before anything began\n")
        finally:
            os._exit(128 + number)

    # And not those that are ignored, as of a process in the background, or under nohup.
    plain = (signal.default_int_handler, signal.SIG_DFL)
    with handled(leave, [number for number in STOPS if signal.getsignal(number) in plain]):
        yield


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Within, let signals that would end this process at once raise `Ended`, which ends the command as Ctrl-C does."""
    outer = imports_under_way(sys._getframe())

    def end(number: int, frame: FrameType | None) -> None:
        if not postponed(number, frame, outer):
            raise Ended(number)

    with handled(end, [number for number in handled_signals() if signal.getsignal(number) is signal.SIG_DFL]):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], numbers: Sequence[int]) -> Iterator[None]:
    """Within, handle signals of these numbers by `handler`; none outside of the main thread, which alone gets them."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number in numbers if main}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def postponed(number: int, frame: FrameType | None, outer: int = 0) -> bool:
    """Whether a signal came during an import; it is then sent again shortly. `outer` imports enclose the command.

    An exception that a handler raises there reaches the C code that loads an extension module, which may swallow it or
    end the process with a segmentation fault.
    """
    if imports_under_way(frame) <= outer:
        return False
    threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
    return True


def imports_under_way(frame: FrameType | None) -> int:
    """Return how many calls of the import system a frame runs in."""
    count = 0
    while frame is not None:
        count += frame.f_code.co_filename.startswith("<frozen importlib")
        frame = frame.f_back
    return count


def handled_signals() -> tuple[signal.Signals, ...]:
    """Return those of `STOPS` that are to be acted on: under `nohup`, the end of a terminal is not."""
    return tuple(each for each in STOPS if each != signal.SIGHUP or signal.getsignal(each) != signal.SIG_IGN)


class StopRequest:
    """While active, remembers the first of `STOPS` in `signal_number` instead of dying, and tells a person so.

    A SIGINT after that ends at once: a person has lost patience. Further signals of other kinds do not, because a
    scheduler that waits for a process to save may send several.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._handling = ExitStack()
        self._interruptible = False

    def __enter__(self) -> Self:
        self._handling.enter_context(handled(self._note, handled_signals()))
        return self

    def __exit__(self, *error: object) -> None:
        self._handling.close()

    @contextmanager
    def interruptible(self, wanted: bool = True) -> Iterator[None]:
        """Within, do not wait for the end of what is being done, which may take minutes and can be done again.

        Raises:
            ImmediateStop: when the first signal comes, or has come before.
        """
        if wanted and self.signal_number is not None:
            raise ImmediateStop
        self._interruptible = wanted
        try:
            yield
        finally:
            self._interruptible = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is None:
            self.signal_number = number
            if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
                # `print` may be at work already, and is not made to be entered twice. And Ctrl-C may have ended what
                # reads a pipe before it came here, as in `multisagd train … 2>&1 | tee log`.
                with suppress(OSError):
                    os.write(2, NOTICE)
            if self._interruptible:
                raise ImmediateStop
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
