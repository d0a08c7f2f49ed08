"""Conversion of video clips to tensors (channels, frames, height, width) of one size, length and rate, and back.

Values are in [-1, 1]. The grid is in seconds along `frame` and in pixels along the other axes, so a spectrum along
`frame` is in Hz. Power laws are flat below 0.25 Hz and 1/256 cycles per pixel. In memory, a clip is a uint8 tensor of
shape (channels, frames, height, width), with fewer frames if its file was shorter; audio is ignored.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor

from modalities.augmentation import IMAGES, Augmentation
from modalities.base import Modality, UnusableFileError
from modalities.image import Image
from modalities.scalars import record
from modalities.sizes import Extent, check_buckets, check_filters, longest_filled, nearest_aspect, outside
from modalities.video_files import VideoFile, open_video, pixels
from modalities.video_writing import tile, write_video
from multisagd.grid import Axis, Grid
from multisagd.libraries import check
from multisagd.seeds import derive

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

FRAME_CORNER = 0.25
"""Corner frequency in Hz, about 1 / (length of a film shot): slower changes occur between shots, not within them."""

LUMA = torch.tensor([0.299, 0.587, 0.114])
"""Weights of red, green and blue in grey (ITU-R BT.601), as for images; torchvision's weights sum to less than 1."""

WINDOWS = 32
"""Maximum number of windows of a file that the motion filter tries."""

MAX_FRAMES = 1 << 40
"""Maximum number of frames of a file: headers may declare any duration, also an infinite one."""

SHOWN = 16
"""Maximum number of frames of a clip on a contact sheet."""


