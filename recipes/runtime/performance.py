"""Measure the performance of training: throughput and waiting times over all ranks, and a profile of some steps."""

import os
import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from recipes.runtime.device import Runtime
from recipes.runtime.distribution import gathered

PEAKS: dict[str, dict[torch.dtype, float]] = {
    "B200": {torch.bfloat16: 2250e12, torch.float32: 1125e12},
    "H200": {torch.bfloat16: 989e12, torch.float32: 494e12},
    "H100 PCIe": {torch.bfloat16: 756e12, torch.float32: 378e12},
    "H100": {torch.bfloat16: 989e12, torch.float32: 494e12},
    "A100": {torch.bfloat16: 312e12, torch.float32: 156e12},
    "L40S": {torch.bfloat16: 362e12, torch.float32: 183e12},
    "L4": {torch.bfloat16: 121e12, torch.float32: 60e12},
    "V100": {torch.float16: 125e12, torch.float32: 15.7e12},
}
"""Peak rates of dense matrix products in operations per second (a multiply-add counts as two), from NVIDIA's data
sheets.

float16 has the rate of bfloat16 if it is not listed. float32 has the rates of TF32 if the device supports it, because
`Runtime` allows it. The first name contained in the device's name is used; `engine.peak_flops` overrides it.
"""
GIB = 2**30
WARM_UP = 3
"""Number of steps before those that are profiled or timed: the first steps compile, tune and allocate."""
TIMED_STEPS, TIMED_SECONDS = 20, 10.0
"""Minimum number of steps, and of seconds, from which the remaining time is first estimated."""
MEMINFO, CONTAINER_LIMIT = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
COLLECTIVES = ("gloo:", "nccl:", "ncclDevKernel")
T = TypeVar("T")


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return a device's specified peak rate in operations per second, or None if unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peaks = next((peaks for part, peaks in PEAKS.items() if part in name), {})
    return peaks.get(dtype, peaks.get(torch.bfloat16) if dtype == torch.float16 else None)


def peak_memory(device: torch.device) -> int:
    """Return the peak memory in bytes: of the tensors on a CUDA device, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def available_memory(device: torch.device) -> int | None:
    """Return the bytes that this process can still allocate on a CUDA device or a CPU, or None if unknown."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if MEMINFO.exists():  # Linux, where memory that holds copies of files is available too
        lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        available = int(lines["MemAvailable"].split()[0]) * 1024
    if CONTAINER_LIMIT.exists() and (limit := CONTAINER_LIMIT.read_text().strip()).isdigit():
        available = min(available, int(limit))
    return available


