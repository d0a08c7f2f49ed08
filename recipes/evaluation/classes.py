"""Whether samples are of the classes that were asked for, and in the data's proportions."""

from __future__ import annotations

import torch
from torch import Tensor

from multisagd.metrics.bootstrap import mean_error
from recipes.evaluation import plots
from recipes.evaluation.distances import spread
from recipes.evaluation.rows import RECOGNISED, Result, Row
from recipes.evaluation.task import Task


def classes(task: Task) -> Result:
    """Tell whether conditional samples are what was asked for, and whether classes come in the data's proportions."""
    made, real = task.readings
    record, names, sets = task.classifier[1], task.train.classes or (), task.sets
    total = len(names)

    def shares(predictions: Tensor) -> Tensor:
        return torch.bincount(predictions, minlength=total).double() / len(predictions)

    def apart(a: Tensor, b: Tensor) -> float:
        return float((shares(a) - shares(b)).abs().sum() / 2)

    reference = real.predictions[: sets.reference_count]
    floors = [apart(real.predictions[b], real.predictions[a]) for a, b in task.halves]
    balance = task.bootstrap(lambda a, b: apart(made.predictions[a], reference[b]))
    rows = [
        Row("share in other classes", 100 * apart(made.predictions, reference),
            None if balance is None else 100 * balance, *spread([100 * floor for floor in floors]), unit="%")
    ]  # fmt: skip
    recognised, notes = None, []
    if made.labels is None:
        notes.append("samples were drawn without classes: there is no accuracy")
    else:
        right = (made.predictions == made.labels).double()
        accuracy = record["accuracy"]
        floor_error = (accuracy * (1 - accuracy) / record["test_count"]) ** 0.5
        rows.insert(0, Row(RECOGNISED, 100 * float(right.mean()), mean_error(100 * right),
                           100 * accuracy, 100 * floor_error, ideal=None, unit="%"))  # fmt: skip
        recognised = [float(right[made.labels == n].mean()) if sets.sizes[n] else None for n in range(total)]
        if accuracy < 0.98:
            notes.append(
                f"the classifier itself recognises {accuracy:.1%} of held-out data: read the accuracy of samples so"
            )
    seen = shares(made.predictions)
    plots.draw_classes(names, seen, shares(reference), recognised, task.picture("evaluate_classes.png"))
    by_class = [
        {"name": name, "seen": float(seen[n]), "data": float(shares(reference)[n]),
         "recognised": None if recognised is None else recognised[n]}
        for n, name in enumerate(names)
    ]  # fmt: skip
    return Result(tuple(rows), {"classes": by_class}, tuple(notes))
