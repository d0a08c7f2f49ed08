"""Representations of audio as tensors: complex, log-mel or constant-Q spectrogram, or waveform.

The grid of a spectrogram is a time-frequency plane, and noise is shaped in the Fourier transform of that plane. So a
spectrum on its axes describes temporal modulation (axis `time`, in Hz) and spectral modulation (axis `frequency`,
in cycles per Hz, axis `mel`, in cycles per mel, or axis `octave`, in cycles per octave); it does not describe audible
frequencies. Only on the grid of a `Waveform` is it the ordinary spectrum, in Hz.

The values of a complex spectrogram turn with a phase, and turning them along an axis shifts the frequencies of that
axis: only one of its axes has frequencies that mean something, and `Stft.phase` determines which.

Power laws are flat below these corner frequencies, which are physical constants: they depend neither on the length of a
clip nor on the sample rate, the window or the hop.

- `time` of a spectrogram, 0.5 Hz: one period in two seconds, slower than the rate of words and notes;
- `frequency`, 1 cycle per 4000 Hz, and `mel`, 1 cycle per 2146 mel (also 4000 Hz): one period over the band of
  telephone speech, the narrowest in common use;
- `octave`, 1 cycle per 3.5 octaves: one period over the same band, which telephones carry from 300 to 3400 Hz;
- `time` of a waveform, 20 Hz: lower frequencies are inaudible.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modalities import constant_q, mel
from multisagd.grid import Axis, Grid
from multisagd.libraries import check

MODULATION_CORNER = 0.5
AUDIBLE_CORNER = 20.0
FREQUENCY_CORNER = 1 / 4000
MEL_CORNER = 1 / 2146
OCTAVE_CORNER = 1 / 3.5
LEAST_SEEN = 0.25
"""Least fraction of a constant-Q filter's energy in the sound; with less, a frame takes the level of the last one."""

LOUDEST = 8.0
"""Maximum absolute value of a sample, with full scale at 1: lossy codecs overshoot full scale, but not by 18 dB."""


