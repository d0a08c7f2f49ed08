"""Print texts that may be longer than anyone reads, on terminals that may be narrow, know few letters, or be gone."""

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO


class Outlet(io.TextIOWrapper):
    """An output of this process that shows what it can, and never ends the work for what it cannot.

    Letters that its encoding lacks are escaped. What finds no room, or no reader, is left out; `lost` says why.
    """

    lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write a text, or leave it out."""
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        """Hand on what was written, or leave it out."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            silence(self)  # whoever stops reading, as `head` does, has what they want
        else:
            self.lost = error


def steady() -> None:
    """Replace standard output and standard error of a process of our own by an `Outlet` each."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us; what is opened next must not take its place
            new: IO[str] = Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper:  # and nothing that captures, as tests and notebooks do
            settings = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            encoding = stream.encoding
            new = Outlet(stream.detach(), encoding, "backslashreplace", **settings)  # type: ignore[arg-type]
        else:
            continue
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def escaped() -> None:
    """Let standard output escape letters that its encoding lacks, in a process that may not be ours."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def lost() -> OSError | None:
    """Return why something that was printed is not there, None if all is."""
    if not isinstance(sys.stdout, Outlet):
        return None
    sys.stdout.flush()
    return sys.stdout.lost


def show(text: str, stream: IO[str] | None = None) -> None:
    """Print a text, which may well be piped into something that stops reading, or that knows few letters."""
    if stream is None:
        escaped()
        stream = sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


def tell(text: str) -> None:
    """Print a message to standard error; that nobody can read it any more changes nothing of what is done."""
    with suppress(OSError):
        show(text, sys.stderr)


def silence(stream: IO[str]) -> None:
    """Let a stream whose reader is gone lead nowhere; else Python tries to flush it again at exit, and complains."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def fold(text: str, first: str = "", rest: str | None = None) -> str:
    """Break a paragraph into lines as wide as the terminal, `first` before the first and `rest` before the others."""
    width = max(60, min(120, shutil.get_terminal_size().columns))
    rest = first if rest is None else rest
    wrapper = textwrap.TextWrapper(width, first, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(" ".join(text.split()))


def columns(rows: Sequence[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Lay names, and what is said of each, in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    hanging = " " * (len(indent) + width + 2)
    return [fold(about, f"{indent}{name:<{width}}  ", hanging) if about else f"{indent}{name}" for name, about in rows]