@dataclass(frozen=True)
class Video(Modality):
    """Clips of `frames` frames at `fps` frames per second and one `size`, a side or (height, width).

    Files of any frame rate are sampled at `fps`, using the frame shown at each time. From longer files a random window
    is taken, or the middle one if there is no seed. `channels`, `resize`, `flip` and `max_pixels` (of one frame) are as
    in `Image`; crops and flips are the same for all frames of a clip. `short` determines how files that are too short
    are handled: "mask" repeats the last frame and marks the repetitions as padding, which losses and statistics omit;
    "skip" rejects the file. `motion` rejects windows with little motion: it is the minimum mean absolute difference
    between consecutive frames of the clip, cropped to the middle, pixels in [0, 1]; None accepts all windows. At 8 fps
    and 32×32 it is 0.001 for a static scene with a fixed camera, 0.004 to 0.02 for a person signing, and 0.007 to 0.011
    for the view from a moving car. Up to 32 windows, spread evenly over the file, are tried in an order that depends on
    the seed, and the first with enough motion is used; whether a file is rejected does not depend on the seed.

    `buckets` trains one network on several lengths, and optionally sizes: each is a number of frames, or (frames,
    height, width), and the clip's own, `frames` and `size`, must be one of them. Each file is read at the size that is
    nearest in its aspect ratio, and there at the greatest number of frames that it fills. Files below `min_seconds` are
    not used; `min_size`, `max_aspect` and `augment` are as in `Image`.

    Raises:
        BrokenLibraryError: If PyAV, or a library that `Image` needs, cannot be imported.
        ValueError: If `frames` is below 1, `fps` is outside [0.01, 1000], `motion` is outside (0, 1), the buckets do
            not contain `frames` and `size`, `augment` is invalid, or `Image` rejects a setting.
    """

    frames: int = 16
    fps: float = 8.0
    size: int | Sequence[int] = 32
    channels: int = 3
    resize: Literal["crop", "center", "stretch", "pad"] = "crop"
    flip: bool = False
    motion: float | None = None
    short: Literal["mask", "skip"] = "mask"
    max_pixels: int = 64_000_000
    buckets: Sequence[int | Sequence[int]] | None = None
    min_size: int | None = None
    max_aspect: float | None = None
    min_seconds: float | None = None
    augment: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        check("av", "videos")
        if self.frames < 1 or int(self.frames) != self.frames:
            raise ValueError(f"frames must be a positive integer, got {self.frames}")
        object.__setattr__(self, "frames", int(self.frames))
        if not 0.01 <= self.fps <= 1000:
            raise ValueError(f"fps must be from 0.01 to 1000 frames per second, got {self.fps}")
        if self.motion is not None and not 0 < self.motion < 1:
            raise ValueError(
                f"motion must be a mean difference between pixels in [0, 1], such as 0.01, or null; got {self.motion}"
            )
        if self.motion is not None and self.frames == 1:
            raise ValueError("motion is measured between frames: set frames to at least 2, or motion to null")
        if self.short not in ("mask", "skip"):
            raise ValueError(f"short must be mask or skip, got {self.short!r}")
        object.__setattr__(self, "size", self.image.sides)
        check_filters(self.min_size, self.max_aspect, self.min_seconds)
        if self.buckets is not None:
            own = (self.frames, *self.image.sides)
            sizes = dict.fromkeys(_frames_and_sides(each, self.image.sides) for each in self.buckets)
            check_buckets(len(sizes), own in sizes, "frames and size", list(own))
            object.__setattr__(self, "buckets", tuple(dict.fromkeys([own, *sizes])))
            self.in_buckets()
        object.__setattr__(self, "augment", tuple(self.augment))
        if self.augment:
            self.augmentation  # noqa: B018 - refuses invalid transforms here, not at the first example

    @cached_property
    def augmentation(self) -> Augmentation:
        """The transforms that `augment` describes."""
        return Augmentation(IMAGES, self.augment, (self.channels, *self.image.sides))

    @property
    def scalars(self) -> Mapping[str, str]:
        """Start of the clip, duration and frame rate of the file, and the position of the crop in the scaled frames."""
        return {"start": "s", "duration": "s", "fps": "1/s", "crop_top": "pixel", "crop_left": "pixel"}

    @property
    def size_keys(self) -> tuple[str, ...]:
        """The settings that determine the size of the grid."""
        return ("frames", "size")

    @property
    def sorts_files(self) -> bool:
        """Whether files are sorted into buckets, or some are omitted, by their sizes and durations."""
        return any(each is not None for each in (self.buckets, self.min_size, self.max_aspect, self.min_seconds))

    @property
    def bucket_sizes(self) -> tuple[tuple[int, int, int], ...]:
        """Frames, height and width of each bucket, the clip's own first; without buckets only these."""
        own = (self.frames, *self.image.sides)
        return (own,) if self.buckets is None else tuple(_frames_and_sides(each, own[1:]) for each in self.buckets)

    def in_buckets(self) -> tuple[Self, ...]:
        """Return this modality at the size of each bucket, its own first."""
        return tuple(self.at(frames=frames, size=sides) for frames, *sides in self.bucket_sizes)

    def extent(self, path: Path) -> Extent:
        """Return the height and width of the upright first frame of a file, and its duration.

        Raises:
            ValueError: If the file is not a video or is damaged.
        """
        with open_video(path, self.max_pixels) as file:
            seconds = file.measure() if file.declared is None else file.declared
            return Extent(*file.shown_size(), seconds)

    def bucket_of(self, extent: Extent) -> int:
        """Return the index of the longest bucket that a file fills, among those nearest in aspect ratio."""
        if extent.seconds is None:
            return 0
        sides = [(height, width) for _, height, width in self.bucket_sizes]
        nearest = sides[nearest_aspect(extent, sides)]
        fitting = [index for index, each in enumerate(sides) if each == nearest]
        frames = [self.bucket_sizes[index][0] for index in fitting]
        return fitting[longest_filled(self._frame_count(extent.seconds), frames)]

    def omitted(self, extent: Extent) -> str | None:
        """Return the setting, such as `min_size=64`, because of which a file is not used, or None if it is used."""
        if self.min_seconds is not None and extent.seconds is not None and extent.seconds < self.min_seconds:
            return f"min_seconds={self.min_seconds:g}"
        return outside(extent, self.min_size, self.max_aspect)

    @property
    def suffixes(self) -> tuple[str, ...]:
        """File suffixes that are read."""
        ours = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif")
        return (*ours, ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".3gp")

    @property
    def image(self) -> Image:
        """The modality of one frame."""
        return Image(self.size, self.channels, self.resize, self.flip, self.max_pixels)

    def grid(self) -> Grid:
        """Return the grid (frame, height, width), 1/fps seconds and 1 pixel apart."""
        frame = Axis("frame", self.frames, 1 / self.fps, "s", FRAME_CORNER)
        return Grid((frame, *self.image.grid().axes))

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        """Return a window of one file, uint8 (channels, frames, height, width); a shorter file gives fewer frames.

        Raises:
            ValueError: If the file is not a video, is damaged, truncated or too large, or is rejected by `short` or
                `motion`.
        """
        with open_video(path, self.max_pixels) as file:
            clip = None
            if file.declared is not None and self._available(file.declared) >= self.frames:
                clip = self._window(file, file.declared, seed)
            if clip is None:
                # The file is too short, or shorter than declared: only its packets show where it ends.
                clip = self._window(file, file.measure(), seed)
            if clip is None:
                raise ValueError("the file is damaged: frames that it lists cannot be decoded")
        # A transform draws its numbers once, and changes all frames alike.
        return self.augmentation(self.image.mirror(clip, seed).transpose(0, 1), seed).transpose(0, 1).contiguous()

    def _available(self, duration: float) -> int:
        """Return the number of frames at `fps` in a video of this duration in seconds, at most `frames`."""
        return min(self.frames, self._frame_count(duration))

    def _frame_count(self, duration: float) -> int:
        """Return the number of frames at `fps` in a video of this duration in seconds, at least 1."""
        return max(1, math.ceil(min(MAX_FRAMES, (duration - 1e-3) * self.fps)))

    def _window(self, file: VideoFile, duration: float, seed: int | None) -> Tensor | None:
        """Return a window with enough motion, or None if the file ends before its `duration`."""
        count = self._available(duration)
        if count < self.frames and self.short == "skip":
            raise ValueError(
                f"the file has {count} frames at {self.fps:g} per second, but short=skip requires {self.frames}"
            )
        # Whether a file is rejected for its motion must not depend on the seed, which chooses the crop.
        views = [seed] if self.motion is None or self.resize != "crop" or seed is None else [seed, None]

        def convert(frame: VideoFrame) -> Tensor:
            whole = pixels(frame, self.image.sides, file.aspect)
            fitted = [
                self._fitted(whole, view) for view in reversed(views)
            ]  # the crop recorded last is that of the seed
            return torch.stack(fitted[::-1])

        maximum = 0.0
        for start in self._starts(duration, file.step, seed):
            times = [start + frame / self.fps for frame in range(count)]
            frames = file.frames_at(times, convert)
            if len(frames) < count:
                return None
            clips = torch.stack(frames, dim=2)
            if self.motion is None or (difference := _motion(clips[-1])) >= self.motion:
                record(start=start, duration=duration, fps=1 / file.step)
                return clips[0]
            maximum = max(maximum, difference)
        # If the header declares too long a duration, the windows that were tried depend on the seed.
        error = UnusableFileError if duration == file.declared else ValueError
        raise error(f"no window reaches motion={self.motion:g}; the largest value is {maximum:.2g}")

    def _starts(self, duration: float, step: float, seed: int | None) -> list[float]:
        """Return the times at which windows may start, in the order to try.

        There is only one if there is no motion filter. They are multiples of the file's frame interval, so that
        windows at its own frame rate contain each frame once.
        """
        spare = duration - (self.frames - 1) / self.fps - 1e-3
        last = max(0, math.ceil(spare / step) - 1)
        rng = random.Random(derive(seed, "window")) if seed is not None else None
        if self.motion is None:
            return [step * (rng.randint(0, last) if rng else last // 2)]
        indices = sorted({round(n * last / (WINDOWS - 1)) for n in range(WINDOWS)})
        if rng:
            rng.shuffle(indices)
        else:
            indices.sort(key=lambda index: abs(index - last / 2))
        return [step * index for index in indices]

    def _fitted(self, whole: Tensor, seed: int | None) -> Tensor:
        fitted = self.image.fit(whole, seed)
        if self.channels == 3:
            return fitted
        return (fitted * LUMA.reshape(3, 1, 1)).sum(0, keepdim=True).round().to(torch.uint8)

    def encode(self, media: Tensor) -> Tensor:
        """Convert uint8 frames to float32, mapping 0 to -1 and 255 to 1, and repeat the last frame up to `frames`.

        Raises:
            ValueError: If there are no frames, or more than `frames`.
        """
        if not 1 <= media.shape[1] <= self.frames:
            raise ValueError(f"expected a clip of 1 to {self.frames} frames, got {media.shape[1]}")
        missing = self.frames - media.shape[1]
        padded = torch.cat([media, media[:, -1:].expand(-1, missing, -1, -1)], dim=1) if missing > 0 else media
        return self.image.encode(padded)

    def mask(self, media: Tensor) -> Tensor | None:
        """Return a bool mask (1, frames, height, width), True where `encode(media)` is data; None: no padding."""
        if media.shape[1] >= self.frames:
            return None
        data = torch.arange(self.frames) < media.shape[1]
        return data.reshape(1, -1, 1, 1).expand(1, *self.grid().shape)

    def decode(self, x0: Tensor) -> Tensor:
        """Convert values in [-1, 1] to uint8 frames by clipping and rounding: the exact inverse of `encode`.

        Raises:
            ValueError: If a value is not finite.
        """
        return self.image.decode(x0)

    def save(self, media: Tensor, path: Path) -> None:
        """Write a clip as MP4 (H.264) at `fps`, and next to it an image of its frames (.png).

        Raises:
            ValueError: If the path does not end in .mp4.
        """
        if path.suffix.lower() != ".mp4":
            raise ValueError(f"clips are written as MP4: {path} must end in .mp4")
        write_video(media, path, self.fps)
        frames = list(_spread(media).unbind(1))
        self.image.save_grid(frames, path.with_suffix(".png"), columns=min(len(frames), 8))

    def save_grid(self, media: Sequence[Tensor], path: Path, *, names: Sequence[str] | None = None) -> None:
        """Write clips as one image, with a row for each, and as a tiled video of the same name (.mp4).

        A row shows up to 16 evenly spaced frames. Small frames are enlarged as `Image.save_grid` does; shorter clips
        end with a still of their last frame.

        Raises:
            ValueError: If there are no clips, or the path does not end in .png.
        """
        if len(media) == 0:
            raise ValueError(f"a grid needs at least one clip, got none for {path}")
        longest = max(clip.shape[1] for clip in media)
        clips = [torch.cat([c, c[:, -1:].expand(-1, longest - c.shape[1], -1, -1)], dim=1) for c in media]
        rows = [_spread(clip) for clip in clips]
        columns = rows[0].shape[1]
        each = None if names is None else [name for first in names for name in (first, *[""] * (columns - 1))]
        self.image.save_grid([frame for row in rows for frame in row.unbind(1)], path, columns=columns, names=each)
        write_video(tile(torch.stack(clips)), path.with_suffix(".mp4"), self.fps)


def _frames_and_sides(bucket: int | Sequence[int], sides: tuple[int, int]) -> tuple[int, int, int]:
    """Return a bucket as frames, height and width. Raises ValueError if it is invalid."""
    parts = (bucket, *sides) if isinstance(bucket, int) else tuple(bucket)
    if len(parts) != 3 or any(int(part) != part or part < 1 for part in parts):
        raise ValueError(
            f"each of buckets must be a number of frames or [frames,height,width], of positive integers, got {bucket}"
        )
    return int(parts[0]), int(parts[1]), int(parts[2])


def _motion(clip: Tensor) -> float:
    """Return the mean absolute difference between consecutive frames, for pixels in [0, 1].

    For a single frame it is 0.
    """
    values = clip.float() / 255
    return float((values[:, 1:] - values[:, :-1]).abs().mean()) if clip.shape[1] > 1 else 0.0


def _spread(clip: Tensor) -> Tensor:
    """Return the frames of a clip for a contact sheet: all, or `SHOWN` evenly spaced ones with the first and last."""
    count = clip.shape[1]
    return clip[:, torch.linspace(0, count - 1, SHOWN).round().long()] if count > SHOWN else clip
