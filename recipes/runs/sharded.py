"""Sharded tensors in safetensors files, written by all ranks together and read by any number of them.

torch.distributed.checkpoint with its safetensors storage: where each piece belongs stands in the files' headers, so
nothing is pickled, and what eight ranks wrote two can read. Pieces are believed only where they fill a tensor, so that
none is larger than the files are. It is imported where shards are met: that takes a second, and most runs have none.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor

from multisagd.files import check_file
from recipes.base.errors import RecipeError
from recipes.runtime.distribution import Group

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata


def save_shards(tensors: Mapping[str, Tensor], folder: Path, group: Group = None) -> None:
    """Write every rank's pieces into a new folder; every rank must call this.

    Raises:
        OSError: if any rank cannot write its own.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        reasons = [f"process {rank}: {each[0]}" for rank, each in error.failures.items()]
        raise OSError("; ".join(reasons)) from error


class ShardedTensors(Mapping[str, Tensor]):
    """Tensors in a folder that `save_shards` wrote: as a mapping whole, or read piece by piece by `fill`.

    Raises:
        OSError: if a file cannot be read.
        ValueError: if one is no file, or has no header of shards, or their pieces do not fill their tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = _metadata(folder)
        self.shapes = {name: tuple(each.size) for name, each in self._metadata.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._whole[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metadata)

    def __len__(self) -> int:
        return len(self._metadata)

    def empty_like(self, name: str, model: Tensor | None) -> Tensor:
        """Return a tensor to `fill`: like the model if that has its shape, or else whole."""
        size, dtype = self._metadata[name].size, self._metadata[name].properties.dtype
        if model is not None and model.shape == size:
            return torch.zeros_like(model, dtype=dtype)
        return torch.zeros(size, dtype=dtype)

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Read into tensors in place, sharded or not; every rank must call this.

        Raises:
            ValueError: if names or shapes differ from what is there.
            RecipeError: if it cannot be read.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        there = self.shapes
        asked = {name: tuple(tensor.shape) for name, tensor in targets.items()}
        if wrong := sorted(name for name in there.keys() | asked.keys() if there.get(name) != asked.get(name)):
            name = wrong[0]
            raise ValueError(f"{name} is {there.get(name, 'missing')} there and {asked.get(name, 'missing')} here")
        with self._explained():
            load(dict(targets), storage_reader=HuggingFaceStorageReader(str(self.folder)))

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        tensors = {name: self.empty_like(name, None) for name in self._metadata}
        with warnings.catch_warnings(), self._explained():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
            load(tensors, storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=True)
        return tensors

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            yield
        except CheckpointException as error:  # which is no `Exception`
            reason = next(iter(error.failures.values()))[0]
            raise RecipeError(
                f"cannot read {self.folder} ({reason}): remove {self.folder.parent} to go on from an earlier checkpoint"
            ) from error


def _metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return what the headers of all files in a folder say of its tensors; see `ShardedTensors`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for path in folder.glob("*.safetensors"):
        check_file(path)
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError, OverflowError, SafetensorError) as error:
        raise ValueError(f"its headers are not those of shards: {error}") from error
    tensors = {name: each for name, each in found.items() if isinstance(each, TensorStorageMetadata)}
    for name, each in tensors.items():
        within = all(
            len(piece.offsets) == len(piece.sizes) == len(each.size) and min(piece.offsets, default=0) >= 0
            for piece in each.chunks
        )
        if not within or math.prod(each.size) != sum(math.prod(piece.sizes) for piece in each.chunks):
            raise ValueError(f"the pieces of {name} do not make a tensor of shape {tuple(each.size)}")
    return tensors
