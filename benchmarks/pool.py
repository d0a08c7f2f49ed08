"""Calls in several processes, for benchmarks that train many runs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from typing import Any


def processes(workers: int) -> Executor:
    """Return a pool of new processes, which do not inherit the threads of this one."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))


def completed(
    pool: Executor,
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    parallel: Callable[[], int],
) -> Iterator[tuple[int, Any]]:
    """Call `function` with each tuple of arguments, and yield its place and its result, or the exception it raised.

    Calls start in order, up to `parallel()` at a time, which is asked before each start: at 0, no more calls start.
    """
    waiting, running = list(enumerate(calls)), dict[Future[Any], int]()
    while waiting or running:
        while waiting and len(running) < parallel():
            place, arguments = waiting.pop(0)
            running[pool.submit(function, *arguments)] = place
        if not running:
            return
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            place = running.pop(future)
            error = future.exception()
            yield place, future.result() if error is None else error
