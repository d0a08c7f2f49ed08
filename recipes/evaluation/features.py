"""Metrics that compare feature vectors, predicted classes, or random projections of the data."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalities.base import Dataset
from multisagd.metrics import frechet_distance
from multisagd.metrics.bootstrap import bootstrap_error, mean_error
from multisagd.metrics.components import components
from multisagd.metrics.feature_network import read_samples
from multisagd.metrics.kernel import kernel_distance
from multisagd.metrics.manifold import manifold
from multisagd.metrics.sliced import directions, project, sliced_distance
from recipes.evaluation.task import RECOGNISED, EvaluateSettings, Result, Row, Task, as_vectors, mean_and_std

WIDE, WIDE_RESAMPLES = 512, 10
"""Number of features from which a Fréchet distance takes seconds, and the maximum number of resamples in that case."""

Fit = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""A function that is fitted to the reference half of the real data, and returns a function from data to features."""


def feature_rows(task: Task, made: Tensor, real: Tensor, prefix: str = "", fit: Fit | None = None) -> tuple[Row, ...]:
    """Return the rows for features of samples `(count, dimensions)` and of real items `(reference_count + count, …)`.

    The names of the rows begin with `prefix`. `fit`, if given, computes features from data for every split, fitted only
    to the reference. KID, precision, recall, density and coverage compare equal numbers of items; the Fréchet distance
    uses all items.
    """
    sets, resamples = task.sets, task.settings.bootstrap
    sizes, own, theirs = sets.alike()

    def fitted(reference: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        if fit is None:
            return reference, others
        features = fit(reference)
        return features(reference), features(others)

    def compared(reference: Tensor, others: Tensor) -> tuple[float, tuple[float, float | None], dict[str, Tensor]]:
        kernel = kernel_distance(others[own], reference[theirs], sizes)
        proportions = vars(manifold(reference[theirs], others[own])) if len(own) > 5 else {}
        return frechet_distance(others, reference), kernel, proportions

    floors = [compared(*fitted(real[one], real[other])) for one, other in task.halves]
    reference, ours = fitted(real[: sets.reference_count], made)
    distance, (kid, kid_error), proportions = compared(reference, ours)
    error = bootstrap_error(
        lambda a, b: frechet_distance(ours[a], reference[b]), sets.sizes,
        min(resamples, WIDE_RESAMPLES) if ours.shape[1] >= WIDE else resamples, sets.references,
    )  # fmt: skip
    rows = [
        Row(f"{prefix}Fréchet distance", distance, error, *mean_and_std([frechet for frechet, _, _ in floors])),
        Row(f"{prefix}KID", kid, kid_error, *mean_and_std([kernel for _, (kernel, _), _ in floors])),
    ]
    for name, items in proportions.items():
        floor = mean_and_std([float(each[name].mean()) for _, _, each in floors])
        rows.append(Row(f"{prefix}{name}", float(items.mean()), mean_error(items), *floor, ideal=1.0))
    return tuple(rows)


def classes_unavailable(train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why no classifier can be trained on the data, or None if one can be trained."""
    return "the data have no classes to train a classifier on" if train.classes is None else None


def classifier_features(task: Task) -> Result:
    """Compare features of the classifier trained on the run's data."""
    made, real = task.classifier_outputs
    network, record = task.classifier
    rows = feature_rows(task, made.features, real.features)
    details = {"classifier": record, "features": made.features.shape[1]}
    if task.settings.uses_test_data or task.test is None:
        return Result(rows, details)
    held_out = torch.cat(task.read_held_out(task.sets.sizes))
    if len(held_out) < task.sets.count:
        return Result(rows, details)
    reference = real.features[: task.sets.reference_count]
    distance = frechet_distance(read_samples(network, held_out).features, reference)
    note = f"classifier: the Fréchet distance of the same number of held-out examples is {distance:.4g}"
    return Result(rows, details | {"held_out": distance}, (note,))


def principal_components(task: Task) -> Result:
    """Compare samples with data by the data's leading principal components, which require no network."""
    sets = task.sets
    count = components(as_vectors(sets.real[: sets.reference_count]))(as_vectors(sets.samples[:1])).shape[1]
    rows = feature_rows(task, as_vectors(sets.samples), as_vectors(sets.real), fit=components)
    note = f"components: the first {count} components, each scaled to unit variance in the real data"
    return Result(rows, {"components": count}, (note,))


def sliced(task: Task) -> Result:
    """Compare random projections of samples and data, in the units of the tensors."""
    samples, count = task.sets.samples, task.settings.directions
    lines = directions(samples[0].numel(), count)
    row = task.row("Wasserstein distance", sliced_distance, project(samples, lines), project(task.sets.real, lines))
    return Result((row,), {"directions": count})


def classes(task: Task) -> Result:
    """Compare the predicted classes of samples with the requested classes, and their proportions with the data's."""
    made, real = task.classifier_outputs
    record, names, sets = task.classifier[1], task.train.classes or (), task.sets
    total = len(names)

    def proportions(predictions: Tensor) -> Tensor:
        return torch.bincount(predictions, minlength=total).double() / len(predictions)

    def total_variation(a: Tensor, b: Tensor) -> float:
        return float((proportions(a) - proportions(b)).abs().sum() / 2)

    rows = [task.row("fraction in other classes", total_variation, made.predictions, real.predictions, unit="%")]
    recognised, notes = None, []
    if made.labels is None:
        notes.append("samples were drawn without classes, so they have no accuracy")
    else:
        right = (made.predictions == made.labels).double()
        accuracy = record["accuracy"]
        floor_error = (accuracy * (1 - accuracy) / record["test_count"]) ** 0.5
        rows.insert(0, Row(RECOGNISED, 100 * float(right.mean()), mean_error(100 * right),
                           100 * accuracy, 100 * floor_error, ideal=None, unit="%"))  # fmt: skip
        recognised = [float(right[made.labels == n].mean()) if sets.sizes[n] else None for n in range(total)]
        if accuracy < 0.98:
            notes.append(
                f"the classifier recognises only {accuracy:.1%} of held-out data: compare the samples with this value"
            )
    seen, usual = proportions(made.predictions), proportions(real.predictions[: sets.reference_count])
    draw_classes(names, seen, usual, recognised, task.figure_path("evaluate_classes.png"))
    by_class = [
        {"name": name, "seen": float(seen[n]), "data": float(usual[n]),
         "recognised": None if recognised is None else recognised[n]}
        for n, name in enumerate(names)
    ]  # fmt: skip
    return Result(tuple(rows), {"classes": by_class}, tuple(notes))


def draw_classes(
    names: Sequence[str], seen: Tensor, real: Tensor, recognised: Sequence[float | None] | None, path: Path
) -> None:
    """Plot the fraction of items predicted as each class, `(classes,)`, and the fraction recognised as requested.

    In `recognised`, a class that was not requested has the value None; it gets no bar.
    """
    from matplotlib.figure import Figure  # the import takes a second, and only this metric draws

    from recipes.plotting.figures import REAL, SAMPLES, save

    rows = 1 if recognised is None else 2
    figure = Figure(figsize=(max(4.5, 0.5 * len(names) + 1.6), 2.6 * rows + 0.4), layout="constrained")
    plots = figure.subplots(rows, 1, squeeze=False, sharex=True)[:, 0]
    positions = np.arange(len(names))
    plots[0].bar(positions - 0.2, 100 * seen.numpy(), 0.4, color=SAMPLES, label="samples")
    plots[0].bar(positions + 0.2, 100 * real.numpy(), 0.4, color=REAL, label="data")
    plots[0].set(ylabel="predicted as this class, %")
    figure.legend(fontsize="small", loc="outside upper right", ncols=2)
    if recognised is not None:
        plots[1].bar(positions, [np.nan if each is None else 100 * each for each in recognised], 0.6, color=SAMPLES)
        plots[1].set(ylabel="recognised as\nrequested, %", ylim=(0, 102))
    turned = max(map(len, names)) > 3
    plots[-1].set_xticks(positions, list(names), rotation=45 if turned else 0, ha="right" if turned else "center")
    save(figure, path)
