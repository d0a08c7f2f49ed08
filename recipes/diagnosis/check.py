"""Run the checks of `multisagd doctor` in another process, so that a crash does not end the remaining checks.

A library built for a different processor crashes its process, and an unavailable file system blocks it. The check that
was running is then reported, and a new process runs the remaining checks. The modules of the checks are also imported
only in that process.
"""

import multiprocessing
import os
import pkgutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

State = Literal["ok", "absent", "warning", "broken"]
"""ok: works; absent: missing and not required; warning: works, but needs attention; broken: does not work."""


@dataclass(frozen=True)
class Finding:
    """The result of a check, and the remedy for a problem, if there is one."""

    state: State
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Check:
    """A check: `function` (`module:name`) returns the finding; training works only if the `essential` checks pass."""

    area: str
    name: str
    function: str
    arguments: tuple[str, ...] = ()
    essential: bool = False


def run_isolated(checks: Sequence[Check], seconds: float) -> Iterator[tuple[Check, Finding]]:
    """Yield every check with its finding, in order, as soon as it is known. A check may take up to `seconds`."""
    # Forking is safe and prints no warning in a process that has imported no library.
    context, waiting = multiprocessing.get_context("fork"), list(checks)
    while waiting:
        receiver, sender = context.Pipe(duplex=False)
        with tempfile.NamedTemporaryFile() as output:
            process = context.Process(target=_run_all, args=(waiting, sender, output.name), daemon=True)
            process.start()
            sender.close()
            try:
                while waiting and receiver.poll(seconds):
                    yield waiting[0], receiver.recv()
                    del waiting[0]
                problem = f"the check hangs: no result within {seconds:.0f} s"
            except EOFError:
                process.join()
                status = process.exitcode or 0
                how = f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
                printed = output.read().decode(errors="replace").strip().splitlines()[-1:]
                problem = ": ".join([f"the check ended its process {how}", *printed])
            process.kill()
            process.join()
            if waiting:
                yield waiting.pop(0), Finding("broken", problem)


def _run_all(checks: Sequence[Check], sender: Connection, output: str) -> None:
    """Run checks and send their findings; the file `output` receives what the last check prints."""
    for stream in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    for check in checks:
        os.truncate(output, 0)
        sender.send(_run(check))
    os._exit(0)  # do not wait for threads of libraries


def _run(check: Check) -> Finding:
    """Run a check and return its finding; errors are findings too."""
    try:
        finding: Finding = pkgutil.resolve_name(check.function)(*check.arguments)
        return finding
    except ImportError as error:  # the library, or its dependency, has its own check
        return Finding("absent", f"not checked, because an import failed: {summary(error)}")
    except Exception as error:  # a check must never end the others
        return Finding("broken", summary(error))


def summary(error: Exception) -> str:
    """Return the class and the message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.400}"
