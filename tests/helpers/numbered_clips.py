"""Clips that show the number of each frame in eight blocks, black or white, so that tests can identify frames."""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch

PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def numbered_frame(number: int, height: int = 32, width: int = 64) -> np.ndarray:
    blocks = np.array([number >> bit & 1 for bit in range(8)], np.uint8).reshape(2, 4) * 255
    rows, columns = np.arange(height) * 2 // height, np.arange(width) * 4 // width
    return blocks[rows][:, columns][..., None].repeat(3, -1)


def number_shown(frame: torch.Tensor) -> int:
    """Read the number back from a frame (channels, height, width) of any size."""
    grey = frame.float().mean(0)
    height, width = grey.shape
    middles = [grey[round((n // 4 + 0.5) * height / 2), round((n % 4 + 0.5) * width / 4)] for n in range(8)]
    return sum(1 << bit for bit, value in enumerate(middles) if value > 128)


def numbers_shown(clip: torch.Tensor) -> list[int]:
    return [number_shown(frame) for frame in clip.unbind(1)]


def write_numbered(
    path: Any,
    codec: str = "libx264",
    rate: float | Fraction = 25,
    count: int = 60,
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (32, 64),
    sound: float = 0.0,
    rotation: int = 0,
    aspect: Fraction | None = None,
    format: str | None = None,
) -> Any:
    """Write `count` numbered frames and seconds of `sound`; `times` are timestamps in units of 1/rate."""
    rate = Fraction(rate).limit_denominator(1001)
    with av.open(path, "w", format=format) as container:
        stream = container.add_stream(codec, rate=rate, options={"threads": "1", **(options or {})})
        stream.height, stream.width = size
        stream.pix_fmt = PIXELS.get(codec, "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p")
        stream.codec_context.gop_size = 12
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation:
            stream.set_display_rotation(rotation)
        voice = container.add_stream("aac", rate=8000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered_frame(number, *size), format="rgb24")
            frame = frame.reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = times[number] if times else number, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice is not None:
            tone = np.sin(np.arange(int(8000 * sound)) / 5).astype(np.float32)[None]
            samples = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 8000, 0
            container.mux(voice.encode(samples))
            container.mux(voice.encode())
    return path
