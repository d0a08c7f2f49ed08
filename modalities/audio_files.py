"""Excerpts of audio files, and of the sound in videos, at any sample rate (see `modalities.audio_checks.KINDS`).

Only the excerpt is decoded, by seeking, so memory depends on the excerpt and not on the file, and files may have any
length. In WAV, AIFF, FLAC and Ogg Vorbis an excerpt is exact to the sample. In MP3, AAC and Opus it is as exact as the
decoder: a codec that adds random noise decodes differently each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalities.audio_checks import Content, examine
from modalities.audio_decoders import AudioFile, open_ffmpeg, open_libsndfile
from modalities.representation import LOUDEST
from multisagd.libraries import importing

RATES = (1_000, 768_000)
"""Lowest and highest supported sample rate, in Hz: they cover all audio hardware and limit memory."""
MAX_CHANNELS = 32


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
    content = examine(path)
    with _joined(path, content) if content.links else _opened(path, content) as audio:
        yield audio


def _opened(path: Path, content: Content) -> AbstractContextManager[AudioFile]:
    return open_libsndfile(path, content) if content.libsndfile else open_ffmpeg(path, content)


@contextmanager
def _joined(path: Path, content: Content) -> Iterator[AudioFile]:
    """Open a file in which streams were joined, as recorders of radio do.

    Raises:
        ValueError: If their rates or numbers of channels differ, or one of them is damaged.
    """
    parts = [content._replace(begin=begin, end=end, links=()) for begin, end in content.links]
    kinds, ends = set(), [0]
    for part in parts:
        with _opened(path, part) as audio:
            kinds.add((audio.rate, audio.channels))
            ends.append(ends[-1] + audio.frames)
    if len(kinds) > 1:
        raise ValueError("it joins streams of different rates or numbers of channels: split it")

    def read(start: int, count: int) -> np.ndarray:
        pieces = [np.zeros((0, audio.channels), np.float32)]
        for part, first, last in zip(parts, ends, ends[1:], strict=False):
            if first < start + count and start < last:
                with _opened(path, part) as each:
                    begin = max(start - first, 0)
                    pieces.append(_checked(each, begin, min(start + count, last) - first - begin))
        return np.concatenate(pieces)

    yield replace(audio, frames=ends[-1], read=read, spare=0)


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
    if len(frames) < count and start + len(frames) < audio.frames - audio.spare:
        raise ValueError(
            f"truncated: it declares {audio.frames} samples per channel, but decoding ends after {start + len(frames)}"
        )
    peak = np.abs(frames).max(initial=0)
    if not np.isfinite(peak):
        raise ValueError("it has samples that are not finite (NaN or infinity)")
    if peak > LOUDEST:
        raise ValueError(f"its samples reach {peak:g}, but full scale is 1: divide them by their full-scale value")
    return _fill(frames, count)


def _fill(frames: np.ndarray, count: int) -> np.ndarray:
    return frames if len(frames) == count else np.pad(frames, ((0, count - len(frames)), (0, 0)))
