"""Encoded data on disk: numbered safetensors files of latents, labels, masks and captions, listed in an index.

    index.json            settings of the latents, and each finished shard with its size and SHA-256
    statistics.json       mean and standard deviation, once all shards exist (see `modalities.latent.LatentScale`)
    000000.safetensors    `x0` (rows, channels, *grid), unscaled, `labels`, `mask`; captions in its metadata

The rows are all examples of the first pass in order, then all examples of the next pass. A file is written under a
temporary name, flushed to disk and renamed, and only then listed in the index, so every listed file is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from modalities.base import Batch, Modality
from modalities.latent import LatentScale
from multisagd.files import digest, read_json
from multisagd.statistics import describe_axes

FORMAT_VERSION = 1
INDEX = "index.json"
LARGEST_INDEX = 1 << 28
"""Maximum size of an index, in bytes; each shard takes a few hundred bytes."""


@dataclass(frozen=True)
class ShardFacts:
    """One finished shard; `mean` and `squares` (sum of squared deviations) are per channel, over `samples` values."""

    file: str
    rows: int
    bytes: int
    sha256: str
    samples: int
    mean: list[float]
    squares: list[float]

    def is_intact(self, root: Path) -> bool:
        """Whether the file is in the folder `root`, with its original content."""
        path = root / self.file
        return path.is_file() and path.stat().st_size == self.bytes and digest(path) == self.sha256


@dataclass(frozen=True)
class Index:
    """The contents of a folder of shards.

    `source` identifies the data, and `config` is the configuration of the command that encoded them. `unreadable` maps
    each source file that could not be read, and was replaced by another, to the reason.
    """

    encoding: dict[str, Any]
    config: dict[str, Any]
    source: dict[str, Any]
    classes: list[str] | None
    channels: int
    grid: list[dict[str, Any]]
    dtype: str
    examples: int
    passes: int
    shard_size: int
    shards: list[ShardFacts] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of shards when encoding is finished."""
        return -(-self.examples * self.passes // self.shard_size)

    @property
    def missing(self) -> list[int]:
        """Numbers of the shards that are still missing."""
        finished = {shard.file for shard in self.shards}
        return [number for number in range(self.count) if shard_name(number) not in finished]

    def rows(self, number: int) -> range:
        """Return the row numbers of one shard."""
        first = number * self.shard_size
        return range(first, min(first + self.shard_size, self.examples * self.passes))

    @classmethod
    def load(cls, root: Path) -> Index:
        """Return the index that a folder contains.

        Raises:
            ValueError: If the index does not exist, cannot be read, or has a different format version.
        """
        path = root / INDEX
        try:
            record = dict(read_json(path, LARGEST_INDEX))
            if (version := record.pop("format_version")) != FORMAT_VERSION:
                raise ValueError(
                    f"its format version is {version}, but this version of multisagd reads {FORMAT_VERSION}"
                )
            _check_types(record)
            shards = [ShardFacts(**facts) for facts in record["shards"]]
            if [shard.file for shard in shards] != sorted({Path(shard.file).name for shard in shards}):
                raise ValueError("its shards have unexpected names")
            return cls(**{**record, "shards": shards})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"cannot read {path} ({error}): set root to a folder written by `multisagd encode`"
            ) from error

    def save(self, root: Path) -> None:
        """Write the index atomically."""
        # ASCII only, since names of files and folders need not be valid UTF-8.
        text = json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1)
        write_whole(root / INDEX, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))


