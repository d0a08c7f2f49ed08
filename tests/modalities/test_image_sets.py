"""Image sets in memory give exact pixels, labels and batches, and name damaged or missing files."""

import gzip
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision

from modalities.base import Dataset, Example, collate, split
from modalities.image import Image
from modalities.image_sets import CIFAR10, MNIST, Digits, FashionMNIST, Pixels, read_idx

PADDED = Image(size=32, channels=1, resize="pad")


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, part: str, count: int, packed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
    for kind, array in (("images-idx3", images), ("labels-idx1", (np.arange(count) % 10).astype(np.uint8))):
        data = idx(array)
        name = f"{part}-{kind}-ubyte"
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)


def random_pixels(count: int = 12, channels: int = 3, height: int = 8, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def test_digits_are_resized_and_labelled() -> None:
    digits = Digits(Image(size=16, channels=1, resize="pad"))
    assert len(digits) == 1797
    assert digits.classes == tuple("0123456789")
    batch = digits.batch(range(100))
    assert batch.x0.shape == (100, 1, 16, 16)
    assert batch.labels[:10].tolist() == list(range(10))
    assert (batch.x0.min().item(), batch.x0.max().item()) == (-1.0, 1.0)
    whole = Digits(Image(size=8, channels=1)).images
    assert whole.unique().tolist() == [round(level * 255 / 16) for level in range(17)]
    assert Digits(Image(size=(12, 20), channels=3)).batch([0]).x0.shape == (1, 3, 12, 20)


def test_pixels_batch_equals_its_examples_and_flips_by_seed() -> None:
    images = random_pixels()
    dataset = Pixels(Image(size=8, flip=True), images, torch.arange(12) % 3, ["a", "b", "c"])
    seeds = list(range(12))
    batch = dataset.batch(range(12), seeds)
    loop = collate([dataset.example(index, seed) for index, seed in zip(range(12), seeds, strict=True)])
    assert torch.equal(batch.x0, loop.x0)
    assert torch.equal(batch.labels, loop.labels)
    plain = dataset.batch(range(12)).x0
    flipped = [torch.equal(a, b.flip(-1)) for a, b in zip(batch.x0, plain, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(batch.x0, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert any(flipped)
    assert any(kept)
    assert torch.equal(dataset.modality.decode(plain), images)
    assert len(list(dataset)) == 12
    for index in (-1, 12):
        with pytest.raises(IndexError, match=str(index)):
            dataset.batch([0, index])


class Ramp(Dataset):
    modality = PADDED
    classes = None

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def example(self, index: int, seed: int | None = None) -> Example:
        mask = torch.arange(4).reshape(1, 4) < 3 if index % 2 else None
        return Example(torch.full((1, 4), float(self.numbers[index])), mask=mask)

    def subset(self, indices: Sequence[int]) -> "Ramp":
        return Ramp([self.numbers[index] for index in indices])


def test_dataset_subclass_needs_only_length_example_and_subset() -> None:
    batch = Ramp([5, 6, 7]).batch([0, 1])
    assert batch.labels is None
    assert batch.mask.tolist() == [[[True] * 4], [[True, True, True, False]]]
    assert len(split(Ramp([5, 6, 7]), 1)[1]) == 1
    assert Ramp([1]).unreadable == {}


def test_pixels_convert_grey_to_rgb_and_back() -> None:
    grey = random_pixels(channels=1)
    assert torch.equal(Pixels(Image(size=8), grey).images, grey)
    three = Pixels(Image(size=8), grey).batch([0]).x0
    assert torch.equal(three[:, :1].expand(-1, 3, -1, -1), three)
    assert Pixels(Image(size=8, channels=1), random_pixels()).batch([0, 1]).x0.shape == (2, 1, 8, 8)


def test_pixels_refuse_impossible_arrays() -> None:
    pixels = random_pixels()
    for message, *arrays in (
        ("uint8", pixels.float(), None, None),
        ("shape", pixels[0], None, None),
        ("shape", pixels[:0], None, None),
        ("together", pixels, torch.zeros(12), None),
        ("12 labels", pixels, torch.zeros(11), ["a"]),
        ("from 0 to 1", pixels, torch.arange(12), ["a", "b"]),
    ):
        with pytest.raises(ValueError, match=message):
            Pixels(Image(size=8), *arrays)


@pytest.mark.parametrize(("layout", "packings"), [(".", [True]), ("MNIST/raw", [False]), ("raw", [True, False])])
def test_mnist_reads_every_layout_without_writing(tmp_path: Path, layout: str, packings: list[bool]) -> None:
    for packed in packings:
        write_mnist(tmp_path / layout, "train", 30, packed)
        write_mnist(tmp_path / layout, "t10k", 20, packed)
    before = sorted(tmp_path.rglob("*"))
    train, test = MNIST(PADDED, tmp_path), MNIST(PADDED, str(tmp_path), train=False)
    assert (len(train), len(test)) == (30, 20)
    batch = train.batch([3, 4])
    assert torch.equal(PADDED.decode(batch.x0)[:, :, 2:30, 2:30], train.images[3:5])
    assert (batch.x0[:, :, :2] == -1).all()
    assert batch.labels.tolist() == [3, 4]
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, CIFAR10])
def test_image_sets_that_are_missing_name_folder_and_remedy(
    tmp_path: Path, kind: type[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no network")

    with pytest.raises(FileNotFoundError, match=rf"{kind.__name__} is not in {tmp_path}.*download=true"):
        kind(PADDED, tmp_path)  # type: ignore[call-arg, arg-type]
    monkeypatch.setattr(torchvision.datasets, kind.__name__, fail)
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded.*no network"):
        kind(PADDED, tmp_path, download=True)  # type: ignore[call-arg, arg-type]


def test_cifar10_takes_arrays_from_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random_pixels(5, height=32, width=32)
    source = SimpleNamespace(
        data=pixels.permute(0, 2, 3, 1).numpy(), targets=[0, 1, 2, 3, 9], classes=[f"class {n}" for n in range(10)]
    )
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", lambda *args, **kwargs: source)
    dataset = CIFAR10(Image(size=32), tmp_path)
    batch = dataset.batch(range(5))
    assert torch.equal(dataset.modality.decode(batch.x0), pixels)
    assert batch.labels.tolist() == [0, 1, 2, 3, 9]


@pytest.mark.parametrize("damage", ["empty", "short", "long", "type", "magic", "gzip", "cut"])
def test_read_idx_names_damaged_files(tmp_path: Path, damage: str) -> None:
    good = idx(np.zeros((3, 4), np.uint8))
    data = {
        "empty": b"",
        "short": good[:-1],
        "long": good + b"\0",
        "type": good[:2] + b"\x0d" + good[3:],
        "magic": b"PK" + good[2:],
        "gzip": good,
        "cut": gzip.compress(good)[:-9],
    }[damage]
    path = tmp_path / ("a-idx2-ubyte.gz" if damage in ("gzip", "cut") else "a-idx2-ubyte")
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged.*download it again"):
        read_idx(path)


@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder with images/mnist")
@pytest.mark.parametrize(("kind", "folder"), [(MNIST, "mnist"), (FashionMNIST, "fashion_mnist")])
def test_mnist_reads_the_published_files(kind: type[MNIST], folder: str) -> None:
    root = Path(os.environ["MULTISAGD_DATA"]) / "images" / folder
    train, test = kind(PADDED, root), kind(PADDED, root, train=False)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert len(train.labels.bincount()) == 10
    assert train.labels.bincount().min() > 5_000
    batch = test.batch(range(64))
    assert batch.x0.shape == (64, 1, 32, 32)
    assert (batch.x0[:, :, :2] == -1).all()
    known = {"mnist": ["7", "2", "1", "0"], "fashion_mnist": ["Ankle boot", "Pullover", "Trouser", "Trouser"]}[folder]
    assert [test.classes[label] for label in batch.labels[:4]] == known
