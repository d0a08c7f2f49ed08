"""What all configured commands have in common: options, help, configuration and errors."""

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import yaml

from multisagd.addresses import without_secrets
from multisagd.libraries import failed_import
from recipes.base.commands import COMMANDS
from recipes.base.console import escaped, install_safe_streams, show, tell
from recipes.base.errors import USAGE_STATUS, Interrupted, RecipeError
from recipes.base.signals import Ended, like_ctrl_c
from recipes.cli.help import command_help
from recipes.config import compose as configuration
from recipes.config.compose import Config
from recipes.config.resolve import resolved
from recipes.runs.run import Run
from recipes.runtime.distribution import Rank, leave

LOST = ("closed by peer", "reset by peer", "Timed out", "timed out")
"""Parts of gloo's error messages that indicate a lost connection; these errors are plain RuntimeErrors."""


def command(name: str, action: Callable[[Config], object]) -> partial[int]:
    """Return the `main` of a command: it takes arguments (`sys.argv` by default) and returns the exit status."""
    return partial(run_configured, name, action)


def run_configured(name: str, action: Callable[[Config], object], arguments: Sequence[str] | None = None) -> int:
    """Compose `configs/<name>.yaml` with the command line, call `action` with it, and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        install_safe_streams()
    escaped()
    if any(word in ("-h", "--help") for word in words):
        show(command_help(name, words))
        return 0

    config: Config = {}

    def body() -> None:
        show = "--show" in words
        settings = [word for word in words if word != "--show"]
        folder = take_option(settings, "--config-dir")
        config.update(configuration.load(name, settings, folder))
        if not COMMANDS[name].parallel and not show and (process := Rank.from_environment()).world > 1:
            raise RecipeError(
                f"{name} runs as one process, but there are {process.world} processes: start it without torchrun"
            )
        if show:
            print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), end="")
        else:
            config.update(resolved(config))
            action(config)

    def again(reported: bool) -> str:
        alone = os.environ.get("WORLD_SIZE", "1") == "1"  # otherwise the user must start torchrun
        command = f"\n  {shlex.join(['multisagd', name, *words])}" if alone else ""
        return f"{'' if reported else f'; {kept(name, config)}'}{command}"

    try:
        with like_ctrl_c():
            return run_command(body, again)
    finally:
        leave()


def kept(name: str, config: Config) -> str:
    """Return a message that says what an interrupted command has kept, and what repeating the command would do."""
    run_dir = config.get("run_dir") if name == "train" else None  # missing while the command line is being read
    if run_dir and (saved := Run(Path(run_dir)).checkpoints.newest()):
        return f"the last checkpoint is {saved}, and the same command continues from there:"
    return COMMANDS[name].interrupted


def take_option(words: list[str], option: str) -> str | None:
    """Remove `option VALUE` or `option=VALUE` from the words, and return the value, or None if the option is absent.

    Raises RecipeError if the value is missing.
    """
    for index, word in enumerate(words):
        if word == option:
            if index + 1 == len(words):
                raise RecipeError(f"{option} has no value: write {option}=…")
            value = words[index + 1]
            del words[index : index + 2]
            return value
        if word.startswith(f"{option}="):
            del words[index]
            return word.split("=", 1)[1]
    return None


def run_command(action: Callable[[], int | None], again: Callable[[bool], str]) -> int:
    """Run a command's body and return its exit status.

    The status is that of `action`, 2 after a `RecipeError` or a failed import of a library, or 128 + signal after an
    interruption. `again(reported)` returns how to continue after an interruption; `reported` says whether the command
    has already printed what is kept.
    """
    try:
        return action() or 0
    except RecipeError as error:
        tell(f"error: {without_secrets(str(error))}")  # logs may be public
        return USAGE_STATUS
    except Interrupted as stop:
        tell(f"{stop}{again(True)}")
        return stop.status
    except KeyboardInterrupt as stop:
        tell(f"interrupted{again(False)}")
        return 128 + (stop.number if isinstance(stop, Ended) else signal.SIGINT)
    except Exception as error:
        if (failure := failed_import(error)) is not None:
            tell(f"error: {failure}")
            return USAGE_STATUS
        if _is_out_of_memory(error):
            reason = (str(error).splitlines() or ["allocation failed"])[0]
            tell(
                f"error: there is not enough memory ({reason}): reduce the size of the examples or samples, or the "
                "number that is computed at a time (batch, training.batch, or with the same result a larger "
                "training.accumulation)"
            )
            return USAGE_STATUS
        if not (isinstance(error, RuntimeError) and _is_connection_error(error)):
            raise
        traceback.print_exc()
        lost = f"lost the connection to another process, which has ended or hangs ({str(error).splitlines()[0]})"
        tell(f"error: {lost}. See that process's messages; the same command continues from the last checkpoint")
        return 1


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory of the machine or of a GPU could not be allocated; PyTorch raises several kinds of errors."""
    said = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in said or "can't allocate memory" in said)
    )


def _is_connection_error(error: RuntimeError) -> bool:
    """Whether an error means that another process could not be reached."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return False
    if isinstance(error, distributed.DistNetworkError | distributed.DistStoreError):
        return True
    message = str(error)
    return message.startswith("Application timeout") or ("/gloo/" in message and any(sign in message for sign in LOST))
