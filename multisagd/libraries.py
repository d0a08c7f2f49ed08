"""Libraries that only some work needs: imported when it is asked for, and named with a command where that fails.

A library that was built for another PyTorch, or lacks a part of the system, raises anything when it is imported:
ImportError, OSError for an undefined symbol, RuntimeError for an operator that does not exist. None of these is the
fault of a file that is being read, so all of them become one error that no reader of files takes for its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

from multisagd.remedies import DISTRIBUTIONS, installed, remedy, version

OURS = ("multisagd", "modalities", "recipes", "configs", "__main__")
"""Packages whose own mistakes are none of a library."""


class BrokenLibraryError(ImportError):
    """A library that is missing or cannot be imported: the message names it, what failed, and the command to mend it.

    `name` is the library as Python imports it.
    """


@contextmanager
def importing(library: str, use: str) -> Iterator[None]:
    """Import a library within the `with`, for a `use` that the message names.

    Raises:
        BrokenLibraryError: for whatever is raised there.
    """
    try:
        yield
    except BrokenLibraryError:
        raise
    except Exception as error:
        raise _error(library.partition(".")[0], error, f"{use}: ") from error


def check(module: str, use: str) -> None:
    """Import a module of a library only to see that it can be.

    Raises:
        BrokenLibraryError: if it cannot.
    """
    with importing(module, use):
        import_module(module)


def failed_import(error: BaseException) -> BrokenLibraryError | None:
    """Return an error, or a cause of it, as that of a library if it was raised by importing one, else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BrokenLibraryError):
            return cause
        if (library := _at_fault(cause)) is not None:
            return _error(library, cause)
        cause = cause.__cause__
    return None


def _at_fault(error: BaseException) -> str | None:
    """Return the library that our code wanted when an error was raised by importing it, None for any other error."""
    asked = [_package(frame) for frame in _imports(error) if _package(frame) not in OURS]
    if isinstance(error, ImportError) and not asked:
        missing = (error.name or "").partition(".")[0]
        return missing if missing and missing not in OURS else None
    # Modules of a user's own, which come with no distribution, are no libraries: whoever writes them wants a traceback.
    return next((name for name in asked if name in DISTRIBUTIONS or installed(name)), None)


def _imports(error: BaseException) -> list[FrameType]:
    """Return the frames of modules that were being executed, the one imported first in front."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_name == "<module>":
            frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _error(library: str, error: BaseException, use: str = "") -> BrokenLibraryError:
    name = DISTRIBUTIONS.get(library, library)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == library:
        return BrokenLibraryError(f"{use}{name} is not installed. To install it: {remedy(library)}", name=library)
    first: BaseException = error
    while first.__cause__ is not None:  # PyTorch names the symbol that is missing in the first error alone
        first = first.__cause__
    frames = _imports(error)
    place = f", in {frames[-1].f_code.co_filename}" if frames else ""
    reason = f"{type(first).__name__}: {' '.join(str(first).split()):.300}{place}"
    # What a library lacks is installed with it; of anything else pip would say that it is there already.
    broken = () if isinstance(error, ModuleNotFoundError) else (library, *map(_package, frames[-1:]))
    inner = installed(broken[-1]) if broken else name
    because = f", for {_found(inner)} fails" if inner not in ("", name) else ""
    return BrokenLibraryError(
        f"{use}{_found(name)} cannot be imported{because} ({reason}). To mend it: {remedy(library, broken)}",
        name=library,
    )


def _found(distribution: str) -> str:
    return " ".join(filter(None, (distribution, version(distribution))))
