"""Excerpts of audio files at any sample rate: WAV, FLAC, Ogg, MP3 and AIFF with libsndfile, MP4 (m4a) with FFmpeg.

Only the excerpt is decoded, by seeking, so memory depends on the excerpt and not on the file, and files may have any
length. In WAV, AIFF, FLAC and Ogg Vorbis an excerpt is exact to the sample. In MP3, AAC and Opus it is as exact as the
decoder: a codec that adds random noise decodes differently each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalities.audio_checks import check_complete, last_page_samples, recognise
from modalities.representation import LOUDEST
from multisagd.libraries import importing

RATES = (1_000, 768_000)
"""Lowest and highest supported sample rate, in Hz: they cover all audio hardware and limit memory."""
MAX_CHANNELS = 32
TOLERANCE = 0.1
"""Seconds by which MP3 and MP4 files may end early: their lengths are rounded to frames, and some are estimates."""
PREROLL = 8192
"""Frames decoded before an excerpt of MP3, MP4 or Ogg: a frame depends on earlier ones, so the first are wrong."""
UNKNOWN_LENGTH = 2**63 - 1
"""Number of frames that libsndfile returns if a header does not declare it."""


@dataclass(frozen=True)
class AudioFile:
    """An open audio file: `read(start, count)` returns float32 of shape (count, channels), or fewer frames at its end.

    The file may have up to `spare` fewer frames than the `frames` that it declares.
    """

    rate: int
    channels: int
    frames: int
    read: Callable[[int, int], np.ndarray]
    spare: int = 0


@dataclass(frozen=True)
class Excerpts:
    """An open audio file, resampled: `read(start, count)` returns float32 of shape (channels of the file, count).

    The resampled file has `samples` samples. An excerpt equals, up to rounding, the same part of the whole resampled
    file.
    """

    samples: int
    read: Callable[[int, int], Tensor]


def read_excerpt(path: Path, rate: int, samples: int, position: float) -> Tensor:
    """Read at most `samples` samples at `rate`, float32 of shape (channels of the file, samples).

    `position`, from 0 to 1, is the position of the excerpt in a longer file: 0 is its beginning, 1 its end. Raises
    the same errors as `open_excerpts`.
    """
    with open_excerpts(path, rate) as file:
        count = min(samples, file.samples)
        return file.read(round(position * (file.samples - count)), count)


@contextmanager
def open_excerpts(path: Path, rate: int) -> Iterator[Excerpts]:
    """Open an audio file to be read at `rate`, and close it at the end of the `with` block.

    Raises:
        ValueError: If the file is empty, not audio, truncated or without samples, if its rate or number of channels is
            not supported, or if samples are not finite or far beyond full scale.
    """
    with open_audio(path) as audio:
        if not RATES[0] <= audio.rate <= RATES[1]:
            raise ValueError(
                f"its header declares {audio.rate} samples per second, but only {RATES[0]} to {RATES[1]} are supported"
            )
        if not 1 <= audio.channels <= MAX_CHANNELS:
            raise ValueError(
                f"its header declares {audio.channels} channels, but only 1 to {MAX_CHANNELS} are supported"
            )
        if audio.frames <= 0:
            raise ValueError("it contains no samples")

        def read(start: int, count: int) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(_resampled(audio, rate, start, count).T))

        yield Excerpts(max(1, round(audio.frames * rate / audio.rate)), read)


@contextmanager
def open_audio(path: Path) -> Iterator[AudioFile]:
    """Open an audio file, and close it at the end of the `with` block.

    Errors of the decoder within the block become ValueError.

    Raises:
        ValueError: If the file is empty, not audio, damaged or truncated.
    """
    kind = recognise(path)
    check_complete(path, kind)
    opened = _open_mp4(path) if kind == "MP4" else _open_libsndfile(path, kind)
    with opened as audio:
        yield audio


def _resampled(audio: AudioFile, rate: int, start: int, count: int) -> np.ndarray:
    """Return `count` samples at `rate`, beginning at sample `start` of the resampled file."""
    if rate == audio.rate:
        return _checked(audio, start, count)
    with importing("soxr", f"audio of {audio.rate} samples per second at {rate}"):
        import soxr
    # `down` frames become exactly `up` samples, so a block that starts at a multiple of `down` has the file's phase.
    up, down = rate // math.gcd(rate, audio.rate), audio.rate // math.gcd(rate, audio.rate)
    margin = 200 * math.ceil(audio.rate / rate)  # more than the resampling filter reaches
    block = max(0, start * down // up - margin) // down
    end = min(audio.frames, -(-(start + count) * down // up) + margin)
    resampled = soxr.resample(_checked(audio, block * down, end - block * down), audio.rate, rate)
    return _fill(resampled[start - block * up :][:count], count)


def _checked(audio: AudioFile, start: int, count: int) -> np.ndarray:
    """Return `count` frames; frames that may be missing at the end of the file are replaced by silence.

    Raises:
        ValueError: If there are fewer frames, or samples out of range.
    """
    frames = audio.read(start, count)
    if len(frames) < count - audio.spare or not len(frames):
        raise ValueError(
            f"truncated: it declares {audio.frames} samples per channel, but decoding ends after {start + len(frames)}"
        )
    peak = np.abs(frames).max()
    if not np.isfinite(peak):
        raise ValueError("it has samples that are not finite (NaN or infinity)")
    if peak > LOUDEST:
        raise ValueError(f"its samples reach {peak:g}, but full scale is 1: divide them by their full-scale value")
    return _fill(frames, count)


def _fill(frames: np.ndarray, count: int) -> np.ndarray:
    return np.pad(frames, ((0, count - len(frames)), (0, 0)))


@contextmanager
def _open_libsndfile(path: Path, kind: str) -> Iterator[AudioFile]:
    with importing("soundfile", "audio files"):
        import soundfile
    try:
        with soundfile.SoundFile(path) as file:
            if file.frames == UNKNOWN_LENGTH:
                raise ValueError(
                    "its header does not state its length, as happens in recorded streams: encode it again"
                )
            # libsndfile 1.2.2 may seek to a wrong position in Ogg, within the last page or forwards.
            latest = file.frames - last_page_samples(path) if kind == "Ogg" else file.frames
            preroll = PREROLL if kind in ("MP3", "Ogg") else 0

            def read(start: int, count: int) -> np.ndarray:
                position = max(0, min(start, latest) - preroll)
                if kind == "Ogg":
                    file.seek(0)
                file.seek(position)
                return file.read(start - position + count, dtype="float32", always_2d=True)[start - position :]

            spare = math.ceil(TOLERANCE * file.samplerate) if kind == "MP3" else 0
            audio = AudioFile(file.samplerate, file.channels, file.frames, read, spare)
            if audio.frames > 0:
                _check_end(audio)
            yield audio
    except soundfile.LibsndfileError as error:
        raise ValueError(f"this {kind} file is damaged or has an unsupported encoding: {error.error_string}") from error


def _check_end(audio: AudioFile) -> None:
    """Check that the last sample can be read.

    Raises:
        ValueError: If the last sample cannot be read.
    """
    import soundfile

    try:
        complete = len(audio.read(max(0, audio.frames - 1 - audio.spare), 1)) == 1
    except soundfile.LibsndfileError:
        complete = False
    if not complete:
        raise ValueError(f"truncated: it declares {audio.frames} samples per channel, but the last one cannot be read")


@contextmanager
def _open_mp4(path: Path) -> Iterator[AudioFile]:
    with importing("av", "audio in MP4"):
        import av
    try:
        # The demuxer is fixed and gets an open file, so that no playlist or reference inside can open another file.
        with path.open("rb") as file, av.open(file, "r", format="mov", metadata_errors="replace") as container:
            if not container.streams.audio:
                raise ValueError("it has no audio stream")
            stream = container.streams.audio[0]
            rate, channels, base = stream.rate, stream.channels, stream.time_base
            if stream.duration is None or not rate or base is None:
                raise ValueError("it does not declare its length and sample rate: remux it without fragments")

            def read(start: int, count: int) -> np.ndarray:
                frames, reached = np.zeros((count, channels), np.float32), 0
                resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=rate)
                container.seek(max(0, math.floor((start - PREROLL) / rate / base)), stream=stream)
                for packet in container.decode(stream):
                    for frame in resampler.resample(packet):
                        if frame.pts is None or frame.time_base is None:
                            raise ValueError("its frames have no timestamps: encode it again")
                        position = round(frame.pts * frame.time_base * rate) - start
                        first, reached = max(0, position), min(count, position + frame.samples)
                        if reached > first:
                            frames[first:reached] = frame.to_ndarray()[:, first - position : reached - position].T
                    if reached == count:
                        break
                return frames[: max(0, reached)]

            yield AudioFile(rate, channels, round(stream.duration * base * rate), read, math.ceil(TOLERANCE * rate))
    except av.FFmpegError as error:
        raise ValueError(f"this MP4 file is damaged: {error.strerror}") from error
