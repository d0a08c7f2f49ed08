"""Weights and optimiser state as named tensors, independent of parameter order and number of ranks.

Sharded tensors are stored in safetensors files by torch.distributed.checkpoint. All ranks write them together. The
files' headers contain the position of each piece, so nothing is pickled, and two ranks can read what eight have
written. Pieces must fill their tensors, so that no tensor is larger than the files. torch.distributed.checkpoint is
imported only when needed: the import takes a second, and most runs have no shards.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from multisagd.files import check_file
from recipes.base.errors import RecipeError
from recipes.runtime.distribution import Group, are_sharded, sharded_like

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

T = TypeVar("T")
LARGEST_COUNT = 1 << 60
LARGEST_SCALE = 2.0**127
"""Maximum scale of the loss: the largest power of two in float32."""
REMEDY = "remove that checkpoint to continue from an earlier one"
STEP = "step"
ADAM = {STEP, "exp_avg", "exp_avg_sq"}
"""The entries of AdamW's state for a parameter; the first is a scalar, the others have the parameter's shape."""


def save_shards(tensors: Mapping[str, Tensor], folder: Path, group: Group = None) -> None:
    """Write every rank's pieces of tensors to a new folder. Every rank must call this. Raises OSError if one fails."""
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
    """The tensors in a folder written by `save_shards`: a mapping of full tensors; `fill` reads only a rank's pieces.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If an entry is not a file, a header does not describe shards, or pieces do not fill their tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._metadata = _metadata(folder)
        self.shapes = {name: tuple(each.size) for name, each in self._metadata.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._full_tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metadata)

    def __len__(self) -> int:
        return len(self._metadata)

    def empty_like(self, name: str, model: Tensor | None) -> Tensor:
        """Return a tensor of zeros for `fill`: sharded like `model` if the shapes agree, or else a full tensor."""
        size, dtype = self._metadata[name].size, self._metadata[name].properties.dtype
        if model is not None and model.shape == size:
            return torch.zeros_like(model, dtype=dtype)
        return torch.zeros(size, dtype=dtype)

    def fill(self, targets: Mapping[str, Tensor]) -> None:
        """Read into tensors in place; they may be sharded. Every rank must call this.

        Raises:
            ValueError: If names or shapes differ from those in the files.
        """
        if different := mismatch(self.shapes, {name: tuple(each.shape) for name, each in targets.items()}):
            raise ValueError(different)
        self._read(dict(targets), alone=False)

    @cached_property
    def _full_tensors(self) -> dict[str, Tensor]:
        tensors = {name: self.empty_like(name, None) for name in self._metadata}
        self._read(tensors, alone=True)
        return tensors

    def _read(self, targets: dict[str, Tensor], alone: bool) -> None:
        from torch.distributed.checkpoint.api import CheckpointException
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled", category=UserWarning)
                load(targets, storage_reader=HuggingFaceStorageReader(str(self.folder)), no_dist=alone)
        except CheckpointException as error:  # not a subclass of `Exception`
            reason = next(iter(error.failures.values()))[0]
            raise RecipeError(
                f"cannot read {self.folder} ({reason}): remove {self.folder.parent} to continue from an earlier "
                "checkpoint"
            ) from error


def _metadata(folder: Path) -> dict[str, TensorStorageMetadata]:
    """Return the tensors' metadata from the headers of all files in a folder. Raises the errors of `ShardedTensors`."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    for path in folder.glob("*.safetensors"):
        check_file(path)
    try:
        stored = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (KeyError, TypeError, AttributeError, RuntimeError, RecursionError, OverflowError, SafetensorError) as error:
        raise ValueError(f"its headers do not describe shards: {error}") from error
    tensors = {name: each for name, each in stored.items() if isinstance(each, TensorStorageMetadata)}
    for name, each in tensors.items():
        spans = [(piece.offsets, piece.sizes) for piece in each.chunks]
        within = all(len(start) == len(size) == len(each.size) and min(start, default=0) >= 0 for start, size in spans)
        if not within or math.prod(each.size) != sum(math.prod(size) for _, size in spans):
            raise ValueError(f"the pieces of {name} do not fill a tensor of shape {tuple(each.size)}")
    return tensors


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's state by `<parameter name>/<entry>`. Raises TypeError if an entry is not a tensor."""
    tensors = {}
    for name, parameter in network.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{type(optimizer).__name__} keeps {entry} as {type(value).__name__}, not as a tensor")
            tensors[f"{name}/{entry}"] = value
    return tensors


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name, without reading shards."""
    if isinstance(tensors, ShardedTensors):
        return tensors.shapes
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def named(stored: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Return the entries whose names have a prefix, with the prefix removed."""
    return {name.removeprefix(prefix): each for name, each in stored.items() if name.startswith(prefix)}


