"""Measure how the channels of data are related at every frequency: the cross power of all pairs of channels.

The cross power at frequency k is the Hermitian matrix `L_ij(k) = E[F(x_i) F(x_j)*]` of the transforms about the mean.
Its diagonal is the power of each channel, and real data have `L(-k) = conj L(k)`. The normalised matrix, with ones on
its diagonal, is the coherency; its squared magnitudes are the coherence of two channels.

One matrix per frequency has as many numbers as few data determine badly: with fewer examples than channels it is
singular. `shrunk` therefore takes each matrix towards the average of its ring of frequencies, and the average towards
its diagonal, as far as the uncertainty of the estimates demands.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from multisagd.grid import Grid
from multisagd.statistics import DataStatistics, hermitian, transforms_about

MAX_CHANNELS = 8
"""Maximum number of channels of a matrix that is estimated and used at every frequency."""
MAX_CROSS = 1 << 26
"""Maximum number of entries of all matrices, which take 1 GiB."""


def cross_spectrum(batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], statistics: DataStatistics) -> Tensor:
    """Return the cross power of channels, `(channels, channels, *half_shape)`, complex128: `E[F(x_i) F(x_j)*]`.

    Its diagonal is the power of the statistics, for data without padding. This measures how well one channel predicts
    another where both are valid.

    Raises:
        ValueError: If there are no data.
    """
    total, count = torch.zeros((), dtype=torch.complex128, device="cpu"), torch.zeros((), device="cpu")
    for batch in batches:
        (transform,) = transforms_about(statistics.mean, [batch], statistics.grid)
        shared = shared_scale(batch, transform.shape[1])
        total = total + torch.einsum("bij,bi...,bj...->ij...", shared.to(transform.dtype), transform, transform.conj())
        count = count + (shared > 0).sum(0)
    if not bool((count > 0).any()):
        raise ValueError("there are no data to measure")
    return total / (count - 1).clamp(min=1).reshape(*count.shape, *(1,) * statistics.grid.dimensions)


def shared_scale(batch: Tensor | tuple[Tensor, Tensor | None], channels: int) -> Tensor:
    """Return the scale factors of products of two channels' `transforms_about`, `(batch, channels, channels)`.

    Each transform is scaled by its channel's fraction of valid samples, but a product is a sum over the samples that
    are valid in both channels. The result is 0 where there are no such samples.
    """
    x, mask = (batch, None) if isinstance(batch, Tensor) else batch
    if mask is None:
        return torch.ones(len(x), channels, channels, dtype=torch.float64, device="cpu")
    valid = mask.cpu().expand(x.shape).flatten(2).double()
    both = valid @ valid.mT
    own = both.diagonal(dim1=1, dim2=2).sqrt()
    return torch.where(both > 0, own[:, :, None] * own[:, None, :] / both.clamp(min=1), 0.0)


def measure_cross(
    batches: Iterable[Tensor | tuple[Tensor, Tensor | None]], statistics: DataStatistics
) -> DataStatistics:
    """Return the statistics of data `(batch, channels, *grid)` with their cross power, in squared units of the data.

    It is measured in one pass over the data of the statistics.

    Raises:
        ValueError: If the data are padded, have not more examples than channels, or have so many channels and
            frequencies that the matrices would not fit into memory.
    """
    channels, grid = len(statistics.mean), statistics.grid
    check_cross_size(channels, grid)
    if statistics.count <= channels:
        raise ValueError(
            f"{statistics.count} examples do not determine how {channels} channels are related, because at every "
            "frequency more examples than channels are needed: measure more of them (training.statistics), or give "
            "every channel its own spectrum (spectrum.channels=each)"
        )

    def whole() -> Iterable[Tensor]:
        for batch in batches:
            x, mask = (batch, None) if isinstance(batch, Tensor) else batch
            if mask is not None and not bool(mask.all()):
                raise ValueError(
                    "the cross power of padded data is not estimated: use examples of equal size, or give every "
                    "channel its own spectrum (spectrum.channels=each)"
                )
            yield x

    return replace(statistics, cross=hermitian(cross_spectrum(whole(), statistics), grid))


def check_cross_size(channels: int, grid: Grid) -> None:
    """Raise ValueError if the cross power of so many channels on a grid would not fit into memory."""
    entries = channels**2 * math.prod(grid.half_shape)
    if entries > MAX_CROSS:
        raise ValueError(
            f"the cross power of {channels} channels on a grid of shape {grid.shape} has {entries:,} numbers, more "
            f"than {MAX_CROSS:,}: give every channel its own spectrum (spectrum.channels=each)"
        )


def channel_basis(cross: Tensor, grid: Grid) -> Tensor:
    """Return an orthonormal basis of the channels `(channels, components)`, float64, the strongest component first.

    It consists of the eigenvectors of the covariance of the channels, which is the mean of the cross power
    `(channels, channels, *half_shape)` over all frequencies. This is the best basis in which components are
    uncorrelated on the whole; one basis cannot remove the correlation at every frequency. The largest entry of each
    vector is positive, because eigenvectors have no sign.
    """
    covariance = grid.mean(cross.real.contiguous())  # the imaginary parts of both halves cancel
    _, vectors = torch.linalg.eigh(covariance)
    vectors = vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return vectors * largest.sign()


def in_basis(cross: Tensor, basis: Tensor) -> Tensor:
    """Return the cross power of the components of a basis, `(components, components, *half_shape)`, in its unit."""
    rotation = basis.to(cross.dtype)
    return torch.einsum("ia,ij...,jb->ab...", rotation.conj(), cross, rotation)


def explained(cross: Tensor, basis: Tensor, grid: Grid) -> float:
    """Return the fraction of the power between different channels that a basis removes, at most 1.

    It compares the sums of `|L_ij(k)|²` over all frequencies and pairs of different channels, or of components, of a
    cross power `(channels, channels, *half_shape)`; `basis` is `(channels, components)`. It is 1 if channels are not
    correlated, so that nothing is to be removed, and may be negative.
    """
    before, after = (_off_diagonal(each, grid) for each in (cross, in_basis(cross, basis)))
    return 1 - after / before if before else 1.0


def _off_diagonal(cross: Tensor, grid: Grid) -> float:
    total = grid.mean(cross.abs().square())
    return float((total.sum() - total.trace()).clamp(min=0))


def shrunk(cross: Tensor, grid: Grid, count: int) -> Tensor:
    """Return a positive definite estimate of the cross power from that of `count` examples, in the same shape and unit.

    The power of each channel is kept. The coherency at each frequency is averaged with that of its ring, and the
    ring's with the identity, each with the weight that minimises the expected squared error: the sum of the variances
    of the estimates, `(1 - |γ|²)²/n` for a coherency γ of n examples, divided by the sum of their squared distances to
    what they are shrunk to (O. Ledoit and M. Wolf, Journal of Multivariate Analysis 88, 2004; for correlations
    J. Schäfer and K. Strimmer, Statistical Applications in Genetics and Molecular Biology 4, 2005). Rings are one bin
    wide along the longest axis.
    """
    channels = len(cross)
    power = cross.diagonal().real.movedim(-1, 0)
    scale = torch.where(power > 0, power, 1.0).rsqrt()
    coherency = (cross * scale[:, None] * scale[None]).flatten(2)
    index, weight = _rings(grid), grid.multiplicity.flatten()
    bins = torch.zeros(int(index.max()) + 1, dtype=torch.float64).index_add(0, index, weight)

    def ring_sum(values: Tensor) -> Tensor:
        shape = (*values.shape[:-1], len(bins))
        return torch.zeros(shape, dtype=values.dtype).index_add(-1, index, values * weight)

    identity = torch.eye(channels, dtype=torch.float64)[..., None]
    # Each ring holds k and -k, so its average is real.
    average = ring_sum(coherency.real) / bins
    off = 1 - identity
    # A ring averages its bins, half of which are the conjugates of the others.
    examples = count * (bins / 2).clamp(min=1)
    variance = ((1 - average.square()).clamp(min=0).square() * off).sum((0, 1)) / examples
    to_identity = _weight(variance, (average.square() * off).sum((0, 1)))
    target = (1 - to_identity) * average + to_identity * identity
    own_variance = ring_sum(((1 - coherency.abs().square()).clamp(min=0).square() * off).sum((0, 1))) / count
    distance = ring_sum(((coherency - average[..., index]).abs().square() * off).sum((0, 1)))
    to_ring = _weight(own_variance, distance)
    mixed = torch.lerp(coherency, target[..., index].to(coherency.dtype), to_ring[index].to(coherency.dtype))
    deviation = power.clamp(min=0).sqrt()
    return mixed.reshape(cross.shape) * deviation[:, None] * deviation[None]


def _weight(variance: Tensor, distance: Tensor) -> Tensor:
    """Return the optimal weight of a target from the variance of estimates and their squared distance, in [0, 1]."""
    return torch.where(distance > variance, variance / torch.where(distance > 0, distance, 1.0), 1.0)


def _rings(grid: Grid) -> Tensor:
    """Return the number of the ring of each bin of the half spectrum, flattened; zero frequency is ring 0."""
    radius = grid.radius(factors={axis.name: axis.spacing for axis in grid.axes})
    # Rounding must not decide the ring of a frequency halfway between two.
    number = (radius * max(grid.shape) - 1e-9).round().long().flatten()
    return torch.unique(number, return_inverse=True)[1]
