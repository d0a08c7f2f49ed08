"""Errors a person can act on."""

import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that multisagd lies in."""
USAGE_STATUS = 2
"""Exit status of a command that was asked for something it cannot do."""

Kinds = type[BaseException] | tuple[type[BaseException], ...]


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


@contextmanager
def as_recipe_error(
    kinds: Kinds, before: str = "", after: str = "", to: type[RecipeError] = RecipeError
) -> Iterator[None]:
    """Raise errors of these kinds as a RecipeError, or one like it, with their message between `before` and `after`."""
    try:
        yield
    except kinds as error:
        raise to(f"{before}{error}{after}") from error


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


def check_minimum(settings: object, minimum: int, *names: str) -> None:
    """Check numbers among the fields of some settings: ValueError for one below the minimum; None is allowed."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def foreign_modalities() -> str | None:
    """Return where a package `modalities` that is not ours lies, "" if there is none at all, None if it is ours.

    One on the package index has the same name.
    """
    spec = importlib.util.find_spec("modalities")
    place = "" if spec is None else spec.origin or str(spec.submodule_search_locations)
    return None if Path(place).resolve().parent == ROOT / "modalities" else place
