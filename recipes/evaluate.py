"""Judge a run's samples against its data: `multisagd evaluate …`, the same as `python -m recipes.evaluate …`.

What it does, in order: draw samples on all processes there are, unless these settings have drawn them before; read as
many real training examples of the same classes, twice; compute every kind of metric that can be (or those of
`metrics=[…]`), of the samples against one half of the real examples and of the other half against it. Everything is
judged as the files that a person would look at. Left beside the samples:

    evaluate.json             every number, with its uncertainty and its floor, and what could not be computed
    evaluate_spectra.png      power over the radius and along every axis, and its ratio to the data in dB
    evaluate_bands.png        how well samples are told from data by one band of frequency
    evaluate_classes.png      which classes samples are seen as
    evaluate_neighbours.png   the samples nearest to a training example, each followed by it

Errors, each in one message: no run there, metrics that do not exist or cannot be computed here though asked for by
name, samples of another shape, not finite or too few, weights of networks that hold anything but tensors.
"""

from __future__ import annotations

import json
import logging
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from modalities.base import Dataset
from multisagd.files import read_json
from multisagd.libraries import BrokenLibraryError, check
from recipes.base.untrusted import check_own
from recipes.engine.addressed import shareable
from recipes.engine.build import Builder
from recipes.engine.command import run_configured
from recipes.engine.config import Config
from recipes.engine.errors import RecipeError, nearest
from recipes.engine.files import as_stored, write_text
from recipes.engine.progress import Display
from recipes.engine.runtime import EngineSettings, Runtime
from recipes.engine.settings import SampleSettings
from recipes.evaluation.metric_table import METRICS
from recipes.evaluation.rows import Result, described, show
from recipes.evaluation.sets import Sets, as_files, gather
from recipes.evaluation.task import EvaluateSettings, Task
from recipes.fidelity import find_or_draw, load_samples, real_data
from recipes.runs import record
from recipes.runs.model import open_model
from recipes.sample import chosen_prompts, designed_steps, folder_name

REPORT = "evaluate.json"
log = logging.getLogger("multisagd")


def evaluate(config: Config) -> dict[str, Any]:
    """Judge samples as the configuration says; return what is also in evaluate.json.

    Raises:
        RecipeError: for the mistakes listed at the head of this file.
    """
    builder = Builder(tuple(config["allow_targets"]))
    own = {field.name for field in fields(EvaluateSettings)}
    settings = builder.settings(EvaluateSettings, {key: config[key] for key in own}, "")
    runtime = Runtime.start(builder.settings(EngineSettings, config["engine"], "engine"))
    train, test = real_data(settings.run_dir, builder, settings.data)
    wanted, unavailable = choose(settings, train)
    path = find_or_draw(settings.samples_from or already_drawn(config, builder), config, runtime)
    if path is None:
        return {}
    if settings.run_dir in path.parents:
        check_own(path.parent, settings.run_dir)  # a run from elsewhere

    x0, labels = load_samples(path, train)
    if settings.samples_from is not None:
        x0, labels = x0[: settings.samples], None if labels is None else labels[: settings.samples]
    with Display("reading samples", len(x0)) as display:
        seen = as_files(train.modality, x0, display.update)
    sets = gather(train, seen, labels)
    task = Task(settings, runtime, train, test, sets, path.parent)
    results: dict[str, Result] = {}
    for number, name in enumerate(wanted, start=1):
        drawn = len(task.pictures)
        print(f"[{number}/{len(wanted)}] {name}: {METRICS[name].about}", flush=True)
        try:
            results[name] = pkgutil.resolve_name(METRICS[name].compute)(task)
        except ValueError as error:
            if settings.metrics != "all":
                raise RecipeError(f"{name}: {error}") from error
            unavailable[name] = str(error)
            del task.pictures[drawn:]

    report = {
        "samples": str(path),
        "counts": {"asked": sets.asked, "compared": sets.count, "real": 2 * sets.count},
        "unavailable": unavailable,
        "pictures": task.pictures,
        "results": described(results),
        "settings": shareable({key: value for key, value in config.items() if key in own}),
        "versions": record.versions(),
    }
    kept = path.with_name(REPORT)
    write_text(kept, json.dumps(report, indent=1, ensure_ascii=False))
    title = f"{sets.count:,} samples against {sets.count:,} real examples, and those against {sets.count:,} others"
    notes = remarks(sets, results, unavailable, settings)
    if train.unreadable:
        named = "; ".join(f"{name} ({reason})" for name, reason in list(train.unreadable.items())[:5])
        notes.append(f"note: {len(train.unreadable)} files could not be read, and others took their places: {named}")
    show(title, results, notes)
    print(f"also in {kept}, with {', '.join(task.pictures) or 'no pictures'} beside it")
    return as_stored(report)


