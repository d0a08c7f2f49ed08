"""Compare loading of image, audio and video folders with plain reading of the same files, and watch memory.

Run on an idle machine: `python -m benchmarks.loading [--media clips] [--root FOLDER]`. Ours is `Folder.batch` with the
medium's modality, once with one thread and once with --threads. Plain is a loop of the usual calls that returns tensors
of the same shape: Pillow and torchvision for images, soundfile and torchaudio for audio, PyAV from the start of the
file and torchvision for clips, and torchcodec if it is installed. All read the same batch of files in turn, so that
ratios are paired; they are medians with their quartiles, and above 1 ours is slower.

Without --root, synthetic files are used: JPEG of 640×480; WAV of 3 s at 44.1 kHz, stereo; MP4 of 8 s at 25 frames
per second and 480×360, with a keyframe every 2 s. After that, --memory clips are loaded with --threads threads, and the
memory of this process is printed ten times, with its slope over all but the first two values.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import linear_regression

import av
import numpy as np
import PIL.Image
import torch
import torchaudio
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from benchmarks.timing import interleave, machine, milliseconds, ratio
from modalities.base import Modality
from modalities.files import Folder
from modalities.image import Image
from modalities.video import Video

SIZE = 64
RATE, SECONDS = 16000, 1.0
VIDEO = Video(frames=16, fps=8, size=SIZE)
Reader = Callable[[Path, random.Random], Tensor]


def make_images(folder: Path, count: int) -> None:
    """Write synthetic photographs: gradients and texture, so that JPEG has something to compress."""
    y, x = np.mgrid[:480, :640]
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 12, (480, 640, 3))
        light = 128 + 90 * np.sin(x / 40 + number) * np.cos(y / 30)
        pixels = np.clip(light[..., None] + noise, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number:03}.jpg", quality=90)


def make_sounds(folder: Path, count: int) -> None:
    """Write chords in noise."""
    import soundfile

    seconds = np.arange(3 * 44100)[:, None] / 44100
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 0.05, (len(seconds), 2))
        soundfile.write(
            folder / f"{number:03}.wav", 0.3 * np.sin(2 * np.pi * (200 + 20 * number) * seconds) + noise, 44100
        )


def make_clips(folder: Path, count: int) -> None:
    """Write moving waves with some texture, 200 frames each."""
    y, x = np.mgrid[:360, :480]
    for number in range(count):
        texture = np.random.default_rng(number).normal(0, 10, (360, 480, 3))
        with av.open(str(folder / f"{number:03}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "g": "50"})
            stream.width, stream.height, stream.pix_fmt = 480, 360, "yuv420p"
            for time in range(200):
                light = 128 + 80 * np.sin((x + (2 + number) * time) / 30) * np.cos(y / 25)
                pixels = np.clip(light[..., None] + texture, 0, 255).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())


def resize(pixels: Tensor) -> Tensor:
    """Crop the middle square and scale it, like `Image` with resize="center", but in uint8."""
    pixels = TF.center_crop(pixels, [min(pixels.shape[-2:])] * 2)
    return TF.resize(pixels, [SIZE, SIZE], TF.InterpolationMode.BICUBIC, antialias=True)


def read_image(path: Path, draw: random.Random) -> Tensor:
    """Read one image with Pillow and torchvision."""
    with PIL.Image.open(path) as image:
        return resize(TF.pil_to_tensor(image.convert("RGB"))).float() / 127.5 - 1


def read_sound(path: Path, draw: random.Random) -> Tensor:
    """Read one audio file with soundfile and torchaudio: resample it, and take a random excerpt, padded if short."""
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    waveform = torchaudio.functional.resample(torch.from_numpy(samples).mean(1), rate, RATE)
    wanted = round(SECONDS * RATE)
    start = draw.randint(0, max(0, len(waveform) - wanted))
    excerpt = waveform[start : start + wanted]
    return torch.nn.functional.pad(excerpt, (0, wanted - len(excerpt)))[None]


def read_clip(path: Path, draw: random.Random) -> Tensor:
    """Read a random window with PyAV, decoding from the start of the file to its end."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        duration = float((container.duration or 0) / av.time_base)
        start = draw.uniform(0, max(0.0, duration - VIDEO.frames / VIDEO.fps))
        frames: list[Tensor] = []
        for frame in container.decode(stream):
            if frame.time >= start + len(frames) / VIDEO.fps:
                frames.append(torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1))
            if len(frames) == VIDEO.frames:
                break
    frames += frames[-1:] * (VIDEO.frames - len(frames))
    return resize(torch.stack(frames)).transpose(0, 1).float() / 127.5 - 1


