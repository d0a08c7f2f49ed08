"""Audio files opened by a decoder, each read at any position: libsndfile, or FFmpeg for what libsndfile does not know.

libsndfile is several times as fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from modalities.audio_checks import Content
from modalities.file_view import open_view
from modalities.ogg_files import last_page_samples
from multisagd.libraries import importing

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet

TOLERANCE = 0.1
"""Seconds by which files of lossy codecs may end early: their lengths are rounded to frames, and some are estimates."""
PREROLL = 8192
"""Frames decoded before an excerpt of a lossy codec or Ogg: a frame depends on earlier ones, so the first are wrong."""
TAIL = 10.0
"""Seconds before the declared end from which the last packets are searched for."""
DEMUXERS = {
    "MP4": "mov", "Ogg": "ogg", "FLAC": "flac", "MP3": "mp3", "AAC": "aac", "Matroska": "matroska", "AVI": "avi",
    "WMA": "asf", "CAF": "caf", "WAV": "wav",
}  # fmt: skip
"""FFmpeg's names of the formats that it reads here."""
STATED = ("MP4", "Ogg", "CAF")
"""Formats that state the length of the sound; the length that FFmpeg gives for others is an estimate."""
DECLARED = ("Matroska", "AVI", "WMA")
"""Formats that declare the duration of their longest stream."""
UNSEEKABLE = ("Ogg",)
"""Formats of which FFmpeg gives wrong times after seeking: they are read from the start, though not decoded."""


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
            latest = file.frames - _last_samples(path, content) if kind == "Ogg" else file.frames
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
    if content.begin == 0 and content.end == path.stat().st_size and not content.right:
        yield path
    else:
        with open_view(path, content.end, content.field, content.right, content.begin) as file:
            yield file