class Representation(ABC):
    """Converts waveforms (audio channels, samples) with full scale at ±1 to tensors (channels, *grid) and back."""

    @abstractmethod
    def channels(self, audio_channels: int) -> int:
        """Return the number of channels of the tensor, given the number of audio channels."""

    @abstractmethod
    def grid(self, samples: int, rate: int) -> Grid:
        """Return the grid of `samples` samples at `rate` samples per second.

        Raises:
            ValueError: If such waveforms cannot be represented in this way.
        """

    @abstractmethod
    def covered(self, samples: int) -> int:
        """Return the number of points on the time axis whose centre is within the first `samples` samples."""

    def reach(self, rate: int) -> float:
        """Return how far from its own time a value depends on the sound, in samples; for a waveform it is 0."""
        return 0.0

    @property
    def meaningless_axes(self) -> Mapping[str, str]:
        """The axes along which frequencies mean nothing, each with the remedy; by default there are none.

        See `Modality.meaningless_axes`.
        """
        return {}

    @abstractmethod
    def encode(self, waveform: Tensor, rate: int, length: int | None = None) -> Tensor:
        """Convert a waveform (audio channels, samples) to a tensor (channels, *grid(samples, rate)).

        If a `length` is given, only the first `length` samples are data, and padding follows.
        """

    @abstractmethod
    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Convert a tensor (channels, *grid(samples, rate)) to a waveform (audio channels, samples)."""


@dataclass(frozen=True)
class Waveform(Representation):
    """A waveform (audio channels, samples) multiplied by `scale`.

    The noise at t = 1 has standard deviation 1, so quiet recordings need a scale above 1.

    Raises:
        ValueError: If the scale is not positive.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_positive("scale", self.scale)

    def channels(self, audio_channels: int) -> int:
        """Return `audio_channels`, the number of audio channels."""
        return audio_channels

    def grid(self, samples: int, rate: int) -> Grid:
        """Return the grid (time,), one sample apart."""
        return Grid((Axis("time", samples, 1 / rate, "s", AUDIBLE_CORNER),))

    def covered(self, samples: int) -> int:
        """Return `samples`, since every point is one sample."""
        return samples

    def encode(self, waveform: Tensor, rate: int, length: int | None = None) -> Tensor:
        """Return the waveform multiplied by `scale`."""
        return waveform * self.scale

    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Return the tensor divided by `scale` and clipped to ±`LOUDEST`."""
        return (x0 / self.scale).clamp(-LOUDEST, LOUDEST)


@dataclass(frozen=True)
class Spectrogram(Representation):
    """Base class of the two spectrograms: Hann windows of `window` samples, with centres `hop` samples apart.

    Frame i is centred on sample i·hop, and there are ceil(samples/hop) + 1 frames, so the windows of the last frames
    reach beyond the waveform: `transform` finds silence there, and `levels` corrects for it.

    Raises:
        ValueError: If the window is odd or below 4, or the hop is more than half a window (samples would be lost).
    """

    window: int = 512
    hop: int = 128

    def __post_init__(self) -> None:
        if self.window < 4 or self.window % 2:
            raise ValueError(f"window must be an even number of samples, at least 4; got {self.window}")
        if not 1 <= self.hop <= self.window // 2:
            raise ValueError(f"hop must be from 1 to half the window ({self.window // 2}) samples, got {self.hop}")

    def covered(self, samples: int) -> int:
        """Return the number of frames that are centred on one of the first `samples` samples."""
        return -(-samples // self.hop)

    def centres(self, samples: int) -> Tensor:
        """Return the sample on which each frame of a waveform of `samples` samples is centred, int64 (frames,)."""
        return torch.arange(self.covered(samples) + 1) * self.hop

    def reach(self, rate: int) -> float:
        """Return half a window, and an eighth, by which `levels` moves windows near an end, in samples."""
        return self.window / 2 + self.window // 8

    def time_axis(self, samples: int, rate: int) -> Axis:
        """Return the axis of frames, `hop` samples apart."""
        return Axis("time", self.covered(samples) + 1, self.hop / rate, "s", MODULATION_CORNER)

    def padded(self, samples: int) -> int:
        """Return the length that the frames of a waveform of `samples` samples span: a multiple of the hop."""
        return self.covered(samples) * self.hop

    def transform(self, waveform: Tensor) -> Tensor:
        """Return the complex spectrogram (audio channels, frequencies, frames); a tone at full scale has magnitude 1.

        The waveform is padded with silence before and after.
        """
        padded = torch.nn.functional.pad(waveform, (0, self.padded(waveform.shape[-1]) - waveform.shape[-1]))
        hann = torch.hann_window(self.window)
        spectrogram = torch.stft(
            padded, self.window, self.hop, window=hann, center=True, pad_mode="constant", return_complex=True
        )
        return spectrogram * (4 / self.window)

    def levels(self, waveform: Tensor, length: int | None = None) -> Tensor:
        """Return the power of every frame (audio channels, frequencies, frames); a tone at full scale has power 1.

        Steady sounds have the same level in all frames, also where a window reaches beyond the waveform, or beyond its
        first `length` samples if only these are data: the power is divided by the fraction of the window's energy
        within them, and windows centred near an end move inwards, by up to an eighth of their length. Frames after the
        data contain silence, except for what is left of their windows.
        """
        samples = waveform.shape[-1]
        sound = samples if length is None else length
        last, inwards = self.covered(sound), min(self.window // 8, sound // 2)
        centres = self.centres(samples)
        centres[: last + 1] = centres[: last + 1].clamp(inwards, sound - inwards)
        positions = centres[:, None] + torch.arange(self.window) - self.window // 2
        windows = torch.hann_window(self.window) * ((positions >= 0) & (positions < sound))
        energy = windows.square().sum(1) * (8 / 3 / self.window)
        energy[last + 1 :] = 1
        spectrum = torch.fft.rfft(waveform[..., positions.clamp(0, samples - 1)] * windows)
        return (spectrum.abs().square() * (4 / self.window) ** 2).transpose(-1, -2) / energy

    def inverse(self, spectrogram: Tensor, samples: int) -> Tensor:
        """Return the waveform (audio channels, samples) whose spectrogram is nearest: the inverse of `transform`."""
        hann = torch.hann_window(self.window)
        padded = torch.istft(
            spectrogram * (self.window / 4), self.window, self.hop, window=hann, length=self.padded(samples)
        )
        return padded[..., :samples]


@dataclass(frozen=True)
class Stft(Spectrogram):
    """The complex short-time Fourier transform X with compressed magnitude, `scale · |X|^power · e^{i phase}`.

    Shape (2 × audio channels, window/2 + 1, frames): real parts of all audio channels, then imaginary parts. A tone at
    full scale has |X| = 1. The inverse is exact, up to rounding: `decode(encode(w)) = w` within 1e-5. Speech and music
    span about 60 dB, which a power of 0.5 reduces to 30 dB (as in arXiv:2208.05830); with the default scale,
    99.9 % of the values of common recordings lie in [-1, 1].

    `phase` is what the phase of a value is relative to, and determines the axis with meaningful frequencies:

    - "stationary" counts it from the first sample of the clip. A steady tone on the centre of a frequency bin is
      constant along `time`, any other tone turns at its distance from the centre: frequencies along `time` are those of
      temporal modulation. Along `frequency`, a sound at time s turns at s cycles per Hz, wherever in the clip it lies.
    - "centred" counts it from the centre of the frame. A sound within a frame turns along `frequency` at its distance
      from the centre: frequencies along `frequency` are cycles per Hz, and most power is near 0. Along `time`, a tone
      of f Hz turns at f Hz, aliased by the hop.

    No phase gives both: shifts in time and in frequency do not commute, so to bring every sound near 0 along one axis
    turns it along the other one; the two choices differ by a chirp over the plane, `exp(-2πi f t)`.

    Raises:
        ValueError: If the power is outside (0, 1], the scale is not positive, or the phase is unknown; see
            `Spectrogram` for window and hop.
    """

    power: float = 0.5
    scale: float = 3.0
    phase: Literal["stationary", "centred"] = "stationary"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.phase not in ("stationary", "centred"):
            raise ValueError(f"phase must be stationary or centred, got {self.phase!r}")
        if not 0 < self.power <= 1:
            raise ValueError(f"power must be above 0 and at most 1 (no compression), got {self.power}")
        _check_positive("scale", self.scale)

    def channels(self, audio_channels: int) -> int:
        """Return twice the number of audio channels, for real and imaginary parts."""
        return 2 * audio_channels

    def grid(self, samples: int, rate: int) -> Grid:
        """Return the grid (frequency, time), rate/window Hz and hop/rate seconds apart."""
        frequency = Axis("frequency", self.window // 2 + 1, rate / self.window, "Hz", FREQUENCY_CORNER)
        return Grid((frequency, self.time_axis(samples, rate)))

    def encode(self, waveform: Tensor, rate: int, length: int | None = None) -> Tensor:
        """Return the compressed spectrogram."""
        spectrogram = self.transform(waveform)
        spectrogram = spectrogram * self._turn(spectrogram.shape[-1])
        compressed = torch.polar(self.scale * spectrogram.abs() ** self.power, spectrogram.angle())
        return torch.cat([compressed.real, compressed.imag])

    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Return the waveform of a spectrogram; for any other tensor, a waveform with a similar spectrogram."""
        real, imaginary = (x0 / self.scale).chunk(2)
        compressed = torch.complex(real, imaginary)
        # Samples of at most LOUDEST give magnitudes of at most twice LOUDEST; larger magnitudes could overflow.
        magnitude = compressed.abs().clamp(max=(2 * LOUDEST) ** self.power) ** (1 / self.power)
        spectrogram = torch.polar(magnitude, compressed.angle())
        return self.inverse(spectrogram * self._turn(spectrogram.shape[-1]).conj(), samples)

    @property
    def meaningless_axes(self) -> Mapping[str, str]:
        """The axis whose frequencies `phase` leaves without meaning."""
        other, axis, meant = {
            "stationary": ("centred", "frequency", "time"), "centred": ("stationary", "time", "frequency"),
        }[self.phase]  # fmt: skip
        remedy = f"shape it along {meant} (spectrum.axes=[{meant}]), or set modality.representation.phase={other}"
        return {axis: remedy}

    def _turn(self, frames: int) -> Tensor:
        """Return the factors (frequencies, frames) that turn the phases of `transform` to what `phase` says.

        `transform` counts them from the first sample of the window, which is half a window before the frame's centre.
        """
        frequencies, centres = torch.arange(self.window // 2 + 1)[:, None], torch.arange(frames) * self.hop
        if self.phase == "centred":
            centres = centres * 0
        # In integers: the phase in float32 would be wrong after some seconds.
        turned = (frequencies * ((centres - self.window // 2) % self.window)) % self.window
        cycle = -2 * math.pi / self.window * torch.arange(self.window, dtype=torch.float64)
        return torch.polar(torch.ones_like(cycle), cycle).to(torch.complex64)[turned]


@dataclass(frozen=True)
class LogMel(Spectrogram):
    """Log power in `bands` triangular bands, equally spaced in mel from `low` to `high` Hz (`None`: half the rate).

    Shape (audio channels, bands, frames): 0 dB (a tone at full scale) maps to 1; `floor_db` and anything below maps to
    -1.

    There is no phase, so the inverse is a lossy estimate: non-negative least squares give the power of each frequency,
    then the Griffin-Lim algorithm gives the phase (see `modalities.mel`). It is deterministic.

    Raises:
        BrokenLibraryError: If torchaudio cannot be imported.
        ValueError: If `bands` is below 1, 0 <= low < high does not hold, or the floor is not negative; in `grid`, if
            `high` is above half the rate, a band contains no frequency, or waveforms are shorter than a window.
    """

    bands: int = 64
    low: float = 60.0
    high: float | None = None
    floor_db: float = -80.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("torchaudio.functional", mel.USE)
        if self.bands < 1:
            raise ValueError(f"bands must be at least 1, got {self.bands}")
        if not (0 <= self.low < math.inf and (self.high is None or self.low < self.high < math.inf)):
            raise ValueError(
                f"bands must span low to high Hz with 0 <= low < high, got low={self.low}, high={self.high}"
            )
        _check_floor(self.floor_db)

    def channels(self, audio_channels: int) -> int:
        """Return `audio_channels`, the number of audio channels."""
        return audio_channels

    def grid(self, samples: int, rate: int) -> Grid:
        """Return the grid (mel, time), one band and one hop apart."""
        if samples < self.window:
            raise ValueError(
                f"waveforms of {samples} samples are shorter than the window of {self.window}: reduce window"
            )
        edge, centre, *_ = mel.centres(*self.settings(rate))
        axis = Axis("mel", self.bands, centre - edge, "mel", MEL_CORNER)
        return Grid((axis, self.time_axis(samples, rate)))

    def settings(self, rate: int) -> tuple[int, float, float, int, int]:
        """Return the arguments of the functions in `modalities.mel`: bands, low, high, window, rate."""
        return (self.bands, self.low, rate / 2 if self.high is None else self.high, self.window, rate)

    def encode(self, waveform: Tensor, rate: int, length: int | None = None) -> Tensor:
        """Return the log-mel spectrogram."""
        return _logarithm(mel.filters(*self.settings(rate)) @ self.levels(waveform, length), self.floor_db)

    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Return a waveform that approximates this log-mel spectrogram, limited to +10 dB.

        Values at the floor become silence.
        """
        return self.estimate(x0, self.padded(samples), rate)[..., :samples]

    def estimate(self, values: Tensor, samples: int, rate: int) -> Tensor:
        """Return a waveform (..., samples) from log-mel values (..., bands, frames), frame i on sample i·hop."""
        power = mel.invert_filters(_power(values, self.floor_db), mel.filters(*self.settings(rate)))
        return mel.invert_magnitude(power.sqrt() * (self.window / 4), self.window, self.hop, samples)


@dataclass(frozen=True)
class ConstantQ(Representation):
    """Log power in bands at equal distances in pitch: `octaves` octaves from `low` Hz, `bins_per_octave` bands in each.

    Shape (audio channels, octaves × bins_per_octave, frames): 0 dB (a tone at full scale) maps to 1; `floor_db` and
    anything below maps to -1. Transposing a sound moves it along the axis `octave`. Every filter has the same number of
    periods, so low bands are slow: at 12 bands per octave, 17 periods. The default is six octaves from C2.

    There is no phase, so the inverse is a lossy estimate by the Griffin-Lim algorithm (see `modalities.constant_q`),
    without anything outside the bands. It is deterministic.

    Raises:
        BrokenLibraryError: If librosa cannot be imported.
        ValueError: If an option is not positive; in `grid`, if the lowest filter is longer than the waveforms, the
            highest band reaches beyond half the rate, or the hop exceeds the shortest filter.
    """

    hop: int = 64
    low: float = 65.40639
    octaves: int = 6
    bins_per_octave: int = 12
    floor_db: float = -80.0

    def __post_init__(self) -> None:
        check("librosa.filters", constant_q.USE)
        _check_positive("low", self.low)
        _check_floor(self.floor_db)
        for name, least in (("hop", 1), ("octaves", 1), ("bins_per_octave", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    def channels(self, audio_channels: int) -> int:
        """Return `audio_channels`, the number of audio channels."""
        return audio_channels

    def grid(self, samples: int, rate: int) -> Grid:
        """Return the grid (octave, time), one band and one hop apart."""
        longest, shortest, highest = constant_q.extent(*self.settings(rate))
        if highest > rate / 2:
            raise ValueError(
                f"the highest of {self.octaves} octaves from {self.low:g} Hz reaches to {highest:.0f} Hz, above half "
                f"the sample rate, {rate / 2:g} Hz: reduce octaves or low"
            )
        if longest > samples:
            raise ValueError(
                f"the filter at {self.low:g} Hz lasts {longest / rate:.3g} s, longer than clips of "
                f"{samples / rate:.3g} s: increase low to {self.low * longest / samples:.0f} or more, or reduce "
                "bins_per_octave"
            )
        if self.hop > shortest:
            raise ValueError(
                f"hop={self.hop} misses sounds between frames: the shortest filter lasts {shortest:.0f} samples; "
                "reduce hop to that or, better, to half of it, reduce octaves, or increase bins_per_octave"
            )
        octave = Axis("octave", self.octaves * self.bins_per_octave, 1 / self.bins_per_octave, "octave", OCTAVE_CORNER)
        return Grid((octave, Axis("time", self.covered(samples) + 1, self.hop / rate, "s", MODULATION_CORNER)))

    def settings(self, rate: int) -> tuple[float, int, int, int]:
        """Return the settings of the functions in `modalities.constant_q`: low, octaves, bins per octave, rate."""
        return (self.low, self.octaves, self.bins_per_octave, rate)

    def covered(self, samples: int) -> int:
        """Return the number of frames that are centred on one of the first `samples` samples."""
        return -(-samples // self.hop)

    def reach(self, rate: int) -> float:
        """Return half the length of the longest filter, in samples."""
        return constant_q.extent(*self.settings(rate))[0] / 2

    def encode(self, waveform: Tensor, rate: int, length: int | None = None) -> Tensor:
        """Return the constant-Q spectrogram, in which steady sounds have the same level in all frames of the data."""
        samples, settings = waveform.shape[-1], self.settings(rate)
        padded = torch.nn.functional.pad(waveform, (0, self.covered(samples) * self.hop - samples))
        power = constant_q.response(padded, self.hop, settings).abs().square()
        sound = samples if length is None else length
        last = self.covered(sound)
        seen = constant_q.seen(sound, self.hop, last + 1, settings)
        level = power[..., : last + 1] / seen.clamp(min=LEAST_SEEN)
        # Only the centre of the last frame may lie beyond the data.
        level[..., last] = torch.where(seen[:, last] < LEAST_SEEN, level[..., last - 1], level[..., last])
        return _logarithm(torch.cat([level, power[..., last + 1 :]], dim=-1), self.floor_db)

    def decode(self, x0: Tensor, samples: int, rate: int) -> Tensor:
        """Return a waveform that approximates this constant-Q spectrogram, limited to +10 dB.

        Values at the floor become silence.
        """
        settings = self.settings(rate)
        power = _power(x0, self.floor_db) * constant_q.seen(samples, self.hop, x0.shape[-1], settings)
        return constant_q.invert_magnitude(power.sqrt(), self.hop, settings)[..., :samples]


def _logarithm(power: Tensor, floor_db: float) -> Tensor:
    """Return values that are 1 where the power is 1, and -1 where it is at the floor or below."""
    decibels = 10 * power.clamp(min=10 ** (floor_db / 10)).log10()
    return 1 - 2 * decibels / floor_db


def _power(values: Tensor, floor_db: float) -> Tensor:
    """Return the power of such values, at most 10 dB; that of the floor is 0."""
    decibels = ((1 - values) * floor_db / 2).clamp(floor_db, 10)
    return (10 ** (decibels / 10) - 10 ** (floor_db / 10)).clamp(min=0)


def _check_floor(floor_db: float) -> None:
    if not -math.inf < floor_db < 0:
        raise ValueError(f"floor_db must be negative (decibels below full scale), got {floor_db}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