@dataclass
class Monitor:
    """Measures training in windows, each between two log entries; `network` is the parallelised network.

    `flops` is the number of operations for one sample, and `peak` is one device's peak rate; None if unknown.
    """

    runtime: Runtime
    network: nn.Module
    flops: int | None = None
    peak: float | None = None
    _waited: float = field(default=0.0, init=False)
    _steps: int = field(default=0, init=False)
    _begun: float = field(default_factory=time.monotonic, init=False)
    # For `first_rate`: the number of steps so far (None once the speed was returned), and the time of the first one.
    _first_steps: int | None = field(default=0, init=False)
    _first_begun: float = field(default=0.0, init=False)

    def steps(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches, counting them and the time spent waiting for them."""
        iterator = iter(batches)
        while True:
            begun = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.monotonic() - begun
            self._steps += 1
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time inside the context from the window: saving and reporting do not count as training."""
        begun = time.monotonic()
        yield
        self._begun += time.monotonic() - begun
        self._first_begun += time.monotonic() - begun

    def first_rate(self, batch: int) -> float | None:
        """Return the speed of training in samples per second once, after enough steps, and otherwise None.

        This must be called after every step, with the size of a global batch. The first steps, which compile, and the
        time inside `paused` do not count.
        """
        if self._first_steps is None:
            return None
        self._first_steps += 1
        timed = self._first_steps - WARM_UP
        enough = timed >= TIMED_STEPS and time.monotonic() - self._first_begun >= TIMED_SECONDS
        if timed and not enough:
            return None
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize(self.runtime.device)  # the steps may only be queued
        if not timed:
            self._first_begun = time.monotonic()
            return None
        self._first_steps = None
        return timed * batch / (time.monotonic() - self._first_begun)

    def window(self, batch: int) -> dict[str, Any]:
        """Return the measurements since the last call; every rank must call this, with the size of a global batch.

        These are: samples per second; seconds per step, the fraction of time spent waiting for data, and peak memory,
        each as the mean over ranks and as the maximum with its rank. If operations are counted, also operations per
        second, and their fraction of the devices' peak: model FLOPs utilisation (arXiv 2204.02311, appendix B).
        """
        seconds = max(time.monotonic() - self._begun, 1e-9)
        mine = [seconds / max(self._steps, 1), self._waited / seconds, peak_memory(self.runtime.device) / GIB]
        mine += _exposed_communication(self.network)
        ranks = torch.stack(gathered(torch.tensor(mine, dtype=torch.float64)))
        rate = self._steps * batch / seconds
        values: dict[str, Any] = {"samples_per_second": rate}
        names = ("seconds_per_step", "data_wait", "memory_gib", "communication_wait")
        for name, each in zip(names, ranks.T, strict=False):
            values[name] = {"mean": float(each.mean()), "max": float(each.max()), "max_rank": int(each.argmax())}
        if self.flops is not None:
            done = rate * self.flops
            values["model_flops_per_second"] = done
            if self.peak is not None:
                values["model_flops_utilisation"] = done / (self.peak * self.runtime.process.world)
        self.restart()
        return values

    def restart(self) -> None:
        """Start a new window."""
        self._waited, self._steps, self._begun = 0.0, 0, time.monotonic()


def _exposed_communication(network: nn.Module) -> list[float]:
    """Return the seconds that DDP's backward pass waited for other ranks, or an empty list if DDP is not used.

    DDP times the first few steps and one in 100; the value is from the last of these. Computation that overlaps with
    communication is not counted as waiting. For sharded weights, which have no timer, use `engine.profile`.
    """
    if not isinstance(network, DistributedDataParallel):
        return []
    timings = network._get_ddp_logging_data()
    total, hidden = (timings.get(f"backward_{name}_time", 0) for name in ("comm", "compute_comm_overlap"))
    return [max(total - hidden, 0) / 1e9]


class StepProfiler:
    """Profiles `steps` training steps of this process after a few warm-up steps, or nothing if `steps` is 0.

    For rank 0, it writes to `folder`: rank0.json, a Chrome trace (chrome://tracing, ui.perfetto.dev); rank0.txt, the
    operations that took longest, and the time of communication, in total and not overlapped by computation; and on a
    GPU rank0_memory.pickle, for https://docs.pytorch.org/memory_viz.
    """

    def __init__(self, folder: Path, rank: int, device: torch.device, steps: int) -> None:
        self.folder, self.rank, self.device, self.steps = folder, rank, device, steps
        self._done = 0
        self._profile: profile | None = None

    def step(self) -> Path | None:
        """Count a finished step. After the last profiled step, write the profile and return its file."""
        self._done += 1
        if self.steps and self._done == WARM_UP:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
                torch.cuda.memory._record_memory_history()
            self._profile = profile(activities=activities, profile_memory=True, record_shapes=True, acc_events=True)
            self._profile.start()
        return self.finish() if self._done == WARM_UP + self.steps else None

    def finish(self) -> Path | None:
        """Write the profile, even if training ended early, and return its file, or None if nothing was profiled."""
        running, self._profile = self._profile, None
        if running is None:
            return None
        running.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank{self.rank}.json"
        running.export_chrome_trace(str(path))
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(path.with_name(f"rank{self.rank}_memory.pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        busy, exposed = communication(running)
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = running.key_averages().table(sort_by=by, row_limit=30)
        summary = f"{busy:.6f} s in {self._done - WARM_UP} steps; {exposed:.6f} s were not overlapped by computation"
        path.with_suffix(".txt").write_text(f"communication: {summary}\n\n{table}\n", encoding="utf-8")
        return path


def communication(recorded: profile) -> tuple[float, float]:
    """Return the seconds of communication, and the seconds of communication without simultaneous computation."""
    events = recorded.events() or []
    on_gpu = any(event.device_type.name == "CUDA" for event in events)
    exchanged, computing = [], []
    for event in events:
        if event.device_type.name == ("CUDA" if on_gpu else "CPU"):
            span = (event.time_range.start, event.time_range.end)
            if event.name.startswith(COLLECTIVES):
                exchanged.append(span)
            elif on_gpu or event.name.startswith("aten::"):
                computing.append(span)
    return covered(exchanged) / 1e6, (covered(exchanged + computing) - covered(computing)) / 1e6


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (start, end)."""
    length, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        length += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return length