def mismatch(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return a message about the first difference between the shapes in a checkpoint and in a network, or None."""
    for name in (*expected, *stored):
        if stored.get(name) != expected.get(name):
            in_checkpoint, in_network = (str(each.get(name, "missing")) for each in (stored, expected))
            return f"size mismatch: {name} is {in_checkpoint} in the checkpoint and {in_network} in the network"
    return None


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load the result of `optimizer_tensors` into an optimiser, without changing learning rates and other options.

    Raises:
        RecipeError: If an entry has no parameter in the network, has the wrong shape, or is missing.
    """
    parameters = dict(network.named_parameters())
    _check_entries(shapes(tensors), parameters, optimizer)
    if isinstance(tensors, ShardedTensors) and are_sharded(parameters):
        targets = {key: tensors.empty_like(key, parameters.get(key.rpartition("/")[0])) for key in tensors}
        tensors.fill(targets)
        tensors = targets
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters[name]
        state.setdefault(numbers[id(parameter)], {})[entry] = sharded_like(tensor, parameter)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _check_entries(
    stored: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    # Fused kernels assume that the state has the parameter's size, and would write beyond the end of a smaller one.
    entries: dict[str, set[str]] = {}
    for key, shape in stored.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or shape != (() if entry == STEP else tuple(parameter.shape)):
            raise RecipeError(f"the checkpoint's optimiser state {key} does not fit this network: use another run_dir")
        entries.setdefault(name, set()).add(entry)
    for name, present in entries.items():
        if isinstance(optimizer, torch.optim.AdamW) and present != ADAM:
            listed = ", ".join(sorted(present))
            raise RecipeError(
                f"the checkpoint's optimiser state of {name} is {listed}, not AdamW's: use another run_dir"
            )


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load all weights of a module. Raises a RecipeError about `what` with the first difference in names or shapes."""
    try:
        now = module.state_dict()
        if different := mismatch(shapes(tensors), shapes(now)):  # before any tensor is read
            raise ValueError(different)
        if isinstance(tensors, ShardedTensors) and are_sharded(now):
            tensors.fill(now)
            tensors = now
        fitting = {name: sharded_like(tensor, now.get(name, tensor)) for name, tensor in tensors.items()}
        module.load_state_dict(fitting, strict=True)
    except (RuntimeError, ValueError) as error:
        reasons = " ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
        raise RecipeError(f"the checkpoint's {what} does not match the configured network: {reasons}") from error


@dataclass(frozen=True)
class Progress:
    """The progress of training in a checkpoint's record; see `Learner.state`."""

    window: tuple[float, float, float]
    metrics_position: int
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0
    decay: tuple[int, int] | None = None
    last_skipped: bool = False
    loss_scale: tuple[float, int] | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the progress in a checkpoint's record. Raises RecipeError if an entry is missing or invalid."""
        counts: dict[str, Any] = {"metrics_position": record.get("metrics_position")}
        counts |= {name: record.get(name, 0) for name in ("skipped", "skipped_in_a_row", "rollbacks")}
        for name, value in counts.items():
            if not is_count(value):
                raise RecipeError(f"the checkpoint's record has {name}={value!r:.80}, not a count: {REMEDY}")
        decay = record.get("decay")
        if decay is not None:
            if not (isinstance(decay, list) and len(decay) == 2 and all(is_count(value) for value in decay)):
                raise RecipeError(f"the checkpoint's record has decay={decay!r:.80}, not two counts: {REMEDY}")
            counts["decay"] = (decay[0], decay[1])
        counts["last_skipped"] = record.get("last_skipped", counts["skipped_in_a_row"] > 0)
        if not isinstance(counts["last_skipped"], bool):
            raise RecipeError(f"the checkpoint's record has last_skipped={counts['last_skipped']!r:.80}: {REMEDY}")
        counts["loss_scale"] = _loss_scale(record.get("loss_scale"))
        try:
            first, second, third = (float.fromhex(value) for value in record["window"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecipeError(
                f"the checkpoint's record has window={record.get('window')!r:.80}, not three hex numbers: {REMEDY}"
            ) from error
        return cls((first, second, third), **counts)


def _loss_scale(value: Any) -> tuple[float, int] | None:
    """Return the scale of the loss and its age in a checkpoint's record, or None. Raises RecipeError if invalid."""
    if value is None:
        return None
    valid = isinstance(value, list) and len(value) == 2 and isinstance(value[0], float) and is_count(value[1])
    if not valid or not 1 <= value[0] <= LARGEST_SCALE:
        raise RecipeError(f"the checkpoint's record has loss_scale={value!r:.80}, not a scale and a count: {REMEDY}")
    return value[0], value[1]


def is_count(value: Any) -> bool:
    """Whether a value is a whole number in the range of counts."""
    return type(value) is int and 0 <= value < LARGEST_COUNT
