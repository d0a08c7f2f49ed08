"""Samples beside their nearest training examples, and held-out data beside theirs: is anything repeated?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from modalities.image import Image
from recipes.engine.progress import Display
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.sets import BATCH, as_files
from recipes.evaluation.task import Task, flat
from recipes.fidelity import chosen
from recipes.metrics.bootstrap import bootstrap_error, mean_error
from recipes.metrics.neighbours import NearestExamples, repetitions, share_nearer

PAIRS, FEW_PAIRS = 18, 4
"""How many images are shown beside their nearest example, and of other media, whose pictures are larger."""


def neighbours(task: Task) -> Result:
    """Look up samples among the training examples, and held-out data likewise."""
    wanted, sets, modality = task.settings.neighbours, task.sets, task.modality
    samples = sets.samples[sets.scattered(wanted.items, "evaluate/neighbours")]
    unseen = as_files(modality, task.test.batch(chosen(task.test, len(samples))).x0)
    both = torch.cat([samples, unseen])
    searches = {"tensors": NearestExamples(flat(both), 2)}
    if (features := task.read_features(both)) is not None:
        searches["classifier features"] = NearestExamples(features, 2)
    examples = chosen(task.train, wanted.examples)
    with Display("searching training examples", len(examples)) as display:
        for start in range(0, len(examples), BATCH):
            batch = as_files(modality, task.train.batch(examples[start : start + BATCH]).x0)
            searches["tensors"].add(flat(batch))
            if (features := task.read_features(batch)) is not None:
                searches["classifier features"].add(features)
            display.update(min(start + BATCH, len(examples)))

    rows = []
    for name, search in searches.items():
        ours, theirs = search.distances.double().split([len(samples), len(unseen)])
        rows.append(Row(f"{name}: mean distance to the nearest", float(ours[:, 0].mean()), mean_error(ours[:, 0]),
                        float(theirs[:, 0].mean()), mean_error(theirs[:, 0]), ideal=None))  # fmt: skip
        pairs = bootstrap_error(
            lambda a, b, x=ours[:, 0], y=theirs[:, 0]: share_nearer(x[a % len(x)], y[b % len(y)]),  # type: ignore[misc]
            [max(len(ours), len(theirs))], task.settings.bootstrap,
        )  # fmt: skip
        nearer = share_nearer(ours[:, 0], theirs[:, 0])
        rows.append(Row(f"{name}: nearer than held-out data", 100 * nearer, None if pairs is None else 100 * pairs,
                        ideal=50, unit="% of pairs"))  # fmt: skip
        repeated, usual = repetitions(ours).double(), repetitions(theirs).double()
        rows.append(Row(f"{name}: repeat one example", 100 * float(repeated.mean()), 100 * mean_error(repeated),
                        100 * float(usual.mean()), 100 * mean_error(usual), ideal=None, unit="%"))  # fmt: skip
    draw_pairs(task, samples, searches["tensors"], examples)
    notes = ["of nearest neighbours, the column of real data shows held-out data"]
    if len(examples) < len(task.train):
        notes.append(f"searched were {len(examples):,} of {len(task.train):,} training examples (neighbours.examples)")
    counts = {"samples": len(samples), "held_out": len(unseen), "examples": len(examples)}
    return Result(tuple(rows), {"counts": counts}, tuple(notes))


def draw_pairs(task: Task, samples: Tensor, search: NearestExamples, examples: Sequence[int]) -> None:
    """Draw the samples that are relatively nearest to a training example, each followed by that example."""
    modality = task.modality
    ours = search.distances[: len(samples)]
    suspicion = ours[:, 0] / ours[:, -1].clamp(min=1e-12)
    order = suspicion.argsort()[: PAIRS if isinstance(modality, Image) else FEW_PAIRS].tolist()
    media = []
    for place in order:
        nearest = examples[int(search.places[place, 0])]
        media += [modality.decode(samples[place]), modality.decode(task.train.batch([nearest]).x0[0])]
    modality.save_grid(media, task.picture("evaluate_neighbours.png"))
