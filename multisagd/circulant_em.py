"""Estimate the mean and power of a partly observed stationary Gaussian process by expectation-maximisation.

The model is the same as for the noise: a circulant covariance, which the Fourier transform makes diagonal, with power
C(k), about a mean that may vary over the grid. The E step computes the mean and covariance of the missing samples given
the observed ones; the M step averages over items:

    mean ← average of E[x | seen]
    C(k) ← average of |F (E[x | seen] - mean)|²(k) + (F Cov[x | seen] F*)(k, k)

Every step increases the likelihood of the observed samples, and the power remains positive (Dempster, Laird and Rubin,
Journal of the Royal Statistical Society B 39, 1977). Pairs of steps are extrapolated while that increases the
likelihood (SQUAREM: Varadhan and Roland, Scandinavian Journal of Statistics 35, 2008). The mean is estimated too,
because plain averages, which include different items at each grid point, have errors larger than the weak part of a
steep spectrum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Minimum increase of the log-likelihood per round, in nats per frequency: far below sampling errors."""
MAX_ROUNDS = 200
MIN_RELATIVE_POWER = 1e-10
"""Smallest power, as a fraction of the largest: below it float64 cannot solve for the missing samples."""
AT_ONCE = 1 << 22
"""Maximum number of elements in any tensor of an EM step."""


@dataclass(frozen=True, eq=False)
class MaskGroup:
    """Items observed at the same grid points.

    `indices` (positions,) are indices into the flattened grid. `rows` (blocks, rows, 1 + positions) are real or
    complex. Each row contains a 1 followed by an item's observed samples; the rows may be replaced by fewer rows with
    the same Gram matrix `rowsᴴ rows`. `count` is the number of items.
    """

    indices: Tensor
    rows: Tensor
    count: int


Stack = tuple[Tensor, Tensor, Tensor]
"""Indices, rows and counts of groups with equal numbers of observed grid points; the first dimension is the group."""


@dataclass(frozen=True, eq=False)
class Estimate:
    """An estimate of the power `(blocks, *shape)` and the mean `(blocks, positions)`."""

    power: Tensor
    mean: Tensor


@dataclass(frozen=True, eq=False)
class Fit:
    """The last estimate, the log-likelihood before each round (up to a constant), and whether the fit converged."""

    estimate: Estimate
    log_likelihood: tuple[float, ...]
    converged: bool


def fit_power(groups: Sequence[MaskGroup], start: Tensor, weight: Tensor) -> Fit:
    """Return the maximum-likelihood power of the groups' samples, starting from a positive power `(blocks, *shape)`.

    Blocks are independent, each with its own power on a full grid of `shape`; `weight` (blocks,) is 1 for real blocks
    and 2 for complex blocks, which also represent their conjugates. The fit stops when a round increases the
    log-likelihood by less than `TOLERANCE` nats per frequency. Power that the data do not determine, for example
    because at some lag no item has two observed samples, remains close to the start.
    """
    size = start[0].numel()
    stacks = _stacked(groups, size)
    now = Estimate(_positive(start), torch.zeros(len(start), size, dtype=groups[0].rows.dtype, device="cpu"))
    log_likelihoods, converged = [], False
    for _ in range(MAX_ROUNDS):
        one, before = step(now, stacks, weight)
        two, between = step(one, stacks, weight)
        log_likelihoods.append(before)
        far = _extrapolated(now, one, two)
        now, after = (two, between) if far is None else step(far, stacks, weight)
        if not after >= between:  # also true if `after` is NaN
            now, after = two, between
        if after - before < TOLERANCE * float(weight.sum()) * size:
            converged = True
            break
    return Fit(now, tuple(log_likelihoods), converged)


def _extrapolated(start: Estimate, one: Estimate, two: Estimate) -> Estimate | None:
    """Return the extrapolation of two steps, or None if it overflows."""
    logs = [each.power.log() for each in (start, one, two)]
    first, change = logs[1] - logs[0], logs[2] - 2 * logs[1] + logs[0]
    length = max(1.0, float(first.norm() / change.norm().clamp(min=1e-300)))
    power = (logs[0] + 2 * length * first + length**2 * change).exp()
    mean = start.mean + 2 * length * (one.mean - start.mean) + length**2 * (two.mean - 2 * one.mean + start.mean)
    return Estimate(_positive(power), mean) if bool(power.isfinite().all()) else None


