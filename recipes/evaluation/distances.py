"""Distances between sets of feature vectors: Fréchet, KID, and the four numbers of fidelity and variety."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev

from torch import Tensor

from multisagd.metrics import frechet_distance
from multisagd.metrics.bootstrap import bootstrap_error, mean_error
from multisagd.metrics.kernel import kernel_distance
from multisagd.metrics.manifold import manifold
from recipes.evaluation.rows import Row
from recipes.evaluation.sets import Sets

WIDE, WIDE_RESAMPLES = 512, 10
"""From so many features on the Fréchet distance takes seconds, and its bootstrap no more resamples than this."""

Fit = Callable[[Tensor], Callable[[Tensor], Tensor]]
"""Makes what turns data into features, from the real half that serves as reference."""


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation, None for a single value."""
    return fmean(values), stdev(values) if len(values) > 1 else None


def feature_rows(
    made: Tensor, real: Tensor, sets: Sets, splits: int, resamples: int, prefix: str = "", fit: Fit | None = None
) -> tuple[Row, ...]:
    """Return the rows of features `(count, dimensions)` of samples, and `(reference_count + count, …)` of real ones.

    `fit` makes features out of these from the reference alone, anew for every split. KID and the four shares compare
    equal numbers, the Fréchet distance all that there are.
    """
    sizes, own, theirs = sets.alike()
    names = ("precision", "recall", "density", "coverage")
    frechet: list[float] = []
    kernel: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in names}
    for number in range(splits):
        one, other = sets.halves(number)
        reference, left = real[one], real[other]
        if fit is not None:
            features = fit(reference)
            reference, left = features(reference), features(left)
        frechet.append(frechet_distance(left, reference))
        kernel.append(kernel_distance(left[own], reference[theirs], sizes)[0])
        items = manifold(reference[theirs], left[own]) if len(own) > 5 else None
        for name in names if items is not None else ():
            shares[name].append(float(getattr(items, name).mean()))

    reference, ours = real[: sets.reference_count], made
    if fit is not None:
        features = fit(reference)
        reference, ours = features(reference), features(ours)
    wide = ours.shape[1] >= WIDE
    error = bootstrap_error(
        lambda a, b: frechet_distance(ours[a], reference[b]), sets.sizes,
        min(resamples, WIDE_RESAMPLES) if wide else resamples, sets.references,
    )  # fmt: skip
    kid, kid_error = kernel_distance(ours[own], reference[theirs], sizes)
    rows = [
        Row(f"{prefix}Fréchet distance", frechet_distance(ours, reference), error, *spread(frechet)),
        Row(f"{prefix}KID", kid, kid_error, *spread(kernel)),
    ]
    if len(own) > 5:
        items = manifold(reference[theirs], ours[own])
        for name in names:
            each = getattr(items, name)
            rows.append(Row(f"{prefix}{name}", float(each.mean()), mean_error(each), *spread(shares[name]), ideal=1.0))
    return tuple(rows)
