"""Noise for vocoders: as loud as the sound at each time, and with its spectrum, both from the log-mel spectrogram.

The envelope alone is the noise of PriorGrad (arXiv 2106.06406); SpecGrad (2203.16749) filters noise to follow the
spectrum over time, which the product of an envelope and one spectrum for each sound approximates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from modalities import mel
from modalities.audio import Audio
from modalities.base import Modality
from modalities.derived_conditions import DerivedCondition
from modalities.mel_condition import MelSpectrogram
from modalities.representation import Waveform
from multisagd.covariance_rules import DEEPEST, interpolated
from multisagd.grid import Grid
from multisagd.item_covariance import CovarianceRule

LOUDEST = 0.25
"""Root mean square of loud speech, relative to full scale."""


@dataclass(frozen=True)
class MelNoise(CovarianceRule):
    """The covariance of noise with the level (`envelope`) and the `spectrum` of a sound, from its log-mel spectrogram.

    The power of a sound at a frequency is that in the bands divided by their widths, interpolated in decibels between
    their centres, and constant beyond them. E is the level of each frame, at least `floor` decibels below that of loud
    speech (`LOUDEST`), and W the mean power of all frames, at least `floor` decibels below its maximum. Together, W has
    the mean 1; alone, it has the level of the sound. Unknown frames, those after the end of a recording, are silent.

    Raises:
        ValueError: If the condition is not a mel spectrogram, both parts are off, or the floor is not from 0 to 120 dB.
    """

    condition: DerivedCondition | None
    modality: Modality
    envelope: bool = True
    spectrum: bool = True
    floor: float = 40.0

    def __post_init__(self) -> None:
        if not isinstance(self.condition, MelSpectrogram) or not isinstance(self.modality, Audio):
            raise ValueError(
                "this noise follows log-mel spectrograms of waveforms: add condition=mel, or choose another"
            )
        if not (self.envelope or self.spectrum):
            raise ValueError("envelope and spectrum are both false: set one of them, or use covariance=shared")
        if not 0 <= self.floor <= DEEPEST:
            raise ValueError(f"floor must be from 0 to {DEEPEST:g} dB, got {self.floor}")

    def __call__(self, dense: Tensor, grid: Grid) -> tuple[Tensor | None, Tensor | None]:
        """Return E `(batch, channels, *grid)` in the units of the data, and W `(batch, channels, *half_shape)`.

        `dense` are log-mel frames `(batch, channels × bands, frames)`.
        """
        assert isinstance(self.condition, MelSpectrogram)
        assert isinstance(self.modality, Audio)
        settings, rate = self.condition, self.modality.rate
        power = _power(dense.nan_to_num(-1.0), settings.floor_db).unflatten(1, (-1, settings.bands))
        triangles = mel.filters(*settings.frames.settings(rate)).to(power)
        density = self._interpolated((power / triangles.sum(1)[:, None]).mean(3), grid)
        # White noise of deviation 1 has the power 3 / (bins - 1) in each bin, a tone at full scale having the power 1.
        mean = grid.mean(density)[..., None] * (triangles.shape[1] - 1) / 3
        loudness = power.sum(2)
        # The frames of the level add up to the power at all frequencies, also outside of the bands.
        level = loudness * (mean / loudness.mean(2, keepdim=True))
        least = LOUDEST**2 * 10 ** (-self.floor / 10)
        scale = self._scale()
        if not self.spectrum:
            return scale * interpolated(level.clamp(min=least).sqrt(), grid), None
        shape = density / grid.mean(density)[..., None]
        if not self.envelope:
            return None, scale**2 * level.mean(2, keepdim=True).clamp(min=least) * shape
        return scale * interpolated(level.clamp(min=least).sqrt(), grid), shape

    def _scale(self) -> float:
        """Return the factor between samples and values of the data."""
        assert isinstance(self.modality, Audio)
        representation = self.modality.representation
        assert isinstance(representation, Waveform)
        return representation.scale

    def _interpolated(self, density: Tensor, grid: Grid) -> Tensor:
        """Return power (batch, channels, bands) per frequency as power at the frequencies of the grid."""
        assert isinstance(self.condition, MelSpectrogram)
        assert isinstance(self.modality, Audio)
        edges = mel.centres(*self.condition.frames.settings(self.modality.rate))
        centres = torch.tensor([mel.hertz(each) for each in edges[1:-1]]).to(density)
        decibels = 10 * density.clamp(min=torch.finfo(density.dtype).tiny).log10()
        decibels = torch.maximum(decibels, decibels.amax(2, keepdim=True) - self.floor)
        frequencies = grid.frequencies(grid.names[0]).abs().to(density).flatten()
        above = torch.searchsorted(centres, frequencies).clamp(1, len(centres) - 1)
        below = above - 1
        weight = ((frequencies - centres[below]) / (centres[above] - centres[below])).clamp(0, 1)
        return 10 ** (torch.lerp(decibels[..., below], decibels[..., above], weight) / 10)


def _power(values: Tensor, floor_db: float) -> Tensor:
    """Return the power of log-mel values, -1 at the floor and 1 at full scale."""
    return 10 ** ((1 - values.clamp(-1.0, 2.0)) * floor_db / 20)
