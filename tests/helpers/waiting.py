"""Waits until a training that runs as another process has written its first metrics."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_for_metrics(run_dir: Path, running: Callable[[], bool], seconds: float = 300) -> None:
    """Return once `metrics.jsonl` has a line; AssertionError if the process ends first, or takes too long."""
    metrics, deadline = run_dir / "metrics.jsonl", time.monotonic() + seconds
    while not (metrics.exists() and metrics.stat().st_size):
        assert running(), "training ended before its first step"
        assert time.monotonic() < deadline, f"no training step within {seconds} s"
        time.sleep(0.005)
