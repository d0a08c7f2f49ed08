"""Penalise errors in the spectrum of the estimate with an additional term of the loss.

An estimate that minimises the squared error alone lacks the power of everything it cannot predict (Chandran et al.,
Spectral Regularization for Diffusion Models, 2026; here norms are means, so that the same weight suits grids of any
size).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from multisagd.covariance import to_half_spectrum
from multisagd.grid import Grid
from multisagd.libraries import check

PenaltyKind = Literal["amplitude", "amplitude_phase", "wavelet"]


@dataclass(frozen=True)
class SpectralPenalty:
    """Penalise the estimate x̂ of x0 by `weight` times the quantity named by `kind`.

    - `amplitude`: the mean over frequencies of `||F x̂| - |F x||`, with the unitary transform over the grid;
    - `amplitude_phase`: `amplitude` times one plus the mean absolute phase difference in radians;
    - `wavelet`: the mean absolute difference between the detail coefficients of `levels` levels of `wavelet`, over the
      last axes of the grid, at most three (needs the extra `wavelets`).

    Raises:
        ValueError: If the kind or the wavelet is unknown, or the weight or `levels` is not positive.
        BrokenLibraryError: If the kind is `wavelet` and ptwt cannot be imported.
    """

    kind: PenaltyKind = "amplitude"
    weight: float = 1.0
    wavelet: str = "haar"
    levels: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(PenaltyKind):
            raise ValueError(f"unknown penalty {self.kind!r}; choose {', '.join(get_args(PenaltyKind))}")
        if not self.weight > 0 or self.levels < 1:
            raise ValueError(f"a penalty needs weight > 0 and levels >= 1, got {self.weight} and {self.levels}")
        if self.kind == "wavelet":
            check("ptwt", "the wavelet penalty")
            import pywt

            if self.wavelet not in pywt.wavelist(kind="discrete"):
                raise ValueError(f"unknown wavelet {self.wavelet!r}; common ones are haar and bior1.3")

    def __call__(self, estimate: Tensor, x0: Tensor, grid: Grid, mask: Tensor | None = None) -> Tensor:
        """Return the penalty of each item, `(batch,)`; estimate and x0 are `(batch, channels, *grid)`.

        If there is a mask, true where data are valid, the invalid samples of both are set to zero first.
        """
        if mask is not None:
            estimate, x0 = estimate * mask, x0 * mask
        if self.kind == "wavelet":
            return self.weight * self._wavelet(estimate - x0, grid.dimensions)
        dimensions = grid.dimensions
        scale = grid.resize(x0.shape[-dimensions:]).numel ** -0.5
        ours, theirs = (to_half_spectrum(each, dimensions) * scale for each in (estimate, x0))
        mean = grid.resize(x0.shape[-dimensions:]).mean
        amplitude = mean((_magnitude(ours) - _magnitude(theirs)).abs()).mean(1)
        if self.kind == "amplitude":
            return self.weight * amplitude
        # The angle of the quotient is the wrapped phase difference; where a spectrum is zero it is undefined.
        cross = ours * theirs.conj()
        seen = cross.abs() > torch.finfo(amplitude.dtype).tiny
        phase = torch.where(seen, torch.where(seen, cross, 1.0).angle().abs(), 0.0)
        return self.weight * amplitude * (1 + mean(phase).mean(1))

    def _wavelet(self, difference: Tensor, dimensions: int) -> Tensor:
        import ptwt

        decompose = (ptwt.wavedec, ptwt.wavedec2, ptwt.wavedec3)[min(dimensions, 3) - 1]
        axes = min(dimensions, 3)
        flat = difference.reshape(-1, *difference.shape[-axes:])
        coefficients = decompose(flat, self.wavelet, level=self.levels, mode="zero")
        details = torch.cat([each.flatten(1) for level in coefficients[1:] for each in _tensors(level)], 1)
        return details.abs().mean(1).reshape(len(difference), -1).mean(1)


def _magnitude(spectrum: Tensor) -> Tensor:
    # The derivative of |z| at zero is NaN.
    present = spectrum != 0
    return torch.where(present, torch.where(present, spectrum, 1.0).abs(), 0.0)


def _tensors(level: Any) -> Iterator[Tensor]:
    """Yield the detail coefficients of one level, given as a tensor, a tuple or a mapping."""
    if isinstance(level, Tensor):
        yield level
    else:
        yield from level.values() if isinstance(level, dict) else level
