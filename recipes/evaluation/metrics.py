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
    """Return the metrics to compute, and those that cannot be computed, with the reason.

    Raises RecipeError for a metric that does not exist, or was requested by name and cannot be computed.
    """
    asked = list(METRICS) if settings.metrics == "all" else list(dict.fromkeys(settings.metrics))
    for name in asked:
        if name not in METRICS:
            raise RecipeError(f"metrics: there is no {name!r}{nearest(name, METRICS)}")
    unavailable = {}
    for name in asked:
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
    if not asked:
        raise RecipeError(f"metrics is empty: name some of {', '.join(METRICS)}, or all")
    return [name for name in asked if name not in unavailable], unavailable


def compute_metrics(task: Task, wanted: Sequence[str], unavailable: dict[str, str]) -> dict[str, Result]:
    """Return the results of metrics.

    A failed metric is added to `unavailable`, or raises RecipeError if it was requested by name.
    """
    results: dict[str, Result] = {}
    for number, name in enumerate(wanted, start=1):
        drawn = len(task.figures)
        print(f"[{number}/{len(wanted)}] {name}: {METRICS[name].description}", flush=True)
        try:
            results[name] = pkgutil.resolve_name(METRICS[name].compute)(task)
        except ValueError as error:
            if task.settings.metrics != "all":
                raise RecipeError(f"{name}: {error}") from error
            unavailable[name] = str(error)
            del task.figures[drawn:]
    return results
