"""Files of a run as `data:` addresses, in formats that every browser shows and plays, within a budget of bytes."""

from __future__ import annotations

import base64
import io
import tempfile
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from modalities.video_files import pixels
from modalities.video_writing import write_video
from multisagd.files import check_file
from multisagd.libraries import importing
from recipes.base.untrusted import inside
from recipes.reporting.blocks import Item
from recipes.reporting.run import MALFORMED, shortened

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer

LARGEST = 64 << 20
"""Bytes of one file that is looked at."""

EXACT = 256 << 10
"""Bytes of a picture or sound that is kept as it is; larger ones are compressed."""

MOST_PIXELS = 64_000_000
"""Of a picture, and of all frames of a clip that is written anew."""

SMALL = 96
"""Pixels of a side below which a picture or clip is enlarged in sharp squares."""

RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
"""Samples per second that MP3 knows."""

MOST_LEFT_OUT = 20
"""Files that are named as left out; there may be thousands."""

DECODERS = ("PIL", "av")
"""Packages whose errors, of any kind, say that a file is damaged."""


@dataclass
class Budget:
    """How many bytes of media a page may still take in; `left_out` names what it did not."""

    left: int
    left_out: list[str] = field(default_factory=list)

    def take(self, kind: str, data: bytes, path: Path) -> str | None:
        """Return the address of a file's content, None if there is no room for it."""
        size = -(-len(data) // 3) * 4
        if size > self.left:
            self.note(f"{_where(path)}: beyond megabytes=…")
            return None
        self.left -= size
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    def note(self, text: str) -> None:
        """Remember what was left out."""
        if len(self.left_out) == MOST_LEFT_OUT:
            self.left_out.append("…")
        elif len(self.left_out) < MOST_LEFT_OUT:
            self.left_out.append(text)


def item(title: str, path: Path, root: Path, budget: Budget, about: str = "") -> Item | None:
    """Return a file of media and those of the same name beside it: a picture, a sound, a clip; None if there are none.

    Nothing that leads out of the folder `root` is taken.
    """
    found: dict[str, str] = {}
    small = False
    for suffix, read in ((".png", picture), (".wav", sound), (".mp4", clip)):
        file = path.with_suffix(suffix)
        if not file.exists():
            continue
        try:
            if not inside(file, root):
                raise ValueError("a link to somewhere else")
            check_file(file, LARGEST)
            kind, data, shrunk = read(file)
            small = small or shrunk
            if (address := budget.take(kind, data, file)) is not None:
                found[suffix] = address
        except Exception as error:
            if not isinstance(error, MALFORMED) and type(error).__module__.partition(".")[0] not in DECODERS:
                raise
            budget.note(f"{_where(file)}: {shortened(error, 200)}")
    if not found:
        return None
    return Item(title, found.get(".png"), found.get(".wav"), found.get(".mp4"), about, small)


def picture(path: Path) -> tuple[str, bytes, bool]:
    """Return a picture's type and content, and whether it is small; a large one becomes WebP.

    Raises:
        ValueError: if it is no PNG, or has more pixels than any picture of a run.
        OSError: if it is damaged.
    """
    with importing("PIL", "pictures"):
        import PIL.Image
    data = path.read_bytes()
    with PIL.Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels")
        small = max(image.size) < SMALL
        if len(data) <= EXACT:
            image.verify()
            return "image/png", data, small
        written = io.BytesIO()
        image.convert("RGB").save(written, "WEBP", quality=90)
    return "image/webp", written.getvalue(), small


def sound(path: Path) -> tuple[str, bytes, bool]:
    """Return a sound's type and content; a long one becomes MP3 of some 128 kbit per second.

    Raises:
        av.error.FFmpegError: if it is damaged.
        ValueError: if it holds no sound.
    """
    with importing("av", "sounds in a report"):
        import av
    data = path.read_bytes()
    with av.open(io.BytesIO(data), "r", format="wav") as source:
        if not source.streams.audio:
            raise ValueError("it holds no sound")
        stream = source.streams.audio[0]
        if len(data) <= EXACT:
            return "audio/wav", data, False
        return "audio/mpeg", _mp3(source, stream), False


def _mp3(source: InputContainer, stream: AudioStream) -> bytes:
    import av
    from av.audio.resampler import AudioResampler

    rate = next((each for each in RATES if each >= stream.rate), RATES[-1])
    layout = "mono" if stream.channels == 1 else "stereo"
    written = io.BytesIO()
    with av.open(written, "w", format="mp3") as target:
        encoder = target.add_stream("libmp3lame", rate=rate, layout=layout, options={"b": "128k"})
        resampler = AudioResampler(encoder.format, layout, rate)
        for frame in (*source.decode(stream), None):
            for part in resampler.resample(frame):
                target.mux(encoder.encode(part))
        target.mux(encoder.encode())
    return written.getvalue()


def clip(path: Path) -> tuple[str, bytes, bool]:
    """Return a clip's type and content, and whether it is small; one that only some browsers play is written anew.

    Raises:
        av.error.FFmpegError: if it is damaged.
        ValueError: if it holds no clip, or has more pixels than any clip of a run.
    """
    with importing("av", "clips in a report"):
        import av
    with av.open(f"file:{path}", "r", format="mp4") as source:
        if not source.streams.video:
            raise ValueError("it holds no clip")
        stream = source.streams.video[0]
        if stream.width * stream.height > MOST_PIXELS:
            raise ValueError(f"{stream.width}×{stream.height} pixels")
        small = max(stream.width, stream.height) < SMALL
        if stream.pix_fmt == "yuv420p":
            return "video/mp4", path.read_bytes(), small
        # Odd sides: twice as large they are even.
        sides, rate = (stream.height, stream.width), float(stream.average_rate or 8)
        most = MOST_PIXELS // (stream.width * stream.height)
        frames = [pixels(frame, sides, 1.0) for frame in islice(source.decode(stream), most + 1)]
    if not 0 < len(frames) <= most:
        raise ValueError(f"it has no frames, or more than {most}")
    twice = torch.stack(frames, dim=1).repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)
    with tempfile.TemporaryDirectory() as folder:
        write_video(twice, Path(folder) / "clip.mp4", rate)
        return "video/mp4", (Path(folder) / "clip.mp4").read_bytes(), small


def _where(path: Path) -> str:
    return "/".join(path.parts[-3:])
