"""Choose the metrics that can be computed for a run on this machine, and compute them."""

import logging
import pkgutil
from collections.abc import Sequence

from modalities.base import Dataset
from multisagd.libraries import BrokenLibraryError, check
from recipes.base.errors import RecipeError, nearest
from recipes.evaluation.metric_table import METRICS
from recipes.evaluation.task import EvaluateSettings, Result, Task

log = logging.getLogger("multisagd")


def choose_metrics(settings: EvaluateSettings, train: Dataset) -> tuple[list[str], dict[str, str]]:
    """Return the names of the metrics to compute, and the reasons why other requested metrics cannot be computed.

    Raises RecipeError if a metric does not exist, or was requested by name and cannot be computed.
    """
    requested = list(METRICS) if settings.metrics == "all" else list(dict.fromkeys(settings.metrics))
    for name in requested:
        if name not in METRICS:
            raise RecipeError(f"metrics: there is no metric {name!r}{nearest(name, METRICS)}")
    unavailable = {}
    for name in requested:
        metric = METRICS[name]
        reason = pkgutil.resolve_name(metric.unavailable_reason)(train, settings) if metric.unavailable_reason else None
        if reason is None and metric.library:
            try:
                # Checked here, before samples are drawn, which can take hours.
                check(metric.library, metric.description)
            except BrokenLibraryError as error:
                if settings.metrics == "all":
                    log.warning("%s will not be computed: %s", name, error)
                reason = str(error)
        if reason is not None:
            unavailable[name] = reason
    if settings.metrics != "all" and unavailable:
        name, reason = next(iter(unavailable.items()))
        raise RecipeError(f"metrics: {name} cannot be computed: {reason}")
    if not requested:
        raise RecipeError(f"metrics is empty: choose from {', '.join(METRICS)}, or set it to all")
    return [name for name in requested if name not in unavailable], unavailable


def compute_metrics(task: Task, names: Sequence[str], unavailable: dict[str, str]) -> dict[str, Result]:
    """Compute the named metrics, and return their results.

    A failed metric is added to `unavailable`, or raises RecipeError if it was requested by name.
    """
    results: dict[str, Result] = {}
    for number, name in enumerate(names, start=1):
        figure_count = len(task.figures)
        print(f"[{number}/{len(names)}] {name}: {METRICS[name].description}", flush=True)
        try:
            results[name] = pkgutil.resolve_name(METRICS[name].compute)(task)
        except ValueError as error:
            if task.settings.metrics != "all":
                raise RecipeError(f"{name}: {error}") from error
            unavailable[name] = str(error)
            del task.figures[figure_count:]
    return results
