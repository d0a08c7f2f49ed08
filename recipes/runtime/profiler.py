"""A profile of some training steps: `run_dir/profile/rank0.json`, a Chrome trace (chrome://tracing, ui.perfetto.dev).

Beside it rank0.txt, the operations that took longest, with how long communication took and how much of that was not
hidden behind computing; and on a GPU rank0_memory.pickle, which https://docs.pytorch.org/memory_viz draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP = 3
"""Steps before the profiled ones: the first ones compile, tune and allocate."""
COLLECTIVES = ("gloo:", "nccl:", "ncclDevKernel")
Span = tuple[float, float]


class StepProfiler:
    """Profiles `steps` training steps of this process, after a few that are not; none for 0."""

    def __init__(self, folder: Path, rank: int, device: torch.device, steps: int) -> None:
        self.folder, self.rank, self.device, self.steps = folder, rank, device, steps
        self._done = 0
        self._profile: profile | None = None

    def step(self) -> Path | None:
        """Count a step that is over; after the last profiled one, write what was found and return its file."""
        self._done += 1
        if self.steps == 0:
            return None
        if self._done == WARM_UP:
            self._start()
        if self._done == WARM_UP + self.steps and self._profile is not None:
            return self._finish(self._profile)
        return None

    def finish(self) -> Path | None:
        """Write what was profiled if training ended before all steps were."""
        return None if self._profile is None else self._finish(self._profile)

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history()
        self._profile = profile(activities=activities, profile_memory=True, record_shapes=True, acc_events=True)
        self._profile.start()

    def _finish(self, found: profile) -> Path:
        found.stop()
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"rank{self.rank}.json"
        found.export_chrome_trace(str(path))
        if self.device.type == "cuda":
            torch.cuda.memory._dump_snapshot(str(path.with_name(f"rank{self.rank}_memory.pickle")))
            torch.cuda.memory._record_memory_history(enabled=None)
        busy, exposed = communication(found)
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        table = found.key_averages().table(sort_by=by, row_limit=30)
        steps = self._done - WARM_UP
        told = f"communication: {busy:.6f} s in {steps} steps, of which {exposed:.6f} s not hidden by computing"
        path.with_suffix(".txt").write_text(f"{told}\n\n{table}\n", encoding="utf-8")
        self._profile = None
        return path


def communication(found: profile) -> tuple[float, float]:
    """Return the seconds in which ranks exchanged data, and those of them in which nothing was computed."""
    events = found.events() or []
    on_gpu = any(event.device_type.name == "CUDA" for event in events)
    kind = "CUDA" if on_gpu else "CPU"
    spans = [
        (event.name, (event.time_range.start, event.time_range.end))
        for event in events
        if event.device_type.name == kind
    ]
    exchanged = merged(span for name, span in spans if name.startswith(COLLECTIVES))
    computing = merged(
        span for name, span in spans if not name.startswith(COLLECTIVES) and (on_gpu or name.startswith("aten::"))
    )
    total = sum(end - start for start, end in exchanged)
    return total / 1e6, (total - overlap(exchanged, computing)) / 1e6


def merged(spans: Iterable[Span]) -> list[Span]:
    """Return the union of intervals as disjoint ones, in order."""
    union: list[Span] = []
    for start, end in sorted(spans):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(end, union[-1][1]))
        else:
            union.append((start, end))
    return union


def overlap(one: list[Span], other: list[Span]) -> float:
    """Return the length that two unions of intervals have in common."""
    common, first, second = 0.0, 0, 0
    while first < len(one) and second < len(other):
        start, end = max(one[first][0], other[second][0]), min(one[first][1], other[second][1])
        common += max(0.0, end - start)
        if one[first][1] < other[second][1]:
            first += 1
        else:
            second += 1
    return common
