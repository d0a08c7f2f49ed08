"""Audio files opened by a decoder, each read at any position: libsndfile, or FFmpeg for what libsndfile does not know.

libsndfile is several times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from modalities.audio_checks import Content, last_page_samples
from modalities.file_view import open_view
from multisagd.libraries import importing

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

TOLERANCE = 0.1
"""Seconds by which MP3 and MP4 files may end early: their lengths are rounded to frames, and some are estimates."""
PREROLL = 8192
"""Frames decoded before an excerpt of MP3, MP4 or Ogg: a frame depends on earlier ones, so the first are wrong."""
DEMUXERS = {"MP4": "mov", "Ogg": "ogg", "FLAC": "flac", "MP3": "mp3"}
"""FFmpeg's names of the formats that it reads here."""


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


@contextmanager
def open_libsndfile(path: Path, content: Content) -> Iterator[AudioFile]:
    """Open a file with libsndfile, and close it at the end of the `with` block.

    Raises:
        ValueError: If the file is damaged or truncated; errors of the decoder within the block become ValueError.
    """
    with importing("soundfile", "audio files"):
        import soundfile
    kind = content.kind
    try:
        with _viewed(path, content) as source, soundfile.SoundFile(source) as file:
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
                _check_last(audio)
            yield audio
    except soundfile.LibsndfileError as error:
        raise ValueError(f"this {kind} file is damaged or has an unsupported encoding: {error.error_string}") from error


@contextmanager
def _viewed(path: Path, content: Content) -> Iterator[Path | BinaryIO]:
    """Provide the path, or an open file if libsndfile should see another end or header; a path is read faster."""
    if content.end == path.stat().st_size and not content.right:
        yield path
    else:
        with open_view(path, content.end, content.field, content.right) as file:
            yield file


def _check_last(audio: AudioFile) -> None:
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
def open_ffmpeg(path: Path, content: Content) -> Iterator[AudioFile]:
    """Open a file with FFmpeg, and close it at the end of the `with` block.

    Raises:
        ValueError: If the file is damaged, or has no sound that FFmpeg decodes; errors of the decoder within the block
            become ValueError.
    """
    with importing("av", f"audio in {content.kind}"):
        import av
    try:
        with _ffmpeg_container(path, content) as (container, stream):
            # The first packets of AAC precede the sound: they are decoded, but not played.
            first = next((packet.pts for packet in container.demux(stream) if packet.pts is not None), 0)
            step = stream.rate * (stream.time_base or 0)
            # Lengths that FFmpeg estimates from the first frames are not used.
            stated = stream.duration if content.kind in ("MP4", "Ogg") else None
            frames = round((_measured(container, stream) if stated is None else stated) * step)
            # FFmpeg gives wrong times after seeking into the last page of Ogg.
            latest = frames - last_page_samples(path) if content.kind == "Ogg" else frames

            def read(start: int, count: int) -> np.ndarray:
                place = max(first, math.floor((min(start, latest) - PREROLL) / step))
                try:
                    container.seek(place, stream=stream)
                except av.FFmpegError:  # not every demuxer finds its first frame again
                    with _ffmpeg_container(path, content) as opened:
                        return _decoded(*opened, start, count)
                return _decoded(container, stream, start, count)

            yield AudioFile(stream.rate, stream.channels, frames, read, math.ceil(TOLERANCE * stream.rate))
    except av.FFmpegError as error:
        raise ValueError(f"this {content.kind} file is damaged: {error.strerror}") from error


@contextmanager
def _ffmpeg_container(path: Path, content: Content) -> Iterator[tuple[InputContainer, AudioStream]]:
    import av

    # The demuxer is fixed and gets an open file, so that no playlist or reference inside can open another file.
    with (
        open_view(path, content.end) as file,
        av.open(file, "r", format=DEMUXERS[content.kind], metadata_errors="replace") as container,
    ):
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        stream = container.streams.audio[0]
        if stream.codec_context is None or not stream.rate:
            raise ValueError("there is no decoder for the audio in this file")
        yield container, stream


def _measured(container: InputContainer, stream: AudioStream) -> int:
    """Return the time at which the last packet ends, by reading all packets without decoding them."""
    end = 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
    return end


def _decoded(container: InputContainer, stream: AudioStream, start: int, count: int) -> np.ndarray:
    """Return `count` frames from `start` on, or fewer at the end of the file, decoding from where the container is."""
    import av

    frames, reached = np.zeros((count, stream.channels), np.float32), 0
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    for packet in container.demux(stream):
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            if container.format.name != "mp3":
                raise
            continue  # a tag between two files that were joined
        for frame in (converted for each in decoded for converted in resampler.resample(each)):
            if frame.pts is None or frame.time_base is None:
                raise ValueError("its frames have no timestamps: encode it again")
            position = round(frame.pts * frame.time_base * stream.rate) - start
            first, reached = max(0, position), min(count, position + frame.samples)
            if reached > first:
                frames[first:reached] = frame.to_ndarray()[:, first - position : reached - position].T
        if reached == count:
            break
    return frames[: max(0, reached)]
