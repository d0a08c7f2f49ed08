"""Errors that the user can act on."""

import difflib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The folder that contains the package `multisagd`."""
USAGE_STATUS = 2
"""Exit status of a command with an invalid request."""

Kinds = type[BaseException] | tuple[type[BaseException], ...]


class RecipeError(Exception):
    """An invalid request, which is reported as one message without a traceback."""


class MissingError(RecipeError):
    """Required `parameters` of a class in a configuration have no values."""

    def __init__(self, message: str, parameters: tuple[str, ...]) -> None:
        super().__init__(message)
        self.parameters = parameters


class Interrupted(Exception):  # noqa: N818 - the usual word, and not an error
    """A signal stopped a command, which has saved its state."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.status = 128 + signal_number


@contextmanager
def as_recipe_error(
    kinds: Kinds, before: str = "", after: str = "", to: type[RecipeError] = RecipeError
) -> Iterator[None]:
    """Inside the context, turn errors of these `kinds` into `to`, with their message between `before` and `after`."""
    try:
        yield
    except kinds as error:
        raise to(f"{before}{error}{after}") from error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the known word closest to `word`; if none is close, a list of up to 40 words."""
    options = sorted(set(known))
    # In a mistyped dotted key, the last part is usually almost right.
    close = difflib.get_close_matches(word, options, n=1, cutoff=0.6)
    if not close:
        last = {option.rsplit(".", 1)[-1]: option for option in options}
        close = [last[match] for match in difflib.get_close_matches(word.rsplit(".", 1)[-1], last, n=1, cutoff=0.75)]
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(options)}" if 0 < len(options) <= 40 else ""


def check_minimum(settings: object, minimum: int, *names: str) -> None:
    """Raise ValueError if one of the fields `names` of `settings` is below `minimum`. None is accepted."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")


def foreign_modalities() -> str | None:
    """Return the path of the package `modalities` if it is not this project's; a package on PyPI has the same name.

    Return "" if there is no package with that name, and None if it is this project's.
    """
    spec = importlib.util.find_spec("modalities")
    path = "" if spec is None else spec.origin or str(spec.submodule_search_locations)
    return None if Path(path).resolve().parent == ROOT / "modalities" else path
