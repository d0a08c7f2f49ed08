"""Log-mel spectrograms as dense conditions of waveforms, from which a network learns to be a vocoder.

A dense condition lies on the axes of the data, with a whole factor fewer samples: so the bands are channels, and a clip
of F·hop samples has F frames, each in the middle of the `hop` samples that it stands for.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from modalities.array_files import open_arrays
from modalities.audio import Audio
from modalities.base import Modality
from modalities.derived_conditions import DerivedCondition
from modalities.representation import MODULATION_CORNER, LogMel, Waveform
from multisagd.grid import Axis, Grid

ARRAY = ".npy"
"""Ending of files of log-mel values."""
LARGEST = 2.0
"""Maximum absolute value of a file of log-mel values, which are 1 at full scale: others have another unit."""
LOUDEST_DB = 10.0
"""Maximum level in decibels, as in `LogMel.decode`."""


@dataclass(frozen=True)
class MelFrames(LogMel):
    """Log power in mel bands, as in `LogMel`, with the bands as channels and frames in the middle of `hop` samples.

    Shape (audio channels × bands, frames), where waveforms have frames·hop samples. Frame k is centred on sample
    k·hop + hop//2, that is half a hop later than in `LogMel`, and half a sample after the middle of its samples if the
    hop is even.

    Raises:
        ValueError: In `grid`, if the hop does not divide the length of a waveform; otherwise as in `LogMel`.
    """

    def channels(self, audio_channels: int) -> int:
        """Return the number of bands of all audio channels."""
        return audio_channels * self.bands

    def grid(self, samples: int, rate: int) -> Grid:
        """Return the grid (time,), one hop apart."""
        if samples % self.hop:
            frames = max(1, round(samples / self.hop))
            raise ValueError(
                f"hop={self.hop} does not divide the {samples} samples of a clip: set seconds="
                f"{seconds_of(frames, self.hop, rate)}, which is {frames} frames, or another hop"
            )
        super().grid(samples, rate)
        return Grid((Axis("time", samples // self.hop, self.hop / rate, "s", MODULATION_CORNER),))

    def covered(self, samples: int) -> int:
        """Return the number of frames that are centred on one of the first `samples` samples."""
        return max(0, -(-(samples - self.hop // 2) // self.hop))

    def centres(self, samples: int) -> Tensor:
        """Return the sample on which each frame of a waveform of `samples` samples is centred, int64 (frames,)."""
        return torch.arange(samples // self.hop) * self.hop + self.hop // 2

    def encode(self, waveform: Tensor, rate: int, length: int | None = None) -> Tensor:
        """Return the log-mel frames (audio channels × bands, frames)."""
        return super().encode(waveform, rate, length).flatten(0, 1)

    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Return a waveform that approximates these frames by the Griffin-Lim algorithm, limited to +10 dB."""
        values = x0.reshape(-1, self.bands, x0.shape[-1])
        # One frame more on both sides, so that every sample lies between two frames.
        longer = torch.cat([values[..., :1], values, values[..., -1:]], dim=-1)
        first = self.hop - self.hop // 2
        return self.estimate(longer, samples + self.hop, rate)[..., first : first + samples]

    def limited(self, values: Tensor) -> Tensor:
        """Return values no lower than those of silence and no higher than +10 dB, as recordings have them."""
        return values.clamp(-1.0, 1 - 2 * LOUDEST_DB / self.floor_db)


