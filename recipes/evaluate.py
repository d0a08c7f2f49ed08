"""Evaluate a run's samples against its data: `multisagd evaluate …`, the same as `python -m recipes.evaluate …`.

The steps, each with the file that implements it (in recipes/):

    open the run's data, and choose the metrics that can be computed      evaluation/sets.py, evaluation/metrics.py
    draw samples in all processes, with the dense conditions of held-out
    examples if the run has some, unless they exist already or
    `samples_from` names others                                           sample.py
    round the samples as if they had been saved to files                  evaluation/sets.py
    gather real examples of the same classes: a reference, and as many
    others as there are samples                                           evaluation/sets.py
    compute each metric twice: samples against the reference, and the
    others against it, which is the noise floor of real data              evaluation/metrics.py, metric_table.py
    write the numbers next to the samples, and show them as a table       evaluation/task.py

Outputs, next to the samples:

    evaluate.json             `scores`, the most informative numbers; every number with uncertainty and noise floor;
                              metrics that could not be computed; `checkpoint`, the number of samples seen at it
    evaluate_spectra.png      power, radially averaged and along every axis, and its ratio to the data in dB
    evaluate_bands.png        accuracy with which samples can be distinguished from data by a single frequency band
    evaluate_classes.png      the classes that a classifier assigns to the samples
    evaluate_rings.png, evaluate_distribution.png, evaluate_increments.png, evaluate_coherence.png
                              for fields: power, values, structure functions and correlation of every variable
    evaluate_neighbours.png   the samples nearest to a training example, each followed by that example

Errors, each reported in one message: a missing run, metrics requested by name that do not exist or cannot be computed
here, reference_split=test without held-out data, samples that have the wrong shape, are not finite or are too few,
weight files that contain anything other than tensors.
"""

import json
import sys
from dataclasses import fields
from typing import Any

from recipes.base.errors import RecipeError
from recipes.base.files import as_stored, write_text
from recipes.base.progress import Display
from recipes.base.untrusted import check_own
from recipes.cli.command import command
from recipes.config.addresses import shareable
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.data.parts import NOTHING_HELD_OUT
from recipes.evaluation.metrics import choose_metrics, compute_metrics
from recipes.evaluation.sets import as_files, check_enough, gather, load_samples, real_data
from recipes.evaluation.task import EvaluateSettings, Task, remarks, scores, show
from recipes.runs.run import Run, dense_channels, versions
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import leave
from recipes.sample import sample
from recipes.sampling.held_out import HELD_OUT
from recipes.sampling.sample_files import EVALUATION, TENSORS, samples_seen

MODEL_SETTINGS = {"run_dir", "data", "checkpoint", "weights", "ema"}
"""Settings of `sample` that identify the evaluated model; the record omits the other sampling settings."""


def evaluate(config: Config) -> dict[str, Any]:
    """Evaluate samples as configured; return the contents of evaluate.json, or an empty dictionary in other processes.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(EvaluateSettings, config, "")
    runtime = Runtime.start(settings.engine)
    train, test = real_data(
        settings.run_dir, builder, settings.data, sizes=settings.sizes, reference_root=settings.reference_root
    )
    metrics, unavailable = choose_metrics(settings, train)
    real = test if settings.uses_test_data else train
    if real is None:
        raise RecipeError(f"reference_split=test: {NOTHING_HELD_OUT}, or set reference_root to a folder of test data")
    check_enough(real)

    sampling = {field.name: config[field.name] for field in fields(SampleSettings)}
    if settings.condition is None and dense_channels(Run(settings.run_dir).noted_metadata) is not None:
        sampling["condition"] = HELD_OUT
    recorded = [field.name for field in fields(EvaluateSettings) if field.name not in sampling.keys() - MODEL_SETTINGS]
    path = settings.samples_from or sample(sampling, reuse=True)  # in all processes
    leave()  # only the first process continues
    if not runtime.main:
        return {}
    path = path / TENSORS if path.is_dir() else path
    if settings.run_dir in path.parents:
        check_own(path.parent, settings.run_dir)  # someone else's run may contain symbolic links that point outside it
    seen = samples_seen(path.parent)
    x0, labels = load_samples(path, real, None if settings.samples_from is None else settings.samples)
    with Display("reading samples", len(x0)) as display:
        rounded = as_files(real.modality, x0, display.update)
    sets = gather(real, rounded, labels, settings.reference)
    task = Task(settings, runtime, train, test, sets, path.parent)
    results = compute_metrics(task, metrics, unavailable)
    report: dict[str, Any] = {
        "scores": scores(results) | {"count": sets.count, "reference_count": sets.reference_count},
        "counts": {"asked": sets.requested, "compared": sets.count, "reference": sets.reference_count,
                   "real": len(sets.real)},
        "unavailable": unavailable,
        "figures": task.figures,
        "results": {name: result.as_json() for name, result in results.items()},
        "samples": str(path),
        "checkpoint": seen,
        "settings": shareable({name: config[name] for name in recorded}),
        "versions": versions(),
    }  # fmt: skip
    out = path.with_name(EVALUATION)
    write_text(out, json.dumps(report, indent=1, ensure_ascii=False))
    against = f"{sets.reference_count:,} real examples, and real examples against {sets.count:,} others"
    show(f"{sets.count:,} samples against {against}", results, remarks(task, results, unavailable))
    if seen is not None:
        print(f"the samples are from the checkpoint after {seen:,} samples seen")
    print(f"the results are also in {out}, with {', '.join(task.figures) or 'no figures'} next to it")
    stored: dict[str, Any] = as_stored(report)
    return stored


main = command("evaluate", evaluate)

if __name__ == "__main__":
    sys.exit(main())
