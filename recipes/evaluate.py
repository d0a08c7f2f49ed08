"""Judge a run's samples against its data: `multisagd evaluate …`.

In order: draw samples on all processes, unless these settings have drawn them before; read real examples of the same
classes, a reference and as many others as samples; compute every metric that can be (or those of `metrics=[…]`), of the
samples against the reference and of the others against it. All are judged as files. Left next to the samples:

    evaluate.json             `scores`, the few numbers that say most; every number with its uncertainty and its floor,
                              and what could not be computed
    evaluate_spectra.png      power over the radius and along every axis, and its ratio to the data in dB
    evaluate_bands.png        how well samples are told from data by one band of frequency
    evaluate_classes.png      which classes samples are seen as
    evaluate_neighbours.png   the samples nearest to a training example, each followed by it

Errors, each in one message: no run there, metrics that do not exist or cannot be computed here though asked for by
name, samples of another shape, not finite or too few, weights of networks that hold anything but tensors.
"""

import json
import logging
import pkgutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from modalities.base import Dataset
from multisagd.libraries import BrokenLibraryError, check
from recipes.base.errors import RecipeError, nearest
from recipes.base.files import as_stored, write_text
from recipes.base.progress import Display
from recipes.base.untrusted import check_own
from recipes.cli.command import command
from recipes.config.addresses import shareable
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.dataset import NOTHING_HELD_OUT
from recipes.evaluation.metric_table import METRICS
from recipes.evaluation.sets import as_files, gather, load_samples, real_data
from recipes.evaluation.task import EvaluateSettings, Result, Task, scores, show
from recipes.runs.run import versions
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import leave
from recipes.sample import sample
from recipes.sampling.sample_files import EVALUATION, TENSORS

WHOSE = {"run_dir", "data", "checkpoint", "weights"}
"""Settings of drawing that say whose weights are judged."""
log = logging.getLogger("multisagd")


def evaluate(config: Config) -> dict[str, Any]:
    """Judge samples as the configuration says; the first process returns what is also in evaluate.json.

    Raises:
        RecipeError: for the mistakes listed at the head of this file.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(EvaluateSettings, config, "")
    runtime = Runtime.start(settings.engine)
    train, test = real_data(settings.run_dir, builder, settings.data)
    wanted, unavailable = choose(settings, train)
    real = train if settings.reference_split == "train" else test
    if real is None:
        raise RecipeError(f"reference_split=test: {NOTHING_HELD_OUT}")

    # All processes draw a share.
    drawing = {field.name: config[field.name] for field in fields(SampleSettings)}
    judging = [field.name for field in fields(EvaluateSettings) if field.name not in drawing.keys() - WHOSE]
    path = settings.samples_from or sample(drawing, reuse=True)
    leave()  # only the first process goes on
    if not runtime.main:
        return {}
    path = path / TENSORS if path.is_dir() else path
    if settings.run_dir in path.parents:
        check_own(path.parent, settings.run_dir)  # a folder from elsewhere may hold links that lead out of it
    # Samples are read as a person would see them.
    x0, labels = load_samples(path, real, None if settings.samples_from is None else settings.samples)
    with Display("reading samples", len(x0)) as display:
        seen = as_files(real.modality, x0, display.update)
    sets = gather(real, seen, labels, settings.reference)
    task = Task(settings, runtime, train, test, sets, path.parent)
    results = compute(task, wanted, unavailable)
    report: dict[str, Any] = {
        "scores": scores(results) | {"count": sets.count, "reference_count": sets.reference_count},
        "counts": {"asked": sets.asked, "compared": sets.count, "reference": sets.reference_count,
                   "real": len(sets.real)},
        "unavailable": unavailable,
        "pictures": task.pictures,
        "results": {name: result.as_json() for name, result in results.items()},
        "samples": str(path),
        "settings": shareable({name: config[name] for name in judging}),
        "versions": versions(),
    }  # fmt: skip
    kept = path.with_name(EVALUATION)
    write_text(kept, json.dumps(report, indent=1, ensure_ascii=False))
    against = f"{sets.reference_count:,} real examples, and those against {sets.count:,} others"
    show(f"{sets.count:,} samples against {against}", results, remarks(task, results, unavailable))
    print(f"also in {kept}, with {', '.join(task.pictures) or 'no pictures'} beside it")
    stored: dict[str, Any] = as_stored(report)
    return stored


def compute(task: Task, wanted: Sequence[str], unavailable: dict[str, str]) -> dict[str, Result]:
    """Return what each metric finds; one that cannot be computed is `unavailable`, or if it was named a RecipeError."""
    results: dict[str, Result] = {}
    for number, name in enumerate(wanted, start=1):
        drawn = len(task.pictures)
        print(f"[{number}/{len(wanted)}] {name}: {METRICS[name].about}", flush=True)
        try:
            results[name] = pkgutil.resolve_name(METRICS[name].compute)(task)
        except ValueError as error:
            if task.settings.metrics != "all":
                raise RecipeError(f"{name}: {error}") from error
            unavailable[name] = str(error)
            del task.pictures[drawn:]
    return results


def choose(settings: EvaluateSettings, train: Dataset) -> tuple[list[str], dict[str, str]]:
    """Return the kinds of metrics to compute, and those that cannot be with the reason.

    RecipeError for one that does not exist, or that was asked for by name and cannot be computed.
    """
    asked = list(METRICS) if settings.metrics == "all" else list(dict.fromkeys(settings.metrics))
    for name in asked:
        if name not in METRICS:
            raise RecipeError(f"metrics: there is no {name!r}{nearest(name, METRICS)}")
    unavailable = {}
    for name in asked:
        metric = METRICS[name]
        reason = pkgutil.resolve_name(metric.lacking)(train, settings) if metric.lacking else None
        if reason is None and metric.library:
            try:
                # Checked here, before samples are drawn, which can take hours.
                check(metric.library, metric.about)
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


def remarks(task: Task, results: Mapping[str, Result], unavailable: Mapping[str, str]) -> list[str]:
    """Return what must be said next to the numbers: uncertainty, bias, fewer items than asked for, what is missing."""
    sets, settings = task.sets, task.settings
    unreadable = {**task.train.unreadable, **(task.test.unreadable if task.test is not None else {})}
    lines = [
        f"± of samples is a standard error (bootstrap, {settings.bootstrap} resamples, or of independent items); ± of "
        f"real data is over {settings.splits} divisions into halves.",
        "Bias: at finite counts Fréchet and sliced distances and root mean square errors are too large, and precision, "
        f"recall and coverage too small, by what the column of real data shows at {sets.count:,}; shares in other "
        "classes are too large. KID and errors of one band have none. Compare only numbers of equal counts.",
    ]
    if sets.count < sets.asked:
        lines.append(
            f"note: {sets.asked:,} samples are there, and {sets.count:,} were compared: there are too few real "
            "examples of their classes for more"
        )
    lines += [f"note: {note}" for result in results.values() for note in result.notes]
    if unreadable:
        named = "; ".join(f"{name} ({reason})" for name, reason in list(unreadable.items())[:5])
        lines.append(f"note: {len(unreadable)} files could not be read, and others took their places: {named}")
    return lines + [f"not computed: {name} ({METRICS[name].about}): {reason}" for name, reason in unavailable.items()]


main = command("evaluate", evaluate)

if __name__ == "__main__":
    sys.exit(main())
