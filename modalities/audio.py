"""Conversion of audio files to spectrograms or waveforms on a grid, at one sample rate and length, and back.

In memory, an audio clip is a float32 tensor (audio channels, samples) with full scale at ±1, sampled at `Audio.rate`.
It is at most `Audio.seconds` long; shorter clips keep their length. `Audio.short` determines how the rest of the grid
is filled. `modalities.representation` explains the axes of the grids and the spectra on them.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from modalities.audio_files import RATES, Excerpts, open_excerpts
from modalities.augmentation import SOUNDS, Augmentation
from modalities.base import Modality, UnusableFileError
from modalities.representation import Representation, Stft
from modalities.scalars import record
from modalities.sizes import Extent, check_buckets, check_filters, longest_filled
from multisagd.grid import Grid
from multisagd.libraries import check
from multisagd.seeds import derive

PEAK = 10 ** (-1 / 20)
"""Maximum level after loudness normalisation: 1 dB below full scale."""
RMS = 10 ** (-20 / 20)
"""Root mean square level after normalisation with `loudness="rms"`: 20 dB below full scale."""
MAX_GAIN = 10 ** (40 / 20)
"""Maximum gain, 40 dB, so that the noise floor of a silent recording is not amplified to an audible level."""
SHIFTS = (0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8)
"""Shifts of an excerpt's start, as fractions of the file, tried in turn until the excerpt is not silent."""
WINDOWS = 32
"""Maximum number of excerpts of a file whose loudest one determines which are quiet."""
CANCELLED = 0.01
"""Channels cancel each other if their mean has less than this fraction of their power (of 32 unrelated ones: 1/32)."""
SEARCH_SECONDS = 10
"""Number of seconds read at a time to find a part of a file that is not silent."""

MAX_CLIPPED = 0.01
"""A warning is logged if more than this fraction of the samples is clipped; a few clipped peaks are normal."""

log = logging.getLogger("multisagd")


