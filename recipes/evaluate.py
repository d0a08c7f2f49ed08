"""Evaluate a run's samples against its data: `multisagd evaluate …`, the same as `python -m recipes.evaluate …`.

The steps, each with the file that implements it (in recipes/):

    open the run's data, and choose the metrics that can be computed      evaluation/sets.py, evaluation/metrics.py
    draw samples in all processes, with the dense conditions of held-out
    examples if the run has some, unless they exist already or
    `samples_from` names others; for ensembles, several for each of some
    held-out examples                                                     sample.py
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
    evaluate_ensemble.png, evaluate_ensemble_scores.png
                              for runs with a dense condition: samples next to the truth; power and ranks
    evaluate_neighbours.png   the samples nearest to a training example, each followed by that example

Errors, each reported in one message: a missing run, metrics requested by name that do not exist or cannot be computed
here, reference_split=test without held-out data, samples that have the wrong shape, are not finite or are too few,
weight files that contain anything other than tensors.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
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
from recipes.evaluation.metric_table import METRICS
from recipes.evaluation.metrics import choose_metrics, compute_metrics
from recipes.evaluation.sets import as_files, check_enough, gather, load_samples, only_samples, real_data
from recipes.evaluation.task import EvaluateSettings, Result, Task, remarks, scores, show
from recipes.runs.run import Run, dense_channels, versions
from recipes.runs.settings import SampleSettings
from recipes.runtime.device import Runtime
from recipes.runtime.distribution import leave
from recipes.sample import sample
from recipes.sampling.held_out import HELD_OUT
from recipes.sampling.sample_files import EVALUATION, TENSORS, samples_seen
from recipes.sampling.vocoder import VocoderOptions, vocoded

RECORDED = {"run_dir", "data", "checkpoint", "weights", "ema", "members", "vocoder", "vocoder_steps"}
"""Settings of `sample` in the record: those that identify the evaluated model and its vocoder, and count members."""
ENSEMBLES = "_ensembles"
"""What the name of the folder of samples for ensembles has after that of the folder `out` of the others."""


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
    if (options := VocoderOptions.of(settings, builder)) is not None:
        modality = vocoded(train.modality, options, builder, runtime)
        train, test = train.with_modality(modality), None if test is None else test.with_modality(modality)
    metrics, unavailable = choose_metrics(settings, train)
    real = test if settings.uses_test_data else train
    if real is None:
        raise RecipeError(f"reference_split=test: {NOTHING_HELD_OUT}, or set reference_root to a folder of test data")
    check_enough(real)

    of_sampling = {field.name for field in fields(SampleSettings)}
    recorded = [field.name for field in fields(EvaluateSettings) if field.name not in of_sampling - RECORDED]
    path, members = draw(settings, config, metrics)  # in all processes
    leave()  # only the first process continues
    if not runtime.main:
        return {}
    path = path / TENSORS if path.is_dir() else path
    if settings.run_dir in path.parents:
        check_own(path.parent, settings.run_dir)  # someone else's run may contain symbolic links that point outside it
    seen = samples_seen(path.parent)
    x0, labels = load_samples(path, real, None if settings.samples_from is None else settings.samples)
    if path.parent == members:
        sets = only_samples(x0, labels)  # no sets are compared, so no real examples are read
    else:
        with Display("reading samples", len(x0)) as display:
            rounded = as_files(real.modality, x0, display.update)
        sets = gather(real, rounded, labels, settings.reference)
    task = Task(settings, runtime, train, test, sets, path.parent, members)
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
    show(title(task, results), results, remarks(task, results, unavailable))
    if seen is not None:
        print(f"the samples are from the checkpoint after {seen:,} samples seen")
    print(f"the results are also in {out}, with {', '.join(task.figures) or 'no figures'} next to it")
    stored: dict[str, Any] = as_stored(report)
    return stored


def draw(settings: EvaluateSettings, config: Config, metrics: Sequence[str]) -> tuple[Path, Path | None]:
    """Draw samples unless they exist; return their folder or file, and the folder of samples for ensembles or None.

    If only ensembles are evaluated, there are no other samples.

    Raises:
        RecipeError: If samples cannot be drawn.
    """
    sampling = {field.name: config[field.name] for field in fields(SampleSettings)} | {"members": None}
    metadata, members = Run(settings.run_dir).noted_metadata, None
    if ensembles := [name for name in metrics if METRICS[name].ensembles]:
        conditions = min(settings.conditions, metadata.get("held_out", settings.conditions))
        same = {"condition": HELD_OUT, "members": settings.members, "count": conditions * (settings.members or 1)}
        alone = len(ensembles) == len(metrics)
        # Not in the folder of the others, which must be empty before they are written.
        out = settings.out if settings.out is None or alone else settings.out.parent / f"{settings.out.name}{ENSEMBLES}"
        members = sample(sampling | same | {"out": None if out is None else str(out)}, reuse=True)
        if alone:
            return members, members
    if settings.condition is None and dense_channels(metadata) is not None:
        sampling["condition"] = HELD_OUT
    return settings.samples_from or sample(sampling, reuse=True), members


def title(task: Task, results: Mapping[str, Result]) -> str:
    """Return the title of the table of results."""
    sets = task.sets
    if results and all(METRICS[name].ensembles for name in results):
        return "samples against the held-out examples whose conditions they were drawn with"
    against = f"{sets.reference_count:,} real examples, and real examples against {sets.count:,} others"
    return f"{sets.count:,} samples against {against}"


main = command("evaluate", evaluate)

if __name__ == "__main__":
    sys.exit(main())
