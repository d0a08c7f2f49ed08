"""Reading of windows of video files: the frame shown at each given time, found by seeking to the first time.

Times are seconds since the first frame. The frame shown at a time is the last one whose presentation timestamp is not
later than that time, so any frame rate, even a variable one, is converted to any other by omitting or repeating frames.
Files are recognised by content and limited to formats that contain their frames: playlists and similar formats,
which make a reader open other files and URLs, are rejected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from modalities import mp4_files
from modalities.remarks import remark
from multisagd.libraries import importing

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

FORMATS = ("mov", "matroska", "avi", "gif", "mpegts", "mpeg", "asf", "flv", "ogg")
"""FFmpeg's names of supported containers; mov includes mp4 and 3gp, matroska webm, asf wmv."""

ROUNDING = 1e-3
"""Tolerance of timestamps, in seconds: Matroska rounds timestamps to milliseconds."""

HDR = {16: "PQ", 18: "HLG"}
"""Transfer functions of high dynamic range, by their number (ITU-T H.273)."""

UNSPECIFIED = 2
"""Number of a colour space that the file does not state (ITU-T H.273)."""

BACK = (0.0, 1.0, 4.0, 16.0)
"""Seconds before a time at which keyframes are tried in turn, until one leads to an undamaged frame for that time."""

JOINABLE = ("mpegts", "mpeg")
"""Formats whose files can be joined end to end, so that timestamps jump."""

JUMP = 10.0
"""Largest number of seconds between two frames that is not a jump of the timestamps."""

MISSING = 0.1
"""Fraction of the declared duration that may be missing: headers are rounded."""