def _check_types(record: Mapping[str, Any]) -> None:
    """Check that the entries of an index are valid.

    Raises:
        ValueError: If an entry is invalid; the message names the first one.
    """

    def require(holds: bool, name: str) -> None:
        if not holds:
            raise ValueError(f"its {name} is invalid")

    for name in ("channels", "examples", "passes", "shard_size"):
        require(type(record[name]) is int and record[name] >= 1, name)
    for name in ("encoding", "config", "source", "unreadable"):
        require(isinstance(record[name], dict), name)
    classes = record["classes"]
    require(
        classes is None or (isinstance(classes, list) and all(isinstance(each, str) for each in classes)), "classes"
    )
    require(isinstance(record["grid"], list) and all(isinstance(axis, dict) for axis in record["grid"]), "grid")
    require(record["dtype"] in ("float16", "bfloat16", "float32"), "dtype")
    require(isinstance(record["shards"], list), "shards")
    for shard in record["shards"]:
        for name, minimum in (("rows", 1), ("bytes", 1), ("samples", 0)):
            require(type(shard[name]) is int and shard[name] >= minimum, f"{name} of a shard")
        for name in ("file", "sha256"):
            require(isinstance(shard[name], str), f"{name} of a shard")
        for name in ("mean", "squares"):
            numbers = shard[name]
            right = isinstance(numbers, list) and len(numbers) == record["channels"]
            require(right and all(type(each) in (int, float) for each in numbers), f"{name} of a shard")


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:06d}.safetensors"


def grid_facts(modality: Modality) -> list[dict[str, Any]]:
    """Return the axes of a modality's grid as JSON values."""
    return describe_axes(modality.grid())


def joined(parts: Sequence[Batch]) -> tuple[dict[str, Tensor], list[str] | None]:
    """Return the tensors of a shard by name, and its captions.

    Each batch has latents `(rows, channels, *grid)` as `x0`. Labels and captions are kept if every row has them; a mask
    is kept if any row has one.
    """
    tensors = {"x0": torch.cat([part.x0 for part in parts]).contiguous()}
    if all(part.labels is not None for part in parts):
        tensors["labels"] = torch.cat([part.labels for part in parts if part.labels is not None])
    if any(part.mask is not None for part in parts):
        full = [torch.ones_like(part.x0[:, :1], dtype=torch.bool) for part in parts]
        tensors["mask"] = torch.cat([f if p.mask is None else p.mask for p, f in zip(parts, full, strict=True)])
    texts = [text for part in parts for text in part.texts or ()]
    return tensors, texts if len(texts) == len(tensors["x0"]) else None


def write_shard(root: Path, number: int, tensors: dict[str, Tensor], texts: Sequence[str] | None) -> ShardFacts:
    """Write one shard, and return its `ShardFacts`, with the mean and squares measured without padding.

    Raises:
        ValueError: If a latent is not finite in the dtype in which it is stored.
    """
    x0, mask = tensors["x0"], tensors.get("mask")
    values = x0.double().movedim(1, 0).flatten(1)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"latents are not finite as {x0.dtype}: store them with dtype=bfloat16 or float32")
    if mask is not None:
        values = values[:, mask.flatten()]
    mean = values.mean(1) if values.shape[1] else values.new_zeros(len(values))
    metadata = None if texts is None else {"texts": json.dumps(list(texts))}
    path = root / shard_name(number)

    def write(partial: Path) -> None:
        safetensors.torch.save_file(tensors, partial, metadata)
        # safetensors creates files that only their owner can read, but encoded data are often shared.
        partial.chmod(root.stat().st_mode & 0o666)

    write_whole(path, write)
    squares = (values - mean.unsqueeze(1)).square().sum(1)
    return ShardFacts(
        path.name, len(x0), path.stat().st_size, digest(path), values.shape[1], mean.tolist(), squares.tolist()
    )


def measured_scale(index: Index) -> LatentScale:
    """Return the mean and standard deviation of each channel over all shards (Chan, Golub, LeVeque, 1983).

    The standard deviation of a constant channel is set to 1.

    Raises:
        ValueError: If all latents are padding.
    """
    samples = sum(shard.samples for shard in index.shards)
    if samples == 0:
        raise ValueError("there is nothing to measure, because all latents are padding")
    weights = torch.tensor([shard.samples / samples for shard in index.shards], dtype=torch.float64)
    means = torch.tensor([shard.mean for shard in index.shards], dtype=torch.float64)
    squares = torch.tensor([shard.squares for shard in index.shards], dtype=torch.float64)
    mean = weights @ means
    std = (squares.sum(0) / samples + weights @ (means - mean).square()).sqrt()
    return LatentScale(tuple(mean.tolist()), tuple(torch.where(std > 0, std, 1.0).tolist()), index.encoding)


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: under a temporary name, flushed to disk and renamed."""
    partial = path.with_name(f"{path.name}.partial")
    write(partial)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
