"""Compute the Fréchet distance of two sets of feature vectors, and choose how many items of each group to compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Return the Fréchet distance (squared Wasserstein-2 distance) between Gaussians fitted to two sets of features.

    `|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` (1706.08500, eq. 6), in float64 and with unbiased covariances S.
    Features are `(count_a, dimensions)` and `(count_b, dimensions)`; the result has their unit squared.

    The trace of the root is the sum of the singular values of `R_a R_b^T`, where `S = R^T R` comes from a QR
    decomposition of the centred features. No matrix root is taken, so singular covariances lose no digits.

    Raises:
        ValueError: If the features do not match or are not finite, or a set has fewer than two items.
    """
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"expected two sets of features (count, dimensions) of equal dimensions, got {shapes}")
    (mean_a, root_a), (mean_b, root_b) = _moments(features_a), _moments(features_b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    # Rounding can make the distance of equal sets slightly negative.
    return float(distance.clamp(min=0.0))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean `(dimensions,)` and a root R of the covariance, `S = R^T R`, both float64."""
    count = len(features)
    if count < 2:
        raise ValueError(f"estimating a covariance requires at least 2 feature vectors, got {count}")
    values = features.double()
    if not values.isfinite().all():
        broken = int((~values.isfinite()).any(dim=1).sum())
        raise ValueError(f"{broken} of {count} feature vectors are not finite: check the samples that they come from")
    mean = values.mean(dim=0)
    return mean, torch.linalg.qr((values - mean) / (count - 1) ** 0.5, mode="r").R


def take(groups: Sequence[Tensor], counts: Sequence[int], skip: Sequence[int] | None = None) -> Tensor:
    """Take `counts` rows of each group `(items, features)` after the first `skip`: `(sum(counts), features)`."""
    starts = [0] * len(groups) if skip is None else skip
    return torch.cat([group[i : i + n] for group, i, n in zip(groups, starts, counts, strict=True)])


def matched_counts(requested: Sequence[int], available: Sequence[int], reference: int) -> tuple[list[int], list[int]]:
    """Return how many samples and how many real examples to compare in each group, in the proportions of `requested`.

    These are all samples and `reference` real examples in total, if the reference and the additional real sets that
    measure the metric's noise floor can be drawn from `available` without overlap. Otherwise the reference is reduced
    to the number of samples, and then both numbers are reduced.
    """
    real_per_sample = min(
        (have / count for count, have in zip(requested, available, strict=True) if count), default=0.0
    )
    reference_per_sample = reference / max(1, sum(requested))
    fraction = min(1.0, max(real_per_sample / 2, real_per_sample - reference_per_sample))
    reference_fraction = min(reference_per_sample, max(real_per_sample / 2, real_per_sample - 1))
    return [int(fraction * count) for count in requested], [int(reference_fraction * count) for count in requested]