@dataclass(frozen=True)
class Audio(Modality):
    """Audio clips of `seconds` at `rate` samples per second, mixed to mono or stereo, and encoded by `representation`.

    Files with any sample rate and number of channels are resampled and mixed: mono is the mean of all channels, or the
    loudest of them in an excerpt where they cancel each other (counter-phase); stereo repeats the channel of a mono
    file. An excerpt is taken from longer files. The seed determines its start; if there
    is no seed, it is the middle of the file. If the excerpt is silent, other excerpts of the same file are tried, and
    finally the first part that is not silent. `short` determines how shorter files are handled: "mask" pads them with
    silence that losses and statistics omit (a frame counts as data if its centre lies in the file); "silence" pads them
    with silence that is learned, which suits single words; "repeat" repeats them; "skip" rejects them, so that they are
    reported. `loudness` sets the gain of the excerpt: "keep" leaves it; "peak" brings the largest sample to -1 dB of
    full scale; "rms" brings the root mean square to -20 dB, unless the peak would exceed -1 dB. The gain is at most 40
    dB. A file that stays below `silence_db` (relative to full scale) throughout is rejected as silent, whatever the
    seed; `None` accepts silence. `quiet_db` rejects excerpts that are quieter than the loudest part of their file by
    more decibels than that, such as pauses between events: others are tried, and finally the loudest of 32 that are
    spread evenly over the file, which are read for every excerpt; None accepts all. Nothing depends on earlier calls.

    `buckets` trains one network on several durations in seconds, of which `seconds` must be one: each file is read at
    the longest one that it fills, and shorter files at the shortest one. Files below `min_seconds` are not used.
    `augment` changes training excerpts by transforms of torchaudio, in this order and before `loudness` (see
    `modalities.augmentation`).

    Raises:
        BrokenLibraryError: If soundfile cannot be imported.
        ValueError: If the rate is outside 1 to 768 kHz, a length is below one sample, `seconds` is not one of the
            buckets, an option is unknown, `silence_db` or `quiet_db` is not negative, `augment` is invalid, or the
            representation is incompatible with these settings.
    """

    rate: int = 16000
    seconds: float = 1.0
    mix: Literal["mono", "stereo"] = "mono"
    representation: Representation = field(default_factory=Stft)
    short: Literal["mask", "silence", "repeat", "skip"] = "mask"
    loudness: Literal["keep", "peak", "rms"] = "keep"
    silence_db: float | None = -80.0
    quiet_db: float | None = None
    buckets: Sequence[float] | None = None
    min_seconds: float | None = None
    augment: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        check("soundfile", "audio files")
        if not RATES[0] <= self.rate <= RATES[1] or int(self.rate) != self.rate:
            raise ValueError(
                f"rate must be an integer number of samples per second from {RATES[0]} to {RATES[1]}, got {self.rate}"
            )
        object.__setattr__(self, "rate", int(self.rate))
        if not (self.seconds < math.inf and self.seconds * self.rate >= 1):
            raise ValueError(f"seconds must cover at least one sample, got {self.seconds}")
        choices = {
            "mix": ("mono", "stereo"),
            "short": ("mask", "silence", "repeat", "skip"),
            "loudness": ("keep", "peak", "rms"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
        for name, reference in (("silence_db", "full scale"), ("quiet_db", "the loudest part of the file")):
            value = getattr(self, name)
            if value is not None and not -math.inf < value < 0:
                raise ValueError(f"{name} must be negative (decibels below {reference}) or null, got {value}")
        self.grid()
        check_filters(min_seconds=self.min_seconds)
        if self.buckets is not None:
            durations = dict.fromkeys(float(each) for each in self.buckets)
            check_buckets(len(durations), self.seconds in durations, "seconds", self.seconds)
            object.__setattr__(self, "buckets", tuple(dict.fromkeys([float(self.seconds), *durations])))
            self.in_buckets()
        object.__setattr__(self, "augment", tuple(self.augment))
        if self.augment:
            self.augmentation  # noqa: B018 - refuses invalid transforms here, not at the first example

    @cached_property
    def augmentation(self) -> Augmentation:
        """The transforms that `augment` describes."""
        return Augmentation(SOUNDS, self.augment, (self.audio_channels, self.samples))

    @property
    def scalars(self) -> Mapping[str, str]:
        """Start of the excerpt, and duration of the file."""
        return {"start": "s", "duration": "s"}

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The setting that determines the size of the grid."""
        return ("seconds",)

    @property
    def sorts_files(self) -> bool:
        """Whether files are sorted into buckets, or some are omitted, by their durations."""
        return self.buckets is not None or self.min_seconds is not None

    def in_buckets(self) -> tuple[Self, ...]:
        """Return this modality at the duration of each bucket, its own duration first."""
        return tuple(self.at(seconds=each) for each in self.buckets or (self.seconds,))

    def extent(self, path: Path) -> Extent:
        """Return the duration of an audio file. Raises the errors of `open_excerpts`."""
        with open_excerpts(path, self.rate) as file:
            return Extent(seconds=file.samples / self.rate)

    def bucket_of(self, extent: Extent) -> int:
        """Return the index of the longest duration that a file fills."""
        samples = [round(seconds * self.rate) for seconds in self.buckets or (self.seconds,)]
        return 0 if extent.seconds is None else longest_filled(round(extent.seconds * self.rate), samples)

    def omitted(self, extent: Extent) -> str | None:
        """Return the setting, such as `min_seconds=2`, because of which a file is not used, or None if it is used."""
        short = self.min_seconds is not None and extent.seconds is not None and extent.seconds < self.min_seconds
        return f"min_seconds={self.min_seconds:g}" if short else None

    @property
    def audio_channels(self) -> int:
        """Number of channels of a clip in memory."""
        return 1 if self.mix == "mono" else 2

    @property
    def samples(self) -> int:
        """Length of a full clip in samples."""
        return round(self.seconds * self.rate)

    @property
    def channels(self) -> int:
        """Number of channels of an encoded clip."""
        return self.representation.channels(self.audio_channels)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes that are read."""
        sounds = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".m4a", ".aif", ".aiff")
        return (*sounds, ".aac", ".mka", ".wma", ".caf", ".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi")

    def grid(self) -> Grid:
        """Return the grid of the representation."""
        return self.representation.grid(self.samples, self.rate)

    @property
    def reach(self) -> Mapping[str, float]:
        """How far from its own time a value depends on the sound, in seconds."""
        return {"time": self.representation.reach(self.rate) / self.rate}

    @property
    def meaningless_axes(self) -> Mapping[str, str]:
        """The axes along which frequencies mean nothing in this representation, each with the remedy."""
        return self.representation.meaningless_axes

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        """Return one excerpt of an audio file, float32 of shape (audio channels, at most `samples`).

        Raises:
            ValueError: If the file is empty, not audio, truncated, silent or too short (`short="skip"`), has samples
                that are not finite or far beyond full scale, or has more channels than can be mixed to stereo.
        """
        with open_excerpts(path, self.rate) as file:
            length = min(self.samples, file.samples)
            if self.short == "skip" and length < self.samples:
                raise UnusableFileError(
                    f"it lasts {length / self.rate:.3g} s, but short=skip requires {self.seconds:g} s"
                )
            loudest = self._loudest(file, length)
            least = 0.0 if loudest is None else loudest[1] * 10 ** ((self.quiet_db or 0) / 10)
            for start in self._starts(file, length, seed, None if loudest is None else loudest[0]):
                waveform = file.read(start, length)
                if self._audible(waveform).any() and _power(waveform) >= least:
                    record(start=start / self.rate, duration=file.samples / self.rate)
                    return self.level(self.augmentation(self.remix(waveform), seed))
        raise UnusableFileError(f"it is silent: none of its samples reaches silence_db={self.silence_db:g}")

    def _starts(self, file: Excerpts, length: int, seed: int | None, loudest: int | None) -> Iterator[int]:
        """Yield the starts of excerpts in the order to try; the last one is audible if any part of the file is.

        `loudest` is the start of the loudest excerpt, which is audible, or None if it is unknown.
        """
        spare = file.samples - length
        first = 0.5 if seed is None else random.Random(derive(seed, "excerpt")).random()
        for shift in SHIFTS if spare else SHIFTS[:1]:
            yield round((first + shift) % 1 * spare)
        if loudest is not None:
            yield loudest
        # Whether a file is used must not depend on chance: datasets omit rejected files permanently.
        block = max(length, SEARCH_SECONDS * self.rate)
        for start in range(0, file.samples if spare else 0, block):
            audible = self._audible(file.read(start, min(block, file.samples - start)))
            if audible.any():
                yield max(0, min(spare, start + int(audible.int().argmax()) - length // 2))
                return

    def _loudest(self, file: Excerpts, length: int) -> tuple[int, float] | None:
        """Return the start and the power of the loudest excerpt of a file, which is audible.

        Return None if no excerpt is rejected as quiet, or none is audible.
        """
        spare = file.samples - length
        if self.quiet_db is None or not spare:
            return None
        found = []
        for start in sorted({round(number * spare / (WINDOWS - 1)) for number in range(WINDOWS)}):
            # A damaged part makes an excerpt unusable, and not the whole file.
            with suppress(ValueError):
                waveform = file.read(start, length)
                if self._audible(waveform).any():
                    found.append((start, _power(waveform)))
        return max(found, key=lambda each: each[1], default=None)

    def _audible(self, waveform: Tensor) -> Tensor:
        """Return a bool mask (samples,) that is True where a channel of the waveform is not silent."""
        return waveform.abs().amax(0) >= (0 if self.silence_db is None else 10 ** (self.silence_db / 20))

    def remix(self, waveform: Tensor) -> Tensor:
        """Mix a waveform (any number of channels, samples) to shape (audio channels, samples).

        Raises:
            ValueError: If there are more than two channels and `mix` is "stereo".
        """
        if self.mix == "mono":
            mean = waveform.mean(dim=0, keepdim=True)
            powers = torch.stack([channel.dot(channel) for channel in waveform])  # faster than squares
            cancelled = bool(mean[0].dot(mean[0]) < CANCELLED * powers.mean())
            return waveform[int(powers.argmax())].unsqueeze(0) if cancelled else mean
        if waveform.shape[0] > 2:
            raise ValueError(f"it has {waveform.shape[0]} channels, but mix=stereo accepts at most 2: use mix=mono")
        return waveform.expand(2, -1).contiguous()

    def level(self, waveform: Tensor) -> Tensor:
        """Return a waveform (channels, samples) with its level adjusted as `loudness` specifies."""
        peak = float(waveform.abs().max())
        if self.loudness == "keep" or peak == 0:
            return waveform
        # Squares of very small samples would underflow to 0.
        rms = peak * float((waveform / peak).square().mean().sqrt())
        gain = PEAK / peak if self.loudness == "peak" else min(RMS / rms, PEAK / peak)
        return waveform * min(gain, MAX_GAIN)

    def encode(self, media: Tensor) -> Tensor:
        """Convert a clip (audio channels, at most `samples`) to a tensor (channels, *grid), filled as `short` requires.

        Raises:
            ValueError: If the clip has a different shape or no samples.
        """
        channels, length = media.shape if media.ndim == 2 else (0, 0)
        if channels != self.audio_channels or not 1 <= length <= self.samples:
            raise ValueError(
                f"expected a waveform of shape ({self.audio_channels}, 1 to {self.samples}), got {tuple(media.shape)}"
            )
        waveform = media.to(torch.float32)
        if self.short == "repeat":
            waveform = waveform.repeat(1, -(-self.samples // length))[:, : self.samples]
        padded = torch.nn.functional.pad(waveform, (0, self.samples - waveform.shape[1]))
        return self.representation.encode(padded, self.rate, None if self.short in ("silence", "repeat") else length)

    def mask(self, media: Tensor) -> Tensor | None:
        """Return a bool mask (1, *grid) that is True where the encoded clip is data, or None if there is no padding."""
        length = media.shape[-1]
        if length >= self.samples or self.short in ("silence", "repeat"):
            return None
        shape = self.grid().shape
        return (torch.arange(shape[-1]) < self.representation.covered(length)).expand(1, *shape).contiguous()

    def decode(self, x0: Tensor) -> Tensor:
        """Convert a tensor (channels, *grid) to a waveform (audio channels, samples), float32 on the CPU, not clipped.

        Raises:
            ValueError: If a value is not finite.
        """
        if not bool(torch.isfinite(x0).all()):
            raise ValueError("the clip to decode has values that are not finite: sampling or training diverged")
        return self.representation.decode(x0.detach().to("cpu", torch.float32), self.samples, self.rate)

    def save(self, media: Tensor, path: Path) -> None:
        """Write a clip as 16-bit WAV, and next to it a plot of its spectrogram (.png).

        Samples beyond full scale are clipped; a warning is logged if that affects more than 1 % of them.

        Raises:
            ValueError: If the path does not end in .wav, or a sample is not finite.
        """
        from modalities.audio_figures import plot_spectrograms

        write_wav(media, self.rate, path)
        plot_spectrograms([media], self.rate, path.with_suffix(".png"))

    def save_grid(self, media: Sequence[Tensor], path: Path, *, names: Sequence[str] | None = None) -> None:
        """Write one figure with the spectrograms of several clips, and one .wav file with all of them, 0.25 s apart.

        Raises:
            ValueError: If there are no clips, or the path does not end in .png.
        """
        from modalities.audio_figures import plot_spectrograms

        plot_spectrograms(media, self.rate, path, names=names)
        pause = torch.zeros(self.audio_channels, self.rate // 4)
        joined = torch.cat([part for waveform in media for part in (waveform, pause)], dim=-1)
        write_wav(joined, self.rate, path.with_suffix(".wav"))


def _power(waveform: Tensor) -> float:
    """Return the mean square of a waveform (channels, samples), of all channels together."""
    return float(waveform.double().square().mean())


def write_wav(waveform: Tensor, rate: int, path: Path) -> None:
    """Write a waveform (channels, samples) as 16-bit WAV, exact to 1/32768, and create its folder.

    Raises:
        ValueError: If the path does not end in .wav, or a sample is not finite.
    """
    import soundfile

    if path.suffix.lower() != ".wav":
        raise ValueError(f"audio is written as WAV: {path} must end in .wav")
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError(f"the waveform for {path} has samples that are not finite")
    clipped = int((waveform.abs() > 1).sum())
    if clipped > MAX_CLIPPED * waveform.numel():
        log.warning("%s: %d of %d samples are beyond full scale and were clipped", path, clipped, waveform.numel())
    path.parent.mkdir(parents=True, exist_ok=True)
    integers = (waveform.T * 32768).round().clamp(-32768, 32767).numpy().astype(np.int16)
    soundfile.write(path, integers, rate, subtype="PCM_16", format="WAV")
