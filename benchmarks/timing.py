"""Interleaved timing: each repeat runs all candidates in turn, so that other load affects them equally."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple

import torch

Times = dict[str, list[float]]


class Ratio(NamedTuple):
    """Median and quartiles of a ratio of paired times."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.low:.3g} to {self.high:.3g})"


def machine() -> str:
    """Describe processor, threads, load and versions in two lines, to be quoted with the numbers."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0] if names else platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    busy = "" if load < 0.5 else "   <- other work is running: do not quote these numbers"
    return (
        f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.2f}{busy}\n"
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, torch {torch.__version__}"
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def interleave(candidates: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 2) -> Times:
    """Return the seconds of every candidate in every repeat; the order rotates from repeat to repeat."""
    names = list(candidates)
    times: Times = {name: [] for name in names}
    for repeat in range(-warm_up, repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            candidates[name]()
            seconds = time.perf_counter() - start
            if repeat >= 0:
                times[name].append(seconds)
    return times


def milliseconds(times: Times, name: str) -> float:
    """Return the median time of a candidate."""
    return 1e3 * median(times[name])


def ratio(times: Times, above: str, below: str) -> Ratio:
    """Return the ratio of the times of `above` and `below`, paired by repeat."""
    low, middle, high = quantiles([a / b for a, b in zip(times[above], times[below], strict=True)], n=4)
    return Ratio(middle, low, high)
