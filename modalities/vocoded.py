"""Log-mel spectrograms that become sound by a vocoder, in place of the Griffin-Lim algorithm."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from modalities.representation import LogMel

Vocode = Callable[[Tensor], Tensor]
"""Returns a waveform (audio channels, frames·hop) for log-mel values (audio channels, bands, frames), float32 on the
CPU. Frame k is centred on sample k·hop + hop//2."""


@dataclass(frozen=True)
class VocodedMel(LogMel):
    """A log-mel spectrogram that `vocode`, which has been trained on the same spectrograms, turns into sound."""

    vocode: Vocode = field(kw_only=True, compare=False, repr=False)

    @classmethod
    def of(cls, representation: LogMel, vocode: Vocode) -> VocodedMel:
        """Return a log-mel representation, decoded by a vocoder."""
        names = [each.name for each in dataclasses.fields(LogMel)]
        return cls(**{name: getattr(representation, name) for name in names}, vocode=vocode)

    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Return a waveform (audio channels, samples) with about this log-mel spectrogram.

        Frame i is centred on sample i·hop, so the vocoder's waveform begins half a hop before the first frame's centre.
        """
        later = self.hop // 2
        return self.vocode(x0)[..., later : later + samples]