def _last_samples(path: Path, content: Content) -> int:
    with path.open("rb") as file:
        return last_page_samples(file, content.end)


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
        ValueError: If the file is damaged or truncated, or has no sound that FFmpeg decodes; errors of the decoder
            within the block become ValueError.
    """
    with importing("av", f"audio in {content.kind}"):
        import av
    named = f"{content.codec} in {content.kind}" if content.codec else content.kind
    try:
        with _ffmpeg_container(path, content) as (container, stream):
            unit = stream.time_base or Fraction(1, stream.rate)
            first, places = _start(container, stream, unit)
            frames = round((_end(container, stream, content) * unit - places.origin) * stream.rate)

            def read(start: int, count: int) -> np.ndarray:
                place = max(first, math.floor((places.origin + Fraction(start - PREROLL, stream.rate)) / unit))
                if content.kind not in UNSEEKABLE:
                    with suppress(av.FFmpegError):  # not every demuxer finds its first frame again
                        container.seek(place, stream=stream)
                        return _decoded(container.demux(stream), stream, places, start, count)
                with _ffmpeg_container(path, content) as (again, opened):
                    return _decoded(_packets(again, opened, place), opened, places, start, count)

            yield AudioFile(stream.rate, stream.channels, frames, read, math.ceil(TOLERANCE * stream.rate))
    except av.FFmpegError as error:
        raise ValueError(f"this {named} file is damaged: {error.strerror}") from error


@contextmanager
def _ffmpeg_container(path: Path, content: Content) -> Iterator[tuple[InputContainer, AudioStream]]:
    import av
    from av.codec.context import Flags2

    # The demuxer is fixed and gets an open file, so that no playlist or reference inside can open another file.
    with (
        open_view(path, content.end, content.field, content.right, content.begin) as file,
        av.open(file, "r", format=DEMUXERS[content.kind], metadata_errors="replace") as container,
    ):
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        stream = container.streams.audio[0]
        if stream.codec_context is None or not stream.rate:
            codec = f" ({content.codec})" if content.codec else ""
            raise ValueError(f"there is no decoder for the audio in this file{codec}: convert it to FLAC")
        if stream.codec_context.name == "alac":
            # FFmpeg 8 leaves out the padding of the last packet in CAF twice. Only lossy codecs precede the sound.
            stream.codec_context.flags2 |= Flags2.skip_manual
        yield container, stream


@dataclass(frozen=True)
class _Places:
    """Where decoded frames belong, as their times may be rounded, in Matroska to milliseconds.

    `origin` is the time of the first sample in seconds, `rounding` twice the unit of times in samples; the frames begin
    at `base` and its sum with multiples of `size`.
    """

    origin: Fraction
    rounding: int
    base: int = 0
    size: int = 1

    def of(self, time: Fraction, rate: int, expected: int | None) -> int:
        """Return the first sample of a frame; `expected` is where the frame before it ends, if there is one."""
        position = round((time - self.origin) * rate)
        if expected is None:
            expected = self.base + self.size * round((position - self.base) / self.size)
        return expected if abs(position - expected) <= self.rounding else position


def _start(container: InputContainer, stream: AudioStream, unit: Fraction) -> tuple[int, _Places]:
    """Return the time of the first packet, and where decoded frames belong.

    The first packets of AAC precede the sound: they are decoded, but not played. If the file does not say so, the first
    frame is left out, half of which would overlap with one before it.
    """
    packets = container.demux(stream)
    begin = next((packet for packet in packets if packet.pts is not None), None)
    first, start = 0 if begin is None or begin.pts is None else begin.pts, stream.start_time or 0
    rounding, primed = math.ceil(2 * stream.rate * unit), stream.codec_context.name == "aac" and first >= start
    if begin is None or (stream.rate * unit <= 1 and not primed):
        return first, _Places(start * unit, rounding)
    frames = chain.from_iterable(packet.decode() for packet in chain([begin], packets))
    head, following = next(frames, None), next(frames, None)
    if head is None or head.pts is None or following is None:
        return first, _Places(start * unit, rounding)
    primed &= head.pts <= first
    origin = head.pts * unit + Fraction(head.samples if primed else 0, stream.rate)
    return first, _Places(origin, rounding, 0 if primed else head.samples, max(1, following.samples))


def _end(container: InputContainer, stream: AudioStream, content: Content) -> int:
    """Return the time at which the sound ends.

    Raises:
        ValueError: If all streams end clearly before the declared duration.
    """
    import av

    if content.kind in STATED and stream.duration is not None:
        return int(stream.duration) + (stream.start_time or 0)
    end, others = 0, 0.0
    if content.kind in DECLARED and container.duration:
        declared = container.duration / av.time_base
        container.seek(max(0, round((declared - TAIL) * av.time_base)))
        for packet in container.demux():
            if packet.pts is not None:
                last = packet.pts + (packet.duration or 0)
                end = max(end, last) if packet.stream_index == stream.index else end
                others = max(others, float(last * packet.time_base))
        start = max(0, container.start_time or 0) / av.time_base
        if others - start < declared - max(TOLERANCE, 0.01 * declared):
            raise ValueError(
                f"truncated: its header declares {declared:.2f} s, but its last packet ends at {others - start:.2f} s"
            )
    return end or _measured(container, stream)


def _measured(container: InputContainer, stream: AudioStream) -> int:
    """Return the time at which the last packet ends, by reading all packets without decoding them."""
    container.seek(0)
    end = 0
    for packet in container.demux(stream):
        if packet.pts is not None:
            end = max(end, packet.pts + (packet.duration or 0))
    return end


def _packets(container: InputContainer, stream: AudioStream, place: int) -> Iterator[Packet[AudioStream]]:
    """Return the packets that end after a time."""
    for packet in container.demux(stream):
        if packet.pts is None or packet.pts + (packet.duration or 0) > place:
            yield packet


def _decoded(
    packets: Iterable[Packet[AudioStream]], stream: AudioStream, places: _Places, start: int, count: int
) -> np.ndarray:
    """Return `count` frames from `start` on, or fewer at the end of the file; the packets begin before `start`."""
    import av

    result, reached, end = np.zeros((count, stream.channels), np.float32), 0, None
    resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
    for packet in packets:
        try:
            decoded = packet.decode()
        except av.error.InvalidDataError:
            if stream.codec_context.name not in ("mp3", "mp3float"):
                raise
            continue  # a tag between two files that were joined
        for frame in (converted for each in decoded for converted in resampler.resample(each)):
            if frame.pts is not None and frame.time_base is not None:
                position = places.of(frame.pts * frame.time_base, stream.rate, end)
            elif end is None:
                raise ValueError("its frames have no timestamps: encode it again")
            else:
                position = end  # decoders of WMA keep the last frame back
            end = position + frame.samples
            position -= start
            first, reached = max(0, position), min(count, end - start)
            if reached > first:
                result[first:reached] = frame.to_ndarray()[:, first - position : reached - position].T
        if reached == count:
            break
    return result[: max(0, reached)]
