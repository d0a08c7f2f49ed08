"""Compute features without a network or classes: the leading principal components of the data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multisagd.libraries import importing

MAX_COMPONENTS = 64
PER_COMPONENT = 10
"""Minimum items per component: with fewer, the components would overfit these items."""


def components(reference: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that maps data `(count, …)` to their leading components, with unit variance on the reference.

    There are at most 64 components. They are fitted to the reference only, so that other real data and samples are
    equally new to them.
    """
    with importing("sklearn", "principal components"):
        from sklearn.decomposition import PCA
    flat = reference.flatten(1).numpy()
    count = max(1, min(MAX_COMPONENTS, len(flat) // PER_COMPONENT, flat.shape[1]))
    fitted = PCA(count, whiten=True, svd_solver="randomized", random_state=0).fit(flat)

    def features(data: Tensor) -> Tensor:
        parts = [torch.from_numpy(fitted.transform(part.flatten(1).numpy())) for part in data.split(1024)]
        return torch.cat(parts)

    return features
