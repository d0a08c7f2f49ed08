"""A folder that one process at a time works in: held as long as the work lasts, and noticed when it vanishes."""

import errno
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

from safetensors import SafetensorError

from recipes.base.errors import RecipeError
from recipes.base.signals import Ended
from recipes.base.untrusted import check_own
from recipes.runs.checkpoint import SaveError
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import barrier

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_WRITING = (errno.EROFS, errno.EIO, errno.EACCES)
LINGERING = 20.0
"""Seconds that the processes of an attempt before this one may take to end after what started them is gone."""


class VanishedError(RecipeError):
    """A run's folder that is no longer there while a command works in it."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(
            f"{run_dir} has vanished while this command worked in it: it was moved, removed or replaced, or its disk "
            "is gone, and what was saved in it with it. Once the folder is back in its place the same command goes on "
            "from what was saved last; without it, it begins anew"
        )


class Hold:
    """A run's folder that this process holds, as long as it is there; `new` says that it has made it."""

    def __init__(self, run_dir: Path, lock: IO[str], new: bool) -> None:
        self.run_dir, self._lock, self.new = run_dir, lock, new

    def lasts(self) -> bool:
        """Whether the folder is still there, and is not another one of the same name."""
        try:
            return os.path.samestat((self.run_dir / ".lock").stat(), os.fstat(self._lock.fileno()))
        except OSError:
            # The lock alone may have been tidied away.
            return (self.run_dir / "config.yaml").exists()

    def check(self) -> None:
        """Raise VanishedError if the folder is not there."""
        if not self.lasts():
            raise VanishedError(self.run_dir)


@contextmanager
def held(run_dir: Path, patience: float = 0.0) -> Iterator[Hold]:
    """Hold a run's folder, which is created if need be; the hold ends with the process at the latest.

    Raises:
        RecipeError: if another process holds it for longer than `patience` seconds, something in it leads out of it, or
            nothing can be written to it any more.
        VanishedError: where an error comes of its not being there any more.
    """
    check_own(run_dir, run_dir)
    new, path = not run_dir.exists(), run_dir / ".lock"
    alone = not path.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot make the folder {run_dir} ({error.strerror}): choose another run_dir") from error
    with path.open("w") as lock:
        deadline = time.monotonic() + patience
        while _locked(lock, fcntl.LOCK_EX) is False:
            if time.monotonic() >= deadline:
                raise RecipeError(f"another process works in {run_dir}: wait for it, or use another run_dir")
            time.sleep(0.1)
        hold = Hold(run_dir, lock, new)
        try:
            yield hold
        except BaseException as error:
            if isinstance(error, OSError | SafetensorError):
                _explain(error, run_dir)
            # What failed before it wrote anything leaves nothing behind.
            if alone and hold.lasts() and not (run_dir / "config.yaml").exists():
                path.unlink(missing_ok=True)
                if new and not any(run_dir.iterdir()):
                    run_dir.rmdir()
            raise


def _explain(error: OSError | SafetensorError, run_dir: Path) -> None:
    """Raise in words what an error of the file system says of a folder that is held, if it is of that folder."""
    if not run_dir.exists():
        raise VanishedError(run_dir) from error
    if isinstance(error, OSError):
        number, inside = error.errno, isinstance(error.filename, str) and Path(error.filename).is_relative_to(run_dir)
    else:
        found = re.search(r"\(os error (\d+)\)", str(error))  # as the system numbers it
        number, inside = int(found[1]) if found else None, True
    if number in NO_ROOM or (number in NO_WRITING and inside):
        raise RecipeError(
            f"cannot write in {run_dir} ({os.strerror(number)}): what was finished is kept, and the same command goes "
            "on once it can"
        ) from error


def check_shared(run_dir: Path, patience: float) -> None:
    """Raise RecipeError if this process does not see the folder of the first one, which may take a network a while."""
    deadline = time.monotonic() + patience
    while not (run_dir / ".lock").exists():
        if time.monotonic() >= deadline:
            raise RecipeError(f"{run_dir} is not the folder of the first process: use one that all machines share")
        time.sleep(0.1)


@contextmanager
def claimed(run_dir: Path, runtime: Runtime) -> Iterator[Hold | None]:
    """Hold a run's folder, in the first of all processes, and say in words what goes wrong with it.

    Raises:
        RecipeError: if it is in use or not shared by all processes, vanishes, or cannot be written any more.
    """
    patience = LINGERING if runtime.process.world > 1 else 0.0
    with held(run_dir, patience) if runtime.main else nullcontext() as hold:
        barrier()
        check_shared(run_dir, patience)
        try:
            yield hold
        except Ended:
            if hold is not None and hold.new and not (run_dir / "checkpoints").exists():
                shutil.rmtree(run_dir)  # nothing was learned, and another command may take the name
            raise
        except (OSError, SaveError) as error:
            if hold is not None:
                hold.check()  # which says so if that is why
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise RecipeError(f"cannot write into {run_dir} ({error}): make room") from error
            raise


def is_held(run_dir: Path) -> bool | None:
    """Whether a process holds a run's folder; None where that cannot be told, as on some network file systems."""
    lock = run_dir / ".lock"
    if not lock.is_file():  # a pipe would be waited for
        return False
    try:
        with lock.open() as file:
            locked = _locked(file, fcntl.LOCK_SH)
    except OSError:
        return None
    return None if locked is None else not locked


def _locked(lock: IO[str], kind: int) -> bool | None:
    """Lock a file unless another process has; None where there are no locks, as on some network file systems."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