@dataclass(frozen=True)
class MelSpectrogram(DerivedCondition):
    """The log-mel spectrogram of a waveform, with the settings and values of `LogMel`; see `MelFrames` for its frames.

    Samples are drawn for recordings, or for files `.npy` of log-mel values (bands, frames), for stereo (2, bands,
    frames): -1 at `floor_db`, 1 at full scale.

    Raises:
        ValueError: If a setting is invalid; see `LogMel`.
    """

    window: int = 512
    hop: int = 128
    bands: int = 64
    low: float = 60.0
    high: float | None = None
    floor_db: float = -80.0

    def __post_init__(self) -> None:
        self.frames  # noqa: B018 - refuses invalid settings

    @property
    def frames(self) -> MelFrames:
        """The representation of the conditions."""
        return MelFrames(**{each.name: getattr(self, each.name) for each in fields(self)})

    def check(self, modality: Modality) -> None:
        """Raise ValueError if the data are not waveforms, or their length or rate does not suit the frames."""
        self._of(modality)

    def modality(self, modality: Modality) -> Modality:
        """Return the modality of log-mel frames; it decodes them by the Griffin-Lim algorithm."""
        return self._of(modality)

    def suffixes(self, modality: Modality) -> tuple[str, ...]:
        """Return the endings of recordings and of files of log-mel values."""
        return (*modality.suffixes, ARRAY)

    def derive(self, x0: Tensor, modality: Modality, seed: int) -> Tensor:
        """Return the log-mel frames (audio channels × bands, frames); nothing is random.

        Unknown values of a waveform are those after the end of a short recording, and so are frames centred on them.
        """
        conditions, samples = self._of(modality), x0.shape[-1]
        waveform = modality.decode(x0.nan_to_num(0.0))
        length = int((~x0.isnan().any(0)).sum())
        known = conditions.representation.encode(waveform, conditions.rate, None if length == samples else length)
        known[:, self.frames.covered(length) :] = torch.nan
        return known

    def read(self, path: Path, modality: Modality, seed: int) -> Tensor:
        """Return the log-mel frames of a recording, or those in a file of log-mel values.

        Raises:
            ValueError: If the file cannot be read, or has other values or another number of frames; the message names
                it.
            UnreadableFilesError: If the storage fails.
        """
        if path.suffix.lower() != ARRAY:
            return super().read(path, modality, seed)
        try:
            return self._values_in(path, self._of(modality))
        except (OSError, ValueError) as error:
            raise ValueError(f"the condition {path}: {error}") from error

    def _of(self, modality: Modality) -> Audio:
        """Return the modality of the conditions. Raises ValueError if they cannot be derived from this modality."""
        if not isinstance(modality, Audio) or not isinstance(modality.representation, Waveform):
            raise ValueError("a mel spectrogram is derived from waveforms: add modality=audio_waveform")
        return replace(modality, representation=self.frames)

    def _values_in(self, path: Path, conditions: Audio) -> Tensor:
        """Return the values in a file as frames (audio channels × bands, frames)."""
        count = conditions.grid().shape[0]
        expected: list[tuple[int, ...]] = [(conditions.audio_channels, self.bands, count)]
        expected += [(self.bands, count)] if conditions.audio_channels == 1 else []
        with open_arrays(path) as file:
            array = file.array("")
            if array.shape not in expected:
                raise ValueError(self._other_shape(array.shape, expected[-1], conditions))
            values = torch.from_numpy(array.read().astype("float32")).reshape(-1, count)
        if not bool(values.isfinite().all()):
            raise ValueError(
                "it has values that are not finite, such as the logarithm of silence: replace them by -1, the value at "
                f"{self.floor_db:g} dB and below"
            )
        if not bool((values.abs() <= LARGEST).all()):
            raise ValueError(
                f"its values reach from {float(values.min()):.4g} to {float(values.max()):.4g}, but log-mel values are "
                f"-1 at {self.floor_db:g} dB and 1 at full scale: replace decibels by "
                f"1 - 2 * decibels / ({self.floor_db:g})"
            )
        return self.frames.limited(values)

    def _other_shape(self, shape: tuple[int, ...], expected: tuple[int, ...], conditions: Audio) -> str:
        """Return the message for an array of another shape."""
        if shape and shape[:-1] in (expected[:-1], (1, *expected[:-1])) and shape[-1]:
            seconds = seconds_of(shape[-1], self.hop, conditions.rate)
            return f"it has {shape[-1]} frames, but the samples have {expected[-1]}: set seconds={seconds}"
        named = "bands, frames" if len(expected) == 2 else "audio channels, bands, frames"
        return f"it has the shape {shape}, but {expected} ({named}) is needed"


def seconds_of(frames: int, hop: int, rate: int) -> str:
    """Return the duration of some frames in seconds, as text from which the number of samples follows exactly."""
    return f"{frames * hop / rate:.12g}"
