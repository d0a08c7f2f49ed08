"""The console command: `multisagd train …` is the same as `python -m recipes.train …`."""

import importlib
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib import metadata

from recipes.base.commands import COMMANDS, CONFIGURED, TOOLS
from recipes.base.console import install_safe_streams, output_error, show, tell
from recipes.base.errors import ROOT, USAGE_STATUS, foreign_modalities, nearest
from recipes.base.signals import exit_on_signal

HIDDEN = "__complete"
"""The command that the completion scripts call."""
PRINTED = {*TOOLS, "--version", "-V", "version", "help"}
"""Commands that only print."""
USAGE = """\
usage: multisagd COMMAND [group=choice ...] [key=value ...]

Diffusion models whose forward noise is shaped in frequency.

commands:
{commands}

about multisagd itself:
{tools}

`multisagd COMMAND --help` explains every setting of a command; add group=choice for the settings of a choice.
For example:
  multisagd demo
  multisagd train experiment=image_folder data.root=photos run_dir=runs/photos
  multisagd sample run_dir=runs/photos count=64 steps=20

read more: docs/command-line.md"""


def usage() -> str:
    """Return the help of `multisagd` itself."""
    width = max(map(len, COMMANDS))
    lines = {name: f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()}
    commands, tools = ("\n".join(lines[name] for name in some) for some in (CONFIGURED, TOOLS))
    return USAGE.format(commands=commands, tools=tools)


def version() -> str:
    """Return the versions of multisagd, Python and PyTorch."""
    versions = {}
    for name in ("multisagd", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    python = platform.python_version()
    return f"multisagd {versions['multisagd']} in {ROOT}, Python {python}, torch {versions['torch']}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    words = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    if arguments is None:
        install_safe_streams()
    try:
        status = run(words, own=arguments is None)
    except Exception as raised:
        if (message := failed_library(raised)) is None:
            raise
        tell(f"error: {message}")
        return 2
    printed = words[0] in PRINTED or {"-h", "--help", "--show"}.intersection(words)
    if status == 0 and printed and (error := output_error()):
        tell(f"error: cannot write the output: {error}")
        return 1
    return status


def failed_library(error: Exception) -> str | None:
    """Return a message for an error that was raised while a library was imported, or None for any other error."""
    try:
        from multisagd.libraries import failed_import
    except Exception as cause:  # PyTorch, or another dependency of the core
        if not isinstance(error, ImportError | OSError):
            return None
        reason = " ".join(str(cause).split())
        return f"a library is missing or broken ({type(cause).__name__}: {reason:.300}). To repair it: multisagd doctor"
    failure = failed_import(error)
    return None if failure is None else str(failure)


def run(words: Sequence[str], own: bool) -> int:
    """Run one command, in its `own` process or in a host process, and return the exit status."""
    name, *rest = words
    if name == HIDDEN:
        return int(importlib.import_module("recipes.completion").answer(rest))
    if name in ("--version", "-V", "version"):
        print(version())
        return 0
    if name == "help" and rest:
        name, rest = rest[0], [*rest[1:], "--help"]
    if name in ("-h", "--help", "help"):
        show(usage())
        return 0
    if name not in COMMANDS:
        guess = "; the command comes first, as in multisagd train." if "=" in name else nearest(name, COMMANDS)
        print(f"error: unknown command {name!r}{guess}\n`multisagd --help` lists the commands", file=sys.stderr)
        return USAGE_STATUS
    if name in CONFIGURED and any(argument in ("-h", "--help") for argument in rest):
        from recipes.cli.help import command_help

        show(command_help(name, rest))
        return 0
    if name in TOOLS:
        return int(importlib.import_module(f"recipes.{name}").main(rest))
    if (path := foreign_modalities()) is not None:
        foreign = f"the package `modalities` found at {path or None} is not multisagd's own, which is in {ROOT}"
        remedy = "Another package has the same name: install multisagd in its own environment"
        print(f"error: {foreign}. {remedy}", file=sys.stderr)
        return USAGE_STATUS
    with exit_on_signal() if own else nullcontext():
        module = importlib.import_module(f"recipes.{name}")
    status = int(module.main(rest))
    if own and status > 128:
        # A signal has ended the command; a thread that still writes or loads would keep the process alive. Files
        # are written atomically.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # the same Ctrl-C may have ended the reader of a pipe
                stream.flush()
        os._exit(status)
    return status
