"""Well-known image datasets held in memory: scikit-learn's digits, MNIST, Fashion-MNIST and CIFAR-10.

The `Image` modality sets size and channels; pixels are kept as uint8 at their original size until a batch is requested.
Crops are taken from the middle; flips depend on the seeds.
"""

from __future__ import annotations

import copy
import dataclasses
import gzip
import hashlib
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from modalities.base import Batch, Dataset, Example, pair
from modalities.image import Image
from multisagd.libraries import importing


class Pixels(Dataset):
    """Images in memory: `images` uint8 (count, 1 or 3, height, width), `labels` int64 (count,) or None.

    Raises:
        ValueError: If a dtype or shape differs from these, there are no images, or labels do not match `classes`.
    """

    def __init__(
        self, modality: Image, images: Tensor, labels: Tensor | None = None, classes: Sequence[str] | None = None
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.numel() == 0:
            raise ValueError(
                f"expected uint8 images of shape (count, 1 or 3, height, width), got {images.dtype}, "
                f"shape {tuple(images.shape)}"
            )
        if (labels is None) != (classes is None):
            raise ValueError("labels and classes must be given together: pass both or neither")
        if labels is not None and classes is not None:
            if labels.shape != images.shape[:1]:
                raise ValueError(f"expected {len(images)} labels, got shape {tuple(labels.shape)}")
            if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
                raise ValueError(
                    f"labels of {len(classes)} classes must be from 0 to {len(classes) - 1}, but some are outside "
                    "this range"
                )
        self.modality: Image = modality
        self.images = images
        self.labels = None if labels is None else labels.to(torch.int64)
        self.classes = None if classes is None else tuple(classes)

    def __len__(self) -> int:
        return len(self.images)

    def example(self, index: int, seed: int | None = None) -> Example:
        """Return one example; see `Dataset.example`."""
        batch = self.batch([index], None if seed is None else [seed])
        return Example(batch.x0[0], None if batch.labels is None else int(batch.labels[0]))

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return a batch (see `Dataset.batch`), without a loop over its images unless they are flipped."""
        pairs = pair(indices, seeds)
        outside = [index for index, _ in pairs if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"index {outside[0]} is out of range for a dataset of {len(self)} images")
        rows = torch.tensor([index for index, _ in pairs])
        pixels = self.modality.fit(_recolor(self.images[rows], self.modality.channels))
        if self.modality.flip and seeds is not None:
            pixels = torch.stack([self.modality.mirror(p, seed) for p, (_, seed) in zip(pixels, pairs, strict=True)])
        return Batch(self.modality.encode(pixels), None if self.labels is None else self.labels[rows])

    def label(self, index: int) -> int | None:
        """Return the class of one image."""
        return None if self.labels is None else int(self.labels[index])

    @property
    def fingerprint(self) -> str:
        """A hash of the pixels and labels."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> Self:
        """Return the dataset of these images only."""
        part = copy.copy(self)
        rows = torch.as_tensor(indices, dtype=torch.int64)
        part.images = self.images[rows]
        part.labels = None if self.labels is None else self.labels[rows]
        return part


class Digits(Pixels):
    """Scikit-learn's 1,797 handwritten digits, greyscale 8×8, included in the package: no download.

    They are stretched (bicubic) to the modality's size regardless of its `resize`, because 8×8 pixels in a black frame
    would be useless. Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """

    def __init__(self, modality: Image) -> None:
        with importing("sklearn", "the handwritten digits"):
            from sklearn.datasets import load_digits  # takes seconds

        pixels, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(np.round(pixels * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
        stretched = dataclasses.replace(modality, resize="stretch")
        super().__init__(stretched, images, torch.from_numpy(labels), [str(digit) for digit in range(10)])


class MNIST(Pixels):
    """MNIST's 60,000 training (or 10,000 test) digits, greyscale 28×28; `resize="pad"` pads them without scaling.

    `root` contains the four idx files, compressed (.gz) or not, directly or in torchvision's layout (`MNIST/raw`);
    nothing is written there unless `download` is True. Source: Y. LeCun et al., Gradient-based learning
    applied to document recognition, Proc. IEEE 86, 1998.

    Raises:
        FileNotFoundError: If the files are missing and `download` is False, or cannot be downloaded.
        ValueError: If a file is damaged.
    """

    name: ClassVar[str] = "MNIST"
    names: ClassVar[Sequence[str]] = [str(digit) for digit in range(10)]

    def __init__(self, modality: Image, root: str | Path, train: bool = True, download: bool = False) -> None:
        part = "train" if train else "t10k"
        stems = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        if download and _idx_files(Path(root), self.name, stems) is None:
            _download(self.name, root)
        paths = _idx_files(Path(root), self.name, stems)
        if paths is None:
            raise _missing(self.name, root, f"{' and '.join(stems)} (or .gz), directly or in {self.name}/raw")
        images, labels = (read_idx(path) for path in paths)
        super().__init__(modality, images.unsqueeze(1), labels, self.names)


class FashionMNIST(MNIST):
    """Fashion-MNIST: 60,000 training (or 10,000 test) images of clothes, greyscale 28×28, in the format of `MNIST`.

    Source: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747.
    """

    name = "FashionMNIST"
    names = (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    )  # fmt: skip


class CIFAR10(Pixels):
    """CIFAR-10: 50,000 training (or 10,000 test) photographs in 10 classes, RGB 32×32.

    `root` contains `cifar-10-batches-py` in torchvision's layout; torchvision verifies checksums before reading.
    Source: A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.

    Raises:
        FileNotFoundError: If the files are missing or damaged and `download` is False, or cannot be downloaded.
    """

    def __init__(self, modality: Image, root: str | Path, train: bool = True, download: bool = False) -> None:
        import torchvision

        if download:
            _download("CIFAR10", root)
        try:
            source = torchvision.datasets.CIFAR10(str(root), train=train)
        except RuntimeError as error:
            raise _missing("CIFAR10", root, "the complete folder cifar-10-batches-py") from error
        images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        super().__init__(modality, images, torch.tensor(source.targets), source.classes)


def read_idx(path: Path) -> Tensor:
    """Read an idx file of bytes, compressed (.gz) or not, as a uint8 tensor of the shape in its header.

    Raises:
        ValueError: If the file is not an idx file, or its length contradicts its header.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        kind, dimensions = struct.unpack(">HBB", data[:4])[1:]
        shape = struct.unpack(f">{dimensions}I", data[4 : 4 + 4 * dimensions])
    except (gzip.BadGzipFile, EOFError, zlib.error, struct.error) as error:
        raise ValueError(f"{path} is damaged ({error}): download it again") from error
    body = data[4 + 4 * dimensions :]
    if data[:2] != b"\0\0" or kind != 0x08 or not shape or math.prod(shape) != len(body):
        raise ValueError(f"{path} is damaged or not an idx file ({shape=}, {len(body)} bytes): download it again")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(shape)


def _idx_files(root: Path, name: str, stems: Sequence[str]) -> list[Path] | None:
    for folder in (root, root / name / "raw", root / "raw"):
        paths = [path for stem in stems for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()]
        if {path.name.removesuffix(".gz") for path in paths} == set(stems):
            return [next(path for path in paths if path.name.startswith(stem)) for stem in stems]
    return None


def _download(name: str, root: str | Path) -> None:
    import torchvision

    try:
        getattr(torchvision.datasets, name)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(f"{name} could not be downloaded to {Path(root).absolute()}: {error}") from error


def _missing(name: str, root: str | Path, content: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} is not in {Path(root).absolute()}, which must contain {content}: "
        "set root to the folder that does, or set download=true"
    )


def _recolor(images: Tensor, channels: int) -> Tensor:
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    if images.shape[1] == channels:
        return images
    return images.expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(images)
