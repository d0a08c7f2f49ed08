"""Errors a person can act on, and the one place that turns them into an exit status."""

from __future__ import annotations

import difflib
import signal
import traceback
from collections.abc import Callable, Iterable

from recipes.engine.interrupt import Ended
from recipes.engine.printing import tell

USAGE_STATUS = 2
"""Exit status of a command that was asked for something it cannot do."""

LOST = ("closed by peer", "reset by peer", "Timed out", "timed out")
"""Signs of a lost connection in the errors of gloo, which are plain runtime errors and mostly name its source."""


class RecipeError(Exception):
    """A mistake in what was asked for, told in one message without a traceback."""


class MissingError(RecipeError):
    """A class that a configuration names needs `parameters` that nothing gives it."""

    def __init__(self, message: str, parameters: tuple[str, ...]) -> None:
        super().__init__(message)
        self.parameters = parameters


class Interrupted(Exception):  # noqa: N818 - the word people know, and it is no error
    """A run that stopped because a signal asked it to; its state is saved."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word nearest to `word`, or the list of known words if none is near."""
    options = sorted(set(known))
    # A person who gets a dotted key wrong mostly has its last part right or nearly so.
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not close:
        last = {option.rsplit(".", 1)[-1]: option for option in options}
        close = [last[match] for match in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(options)}" if 0 < len(options) <= 40 else ""


def run_command(action: Callable[[], object], again: Callable[[bool], str] | None = None) -> int:
    """Run a command's body and return its exit status: 0, 2 for a `RecipeError`, 128 + signal when interrupted.

    It is 2 as well where a library cannot be imported.

    `again(told)` says how to go on after an interruption, `told` whether the command itself said what is kept.
    """
    from multisagd.libraries import failed_import  # with PyTorch, which a mistake in a command's name need not wait for

    try:
        action()
    except RecipeError as error:
        # Help and completion read this file, and do not wait for torch, which comes with the package.
        from multisagd.addresses import without_secrets

        tell(f"error: {without_secrets(str(error))}")  # others read logs
        return USAGE_STATUS
    except Interrupted as stop:
        tell(f"{stop}{'' if again is None else again(True)}")
        return stop.status
    except KeyboardInterrupt as stop:
        tell(f"interrupted{'' if again is None else again(False)}")
        return 128 + (stop.number if isinstance(stop, Ended) else signal.SIGINT)
    except Exception as error:
        if (failure := failed_import(error)) is not None:
            tell(f"error: {failure}")
            return USAGE_STATUS
        if not (isinstance(error, RuntimeError) and _lost_touch(error)):
            raise
        traceback.print_exc()
        tell(
            f"error: lost touch with another process, which died or hangs ({str(error).splitlines()[0]}). Its own "
            "messages say more; the same command continues from the last checkpoint"
        )
        return 1
    return 0


def _lost_touch(error: RuntimeError) -> bool:
    """Tell whether an error is that another process could not be reached."""
    from torch import distributed

    if not distributed.is_available() or not distributed.is_initialized():
        return False
    if isinstance(error, distributed.DistNetworkError | distributed.DistStoreError):
        return True
    told = str(error)
    return told.startswith("Application timeout") or ("/gloo/" in told and any(sign in told for sign in LOST))
