"""What the explorer looks at: an image, a sound or a clip, a built-in example or a file of one's own, and its spectrum.

Built-in examples need no files and no network: data sets that the package generates, whose spectrum is measured on
many of them, and a photograph that comes with scikit-learn. The spectrum of a single datum is estimated from it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from torch import Tensor

from modalities.audio import Audio
from modalities.audio_sets import PluckedStrings
from modalities.base import Dataset, Modality
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.representation import Stft, Waveform
from modalities.video import Video
from modalities.video_sets import MovingDigits
from multisagd import DataStatistics, Grid
from multisagd.libraries import failed_import
from recipes.engine.single import statistics_of_one

Medium = Literal["image", "sound", "video"]

MEASURED = 64
"""Examples of a built-in data set whose power spectrum is measured."""
SOUND_DEVIATION = 0.4
"""Standard deviation to which the values of sounds are scaled: noise has one of 1, and images have about this."""
LARGEST_IMAGE = 512
LARGEST_SOUND = 480_000
LARGEST_CLIP = 1 << 20
MOST_PIXELS = 50_000_000
"""Pixels of an uploaded image, or of a frame of an uploaded clip, beyond which it is refused before it is decoded."""

EXAMPLES: dict[Medium, tuple[str, ...]] = {
    "image": ("photograph", "handwritten digit"),
    "sound": ("plucked string",),
    "video": ("moving digit",),
}
DATA = {"handwritten digit": "digits", "plucked string": "plucked_strings", "moving digit": "moving_digits"}
"""The choice of the group `data` that each example comes from."""


@dataclass(frozen=True)
class Sizes:
    """How large what is shown is; images and clips are square.

    Raises:
        ValueError: for sizes that are too small to have a spectrum, or too large to be shown while one drags.
    """

    image: int = 128
    rate: int = 16000
    seconds: float = 2.0
    frames: int = 16
    fps: float = 8.0
    clip: int = 64

    def __post_init__(self) -> None:
        if not 16 <= self.image <= LARGEST_IMAGE:
            raise ValueError(f"image is a side from 16 to {LARGEST_IMAGE} pixels, got {self.image}")
        if not (4000 <= self.rate <= 48000 and self.seconds >= 0.1 and self.seconds * self.rate <= LARGEST_SOUND):
            raise ValueError(
                f"sounds have a rate from 4000 to 48000, last from 0.1 s, and have up to {LARGEST_SOUND:,} samples: "
                f"got {self.seconds:g} s at {self.rate}"
            )
        if not (self.frames >= 4 and self.clip >= 16 and self.frames * self.clip**2 <= LARGEST_CLIP):
            raise ValueError(
                f"clips have from 4 frames of from 16 pixels, and up to {LARGEST_CLIP:,} pixels in all: got "
                f"{self.frames} frames of {self.clip}×{self.clip}"
            )
        if not 1 <= self.fps <= 120:
            raise ValueError(f"fps is from 1 to 120 frames per second, got {self.fps:g}")


@dataclass(frozen=True, eq=False)
class Subject:
    """One datum `x0` (channels, *grid), the statistics of data like it, and where it comes from.

    `data` is the choice of the configuration group for a built-in data set, None for a file; `note` says how its
    spectrum was found.
    """

    medium: Medium
    modality: Modality
    x0: Tensor
    statistics: DataStatistics
    data: str | None
    note: str

    @property
    def grid(self) -> Grid:
        """The grid of the datum."""
        return self.statistics.grid

    @property
    def spectrogram(self) -> bool:
        """Whether it is a sound written as a spectrogram."""
        return isinstance(self.modality, Audio) and isinstance(self.modality.representation, Stft)


def modality_of(medium: Medium, representation: str, sizes: Sizes, channels: int) -> Modality:
    """Return the modality in which a medium is shown; `representation` is for sounds, `channels` for the others.

    The values of sounds are not scaled yet: see `scaled`.
    """
    if medium == "image":
        return Image(sizes.image, channels, "center", max_pixels=MOST_PIXELS)
    if medium == "video":
        return Video(sizes.frames, sizes.fps, sizes.clip, channels, "center", max_pixels=MOST_PIXELS)
    written = Stft(scale=1.0) if representation == "spectrogram" else Waveform()
    return Audio(sizes.rate, sizes.seconds, representation=written, short="silence", loudness="peak")


def scaled(modality: Modality, x0: Tensor) -> tuple[Modality, Tensor]:
    """Return a modality and its data, those of sounds multiplied so that noise and data are of like size."""
    if not isinstance(modality, Audio) or not bool(x0.abs().max() > 0):
        return modality, x0
    representation = modality.representation
    assert isinstance(representation, Stft | Waveform)
    factor = float(f"{SOUND_DEVIATION / float(x0.std()):.2g}")
    return replace(modality, representation=replace(representation, scale=factor)), x0 * factor


@lru_cache(maxsize=16)
def example(medium: Medium, name: str, representation: str, sizes: Sizes) -> Subject:
    """Return a built-in example.

    Raises:
        ValueError: for an example that the medium does not have.
    """
    if name not in EXAMPLES[medium]:
        raise ValueError(f"there is no example {name!r} of a {medium}: choose {' or '.join(EXAMPLES[medium])}")
    if name == "photograph":
        import sklearn.datasets  # importing scikit-learn takes a second

        path = Path(sklearn.datasets.__file__).with_name("images") / "flower.jpg"
        return own_file(medium, path, representation, sizes)
    modality = modality_of(medium, representation, sizes, channels=1)
    dataset: Dataset
    if isinstance(modality, Audio):
        dataset = PluckedStrings(modality)
    elif isinstance(modality, Video):
        dataset = MovingDigits(modality)
    else:
        assert isinstance(modality, Image)
        dataset = Digits(modality)
    modality, batch = scaled(modality, dataset.batch(range(MEASURED)).x0)
    statistics = DataStatistics.measure([batch], modality.grid())
    note = f"The spectrum of the data is measured on {MEASURED} examples of data={DATA[name]}."
    return Subject(medium, modality, batch[3], statistics, DATA[name], note)


@lru_cache(maxsize=16)
def own_file(medium: Medium, path: Path, representation: str, sizes: Sizes) -> Subject:
    """Return the datum in a file; of one that is larger or longer than is shown, the middle.

    Raises:
        ValueError: saying what is wrong with the file.
    """
    modality = modality_of(medium, representation, sizes, channels=3)
    if path.suffix.lower() not in modality.suffixes:
        raise ValueError(f"{path.name} is no {medium} by its ending; read are {', '.join(modality.suffixes)}")
    try:
        modality, x0 = scaled(modality, modality.encode(modality.load(path)))
        statistics = statistics_of_one(x0, modality.grid())
    except Exception as error:  # whatever a decoder raises, as `Modality.load` says
        if (failure := failed_import(error)) is not None:
            raise ValueError(str(failure)) from error
        reason = str(error).replace(str(path), path.name)
        raise ValueError(f"{path.name} cannot be used: {reason}") from error
    note = (
        "The spectrum of the data is estimated from this one alone, so roughly; multisagd analyze measures that of a "
        "whole folder."
    )
    return Subject(medium, modality, x0, statistics, None, note)
