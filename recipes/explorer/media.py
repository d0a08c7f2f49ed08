"""The explorer's three media, their sizes, and their examples: built-in, or from a file.

Built-in examples need no network: they are from generated datasets, whose spectrum is measured on many examples, or the
photograph of scikit-learn. For a single file, the spectrum is estimated from that file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from modalities.audio import Audio, write_wav
from modalities.audio_figures import spectrogram_pixels
from modalities.base import Dataset, Modality
from modalities.browser_media import data_url, file_content, png
from modalities.endings import ending_of
from modalities.image import Image
from modalities.representation import Stft, Waveform
from modalities.video import Video
from modalities.video_writing import write_video
from multisagd import DataStatistics, Grid
from multisagd.libraries import failed_import
from multisagd.multitaper import statistics_of_one
from recipes.config.build import Builder
from recipes.config.groups import of_choice

MAX_IMAGE_SIDE = 512
MAX_AUDIO_SAMPLES = 480_000
MAX_CLIP_PIXELS = 1 << 20
MAX_PIXELS = 50_000_000
"""Maximum number of pixels of an uploaded image, or of a frame of an uploaded clip, checked before decoding."""
MEASURED = 64
"""Number of examples on which the power spectrum of a built-in dataset is measured."""
AUDIO_STD = 0.4
"""Standard deviation to which audio is scaled, similar to that of images; the standard deviation of the noise is 1."""
EVERYWHERE = ("white", "power_law", "band", "two_band", "gaussian", "offset", "data_power")
"""Kinds of spectra that suit all media."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the media, large enough for a spectrum and small enough for interaction; images and clips are square."""

    image: int = 128
    rate: int = 16000
    seconds: float = 2.0
    frames: int = 16
    fps: float = 8.0
    clip: int = 64

    def __post_init__(self) -> None:
        if not 16 <= self.image <= MAX_IMAGE_SIDE:
            raise ValueError(f"the side of an image must be from 16 to {MAX_IMAGE_SIDE} pixels, got {self.image}")
        if not (4000 <= self.rate <= 48000 and self.seconds >= 0.1 and self.seconds * self.rate <= MAX_AUDIO_SAMPLES):
            raise ValueError(
                f"audio clips must have a rate from 4000 to 48000 Hz, last at least 0.1 s and have "
                f"up to {MAX_AUDIO_SAMPLES:,} samples, got {self.seconds:g} s at {self.rate} Hz"
            )
        if not (self.frames >= 4 and self.clip >= 16 and self.frames * self.clip**2 <= MAX_CLIP_PIXELS):
            raise ValueError(
                f"clips must have at least 4 frames, at least 16 pixels per side, and "
                f"up to {MAX_CLIP_PIXELS:,} pixels in total, got "
                f"{self.frames} frames of {self.clip}×{self.clip}"
            )
        if not 1 <= self.fps <= 120:
            raise ValueError(f"fps must be from 1 to 120 frames per second, got {self.fps:g}")


@dataclass(frozen=True, eq=False)
class Medium:
    """One medium: its examples, and how its files are read, configured and shown.

    `noun` is the word for one example, and `folder` stands for the user's data in a command. `examples` maps names to
    choices of the group `data` (None means a photograph), and `representations` maps names to choices of the group
    `modality`. `kinds` are the kinds of spectra that suit the medium, and `first` is initially selected.
    `modality(sizes, representation, channels)` builds the modality, `keys(modality)` returns its configuration keys,
    and `tile(media, modality, description)` returns HTML that contains the escaped description.
    """

    name: str
    noun: str
    folder: str
    examples: Mapping[str, str | None]
    representations: Mapping[str, str]
    kinds: tuple[str, ...]
    first: str
    modality: Callable[[Sizes, str, int], Modality]
    keys: Callable[[Any], dict[str, Any]]
    tile: Callable[[Any, Any, str], str]


def _image_tile(media: Any, modality: Image, description: str) -> str:
    return f'<img alt="{description}" src="{data_url("image/png", png(media))}">'


def _audio_tile(media: Any, modality: Audio, description: str) -> str:
    spectrogram = data_url("image/png", png(spectrogram_pixels(media, modality.rate)))
    audio = data_url("audio/wav", file_content("audio.wav", lambda path: write_wav(media, modality.rate, path)))
    image = f'<img alt="Spectrogram: {description}" src="{spectrogram}">'
    return f'{image}<audio controls preload="none" aria-label="{description}" src="{audio}"></audio>'


def _video_tile(media: Any, modality: Video, description: str) -> str:
    clip = data_url("video/mp4", file_content("clip.mp4", lambda path: write_video(media, path, modality.fps)))
    return f'<video controls autoplay loop muted playsinline aria-label="{description}" src="{clip}"></video>'


def _audio(sizes: Sizes, representation: str, _: int) -> Audio:
    """Return the modality of audio clips with unscaled values; see `scaled`."""
    built = Stft(scale=1.0) if representation == "spectrogram" else Waveform()
    return Audio(sizes.rate, sizes.seconds, representation=built, short="silence", loudness="peak")