def _stacked(groups: Sequence[MaskGroup], size: int) -> list[Stack]:
    """Return groups stacked by their number of observed grid points."""
    sorted_groups: dict[int, list[MaskGroup]] = {}
    for group in groups:
        sorted_groups.setdefault(len(group.indices), []).append(group)
    stacks = []
    for seen, same_size in sorted_groups.items():
        stack_size = max(1, AT_ONCE // (len(same_size[0].rows) * seen * size))
        for start in range(0, len(same_size), stack_size):
            part = same_size[start : start + stack_size]
            maximum = max(each.rows.shape[1] for each in part)
            rows = [torch.nn.functional.pad(each.rows, (0, 0, 0, maximum - each.rows.shape[1])) for each in part]
            counts = torch.tensor([each.count for each in part], dtype=torch.float64, device="cpu")
            stacks.append((torch.stack([each.indices for each in part]), torch.stack(rows), counts))
    return stacks


def step(now: Estimate, stacks: Sequence[Stack], weight: Tensor) -> tuple[Estimate, float]:
    """Return the estimate after one step of EM, and the log-likelihood before that step, in nats, up to a constant.

    `weight` `(blocks,)` is the number of blocks of the full spectrum that each block represents.
    """
    power, items, likelihood = now.power, 0.0, 0.0
    energy, shift = torch.zeros_like(power), torch.zeros(power.shape, dtype=torch.complex128, device="cpu")
    for indices, rows, counts in stacks:
        centred = rows[..., 1:] - rows[..., :1] * _gathered(now.mean.expand(len(indices), -1, -1).unsqueeze(2), indices)
        mostly_missing = 2 * indices.shape[1] <= power[0].numel()
        part = (_from_seen if mostly_missing else _from_missing)(power, indices, centred, rows[..., :1], counts)
        energy, shift = energy + part.energy, shift + part.shift
        items += float(counts.sum())
        likelihood -= 0.5 * float((weight * (counts @ part.log_det + part.square)).sum())
    shift = shift / items
    dims = tuple(range(-power.dim() + 1, 0))
    moved = torch.fft.ifftn(shift, dim=dims, norm="ortho").flatten(1)
    mean = now.mean + (moved if now.mean.is_complex() else moved.real)
    return Estimate(_positive(energy / items - shift.abs().square()), mean), likelihood


@dataclass(frozen=True, eq=False)
class Expected:
    """Results of the E step for some items, relative to the mean, given their observed samples.

    `energy` (blocks, *shape): the sum of E|F x|². `shift` (blocks, *shape): the sum of F E[x]. `log_det` (groups,
    blocks): the log-determinant of the covariance of the observed samples. `square` (blocks,): the sum of their squared
    Mahalanobis norms.
    """

    energy: Tensor
    shift: Tensor
    log_det: Tensor
    square: Tensor


def _positive(power: Tensor) -> Tensor:
    """Return the power, at least `MIN_RELATIVE_POWER` times its maximum."""
    return power.clamp(min=MIN_RELATIVE_POWER * float(power.max()))


def _from_seen(power: Tensor, indices: Tensor, rows: Tensor, ones: Tensor, counts: Tensor) -> Expected:
    """Compute the E step from the covariance K⁻¹ of the observed samples.

    E[x | seen] is Σ K x, and its covariance Σ - Σ K Σ.
    """
    root, log_det = _inverse_root(power, indices, rows.is_complex())
    white = rows @ root.mT
    solved = white @ root.conj()
    less = counts.view(-1, *(1,) * power.dim()) * _energy(root.conj(), indices, power)
    energy = counts.sum() * power + power.square() * (_energy(solved, indices, power) - less).sum(0)
    shift = power * _transform(_spread_out(ones.mH @ solved, indices, power.shape[1:]), power)[:, :, 0].sum(0)
    return Expected(energy, shift, log_det, _square(white).sum((0, 2, 3)))


def _from_missing(power: Tensor, indices: Tensor, rows: Tensor, ones: Tensor, counts: Tensor) -> Expected:
    """Compute the E step from the precision of the missing samples, whose inverse is their covariance."""
    shape, dims = power.shape[1:], tuple(range(-power.dim() + 1, 0))
    unseen = torch.ones(len(indices), power[0].numel(), dtype=torch.bool, device="cpu").scatter_(1, indices, False)
    missing = unseen.nonzero()[:, 1].view(len(indices), -1)
    filled = _spread_out(rows, indices, shape)
    pull = torch.fft.ifftn(torch.fft.fftn(filled, dim=dims) / power[:, None], dim=dims)
    root, log_det = _inverse_root(1 / power, missing, rows.is_complex())
    pulled = _gathered((pull if rows.is_complex() else pull.real).flatten(3), missing)
    filled = filled - _spread_out(pulled @ root.mT @ root.conj(), missing, shape)
    transform = _transform(filled, power)
    energy = _square(transform).sum(2)
    spread = counts.view(-1, *(1,) * power.dim()) * _energy(root.conj(), missing, power)
    shift = (ones.mH.to(transform.dtype) @ transform.flatten(3))[:, :, 0].sum(0).view(power.shape)
    log_det = log_det + power.log().flatten(1).sum(1)
    return Expected((energy + spread).sum(0), shift, log_det, (energy / power).flatten(2).sum((0, 2)))


def _inverse_root(power: Tensor, indices: Tensor, complex_valued: bool) -> tuple[Tensor, Tensor]:
    """Return a root W of the inverse of a restricted circulant matrix, and the log-determinant of that matrix.

    The circulant matrix of `power` is restricted to the grid points `indices`. The inverse is `Wᴴ W`; W has shape
    (groups, blocks, positions, positions).
    """
    shape = power.shape[1:]
    kernel = torch.fft.ifftn(power, dim=tuple(range(1, power.dim())))
    kernel = (kernel if complex_valued else kernel.real).flatten(1)
    indices_along = torch.unravel_index(indices, shape)
    lags = torch.zeros((), dtype=torch.long, device="cpu")
    for size, along in zip(shape, indices_along, strict=True):
        lags = lags * size + (along[:, :, None] - along[:, None, :]) % size
    lower = torch.linalg.cholesky(kernel[:, lags].transpose(0, 1))
    eye = torch.eye(indices.shape[1], dtype=lower.dtype, device="cpu").expand_as(lower)
    log_det = 2 * lower.diagonal(dim1=-2, dim2=-1).real.log().sum(-1)
    return torch.linalg.solve_triangular(lower, eye, upper=False), log_det


def _energy(rows: Tensor, indices: Tensor, power: Tensor) -> Tensor:
    """Return the sum of |F row|² over rows `(groups, blocks, rows, positions)`: `(groups, blocks, *shape)`."""
    if indices.shape[1] == 0:
        return torch.zeros(len(indices), *power.shape, dtype=power.dtype, device="cpu")
    return _square(_transform(_spread_out(rows, indices, power.shape[1:]), power)).sum(2)


def _square(x: Tensor) -> Tensor:
    """Return |x|² without the square root that `abs` computes for complex numbers."""
    return x.real.square() + x.imag.square() if x.is_complex() else x.square()


def _transform(rows: Tensor, power: Tensor) -> Tensor:
    """Return the unitary Fourier transform of rows `(groups, blocks, rows, *shape)`."""
    return torch.fft.fftn(rows, dim=tuple(range(-power.dim() + 1, 0)), norm="ortho")


def _spread_out(rows: Tensor, indices: Tensor, shape: Sequence[int]) -> Tensor:
    """Return rows `(groups, blocks, rows, positions)` on the grid, `(groups, blocks, rows, *shape)`, zero elsewhere."""
    grid = torch.zeros(*rows.shape[:3], math.prod(shape), dtype=rows.dtype, device="cpu")
    grid.scatter_(3, indices[:, None, None].expand(rows.shape), rows)
    return grid.view(*rows.shape[:3], *shape)


def _gathered(flat: Tensor, indices: Tensor) -> Tensor:
    """Undo `_spread_out` of rows on the flattened grid `(groups, blocks, rows, size)`."""
    return flat.gather(3, indices[:, None, None].expand(*flat.shape[:3], indices.shape[1]))
