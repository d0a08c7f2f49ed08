"""The conformance test: what conforms passes, and each broken rule is named."""

import dataclasses
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modalities.base import Modality
from modalities.image import Image
from multisagd import Axis, Grid
from multisagd.testing import check_modality

pytestmark = pytest.mark.filterwarnings("ignore:loadtxt")


@dataclass(frozen=True)
class Signal(Modality):
    """A modality that keeps every rule; the cases below break one each."""

    samples: int = 16

    channels = 1
    suffixes = (".txt",)

    def grid(self) -> Grid:
        return Grid((Axis("time", self.samples, 0.01, "s"),))

    def load(self, path: Path, seed: int | None = None) -> Tensor:
        signal = np.loadtxt(path, dtype=np.float32, ndmin=1)
        spare = len(signal) - self.samples
        if spare < 0:
            raise ValueError("too short")
        start = spare // 2 if seed is None else random.Random(seed).randint(0, spare)
        return torch.from_numpy(signal[start : start + self.samples])

    def encode(self, media: Tensor) -> Tensor:
        return media[None] / 2

    def decode(self, x0: Tensor) -> Tensor:
        if not x0.isfinite().all():
            raise ValueError("not finite")
        return x0[0] * 2

    def save(self, media: Tensor, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, media.numpy())


class GlobalSeed(Signal):
    def load(self, path: Path, seed: int | None = None) -> Tensor:
        torch.manual_seed(seed or 0)
        return super().load(path, seed)


class Unseeded(Signal):
    def load(self, path: Path, seed: int | None = None) -> Tensor:
        return super().load(path, random.SystemRandom().randint(0, 10**9))


class Double(Signal):
    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media).double()


class Flatter(Signal):
    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media)[0]


class Loud(Signal):
    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media) * 1e4


class Lossy(Signal):
    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0).round()


class InPlace(Signal):
    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0.mul_(0.5))


class Silent(Signal):
    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0.nan_to_num())


class Saveless(Signal):
    def save(self, media: Tensor, path: Path) -> None:
        pass


class Quiet(Signal):
    def save(self, media: Tensor, path: Path) -> None:
        super().save(0.1 * media, path)


class Reversed(Signal):
    def save(self, media: Tensor, path: Path) -> None:
        super().save(media.flip(0), path)


class Forgiving(Signal):
    def load(self, path: Path, seed: int | None = None) -> Tensor:
        try:
            return super().load(path, seed)
        except ValueError:
            return torch.zeros(self.samples)


class FloatMask(Signal):
    def mask(self, media: Tensor) -> Tensor | None:
        return torch.ones(1, self.samples)


class Stereo(Signal):
    """Two channels, of which the second is valid in its first half only."""

    channels = 2

    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media).repeat(2, 1)

    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0[:1])

    def mask(self, media: Tensor) -> Tensor | None:
        return torch.stack([torch.ones(self.samples), torch.arange(self.samples) < self.samples // 2]).bool()


class FlatMask(Stereo):
    def mask(self, media: Tensor) -> Tensor | None:
        return torch.ones(3, self.samples, dtype=torch.bool)


class Growing(Signal):
    def grid(self) -> Grid:
        return Grid((Axis("time", self.samples, random.SystemRandom().random() + 0.1, "s"),))


class NamedByPath(Signal):
    def load(self, path: Path, seed: int | None = None) -> Tensor:
        return super().load(path, None if seed is None else seed + sum(path.name.encode()))


class UpperCase(Signal):
    suffixes = ("TXT",)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    np.savetxt(path, np.random.default_rng(0).normal(size=400) / 3)
    return path


def test_a_good_modality_passes(recording: Path) -> None:
    check_modality(Signal(), recording)


def test_a_mask_may_differ_among_channels(recording: Path) -> None:
    check_modality(Stereo(), recording)


def test_images_conform(tmp_path: Path) -> None:
    media = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "a.png"
    Image().save(media, path)
    check_modality(Image(size=16, channels=3, flip=True), path, tolerance=1e-6)


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        (GlobalSeed(), "changed a global random generator"),
        (Unseeded(), "is the same each time"),
        (Double(), "float32"),
        (Flatter(), "of shape"),
        (Loud(), "about"),
        (Lossy(), "the error is"),
        (InPlace(), "must not change its argument"),
        (Silent(), "decode of a tensor with NaN raises ValueError"),
        (Saveless(), "the file is missing"),
        (Quiet(), "what save wrote.* to 0.3 of its size, but the error is 0.9"),
        (Reversed(), "what save wrote"),
        (Forgiving(), "but nothing was raised"),
        (FloatMask(), "mask returns None or bool"),
        (FlatMask(), r"bool of shape \(1, \d+\), or \(2, \d+\) if channels differ, got torch.bool \(3"),
        (Growing(), "same grid at every call"),
        (NamedByPath(), "a copy of the file gives a different datum"),
        (UpperCase(), "suffixes is a tuple of lower-case endings"),
        (object(), "inherit from"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else None,
)
def test_each_broken_rule_is_named(modality: Any, message: str, recording: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        check_modality(modality, recording)


def test_a_tolerance_is_the_modalitys_own_choice(recording: Path) -> None:
    check_modality(Lossy(), recording, tolerance=None)
    check_modality(Quiet(), recording, saved_tolerance=None)


def test_the_file_must_be_of_the_medium(recording: Path) -> None:
    with pytest.raises(AssertionError, match="none of the modality's suffixes"):
        check_modality(dataclasses.replace(Signal()), recording.rename(recording.with_suffix(".dat")))
