"""Says which process waits where when training stands still, before a timeout ends it.

Every process tells the others, every few seconds, how many samples it has seen, for how long that has not changed, and
at which line it is. When nothing has moved for long on any of them, the first prints all of it: the one whose line is
not a meeting of processes (a read of data, say) is the one that the others wait for. Ages are measured by each
process's own clock; as one that is frozen does not even tell its age, the first adds for how long it heard nothing new.
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
"""How many times within `patience` each process tells where it is."""


class Watchdog:
    """Watches over training on all ranks, from a thread; idle where there is one process, or `engine.hang_report` is 0.

    Training begins after `samples`.
    """

    def __init__(self, runtime: Runtime, samples: int) -> None:
        self.process = runtime.process
        self.patience = min(runtime.settings.hang_report, runtime.settings.timeout / 2)
        self._samples, self._since = samples, time.monotonic()
        self._heard: dict[int, tuple[bytes, float]] = {}  # what each process said last, and when that was new
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
        """Note that training has got so far."""
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
                log.info("the watchdog gives up: %s", error)  # most likely the store's process has ended
                return
            if self._ended.wait(self.patience / TICKS):
                return

    def _everyone(self) -> dict[int, dict[str, Any]]:
        now, found = time.monotonic(), {}
        for rank in range(self.process.world):
            key = f"watchdog/{rank}"
            if not self._store.check([key]):
                continue
            message = self._store.get(key)
            if rank not in self._heard or self._heard[rank][0] != message:
                self._heard[rank] = (message, now)
            found[rank] = parse_json(message)
            found[rank]["seconds"] += now - self._heard[rank][1]
        return found


def where(frame: FrameType | None) -> str:
    """Return the innermost line of this project that a thread is at, and the function it has called from there."""
    stack: Sequence[traceback.FrameSummary] = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if each.filename.startswith(OURS)]
    if not ours:
        return "unknown"
    last = ours[-1]
    called = f", in {stack[-1].name}" if stack[-1] is not last else ""
    return f"{Path(last.filename).name}:{last.lineno} in {last.name}: {last.line}{called}"


def report(processes: Mapping[int, Mapping[str, Any]], world: int) -> str:
    """Return one line for each process: how far it is, for how long, and where."""
    lines = ["no training step for a while; how far each process is, for how long, and where:"]
    for rank in range(world):
        if rank in processes:
            found = processes[rank]
            lines.append(f"  {rank}: {found['samples']:,} samples, {found['seconds']:.0f} s at {found['where']}")
        else:
            lines.append(f"  {rank}: never heard of")
    return "\n".join(lines)
