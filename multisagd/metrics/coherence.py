"""Compare how strongly variables depend on each other in every frequency band.

For a real field, opposite frequencies have conjugate cross powers, so the correlation of a band is real. Its square is
the coherence (`multisagd.analysis.profiles.coherence`); its sign is kept here, because samples with the opposite sign
are wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multisagd.cross_spectra import shared_scale
from multisagd.grid import Grid
from multisagd.metrics.increments import Batches
from multisagd.statistics import measure_mean, transforms_about


def item_cross_powers(batches: Batches, grid: Grid, bands: int) -> tuple[list[tuple[float, float]], Tensor]:
    """Return the edges of the bands of `Grid.bands`, and each item's cross powers `(items, bands, channels, channels)`.

    Edges are in cycles per sample, and cross powers in units of the data squared. They are about the mean of all data,
    which may be masked as in `DataStatistics.measure`. `batches` are read twice.
    """
    batches = list(batches)
    mean = measure_mean(batches, grid)[0]
    rings = grid.bands(bands)
    weights = torch.stack([weight for _, _, weight in rings]).flatten(1)
    items = []
    for batch, transform in zip(batches, transforms_about(mean, batches, grid), strict=True):
        flat = transform.flatten(2)
        cross = torch.stack([torch.einsum("bik,bjk,k->bij", flat, flat.conj(), w.to(flat.dtype)) for w in weights], 1)
        items.append(cross.real * shared_scale(batch, flat.shape[1])[:, None])
    return [(low, high) for low, high, _ in rings], torch.cat(items)


def band_correlation(cross: Tensor) -> Tensor:
    """Return the correlation of the band-passed channels, `(bands, channels, channels)` in [-1, 1].

    `cross` is from `item_cross_powers` `(items, bands, channels, channels)`. A channel without power in a band has the
    correlation 0.
    """
    summed = cross.sum(0)
    power = summed.diagonal(dim1=-2, dim2=-1)
    norm = (power[..., :, None] * power[..., None, :]).clamp(min=0).sqrt()
    return torch.where(norm > 0, summed / norm.clamp(min=1e-300), 0.0)
