"""check_modality passes what conforms, and names each broken rule."""

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
from modalities.variables import Variable
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


class Stereo(Signal):
    """Two channels, of which the second is valid in its first half only."""

    channels = 2

    def encode(self, media: Tensor) -> Tensor:
        return super().encode(media).repeat(2, 1)

    def decode(self, x0: Tensor) -> Tensor:
        return super().decode(x0[:1])

    def mask(self, media: Tensor) -> Tensor | None:
        return torch.stack([torch.ones(self.samples), torch.arange(self.samples) < self.samples // 2]).bool()


def changed(base: type[Signal] = Signal, **members: Any) -> Signal:
    """A modality with other methods or attributes."""
    return type("Changed", (base,), members)()


def load_with_global_seed(self: Signal, path: Path, seed: int | None = None) -> Tensor:
    torch.manual_seed(seed or 0)
    return Signal.load(self, path, seed)


def load_anything(self: Signal, path: Path, seed: int | None = None) -> Tensor:
    try:
        return Signal.load(self, path, seed)
    except ValueError:
        return torch.zeros(self.samples)


def load_by_name(self: Signal, path: Path, seed: int | None = None) -> Tensor:
    return Signal.load(self, path, None if seed is None else seed + sum(path.name.encode()))


def anything() -> float:
    return random.SystemRandom().random()


encode, decode, load, save = Signal.encode, Signal.decode, Signal.load, Signal.save
lossy = changed(decode=lambda self, x0: decode(self, x0).round())
quiet = changed(save=lambda self, media, path: save(self, 0.1 * media, path))

BROKEN = {
    "global seed": (changed(load=load_with_global_seed), "changed a global random generator"),
    "unseeded": (
        changed(load=lambda self, path, seed=None: load(self, path, int(1e9 * anything()))),
        "same result",
    ),
    "double": (changed(encode=lambda self, media: encode(self, media).double()), "float32"),
    "shape": (changed(encode=lambda self, media: encode(self, media)[0]), "of shape"),
    "loud": (changed(encode=lambda self, media: encode(self, media) * 1e4), "about"),
    "lossy": (lossy, "the error is"),
    "in place": (changed(decode=lambda self, x0: decode(self, x0.mul_(0.5))), "must not change its argument"),
    "NaN": (changed(decode=lambda self, x0: decode(self, x0.nan_to_num())), "decode of a tensor with NaN must raise"),
    "not saved": (changed(save=lambda self, media, path: None), "the file is missing"),
    "quiet": (quiet, "what save wrote.* within a relative error of 0.3, but the error is 0.9"),
    "no refusal": (changed(load=load_anything), "but nothing was raised"),
    "float mask": (changed(mask=lambda self, media: torch.ones(1, self.samples)), "mask must return None or bool"),
    "mask shape": (
        changed(Stereo, mask=lambda self, media: torch.ones(3, self.samples, dtype=torch.bool)),
        r"bool of shape \(1, \d+\), or \(2, \d+\) if channels differ, got torch.bool \(3",
    ),
    "variables": (changed(variables=(Variable("voltage", "V"),) * 2), "variables must describe each of 1 channels"),
    "random grid": (
        changed(grid=lambda self: Grid((Axis("time", self.samples, anything() + 0.1, "s"),))),
        "same grid at every call",
    ),
    "name of the file": (changed(load=load_by_name), "a copy of the file gives a different result"),
    "suffix": (changed(suffixes=("TXT",)), "suffixes must be a tuple of lower-case endings"),
    "no modality": (object(), "inherit from"),
}


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    np.savetxt(path, np.random.default_rng(0).normal(size=400) / 3)
    return path


def test_check_modality_passes_what_conforms(recording: Path, tmp_path: Path) -> None:
    check_modality(Signal(), recording)
    check_modality(Stereo(), recording)
    media = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image().save(media, tmp_path / "a.png")
    check_modality(Image(size=16, channels=3, flip=True), tmp_path / "a.png", tolerance=1e-6)


@pytest.mark.parametrize(("modality", "message"), BROKEN.values(), ids=BROKEN)
def test_check_modality_names_each_broken_rule(modality: Any, message: str, recording: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        check_modality(modality, recording)


def test_check_modality_takes_tolerances_and_needs_a_file_of_the_medium(recording: Path) -> None:
    check_modality(lossy, recording, tolerance=None)
    check_modality(quiet, recording, saved_tolerance=None)
    with pytest.raises(AssertionError, match="none of the modality's suffixes"):
        check_modality(Signal(), recording.rename(recording.with_suffix(".dat")))