@dataclass(frozen=True)
class VideoFile:
    """An open video file, as returned by `open_video`.

    `counted` is True if timestamps do not give display times, so that frames are shown in the order and at the times of
    their packets; `seekable` is False if timestamps cannot be trusted after a seek. `origin` is the timestamp of the
    first frame, `aspect` the width of a pixel divided by its height, `step` the nominal time between frames and
    `declared` the duration declared by the header, both in seconds; `declared` is None if the header declares no
    duration. `shared` is True if that is the duration of the whole file, whose sound may be longer.
    """

    path: Path
    max_pixels: int
    container: InputContainer
    stream: VideoStream
    counted: bool
    seekable: bool
    origin: int
    aspect: float
    step: float
    declared: float | None
    shared: bool

    def frames_at(self, times: Sequence[float], convert: Callable[[VideoFrame], Tensor]) -> list[Tensor]:
        """Return `convert(frame)` for the frame shown at each of the increasing `times`.

        There are fewer results if the video ends before the last time. A frame that is shown is converted once, other
        frames not at all. Times before the first frame show the first frame; the last frame is shown for its duration.

        Raises:
            ValueError: If a decoded frame is damaged or too large.
            av.FFmpegError: If the decoder fails on a damaged file.
        """
        converted: list[Tensor] = []
        shown: VideoFrame | None = None

        def show(until: float) -> None:
            current = None
            while shown is not None and len(converted) < len(times) and times[len(converted)] < until:
                current = convert(shown) if current is None else current
                converted.append(current)

        with closing(self.frames(times[0])) as frames:
            for frame in frames:
                show(self.time(frame.pts) - ROUNDING)
                if len(converted) == len(times):
                    return converted
                shown = frame
        if shown is not None:
            duration = max(self.step, float(shown.duration * (self.stream.time_base or 0)))
            show(self.time(shown.pts) + duration - ROUNDING)
        return converted

    def frames(self, time: float) -> Generator[VideoFrame, None, None]:
        """Decode from the frame shown at `time`, or some frames earlier, to the end.

        If no earlier keyframe can be found or verified, decoding begins at the start of the file.
        """
        import av

        for back in BACK if self.seekable else ():
            try:
                frames = self._seek(max(0.0, time - back), time)
                first = next(frames, None)
            except (av.FFmpegError, ValueError):
                continue  # the seek may be at fault: decode from the start instead
            if first is not None and self.time(first.pts) <= time + ROUNDING:
                yield from chain([first], frames)
                return
            if back > time:
                break
        with _open(self.path, self.max_pixels) as container:
            packets = container.demux(_video_stream(container, self.max_pixels))
            clock = self._clock()
            for count, frame in enumerate(self._decode(clock.through(packets), self.origin)):
                if self.counted:
                    frame.pts = self.origin + clock.times[min(count, len(clock.times) - 1)]
                yield frame

    def shown_size(self) -> tuple[float, float]:
        """Return the height and width of the first frame, upright and with square pixels.

        Raises:
            ValueError: If there are no frames, or the first one is damaged or too large.
        """
        with closing(self.frames(0.0)) as frames:
            first = next(frames, None)
        if first is None:
            raise ValueError("the video has no frames")
        return upright_size(first, self.aspect)

    def measure(self) -> float:
        """Return the duration in seconds by reading all packets, without decoding them.

        Raises:
            ValueError: If there are no packets, or they end clearly before the declared duration.
        """
        count, end, others, clock = 0, 0.0, 0.0, self._clock()
        with _open(self.path, self.max_pixels) as container:
            video = _video_stream(container, self.max_pixels)
            for packet in container.demux() if self.shared else container.demux(video):
                if packet.size and packet.stream_index == video.index:
                    count += 1
                    duration = max(self.step, float((packet.duration or 0) * (packet.time_base or 0)))
                    if self.counted:
                        end = self.time(self.origin + clock.add(packet)) + self.step
                    elif packet.pts is None:
                        end = max(end, (count - 1) * self.step)
                    else:
                        end = max(end, self.time(packet.pts) + duration)
                elif packet.size and packet.pts is not None:
                    others = max(others, float(packet.pts * packet.time_base))
        if count == 0:
            raise ValueError("the video has no frames")
        # Sound may last longer than the video: if it lasts as long as the file should, nothing is missing.
        if self.declared is not None and max(end, others) < (1 - MISSING) * self.declared - self.step:
            raise ValueError(
                f"the file is truncated: its header declares {self.declared:.2f} s of video, but it has {end:.2f} s"
            )
        return end

    def time(self, timestamp: int | None) -> float:
        """Return seconds since the first frame.

        Raises:
            ValueError: If the frame has no timestamp.
        """
        if timestamp is None:
            raise ValueError("the video has frames without a presentation time")
        return float((timestamp - self.origin) * (self.stream.time_base or 0))

    def _clock(self) -> _Clock:
        return _Clock(float(self.stream.time_base or 1), self.step)

    def _seek(self, start: float, time: float) -> Iterator[VideoFrame]:
        """Decode from the last keyframe at or before `start`; yield nothing if that keyframe is later than `time`."""
        assert self.stream.time_base is not None
        offset = self.origin + int((start + ROUNDING) / self.stream.time_base)
        self.container.seek(offset, stream=self.stream)
        packets = dropwhile(lambda packet: not packet.is_keyframe, self.container.demux(self.stream))
        key = next(packets, None)
        if key is not None and key.pts is not None and self.time(key.pts) <= time + ROUNDING:
            yield from self._decode(chain([key], packets), key.pts)

    def _decode(self, packets: Iterable[Packet[VideoStream]], key: int) -> Iterator[VideoFrame]:
        """Decode packets from a keyframe with timestamp `key`, and check the frames."""
        for frame in chain.from_iterable(packet.decode() for packet in packets):
            # Frames shown before a keyframe but coded after it may need earlier frames (an open group of pictures).
            if self.counted or (frame.pts is not None and frame.pts >= key):
                if frame.is_corrupt:
                    raise ValueError(f"the frame at {self.time(frame.pts):.2f} s is damaged")
                _check_size(frame.width, frame.height, self.max_pixels)
                yield frame


