"""Report where each process is waiting when training stalls, before a timeout ends it.

Every few seconds, each process publishes its number of samples seen, the time since that changed, and its current line.
If no process has made progress for long, the first process prints all of this. A process whose line is not a collective
operation (but reads data, for example) is the one that the others wait for. Each process measures these times with
its own clock; a frozen process does not update them, so the first process adds the time since the last update.
"""

import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from multisagd.files import parse_json
from recipes.runtime.device import Runtime

log = logging.getLogger("multisagd")
OURS = tuple(str(Path(__file__).resolve().parents[2] / name) for name in ("recipes", "modalities", "multisagd"))
TICKS = 10
"""Number of updates by each process within `patience` seconds."""


class Watchdog:
    """Monitors training on all ranks in a thread, unless there is one process or `engine.hang_report=0`.

    `samples` is the number of samples seen at the start.
    """

    def __init__(self, runtime: Runtime, samples: int) -> None:
        self.process = runtime.process
        self.patience = min(runtime.settings.hang_report, runtime.settings.timeout / 2)
        self._samples, self._since = samples, time.monotonic()
        self._messages: dict[int, tuple[bytes, float]] = {}  # the last message of each process, and when it changed
        self._main = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if dist.is_initialized() and self.patience > 0:
            self._store = _get_default_store().clone()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(self.patience)

    def progress(self, samples: int) -> None:
        """Record the progress of training."""
        self._samples, self._since = samples, time.monotonic()

    def _watch(self) -> None:
        reported = False
        while True:
            try:
                where_now = where(sys._current_frames().get(self._main))
                here = {"samples": self._samples, "seconds": time.monotonic() - self._since, "where": where_now}
                self._store.set(f"watchdog/{self.process.rank}", json.dumps(here))
                if self.process.rank == 0:
                    ages = self._everyone()
                    stuck = min(each["seconds"] for each in ages.values()) >= self.patience
                    if stuck and not reported:
                        log.warning("%s", report(ages, self.process.world))
                    reported = stuck
            except (RuntimeError, ValueError) as error:
                log.info("the watchdog has stopped: %s", error)  # the store's process has probably ended
                return
            if self._ended.wait(self.patience / TICKS):
                return

    def _everyone(self) -> dict[int, dict[str, Any]]:
        now, reports = time.monotonic(), {}
        for rank in range(self.process.world):
            key = f"watchdog/{rank}"
            if not self._store.check([key]):
                continue
            message = self._store.get(key)
            if rank not in self._messages or self._messages[rank][0] != message:
                self._messages[rank] = (message, now)
            reports[rank] = parse_json(message)
            reports[rank]["seconds"] += now - self._messages[rank][1]
        return reports


def where(frame: FrameType | None) -> str:
    """Return the innermost line of this project's code in a thread's stack, and the function called from there."""
    stack: Sequence[traceback.FrameSummary] = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if each.filename.startswith(OURS)]
    if not ours:
        return "unknown"
    last = ours[-1]
    called = f", in {stack[-1].name}" if stack[-1] is not last else ""
    return f"{Path(last.filename).name}:{last.lineno} in {last.name}: {last.line}{called}"


def report(processes: Mapping[int, Mapping[str, Any]], world: int) -> str:
    """Return one line per process: samples seen, seconds since progress, and position."""
    lines = ["no training step for a while; progress of each process, seconds since then, and position:"]
    for rank in range(world):
        if rank in processes:
            state = processes[rank]
            lines.append(f"  {rank}: {state['samples']:,} samples, {state['seconds']:.0f} s at {state['where']}")
        else:
            lines.append(f"  {rank}: no report")
    return "\n".join(lines)
