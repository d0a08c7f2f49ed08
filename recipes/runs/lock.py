"""Lock a run folder exclusively, and detect whether it vanishes."""

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
"""Number of seconds that the processes of an earlier attempt may still run after their launcher has ended."""


class VanishedError(RecipeError):
    """The folder of a run vanished while a command was using it."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(
            f"{run_dir} has vanished while this command was using it: it was moved, removed or replaced, or its disk "
            "is no longer available. Once the folder is available again, the same command continues "
            "from the last saved state; without the folder, the command starts from the beginning"
        )


class RunLock:
    """A run folder that this process has locked; `new` says whether this process created it."""

    def __init__(self, run_dir: Path, lock: IO[str], new: bool) -> None:
        self.run_dir, self._lock, self.new = run_dir, lock, new

    def still_valid(self) -> bool:
        """Whether the folder still exists, and is not a different folder with the same name."""
        try:
            return os.path.samestat((self.run_dir / ".lock").stat(), os.fstat(self._lock.fileno()))
        except OSError:
            # Only the lock file may have been removed.
            return (self.run_dir / "config.yaml").exists()

    def check(self) -> None:
        """Raise VanishedError if the folder has vanished."""
        if not self.still_valid():
            raise VanishedError(self.run_dir)


@contextmanager
def lock_run(run_dir: Path, patience: float = 0.0) -> Iterator[RunLock]:
    """Lock a run's folder, creating it if necessary. The lock ends with the process at the latest.

    Raises:
        RecipeError: If another process keeps the lock for longer than `patience` seconds, the folder contains a
            symbolic link that points outside it, or the folder becomes unwritable.
        VanishedError: If an error occurred because the folder has vanished.
    """
    check_own(run_dir, run_dir)
    new, path = not run_dir.exists(), run_dir / ".lock"
    alone = not path.exists()
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot create the folder {run_dir} ({error.strerror}): choose another run_dir") from error
    with path.open("w") as lock:
        deadline = time.monotonic() + patience
        while _locked(lock, fcntl.LOCK_EX) is False:
            if time.monotonic() >= deadline:
                raise RecipeError(
                    f"another process is using {run_dir}: wait for that process to end, or use another run_dir"
                )
            time.sleep(0.1)
        run_lock = RunLock(run_dir, lock, new)
        try:
            yield run_lock
        except BaseException as error:
            if isinstance(error, OSError | SafetensorError):
                _explain(error, run_dir)
            # A command that failed before it wrote anything leaves no folder.
            if alone and run_lock.still_valid() and not (run_dir / "config.yaml").exists():
                path.unlink(missing_ok=True)
                if new and not any(run_dir.iterdir()):
                    run_dir.rmdir()
            raise


def _explain(error: OSError | SafetensorError, run_dir: Path) -> None:
    """Raise RecipeError with an explanation of an error, if it is a file-system error in a locked folder."""
    if not run_dir.exists():
        raise VanishedError(run_dir) from error
    if isinstance(error, OSError):
        number, inside = error.errno, isinstance(error.filename, str) and Path(error.filename).is_relative_to(run_dir)
    else:
        match = re.search(r"\(os error (\d+)\)", str(error))  # the system's error number
        number, inside = int(match[1]) if match else None, True
    if number in NO_ROOM or (number in NO_WRITING and inside):
        raise RecipeError(
            f"cannot write in {run_dir} ({os.strerror(number)}): finished work is kept, and the same command "
            "continues once writing is possible"
        ) from error


def check_shared(run_dir: Path, patience: float) -> None:
    """Raise RecipeError if this process cannot see the first process's folder; wait first for network file systems."""
    deadline = time.monotonic() + patience
    while not (run_dir / ".lock").exists():
        if time.monotonic() >= deadline:
            raise RecipeError(
                f"this process cannot see the first process's folder {run_dir}: use a folder that all machines share"
            )
        time.sleep(0.1)


@contextmanager
def lock_run_on_first_rank(run_dir: Path, runtime: Runtime) -> Iterator[RunLock | None]:
    """Lock a run's folder in the first process, and check that all processes see it.

    Raises:
        RecipeError: If the folder is in use, not shared by all processes, vanishes, or becomes unwritable.
    """
    patience = LINGERING if runtime.process.world > 1 else 0.0
    with lock_run(run_dir, patience) if runtime.main else nullcontext() as run_lock:
        barrier()
        check_shared(run_dir, patience)
        try:
            yield run_lock
        except Ended:
            if run_lock is not None and run_lock.new and not (run_dir / "checkpoints").exists():
                shutil.rmtree(run_dir)  # nothing was trained, and another command may want to use the name
            raise
        except (OSError, SaveError) as error:
            if run_lock is not None:
                run_lock.check()  # raises if the folder has vanished
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise RecipeError(f"cannot write to {run_dir} ({error}): free some space on its disk") from error
            raise


def is_locked(run_dir: Path) -> bool | None:
    """Whether a process has locked a run's folder; None if this is unknown, as on some network file systems."""
    lock = run_dir / ".lock"
    if not lock.is_file():  # opening a pipe would block
        return False
    try:
        with lock.open() as file:
            locked = _locked(file, fcntl.LOCK_SH)
    except OSError:
        return None
    return None if locked is None else not locked


def _locked(lock: IO[str], kind: int) -> bool | None:
    """Return True after locking a file, False if another process has locked it, or None if locks are unsupported."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