class _Clock:
    """The times of packets in the order of the file, in units of `time_base` from 0, without jumps.

    The n-th frame that is shown is given the time of the n-th packet. AVI leaves out packets to extend a frame;
    timestamps jump where streams were joined, and the next frame then follows after `step` seconds.
    """

    def __init__(self, time_base: float, step: float) -> None:
        self.times: list[int] = []
        self.jumped = False
        self._step, self._largest = max(1, round(step / time_base)), JUMP / time_base
        self._last: int | None = None

    def add(self, packet: Packet[Any]) -> int:
        """Return the time of the next packet."""
        stamp = packet.pts if packet.dts is None else packet.dts
        advance = self._step if self._last is None or stamp is None else stamp - self._last
        if not 0 < advance <= self._largest:
            self.jumped, advance = True, self._step
        if len(self.times) == 1:
            advance = self._step  # in AVI, empty packets stand for the frames for which the encoder waited
        if stamp is not None:
            self._last = stamp
        elif self._last is not None:
            self._last += advance
        self.times.append(self.times[-1] + advance if self.times else 0)
        return self.times[-1]

    def through(self, packets: Iterable[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
        """Add packets as they pass."""
        for packet in packets:
            if packet.size:
                self.add(packet)
            yield packet


@lru_cache(maxsize=1 << 14)
def _joined(path: Path, size: int, changed: int, max_pixels: int) -> bool:
    """Whether timestamps jump, by reading all packets of a file of this size that was changed at this time."""
    with _open(path, max_pixels) as container:
        stream = _video_stream(container, max_pixels)
        clock = _Clock(float(stream.time_base or 1), 0.0)
        return any(clock.jumped for _ in clock.through(container.demux(stream)))


@contextmanager
def open_video(path: Path, max_pixels: int) -> Iterator[VideoFile]:
    """Open a video file for reading: its first video stream that is not a cover image.

    Raises:
        ValueError: If the file is empty, is not a video in one of the `FORMATS`, or has more than `max_pixels` per
            frame; errors of the decoder within the `with` block become ValueError too.
    """
    with importing("av", "videos"):
        import av
    if path.stat().st_size == 0:
        raise ValueError("the file is empty")
    try:
        with _open(path, max_pixels) as container:
            stream = _video_stream(container, max_pixels)
            context = stream.codec_context
            _check_size(context.width, context.height, max_pixels)
            rate = float(stream.average_rate or 0)
            step = 1 / rate if 0.01 < rate < 1000 else 1 / 25
            whole = container.duration / av.time_base if container.duration else None
            declared = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else whole
            # FFmpeg fills in the duration of the file for streams without their own, as all are in Matroska.
            shared = declared is not None and whole is not None and abs(declared - whole) < ROUNDING
            # AVI numbers frames in coding order, which differs from display order with B-frames; MPEG-PS gives
            # timestamps for only some frames.
            status = path.stat()
            joined = container.format.name in JOINABLE and _joined(path, status.st_size, status.st_mtime_ns, max_pixels)
            counted = joined or (container.format.name == "avi" and context.has_b_frames)
            seekable = container.format.name != "mpeg" and not counted
            # The declared start may precede the first frame (AVI); in a trimmed video the first keyframe may precede
            # the start.
            first = next((packet.pts for packet in container.demux(stream) if packet.is_keyframe), None)
            origin = max((start for start in (stream.start_time, first) if start is not None), default=0)
            aspect = float(stream.sample_aspect_ratio or 1)
            if joined:
                declared = None
            yield VideoFile(
                path, max_pixels, container, stream, counted, seekable, origin, aspect, step, declared, shared
            )
    except av.FFmpegError as error:
        with path.open("rb") as file:
            if re.match(mp4_files.FIRST, file.read(12), re.DOTALL):
                mp4_files.check_boxes(file, path.stat().st_size)
        raise ValueError(f"the file is damaged or not a video ({error.strerror})") from error


def pixels(frame: VideoFrame, minimum: tuple[int, int], aspect: float = 1.0) -> Tensor:
    """Return an upright frame as RGB, uint8 of shape (3, height, width), with transparent pixels on white.

    Non-square pixels (`aspect` is width over height) are made square by scaling the width, if `aspect` is from 0.25 to
    4. A frame larger than twice `minimum` (height, width) is reduced by a whole factor, to at least twice `minimum`.
    """
    from av.video.reformatter import Colorspace, Interpolation

    matrix = _display_matrix(frame)
    transposed = _is_transposed(matrix)
    height, width = frame.height, frame.width * _known_aspect(aspect)
    high, wide = minimum[::-1] if transposed else minimum
    factor = max(1, int(min(height / (2 * high), width / (2 * wide))))
    transparent = any(component.is_alpha for component in frame.format.components)
    if frame.color_trc in HDR:
        remark(f"HDR ({HDR[frame.color_trc]}), read without tone mapping: its brightness is not as players show it")
    if frame.interlaced_frame:
        remark("interlaced, read without deinterlacing: moving edges are combed")
    # High definition is BT.709 and the rest BT.601 if the file does not say so, as players assume.
    untagged = frame.colorspace == UNSPECIFIED and not frame.format.is_rgb
    high_definition = frame.width >= 1280 or frame.height > 576
    reduced = frame.reformat(
        width=max(1, round(width / factor)),
        height=max(1, round(height / factor)),
        format="rgba" if transparent else "rgb24",
        # Without the two flags, colour uses the nearest sample, which is 1 to 3 dB worse.
        interpolation=(Interpolation.AREA if factor > 1 else Interpolation.BILINEAR)
        | Interpolation.FULL_CHR_H_INT
        | Interpolation.ACCURATE_RND,
        src_colorspace=Colorspace.ITU709 if untagged and high_definition else None,
        threads=1,
    )
    values = reduced.to_ndarray()
    if transparent:
        alpha = values[..., 3:].astype(np.float32) / 255
        values = np.round(values[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    if transposed:
        values, matrix = values.swapaxes(0, 1), matrix[::-1]
    rows, columns = (-1 if matrix[axis, axis] < 0 else 1 for axis in (1, 0))
    return torch.from_numpy(values[::rows, ::columns].copy()).permute(2, 0, 1)


def upright_size(frame: VideoFrame, aspect: float) -> tuple[float, float]:
    """Return the height and width at which a frame is shown, with square pixels."""
    height, width = float(frame.height), frame.width * _known_aspect(aspect)
    return (width, height) if _is_transposed(_display_matrix(frame)) else (height, width)


def _known_aspect(aspect: float) -> float:
    """Return the width of a pixel divided by its height, or 1 if the declared value is not plausible."""
    return aspect if 0.25 <= aspect <= 4 else 1.0


def _is_transposed(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix[0, 0]) < np.abs(matrix[0, 1]))


def _display_matrix(frame: VideoFrame) -> np.ndarray:
    """Return [[a, b], [c, d]], by which a frame is turned and mirrored for display: x' = ax + cy and y' = bx + dy.

    The matrix has 3 × 3 values (ISO/IEC 14496-12, Sec. 8.2.2); a frame without one is displayed as it is.
    """
    from av.sidedata.sidedata import SideData

    stored = frame.side_data.get("DISPLAYMATRIX")
    return np.frombuffer(bytes(stored), np.int32).reshape(3, 3)[:2, :2] if isinstance(stored, SideData) else np.eye(2)


def _open(path: Path, max_pixels: int) -> InputContainer:
    import av

    # "file:" prevents a name with a colon from being parsed as a URL.
    return av.open(
        f"file:{path}",
        options={"max_pixels": str(max_pixels)},
        container_options={"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"},
        metadata_errors="replace",
    )


def _video_stream(container: InputContainer, max_pixels: int) -> VideoStream:
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise ValueError("there is no decoder for the video in this file")
            # One thread: several files are read at a time, and one thread per core for each would be too many.
            stream.codec_context.thread_count = 1
            # The decoder's own limit, for a stream whose frames become larger later.
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            return stream
    raise ValueError("the file has no video stream")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ValueError(f"{width}×{height} pixels per frame exceed max_pixels={max_pixels}")
