"""Fill in unknown values with a model that was trained without a condition, and keep the known ones.

The known values are a measurement: `Masked` selects them, and ΠGDM guides the denoiser with them (see `inverse`). The
network is not differentiated: for Gaussian data both forms are exact, but for a network trained on digits the guidance
with its Jacobian diverged unless the noise of the measurement was 0.2 standard deviations of the data or more, and
without it the known values were followed at every noise tried. That noise, which conjugate gradients need, leaves
small errors, so that the known values are put back at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multisagd.inputs import as_data
from multisagd.inverse import PiGDM
from multisagd.measurement import Masked
from multisagd.sampling import AnyDenoiser
from multisagd.statistics import DataStatistics

NOISE = 0.01
"""Standard deviation of the noise of known values, as a fraction of that of the data: below what is seen or heard."""
TOLERANCE = 1e-3
"""Relative residual of conjugate gradients: an error far below that of R, a model of the network's uncertainty."""


def inpainting_denoiser(denoiser: AnyDenoiser, x0: Tensor, known: Tensor, statistics: DataStatistics) -> PiGDM:
    """Return a denoiser whose samples agree with the known values of data x0 `(batch, channels, *grid)`.

    `known` is bool `(batch, 1 or channels, *grid)`; other values of x0 may be anything, also NaN. `statistics` are
    those of the training data. Samples of Gaussian data are exact, up to measurement noise of `NOISE`.

    Raises:
        ValueError: If the noise of the process is drawn on a padded grid, or the shapes differ.
    """
    x0 = as_data(x0)
    check_known(x0, known)
    mask = Masked(known, denoiser.process.grid.resize(x0.shape[2:]), tolerance=TOLERANCE)
    noise = NOISE * statistics.sigma_data
    return PiGDM(denoiser, mask, x0.masked_fill(~known, 0.0), noise, statistics, gradient=None)


def put_back(sample: Tensor, x0: Tensor, known: Tensor) -> Tensor:
    """Return a sample with the known values of x0, `(batch, channels, *grid)` in the units of both.

    `known` is bool `(batch, 1 or channels, *grid)`; other values of x0 may be anything.

    Raises:
        ValueError: If the shapes differ.
    """
    check_known(x0, known)
    if sample.shape != x0.shape:
        raise ValueError(f"the sample has shape {tuple(sample.shape)}, but the known data have {tuple(x0.shape)}")
    return torch.where(known, x0.to(sample), sample)


def check_known(x0: Tensor, known: Tensor) -> None:
    """Check that `known`, bool `(batch, 1 or channels, *grid)`, selects values of x0 `(batch, channels, *grid)`.

    Raises:
        ValueError: If it is not boolean, or its shape is another.
    """
    shapes = ((len(x0), channels, *x0.shape[2:]) for channels in (1, x0.shape[1]))
    if known.dtype != torch.bool or tuple(known.shape) not in shapes:
        raise ValueError(
            f"known must be bool of shape (batch, 1 or channels, *grid) for data of shape {tuple(x0.shape)}, got "
            f"{known.dtype} of shape {tuple(known.shape)}"
        )
