"""Judge ensembles, several samples of the same unknown, against what was observed: CRPS, spread, skill and ranks.

`members` are `(members, batch, …)` and `observed` is `(batch, …)` in the same units. Grid points that are False in a
bool `mask`, which broadcasts to `observed`, are ignored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SpreadSkill:
    """The root mean square spread of members about their mean, and the root mean square error of that mean.

    Both are in the unit of the data. `ratio` is 1 for an ensemble whose members and observation are drawn from the same
    distribution, below 1 for one that is too certain.
    """

    spread: float
    skill: float
    ratio: float


def crps(members: Tensor, observed: Tensor) -> Tensor:
    """Return the continuous ranked probability score at every point, float64 `(batch, …)`, in the unit of the data.

    It is `mean |x_i - y| - sum |x_i - x_j| / (2 m (m - 1))` over m members: the estimator without bias, whose
    expectation does not depend on m (Ferro, Quarterly Journal of the Royal Meteorological Society 140, 2014, eq. 7). So
    it may be negative at single points. Average it over points; smaller is better.

    Raises:
        ValueError: If there are fewer than two members, or shapes do not match.
    """
    members, observed = _checked(members, observed)
    count = len(members)
    # In increasing order, the sum over pairs is a weighted sum.
    rank = torch.arange(1, count + 1, dtype=torch.float64, device=members.device) * 2 - count - 1
    pairs = torch.einsum("m,m...->...", rank, members.sort(0).values)
    return (members - observed).abs().mean(0) - pairs / (count * (count - 1))


def spread_and_skill(members: Tensor, observed: Tensor, mask: Tensor | None = None) -> SpreadSkill:
    """Return the spread and skill of an ensemble over all items and points, and their ratio.

    The spread is the root of the mean unbiased variance. In the ratio it is multiplied by sqrt((m + 1) / m), because
    the mean of m members has an error of its own (Fortin et al., Journal of Hydrometeorology 15, 2014, eq. 15).

    Raises:
        ValueError: If there are fewer than two members, shapes do not match, or all points are masked.
    """
    sums = skill_sums(members, observed, mask).sum(0)
    if not sums[0]:
        raise ValueError("there are no points to compare: all are masked")
    return spread_skill(sums, len(members))


def skill_sums(members: Tensor, observed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return sums over the points of every item, float64 `(batch, 3)`, from which `spread_skill` follows.

    They are the number of points, and the sums of the variance of members and of the squared error of their mean, in
    the squared unit of the data. Sums over items are the sums of all of them.

    Raises:
        ValueError: If there are fewer than two members, or shapes do not match.
    """
    members, observed = _checked(members, observed)
    kept = torch.ones_like(observed) if mask is None else mask.expand_as(observed).to(observed.dtype)
    terms = kept, members.var(0).where(kept > 0, 0.0), (members.mean(0) - observed).square().where(kept > 0, 0.0)
    return torch.stack([each.reshape(len(observed), -1).sum(1) for each in terms], dim=1)


def spread_skill(sums: Tensor, members: int) -> SpreadSkill:
    """Return the spread, skill and ratio that follow from the sums `(3,)` of `skill_sums` for this number of members.

    All are scalars, spread and skill in the unit of the data, and NaN if no point was summed.
    """
    spread, skill = (float(each) for each in (sums[1:] / sums[0]).sqrt())
    return SpreadSkill(spread, skill, ((members + 1) / members) ** 0.5 * spread / skill if skill else float("nan"))


def rank_histogram(members: Tensor, observed: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return how often the observation has each rank among the members, float64 fractions `(members + 1,)`.

    Equal values share the ranks evenly. It is flat if members and observation are drawn from the same distribution, and
    high at both ends if the ensemble is too certain (Hamill, Monthly Weather Review 129, 2001).

    Raises:
        ValueError: If there are fewer than two members, shapes do not match, or all points are masked.
    """
    members, observed = _checked(members, observed)
    low, equal = (members < observed).sum(0), (members == observed).sum(0)
    if mask is not None:
        kept = mask.expand_as(observed)
        low, equal = low[kept], equal[kept]
    if not low.numel():
        raise ValueError("there are no points to compare: all are masked")
    histogram = torch.zeros(len(members) + 1, dtype=torch.float64)
    for ties in equal.unique().tolist():
        counts = torch.bincount(low[equal == ties].flatten().cpu(), minlength=len(histogram)).double()
        for shift in range(ties + 1):
            histogram[shift:] += counts[: len(histogram) - shift] / (ties + 1)
    return histogram / histogram.sum()


def _checked(members: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    if members.ndim < 2 or len(members) < 2 or members.shape[1:] != observed.shape:
        shapes = f"{tuple(members.shape)} and {tuple(observed.shape)}"
        raise ValueError(
            f"expected at least two members (members, batch, …) and observations (batch, …) of the same shape, got "
            f"{shapes}"
        )
    return members.double(), observed.double()