def choose(settings: EvaluateSettings, train: Dataset) -> tuple[list[str], dict[str, str]]:
    """Return the kinds of metrics to compute, and those that cannot be with the reason.

    Raises:
        RecipeError: for one that does not exist, or that was asked for by name and cannot be computed.
    """
    asked = list(METRICS) if settings.metrics == "all" else list(dict.fromkeys(settings.metrics))
    for name in asked:
        if name not in METRICS:
            raise RecipeError(f"metrics: there is no {name!r}{nearest(name, METRICS)}")
    lacking = {name: METRICS[name].lacking for name in asked if METRICS[name].lacking}
    reasons = {name: pkgutil.resolve_name(function)(train, settings) for name, function in lacking.items()}
    unavailable = {name: reason for name, reason in reasons.items() if reason is not None}
    for name in asked:
        if name not in unavailable and (library := METRICS[name].library):
            try:
                check(library, METRICS[name].about)
            except BrokenLibraryError as error:
                # At once, and not after hours of drawing samples.
                log.warning("%s will not be computed: %s", name, error)
                unavailable[name] = str(error)
    if settings.metrics != "all" and unavailable:
        name, reason = next(iter(unavailable.items()))
        raise RecipeError(f"metrics: {name} cannot be computed: {reason}")
    wanted = [name for name in asked if name not in unavailable]
    if not wanted:
        raise RecipeError(f"metrics is empty: name some of {', '.join(METRICS)}, or all")
    return wanted, unavailable


def already_drawn(config: Config, builder: Builder) -> Path | None:
    """Return the folder in which `multisagd sample` with these settings has left its samples, None if it has not.

    Raises:
        RecipeError: as that command does, for settings that are wrong.
    """
    sampling = {field.name: config[field.name] for field in fields(SampleSettings)}
    settings = builder.settings(SampleSettings, sampling, "")
    model = open_model(settings.run_dir, builder, settings.data, settings.checkpoint)
    assembly = model.assembly(builder)
    seen = model.weights(settings.weights, assembly.check_outline).samples
    prompts = chosen_prompts(settings, model.facts.get("text") is not None)
    designed, _ = designed_steps(settings.steps_file, assembly.process())
    folder = settings.out or settings.run_dir / "sampled" / folder_name(sampling, seen, prompts, designed)
    try:
        made = read_json(folder / "sample.json", finite=False)
    except (OSError, ValueError):
        return None
    # A folder of the user's own choice may hold samples of other settings; by default its name is that of the settings.
    same = isinstance(made, dict) and made.get("samples_seen") == seen
    same = same and (settings.out is None or made.get("settings") == as_stored(shareable(sampling)))
    return folder if same and (folder / "samples.safetensors").is_file() else None


def remarks(
    sets: Sets, results: dict[str, Result], unavailable: dict[str, str], settings: EvaluateSettings
) -> list[str]:
    """Return what must be said beside the numbers: uncertainty, bias, fewer items than asked for, what is missing."""
    lines = [
        f"± of samples is a standard error (bootstrap, {settings.bootstrap} resamples, or of independent items); ± of "
        f"real data is over {settings.splits} divisions into halves.",
        "Bias: at finite counts Fréchet and sliced distances and root mean square errors are too large, and precision, "
        f"recall and coverage too small, by what the column of real data shows at {sets.count:,}; shares in other "
        "classes are too large. KID and errors of one band have none. Compare only numbers of equal counts.",
    ]
    if sets.count < sets.asked:
        lines.append(
            f"note: {sets.asked:,} samples are there, and {sets.count:,} were compared: of every class no more than "
            "half of its training examples"
        )
    lines += [f"note: {note}" for result in results.values() for note in result.notes]
    return lines + [f"not computed: {name} ({METRICS[name].about}): {reason}" for name, reason in unavailable.items()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return run_configured("evaluate", arguments, evaluate)


if __name__ == "__main__":
    sys.exit(main())
