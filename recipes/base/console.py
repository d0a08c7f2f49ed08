"""Print to terminals that may be narrow or closed, or whose encoding may lack some characters."""

import io
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO


class SafeStream(io.TextIOWrapper):
    """A standard stream whose write errors do not end the command.

    Characters that its encoding lacks are escaped. Text that cannot be written is dropped, and `error` is the reason.
    """

    error: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, or drop it if that fails."""
        try:
            return super().write(text)
        except OSError as error:
            self._record(error)
            return len(text)

    def flush(self) -> None:
        """Flush the stream, or drop its contents if that fails."""
        try:
            super().flush()
        except OSError as error:
            self._record(error)

    def _record(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            silence(self)  # a reader that stops, such as `head`, needs no more
        else:
            self.error = error


def install_safe_streams() -> None:
    """Replace standard output and standard error by `SafeStream`s; only for a process that this project started."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the parent; the next opened file must not get its descriptor
            new: IO[str] = Path(os.devnull).open("w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        elif type(stream) is io.TextIOWrapper:  # not a capturing stream, as in tests and notebooks
            settings = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            encoding = stream.encoding
            new = SafeStream(stream.detach(), encoding, "backslashreplace", **settings)  # type: ignore[arg-type]
        else:
            continue
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)


def escaped() -> None:
    """Make standard output escape characters that its encoding lacks; this is safe in any process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def output_error() -> OSError | None:
    """Return the error because of which printed text was lost, or None."""
    if not isinstance(sys.stdout, SafeStream):
        return None
    sys.stdout.flush()
    return sys.stdout.error


def show(text: str, stream: IO[str] | None = None) -> None:
    """Print text to a stream that may close early, or whose encoding may lack some characters."""
    if stream is None:
        escaped()
        stream = sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


def tell(text: str) -> None:
    """Print a message to standard error, unless it is closed."""
    with suppress(OSError):
        show(text, sys.stderr)


def silence(stream: IO[str]) -> None:
    """Redirect a broken stream to the null device; otherwise Python flushes it again at exit and prints an error."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def fold(text: str, first: str = "", rest: str | None = None) -> str:
    """Wrap a paragraph to the terminal's width, with `first` before the first line and `rest` before the others."""
    width = max(60, min(120, shutil.get_terminal_size().columns))
    rest = first if rest is None else rest
    wrapper = textwrap.TextWrapper(width, first, rest, break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(" ".join(text.split()))


def columns(rows: Sequence[tuple[str, str]], indent: str = "  ") -> list[str]:
    """Return lines with names and their descriptions in two columns."""
    width = max((len(name) for name, _ in rows), default=0)
    hanging = " " * (len(indent) + width + 2)
    return [
        fold(description, f"{indent}{name:<{width}}  ", hanging) if description else f"{indent}{name}"
        for name, description in rows
    ]
