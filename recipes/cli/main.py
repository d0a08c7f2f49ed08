"""The console command: `multisagd train …` is the same as `python -m recipes.train …`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from types import FrameType

from recipes.base.commands import COMMANDS, CONFIGURED, TOOLS

HIDDEN = "__complete"
"""What the scripts of `completion` call."""


def usage() -> str:
    """Return the help of the whole command."""
    width = max(map(len, COMMANDS))
    lines, tools = (
        [f"  {name:<{width}}  {command.summary}" for name, command in commands.items()]
        for commands in (CONFIGURED, TOOLS)
    )
    return "\n".join(
        [
            "usage: multisagd COMMAND [group=choice ...] [key=value ...]",
            "",
            "Diffusion models whose forward noise is shaped in frequency.",
            "",
            "commands:",
            *lines,
            "",
            "about multisagd itself:",
            *tools,
            "",
            "`multisagd COMMAND --help` explains every setting of a command, with group=choice those of a choice too.",
            "For example:",
            "  multisagd demo",
            "  multisagd train experiment=image_folder data.root=photos run_dir=runs/photos",
            "  multisagd sample run_dir=runs/photos count=64 steps=20",
            "",
            "read more: docs/command-line.md",
        ]
    )


def version() -> str:
    """Return the version, and what it runs on."""
    found = {}
    for name in ("multisagd", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    root = Path(__file__).resolve().parents[2]
    return f"multisagd {found['multisagd']} in {root}, Python {platform.python_version()}, torch {found['torch']}"


PRINTED = {*TOOLS, "--version", "-V", "version", "help"}
"""Commands that leave nothing but what they print."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    from recipes.base.console import lost, steady, tell

    words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if arguments is None:
        steady()
    try:
        status = run(words, own=arguments is None)
    except Exception as raised:
        if (message := failed_library(raised)) is None:
            raise
        tell(f"error: {message}")
        return 2
    if status == 0 and (words[0] in PRINTED or {"-h", "--help", "--show"}.intersection(words)) and (error := lost()):
        tell(f"error: cannot write what was to be printed: {error}")
        return 1
    return status


def failed_library(error: Exception) -> str | None:
    """Return what is to be told of an error that was raised by importing a library, None for any other error."""
    try:
        from multisagd.libraries import failed_import
    except Exception as deeper:  # PyTorch, or what else the core is made of
        if not isinstance(error, ImportError | OSError):
            return None
        reason = " ".join(str(deeper).split())
        return f"nothing works without this ({type(deeper).__name__}: {reason:.300}). To mend it: multisagd doctor"
    failure = failed_import(error)
    return None if failure is None else str(failure)


def run(words: Sequence[str], own: bool) -> int:
    """Run one command, in a process of its `own` or in somebody's, and return its exit status."""
    name, *rest = words
    if name == HIDDEN:
        from recipes.cli.completion import main as complete

        return complete(rest)
    if name in ("--version", "-V", "version"):
        print(version())
        return 0
    if name == "help" and rest:
        name, rest = rest[0], [*rest[1:], "--help"]
    if name in ("-h", "--help", "help"):
        from recipes.base.console import show

        show(usage())
        return 0
    if name not in COMMANDS:
        from recipes.base.errors import USAGE_STATUS, nearest

        guess = "; the command comes first, as in multisagd train." if "=" in name else nearest(name, COMMANDS)
        print(f"error: unknown command {name!r}{guess}\n`multisagd --help` lists the commands", file=sys.stderr)
        return USAGE_STATUS
    if name in CONFIGURED and any(argument in ("-h", "--help") for argument in rest):
        from recipes.base.console import show
        from recipes.cli.help import command_help

        show(command_help(name, rest))
        return 0
    if name in TOOLS:
        return int(importlib.import_module(TOOLS[name].module).main(rest))
    if clash := _foreign_package():
        print(clash, file=sys.stderr)
        return 2
    with interruptible() if own else nullcontext():
        module = importlib.import_module(COMMANDS[name].module)
    status = int(module.main(rest))
    if own and status > 128:
        # A signal has ended it, and a thread that still writes or loads would keep the process. What it writes is
        # whole or not there.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # what reads a pipe may have been ended by the same Ctrl-C
                stream.flush()
        os._exit(status)
    return status


@contextmanager
def interruptible() -> Iterator[None]:
    """While importing, let a signal end the process at once: an exception may get lost within an import, or garbled."""
    from recipes.base.signals import STOPS

    def leave(number: int, frame: FrameType | None) -> None:
        try:
            os.write(2, b"interrupted before anything began\n")
        finally:
            os._exit(128 + number)

    # And not those that are ignored, as of a process in the background, or under nohup.
    plain = (signal.default_int_handler, signal.SIG_DFL)
    before = {number: signal.getsignal(number) for number in STOPS if signal.getsignal(number) in plain}
    for number in before:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _foreign_package() -> str | None:
    """Return a message if `modalities` is another distribution's: one on the package index has the same name."""
    spec = importlib.util.find_spec("modalities")
    ours = Path(__file__).resolve().parents[2]
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parents[1] == ours:
        return None
    return (
        f"error: the package `modalities` found at {None if spec is None else spec.origin} is not multisagd's own, "
        f"which lies in {ours}. Another distribution has the same name: install multisagd in an environment of its own"
    )
