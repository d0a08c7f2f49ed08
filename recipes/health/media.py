"""What reads and writes images, sounds and videos, tried on a little of each in memory."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from fractions import Fraction

from recipes.health.findings import Finding, Wishes, needed


def images(wishes: Wishes) -> Iterator[Finding]:
    """Write a small image and read it back."""
    pillow, numpy = needed("PIL.Image"), needed("numpy")
    pixels = numpy.arange(64, dtype="uint8").reshape(8, 8)
    for kind, exact in (("PNG", True), ("JPEG", False), ("WEBP", False)):
        file = io.BytesIO()
        pillow.fromarray(pixels).save(file, kind)
        back = numpy.asarray(pillow.open(file).convert("L"), dtype=int)
        if abs(back - pixels).max() > (0 if exact else 16):
            raise RuntimeError(f"{kind} does not give back what was written")
    yield Finding("ok", "images", f"PNG, JPEG and WebP, by Pillow {needed('PIL').__version__}")


def sounds(wishes: Wishes) -> Iterator[Finding]:
    """Write a second of a tone and read it back."""
    soundfile, numpy = needed("soundfile"), needed("numpy")
    tone = numpy.sin(numpy.arange(8000) * (2 * math.pi * 440 / 8000)) / 2
    for kind, subtype, error in (("WAV", "PCM_16", 1e-4), ("FLAC", "PCM_16", 1e-4), ("OGG", "VORBIS", 0.1)):
        file = io.BytesIO()
        soundfile.write(file, tone, 8000, format=kind, subtype=subtype)
        file.seek(0)
        back, _ = soundfile.read(file)
        if len(back) != len(tone) or abs(back - tone).max() > error:
            raise RuntimeError(f"{kind} does not give back what was written")
    version = soundfile.__libsndfile_version__
    mp3 = " and MP3" if "MP3" in soundfile.available_formats() else ""
    yield Finding("ok", "sounds", f"WAV, FLAC, Ogg{mp3}, by libsndfile {version}")


def videos(wishes: Wishes) -> Iterator[Finding]:
    """Write a few frames as H.264 with a sound in AAC, and read them back."""
    av, numpy = needed("av"), needed("numpy")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(8))
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        sound = container.add_stream("aac", rate=8000, layout="mono")
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(numpy.full((32, 32, 3), 60 * number, "uint8"), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        samples = av.AudioFrame.from_ndarray(numpy.zeros((1, 4000), "float32"), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
    file.seek(0)
    with av.open(file) as container:
        kinds = [stream.codec_context.name for stream in container.streams]
        means = [float(frame.to_ndarray(format="rgb24").mean()) for frame in container.decode(video=0)]
    if len(means) != 4 or max(abs(mean - 60 * number) for number, mean in enumerate(means)) > 8:
        raise RuntimeError(f"H.264 does not give back what was written: frames of brightness {means}")
    yield Finding("ok", "videos", f"{' with '.join(kinds)} in MP4, by PyAV {av.__version__}")