MEDIA = {
    "image": Medium(
        name="image", noun="image", folder="photos",
        examples={"photograph": None, "handwritten digit": "digits"}, representations={"pixels": "image"},
        kinds=(*EVERYWHERE, "exponential", "autoregressive"), first="power_law",
        modality=lambda sizes, _, channels: Image(sizes.image, channels, "center", max_pixels=MAX_PIXELS),
        keys=lambda it: {"size": it.sides[0], "channels": it.channels}, tile=_image_tile,
    ),
    "audio": Medium(
        name="audio", noun="audio clip", folder="recordings", examples={"plucked string": "plucked_strings"},
        representations={"waveform": "audio_waveform", "spectrogram": "audio"},
        kinds=(*EVERYWHERE, "pink", "brown", "autoregressive", "hum_free"), first="pink", modality=_audio,
        keys=lambda it: {"rate": it.rate, "seconds": it.seconds, "loudness": it.loudness, "short": it.short,
                         "representation.scale": it.representation.scale}, tile=_audio_tile,
    ),
    "video": Medium(
        name="video", noun="clip", folder="clips",
        examples={"moving digit": "moving_digits"}, representations={"pixels": "video"},
        kinds=(*EVERYWHERE, "exponential", "space_by_time", "space_by_velocity", "separable", "joint", "progressive",
               "mixed", "velocity"), first="space_by_time",
        modality=lambda sizes, _, channels: Video(
            sizes.frames, sizes.fps, sizes.clip, channels, "center", max_pixels=MAX_PIXELS
        ),
        keys=lambda it: {"frames": it.frames, "fps": it.fps, "size": it.image.sides[0], "channels": it.channels},
        tile=_video_tile,
    ),
}  # fmt: skip
"""Every medium by its name."""


@dataclass(frozen=True, eq=False)
class Example:
    """One example `x0` (channels, *grid), the statistics of such data, and a `note` on how the spectrum was measured.

    `choices` are the choices of the groups `modality` and `data`; the latter is None for a file.
    """

    medium: Medium
    modality: Modality
    x0: Tensor
    statistics: DataStatistics
    choices: tuple[str, str | None]
    note: str

    @property
    def grid(self) -> Grid:
        """The grid of the example."""
        return self.statistics.grid


def scaled(modality: Modality, x0: Tensor) -> tuple[Modality, Tensor]:
    """Return a modality and its data x0; audio is scaled to the standard deviation `AUDIO_STD`."""
    if not isinstance(modality, Audio) or not bool(x0.abs().max() > 0):
        return modality, x0
    representation = modality.representation
    assert isinstance(representation, Stft | Waveform)
    factor = float(f"{AUDIO_STD / float(x0.std()):.2g}")
    return replace(modality, representation=replace(representation, scale=factor)), x0 * factor


@lru_cache(maxsize=16)
def built_in(medium: Medium, name: str, representation: str, sizes: Sizes) -> Example:
    """Return a built-in example. Raises ValueError if the medium has no example of that name."""
    if name not in medium.examples:
        choices = " or ".join(medium.examples)
        raise ValueError(f"there is no {medium.name} example named {name!r}: choose {choices}")
    if (data := medium.examples[name]) is None:
        import sklearn.datasets  # importing scikit-learn takes a second

        photograph = Path(sklearn.datasets.__file__).with_name("images") / "flower.jpg"
        return own_file(medium, photograph, representation, sizes)
    modality = medium.modality(sizes, representation, 1)
    dataset = Builder().build(of_choice("data", data), Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    modality, batch = scaled(modality, dataset.batch(range(MEASURED)).x0)
    statistics = DataStatistics.measure([batch], modality.grid())
    note = f"The spectrum of the data is measured on {MEASURED} examples of data={data}."
    return Example(medium, modality, batch[3], statistics, (medium.representations[representation], data), note)


@lru_cache(maxsize=16)
def own_file(medium: Medium, path: Path, representation: str, sizes: Sizes) -> Example:
    """Return the example in a file, cropped to its middle if it is too large.

    Raises ValueError if the file cannot be used.
    """
    modality = medium.modality(sizes, representation, 3)
    if not ending_of(path.name, modality.suffixes):
        raise ValueError(
            f"{path.name} does not have a supported suffix for {medium.name} files; supported suffixes: "
            f"{', '.join(modality.suffixes)}"
        )
    try:
        modality, x0 = scaled(modality, modality.encode(modality.load(path)))
        statistics = statistics_of_one(x0, modality.grid())
    except Exception as error:  # a decoder may raise any error; see `Modality.load`
        if (failure := failed_import(error)) is not None:
            raise ValueError(str(failure)) from error
        reason = str(error).replace(str(path), path.name)
        raise ValueError(f"{path.name} cannot be used: {reason}") from error
    note = (
        "The spectrum of the data is a rough estimate from this one example; multisagd analyze measures the spectrum "
        "of a folder."
    )
    return Example(medium, modality, x0, statistics, (medium.representations[representation], None), note)
