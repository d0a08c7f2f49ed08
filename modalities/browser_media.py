"""Conversion of image, audio and video files to formats that every browser supports, and to `data:` URLs."""

import base64
import io
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from modalities.video_files import pixels
from modalities.video_writing import write_video
from multisagd.libraries import importing

EXACT = 256 << 10
"""Maximum size of an image or audio file that is kept unchanged, in bytes; larger files are compressed."""
MAX_PIXELS = 64_000_000
"""Maximum number of pixels of an image, and of all frames of a re-encoded clip together."""
SMALL = 96
"""Side in pixels below which an image or clip is enlarged with nearest-neighbour scaling."""
RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Sample rates that MP3 supports, in Hz."""


def data_url(kind: str, data: bytes) -> str:
    """Return bytes of a media type as a `data:` URL."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def file_content(name: str, write: Callable[[Path], None]) -> bytes:
    """Return the content of the file that `write` writes to a temporary path with this name."""
    with TemporaryDirectory() as folder:
        write(path := Path(folder) / name)
        return path.read_bytes()


def png(image: Tensor | np.ndarray) -> bytes:
    """Encode 8-bit pixels, a tensor `(1 or 3, height, width)` or array `(height, width, 3)`, as PNG."""
    from torchvision.transforms.v2.functional import to_pil_image

    file = io.BytesIO()
    # Noise does not compress: higher levels only take longer.
    to_pil_image(image).save(file, "PNG", compress_level=1)
    return file.getvalue()


def image_content(path: Path) -> tuple[str, bytes, bool]:
    """Return the media type and content of a PNG image, and whether it is small.

    Large files are compressed as WebP.

    Raises:
        ValueError: If the file is not PNG, or has more pixels than any image that a run writes.
        OSError: If the file is damaged.
    """
    with importing("PIL", "images in a report"):
        import PIL.Image
    data = path.read_bytes()
    with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"it has {image.width}×{image.height} pixels, but at most {MAX_PIXELS} are allowed")
        small = max(image.size) < SMALL
        if len(data) <= EXACT:
            image.verify()
            return "image/png", data, small
        file = io.BytesIO()
        image.convert("RGB").save(file, "WEBP", quality=90)
    return "image/webp", file.getvalue(), small


def audio_content(path: Path) -> tuple[str, bytes, bool]:
    """Return the media type and content of a WAV file, and False, because it has no size in pixels.

    Long clips are compressed as MP3 at 128 kbit/s.

    Raises:
        av.error.FFmpegError: If the file is damaged.
        ValueError: If the file contains no audio.
    """
    with importing("av", "audio in a report"):
        import av
    data = path.read_bytes()
    with av.open(io.BytesIO(data), "r", format="wav") as source:
        if not source.streams.audio:
            raise ValueError("it contains no audio")
        stream = source.streams.audio[0]
        if len(data) <= EXACT:
            return "audio/wav", data, False
        rate = next((each for each in RATES if each >= stream.rate), RATES[-1])
        layout = "mono" if stream.channels == 1 else "stereo"
        file = io.BytesIO()
        with av.open(file, "w", format="mp3") as target:
            encoder = target.add_stream("libmp3lame", rate=rate, layout=layout, options={"b": "128k"})
            for frame in (*source.decode(stream), None):
                target.mux(encoder.encode(frame))  # the encoder resamples
    return "audio/mpeg", file.getvalue(), False


def video_content(path: Path) -> tuple[str, bytes, bool]:
    """Return the media type and content of an MP4 file, and whether its frames are small.

    Pixel formats that only some browsers play are re-encoded.

    Raises:
        av.error.FFmpegError: If the file is damaged.
        ValueError: If the file contains no video, or has more pixels than any clip that a run writes.
    """
    with importing("av", "clips in a report"):
        import av
    with av.open(f"file:{path}", "r", format="mp4") as source:
        if not source.streams.video:
            raise ValueError("it contains no video")
        stream = source.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise ValueError(f"it has {stream.width}×{stream.height} pixels, but at most {MAX_PIXELS} are allowed")
        small = max(stream.width, stream.height) < SMALL
        if stream.pix_fmt == "yuv420p":
            return "video/mp4", path.read_bytes(), small
        # H.264 requires even sides, and twice an odd side is even.
        sides, rate = (stream.height, stream.width), float(stream.average_rate or 8)
        maximum = MAX_PIXELS // (stream.width * stream.height)
        frames = [pixels(frame, sides, 1.0) for frame in islice(source.decode(stream), maximum + 1)]
    if not 0 < len(frames) <= maximum:
        raise ValueError(f"the clip must have from 1 to {maximum} frames")
    twice = torch.stack(frames, dim=1).repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    return "video/mp4", file_content("clip.mp4", lambda path: write_video(twice, path, rate)), small
