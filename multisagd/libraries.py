"""Import optional libraries on demand; if an import fails, the error names the library and the command that fixes it.

A library that was built for another PyTorch version, or lacks a system library, may raise any error on import:
ImportError, OSError for an undefined symbol, RuntimeError for a missing operator. All of them become one error, so that
code that reads files does not mistake them for a damaged file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType

from multisagd.remedies import DISTRIBUTIONS, installed, remedy, version

OURS = ("multisagd", "modalities", "recipes", "configs", "__main__")
"""Packages of this project, whose errors are not errors of a library."""


class BrokenLibraryError(ImportError):
    """A library is missing or cannot be imported; the message gives its name, the reason, and the command to fix it.

    `name` is the name by which Python imports the library.
    """


@contextmanager
def importing(library: str, use: str) -> Iterator[None]:
    """Convert errors of importing a library in the `with` block; messages begin with `use`, the purpose of the library.

    Raises:
        BrokenLibraryError: If the block raises any other error.
    """
    try:
        yield
    except BrokenLibraryError:
        raise
    except Exception as error:
        raise _error(library.partition(".")[0], error, f"{use}: ") from error


def check(module: str, use: str) -> None:
    """Check that a module of a library can be imported.

    Raises:
        BrokenLibraryError: If the import fails.
    """
    with importing(module, use):
        import_module(module)


def failed_import(error: BaseException) -> BrokenLibraryError | None:
    """Return a BrokenLibraryError if an error, or one of its causes, was raised by importing a library; else None."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, BrokenLibraryError):
            return cause
        if (library := _at_fault(cause)) is not None:
            return _error(library, cause)
        cause = cause.__cause__
    return None


def _at_fault(error: BaseException) -> str | None:
    """Return the library that the project's code was importing when the error was raised; None for other errors."""
    imported = [_package(frame) for frame in _imports(error) if _package(frame) not in OURS]
    if isinstance(error, ImportError) and not imported:
        missing = (error.name or "").partition(".")[0]
        return missing if missing and missing not in OURS else None
    # A user's own modules have no distribution and are not libraries: their author needs the traceback.
    return next((name for name in imported if name in DISTRIBUTIONS or installed(name)), None)


def _imports(error: BaseException) -> list[FrameType]:
    """Return the frames of the modules that were being imported, the outermost import first."""
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
    while first.__cause__ is not None:  # only the first of PyTorch's errors names the missing symbol
        first = first.__cause__
    frames = _imports(error)
    location = f", in {frames[-1].f_code.co_filename}" if frames else ""
    reason = f"{type(first).__name__}: {' '.join(str(first).split()):.300}{location}"
    # pip installs missing dependencies with the library, but a broken one has to be named to be reinstalled.
    broken = () if isinstance(error, ModuleNotFoundError) else (library, *map(_package, frames[-1:]))
    inner = installed(broken[-1]) if broken else name
    because = f", because {_with_version(inner)} fails" if inner not in ("", name) else ""
    return BrokenLibraryError(
        f"{use}{_with_version(name)} cannot be imported{because} ({reason}). To fix it: {remedy(library, broken)}",
        name=library,
    )


def _with_version(distribution: str) -> str:
    return " ".join(filter(None, (distribution, version(distribution))))
