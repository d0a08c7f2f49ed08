"""Distances between two sets of feature vectors, and what the same distance is between real data and itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Fréchet distance (the squared Wasserstein-2 distance) between Gaussians fitted to two sets of features.

    `|m_a - m_b|² + tr(S_a + S_b - 2 (S_a S_b)^(1/2))` (1706.08500, eq. 6), in float64 and with unbiased covariances S.
    Features are `(count_a, dimensions)` and `(count_b, dimensions)`; the result has their unit squared.

    The trace of the root is the sum of the singular values of `R_a R_b^T`, where `S = R^T R` comes from a QR
    decomposition of the centred features: no matrix root is taken, so singular covariances lose no digits.

    Raises:
        ValueError: if the features do not match, are not finite, or are fewer than two.
    """
    if features_a.ndim != 2 or features_b.ndim != 2 or features_a.shape[1] != features_b.shape[1]:
        shapes = f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        raise ValueError(f"expected two sets of features (count, dimensions) of equal dimensions, got {shapes}")
    (mean_a, root_a), (mean_b, root_b) = _moments(features_a), _moments(features_b)
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    # Rounding can take the distance of equal sets a hair below zero.
    return float(distance.clamp(min=0.0))


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(dimensions,)` and a root R of the covariance, `S = R^T R`, both float64."""
    count = len(features)
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 feature vectors, got {count}")
    values = features.double()
    if not values.isfinite().all():
        broken = int((~values.isfinite()).any(dim=1).sum())
        raise ValueError(f"{broken} of {count} feature vectors are not finite: look at the samples they come from")
    mean = values.mean(dim=0)
    return mean, torch.linalg.qr((values - mean) / (count - 1) ** 0.5, mode="r").R


@dataclass(frozen=True)
class NoiseFloor:
    """Fréchet distance of real data to real data, over several random splits."""

    mean: float
    std: float
    count: int
    reference_count: int
    splits: int


def noise_floor(
    real: Tensor, count: int, reference_count: int | None = None, splits: int = 8, seed: int = 0
) -> NoiseFloor:
    """Distance between `count` and `reference_count` other real features `(total, dimensions)`, drawn anew per split.

    A perfect generator scores this, not zero: the distance of finite samples is biased upwards by an amount that
    depends on both counts, so they must be those of the comparison it is printed beside. `reference_count` is `count`
    when left out.

    Raises:
        ValueError: if there are too few real features for two disjoint sets.
    """
    reference_count = count if reference_count is None else reference_count
    if count + reference_count > len(real):
        raise ValueError(
            f"{count} + {reference_count} disjoint features were asked for and {len(real)} real ones are there: "
            "lower the counts"
        )
    if splits < 2:
        raise ValueError(f"a spread needs at least 2 splits, got {splits}")
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(splits):
        order = torch.randperm(len(real), generator=generator)
        chosen, reference = order[:count], order[count : count + reference_count]
        distances.append(frechet_distance(real[chosen], real[reference]))
    values = torch.tensor(distances, dtype=torch.float64)
    return NoiseFloor(float(values.mean()), float(values.std()), count, reference_count, splits)
