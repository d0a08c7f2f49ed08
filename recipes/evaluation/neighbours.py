"""Find the nearest training examples of samples and of held-out data, to detect copies."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modalities.image import Image
from multisagd.metrics.bootstrap import bootstrap_error, mean_error
from multisagd.metrics.feature_network import read_samples
from multisagd.metrics.neighbours import NearestExamples, nearer_fraction, repetitions
from recipes.base.progress import Display
from recipes.evaluation.sets import BATCH, as_files, fixed_order
from recipes.evaluation.task import Result, Row, Task, as_vectors

PAIRS, FEW_PAIRS = 18, 4
"""Numbers of samples shown with their nearest example: for images, and for other media, which take more space."""


def neighbours(task: Task) -> Result:
    """Compare distances to the nearest training examples of samples and of held-out data, with equal class counts."""
    options, sets, modality = task.settings.neighbours, task.sets, task.modality
    indices = sets.scattered(options.items, "evaluate/neighbours")
    samples, labels = sets.samples[indices], None if sets.labels is None else sets.labels[indices]
    counts = [len(indices)] if labels is None else torch.bincount(labels, minlength=len(sets.sizes)).tolist()
    groups = task.read_held_out(counts)
    held_out = torch.cat(groups)
    if labels is not None:
        # Otherwise different classes would cause different distances, however good the samples are.
        matched = torch.cat([(labels == n).nonzero()[: len(group), 0] for n, group in enumerate(groups)]).sort().values
        samples = samples[matched]
    if len(held_out) < 2:
        raise ValueError(
            "there are fewer than 2 held-out examples from the samples' classes: remove neighbours from metrics"
        )
    views: dict[str, Callable[[Tensor], Tensor]] = {"data": as_vectors}
    if task.train.classes is not None:
        views["features"] = lambda x0: read_samples(task.classifier[0], x0).features
    items = torch.cat([samples, held_out])
    searches = {name: NearestExamples(view(items), 2) for name, view in views.items()}
    examples = fixed_order(task.train, options.examples)
    with Display("searching training examples", len(examples)) as display:
        for start in range(0, len(examples), BATCH):
            batch = as_files(modality, task.train.batch(examples[start : start + BATCH]).x0)
            for name, view in views.items():
                searches[name].add(view(batch))
            display.update(min(start + BATCH, len(examples)))

    rows: list[Row] = []
    for name, search in searches.items():
        ours, theirs = search.distances.double().split([len(samples), len(held_out)])
        rows += _rows(name, ours, theirs, task.settings.bootstrap)
    draw_pairs(task, samples, searches["data"], examples)
    notes = ["nearest neighbours: the column of real data shows held-out data"]
    if len(samples) < len(indices):
        notes.append(
            f"{len(samples):,} of {len(indices):,} samples were compared: in each class, at most as many as there are "
            "held-out examples"
        )
    if len(examples) < len(task.train):
        notes.append(f"{len(examples):,} of {len(task.train):,} training examples were searched (neighbours.examples)")
    details = {"counts": {"samples": len(samples), "held_out": len(held_out), "examples": len(examples)}}
    return Result(tuple(rows), details, tuple(notes))


def _rows(name: str, ours: Tensor, theirs: Tensor, resamples: int) -> list[Row]:
    """Return the rows for the distances `(items, 2)` of samples and of held-out data to their nearest examples."""
    near, usual = ours[:, 0], theirs[:, 0]
    pairs = bootstrap_error(
        lambda a, b: 100 * nearer_fraction(near[a], usual[b]), [len(near)], resamples, others=[len(usual)]
    )
    repeated, as_usual = (100 * repetitions(each).double() for each in (ours, theirs))
    return [
        Row(f"{name}: distance", float(near.mean()), mean_error(near), float(usual.mean()), mean_error(usual), None),
        Row(f"{name}: nearer than new", 100 * nearer_fraction(near, usual), pairs, ideal=50, unit="%"),
        Row(f"{name}: repetitions", float(repeated.mean()), mean_error(repeated),
            float(as_usual.mean()), mean_error(as_usual), None, "%"),
    ]  # fmt: skip


def draw_pairs(task: Task, samples: Tensor, search: NearestExamples, examples: Sequence[int]) -> None:
    """Save a grid of the samples that are relatively nearest to a training example, each followed by that example."""
    modality = task.modality
    ours = search.distances[: len(samples)]
    suspicion = ours[:, 0] / ours[:, -1].clamp(min=1e-12)
    order = suspicion.argsort()[: PAIRS if isinstance(modality, Image) else FEW_PAIRS].tolist()
    media = []
    for index in order:
        nearest = examples[int(search.indices[index, 0])]
        media += [modality.decode(samples[index]), modality.decode(task.train.batch([nearest]).x0[0])]
    modality.save_grid(media, task.figure_path("evaluate_neighbours.png"))
