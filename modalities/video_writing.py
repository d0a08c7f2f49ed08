"""Writing of clips as MP4 files, one by one or tiled into one video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

QUALITY = 12
"""H.264's constant rate factor, from 0 (lossless) to 51: quality matters more than file size for generated frames."""

SEEN = 64
"""Side in pixels below which frames are enlarged by a whole factor, as in `Image.save_grid`."""


def write_video(clip: Tensor, path: Path, fps: float) -> None:
    """Write uint8 frames (1 or 3, frames, height, width) as MP4, creating its folder.

    The codec is H.264 with halved colour resolution (4:2:0), which every player supports but which needs even sides;
    clips with an odd side keep their size and are written in 4:4:4, which some browsers do not play. The frame
    rate is written as a fraction with a denominator up to 1001, which is exact for 12.5, 29.97 and 30000/1001.
    """
    import av
    from av.video.frame import VideoFrame

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = clip.shape[-2:]
    frames = clip.expand(3, -1, -1, -1).permute(1, 2, 3, 0).contiguous().numpy()
    # The index comes first, so that a browser can start to play before it has the whole file.
    with av.open(f"file:{path}", "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        stream.options = {"crf": str(QUALITY)}
        stream.codec_context.thread_count = 1
        # The clip is tagged as BT.709, because players otherwise guess the colour space from the size.
        for kind in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, kind, 1)
        for pixels in frames:
            frame = VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt, dst_colorspace="ITU709", threads=1)))
        container.mux(stream.encode())


def tile(clips: Tensor) -> Tensor:
    """Arrange uint8 clips (count, 1 or 3, frames, height, width) in a square, enlarging them if they are small."""
    from torchvision.utils import make_grid

    count, _, length, height, width = clips.shape
    # All frames of a clip are treated as channels of one image, so all have the same position.
    images = clips.expand(-1, 3, -1, -1, -1).reshape(count, 3 * length, height, width)
    factor = max(1, SEEN // max(height, width))
    images = images.repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)
    laid = make_grid(images, nrow=torch.tensor(count).sqrt().ceil().int().item(), padding=2, pad_value=128)
    return laid.reshape(3, length, *laid.shape[-2:])