def read_clip_by_torchcodec(path: Path, draw: random.Random) -> Tensor:
    """Read a random window with torchcodec, which also seeks."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1)
    last = float(decoder.metadata.duration_seconds) - 1e-3
    start = draw.uniform(0, max(0.0, last - (VIDEO.frames - 1) / VIDEO.fps))
    times = [min(last, start + frame / VIDEO.fps) for frame in range(VIDEO.frames)]
    return resize(decoder.get_frames_played_at(times).data).transpose(0, 1).float() / 127.5 - 1


def prepare(medium: str) -> tuple[Modality, Callable[[Path, int], None], dict[str, Reader]]:
    """Return the modality of a medium, the function that writes files, and the plain readers."""
    if medium == "images":
        return Image(size=SIZE), make_images, {"plain": read_image}
    if medium == "sounds":
        from modalities.audio import Audio
        from modalities.representation import Waveform

        return Audio(rate=RATE, seconds=SECONDS, representation=Waveform()), make_sounds, {"plain": read_sound}
    readers: dict[str, Reader] = {"plain": read_clip}
    with suppress(ImportError):
        import torchcodec  # noqa: F401 - only to check whether it is installed

        readers["torchcodec"] = read_clip_by_torchcodec
    return VIDEO, make_clips, readers


def measure(
    medium: str, root: Path, modality: Modality, readers: dict[str, Reader], options: argparse.Namespace
) -> None:
    """Print the rate of each method for one medium, and the ratios of times."""
    one, many = (Folder(modality, root, labels="none", threads=threads) for threads in (1, options.threads))
    paths = [root / file for file in one.files]
    turns = dict.fromkeys(("ours", "threads", *readers), 0)

    def batch(name: str) -> tuple[list[int], list[int]]:
        # All methods read the same files in the same repeat.
        turns[name] += 1
        draw = random.Random(turns[name])
        return [draw.randrange(len(paths)) for _ in range(options.batch)], draw.sample(range(2**31), options.batch)

    def plain(name: str) -> Tensor:
        indices, seeds = batch(name)
        return torch.stack([readers[name](paths[i], random.Random(s)) for i, s in zip(indices, seeds, strict=True)])

    candidates: dict[str, Callable[[], object]] = {
        "ours": lambda: one.batch(*batch("ours")),
        "threads": lambda: many.batch(*batch("threads")),
    }
    for name in readers:
        candidates[name] = lambda name=name: plain(name)  # type: ignore[misc]
    times = interleave(candidates, options.repeats, warm_up=1)
    rates = ", ".join(f"{name} {1e3 * options.batch / milliseconds(times, name):.1f}" for name in candidates)
    print(f"{medium}: {len(paths)} files, items per second: {rates}")
    for name in readers:
        print(f"  time of ours / {name}: {ratio(times, 'ours', name)}; on {options.threads} threads", end=" ")
        print(ratio(times, "threads", name))
    if one.unreadable or many.unreadable:
        print(f"  unreadable: {sorted({*one.unreadable, *many.unreadable})}")


def resident() -> float:
    """Return the resident memory of this process in MB, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def watch_memory(root: Path, options: argparse.Namespace) -> None:
    """Print the memory in use while --memory clips are loaded."""
    folder = Folder(VIDEO, root, labels="none", threads=options.threads)
    marks: list[tuple[int, float]] = []
    for start in range(0, options.memory, options.batch):
        places = range(start, min(start + options.batch, options.memory))
        folder.batch([place % len(folder) for place in places], list(places))
        if places.stop * 10 // options.memory > len(marks):
            marks.append((places.stop, resident()))
            print(f"  {marks[-1][0]:>6} clips: {marks[-1][1]:.0f} MB", flush=True)
    later = marks[2:]
    if len(later) > 1:
        slope = linear_regression([count for count, _ in later], [held for _, held in later]).slope
        print(f"  slope: {1000 * slope:+.2f} MB per 1,000 clips")


def main() -> None:
    """Print throughput medium by medium, and memory if clips are among them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("images", "sounds", "clips")
    parser.add_argument("--media", nargs="+", choices=kinds, default=list(kinds), help="what to load (all)")
    parser.add_argument("--root", type=Path, help="a folder of your own files, for one of --media")
    parser.add_argument("--files", type=int, default=24, help="files to write for each medium without --root (24)")
    parser.add_argument("--batch", type=int, default=16, help="items in a batch (16)")
    parser.add_argument("--repeats", type=int, default=10, help="paired repeats, at least 2 (10)")
    parser.add_argument("--threads", type=int, default=4, help="threads of the folder in its second run (4)")
    parser.add_argument("--memory", type=int, default=2000, help="clips to load while memory is watched, or 0 (2000)")
    options = parser.parse_args()
    if options.root and len(options.media) > 1:
        parser.error("--root contains files of one medium: specify it with --media")
    torch.set_num_threads(1)
    print(machine())
    print(f"batches of {options.batch}, {options.repeats} interleaved repeats\n")
    with tempfile.TemporaryDirectory() as temporary:
        for medium in options.media:
            modality, make, readers = prepare(medium)
            root = options.root or Path(temporary, medium)
            if not options.root:
                root.mkdir()
                make(root, options.files)
            measure(medium, root, modality, readers, options)
            if medium == "clips" and options.memory:
                watch_memory(root, options)


if __name__ == "__main__":
    main()
