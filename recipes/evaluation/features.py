"""Kinds of metrics that compare feature vectors, or the data themselves along lines."""

from __future__ import annotations

from multisagd.metrics import frechet_distance
from multisagd.metrics.sliced import directions, project, sliced_distance
from recipes.evaluation.components import components
from recipes.evaluation.distances import feature_rows, spread
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import Task, flat


def classifier_features(task: Task) -> Result:
    """Compare features of the classifier trained on the run's data."""
    made, real = task.readings
    settings, record = task.settings, task.classifier[1]
    rows = feature_rows(made.features, real.features, task.sets, settings.splits, settings.bootstrap)
    details = {"classifier": record, "features": made.features.shape[1]}
    unseen = None if settings.reference_split == "test" else task.held_out_features()
    if unseen is None:
        return Result(rows, details)
    distance = frechet_distance(unseen, real.features[: task.sets.reference_count])
    note = f"classifier: as many held-out examples have a Fréchet distance of {distance:.4g}"
    return Result(rows, details | {"held_out": distance}, (note,))


def principal_components(task: Task) -> Result:
    """Compare the leading principal components of the data, which need no network."""
    sets, settings = task.sets, task.settings
    count = components(flat(sets.real[: sets.reference_count]))(flat(sets.samples[:1])).shape[1]
    rows = feature_rows(flat(sets.samples), flat(sets.real), sets, settings.splits, settings.bootstrap, fit=components)
    return Result(rows, {"components": count}, (f"components: the first {count}, each of unit variance in real data",))


def sliced(task: Task) -> Result:
    """Compare along random lines, in the scale of the data as tensors."""
    sets, settings = task.sets, task.settings
    lines = directions(sets.samples[0].numel(), settings.directions)
    made, real = project(sets.samples, lines), project(sets.real, lines)
    floors = [sliced_distance(real[other], real[one]) for one, other in task.halves]
    reference = real[: sets.reference_count]
    bootstrap = task.bootstrap(lambda a, b: sliced_distance(made[a], reference[b]))
    row = Row("Wasserstein distance", sliced_distance(made, reference), bootstrap, *spread(floors))
    return Result((row,), {"directions": settings.directions})
