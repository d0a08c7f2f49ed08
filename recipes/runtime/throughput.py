"""How fast training goes and what it waits for, over all ranks.

Per window between two logs, in `timing.jsonl`: samples per second; and of every rank seconds per step, the share of
time spent waiting for data, and the most memory held so far, each as mean and largest with the rank that has it. With
counted operations also those per second, and their share of what the devices can do (model FLOPs utilisation).
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from recipes.runtime.device import Runtime
from recipes.runtime.distribution import gathered

T = TypeVar("T")
GIB = 2**30


@dataclass
class Monitor:
    """Measures windows of training; `flops` are the operations of one sample, `network` what all ranks train."""

    runtime: Runtime
    network: nn.Module
    flops: int | None = None
    peak: float | None = None
    _waited: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _begun: float = field(default_factory=time.monotonic, init=False)

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches, counting them and the time that they take to come."""
        iterator = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - asked
            self._steps += 1
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out of the window what happens meanwhile: saving and reporting are no training."""
        begun = time.monotonic()
        yield
        self._begun += time.monotonic() - begun

    def window(self, batch: int) -> dict[str, Any]:
        """Return what was measured since the last call, for batches of so many samples; every rank must call this."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        steps = max(self._steps, 1)
        mine = [seconds / steps, self._waited / seconds, peak_memory(self.runtime.device) / GIB]
        exposed = exposed_communication(self.network)
        if exposed is not None:
            mine.append(exposed)
        ranks = torch.stack(gathered(torch.tensor(mine, dtype=torch.float64)))
        names = ("seconds_per_step", "data_wait", "memory_gib", "communication_wait")
        rate = self._steps * batch / seconds
        values: dict[str, Any] = {"samples_per_second": rate}
        values |= {name: over_ranks(column) for name, column in zip(names, ranks.T, strict=False)}
        if self.flops is not None:
            done = rate * self.flops
            values["model_flops_per_second"] = done
            if self.peak is not None:
                values["model_flops_utilisation"] = done / (self.peak * self.runtime.place.world)
        self.restart()
        return values

    def restart(self) -> None:
        """Begin a new window."""
        self._waited, self._steps, self._begun = 0.0, 0, time.monotonic()


def over_ranks(values: torch.Tensor) -> dict[str, float]:
    """Return mean and largest of the ranks' values, and the rank that has the largest."""
    return {"mean": float(values.mean()), "max": float(values.max()), "max_rank": int(values.argmax())}


def peak_memory(device: torch.device) -> int:
    """Return the most bytes held so far: by tensors on a CUDA device, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def exposed_communication(network: nn.Module) -> float | None:
    """Return for how many seconds DDP's backward pass waited for other ranks; None where DDP does not say.

    That of the last step which DDP has timed: one in 100, and the first few. What it computes while gradients are under
    way is not counted as waiting. For sharded weights there is no such clock: `engine.profile` measures it.
    """
    if not isinstance(network, DistributedDataParallel):
        return None
    found = network._get_ddp_logging_data()
    total, hidden = (found.get(f"backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap"))
    return max(total - hidden, 0) / 1e9
