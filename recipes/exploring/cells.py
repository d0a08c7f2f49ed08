"""Pictures, sounds and clips as pieces of a page that carry their own data, and the tables they stand in."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL.Image
import torch
from matplotlib import colormaps
from torch import Tensor

from modalities.audio import Audio, write_wav
from modalities.representation import Stft
from modalities.sound_pictures import RANGE_DB
from modalities.video import Video
from modalities.video_writing import write_video
from recipes.exploring.subjects import Subject


def data_uri(data: bytes, kind: str) -> str:
    """Return bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def cell(media: Any, subject: Subject, about: str) -> str:
    """Return one medium, to be looked at, heard or played; `about` says in words what it is."""
    text = html.escape(about, quote=True)
    if isinstance(subject.modality, Audio):
        rate = subject.modality.rate
        picture = f'<img alt="Spectrogram: {text}" src="{data_uri(spectrogram_png(media, rate), "image/png")}">'
        sound = f'<audio controls preload="none" aria-label="{text}" src="{data_uri(wav(media, rate), "audio/wav")}">'
        return f"{picture}{sound}</audio>"
    if isinstance(subject.modality, Video):
        source = data_uri(mp4(media, subject.modality.fps), "video/mp4")
        return f'<video controls autoplay loop muted playsinline aria-label="{text}" src="{source}"></video>'
    return f'<img alt="{text}" src="{data_uri(png(media), "image/png")}">'


def table(rows: Iterable[tuple[str, Mapping[str, Any]]], subject: Subject) -> str:
    """Return a group for each row, with its title and every medium of it, named."""
    groups = []
    for title, media in rows:
        cells = [
            f"<figure>{cell(each, subject, f'{name}, {title}')}<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, each in media.items()
        ]
        groups.append(f'<div class="group"><h4>{html.escape(title)}</h4><div class="pair">{"".join(cells)}</div></div>')
    return f'<div class="groups {subject.medium}">{"".join(groups)}</div>'


def png(pixels: Tensor) -> bytes:
    """Return uint8 pixels (1 or 3, height, width) as a PNG file."""
    array = pixels.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    # Noise does not compress: higher levels only take longer.
    PIL.Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array).save(file, "PNG", compress_level=1)
    return file.getvalue()


def wav(sound: Tensor, rate: int) -> bytes:
    """Return a sound (channels, samples) as a WAV file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sound.wav"
        write_wav(sound, rate, path)
        return path.read_bytes()


def mp4(clip: Tensor, fps: float) -> bytes:
    """Return uint8 frames (1 or 3, frames, height, width) as an MP4 file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        write_video(clip, path, fps)
        return path.read_bytes()


def spectrogram_png(sound: Tensor, rate: int) -> bytes:
    """Return the power of a sound over time and frequency, decibels of full scale as colours, as a PNG file."""
    window = 2 ** round(np.log2(0.032 * rate))
    power = Stft(window=window, hop=window // 2).transform(sound).abs().square().mean(0).flip(0)
    decibels = 10 * power.clamp(min=10 ** (-RANGE_DB / 10)).log10() / RANGE_DB + 1
    colours = colormaps["magma"](decibels.numpy(), bytes=True)[..., :3]
    return png(torch.from_numpy(np.ascontiguousarray(colours)).permute(2, 0, 1))
