"""Weights and optimiser state as named tensors, which survive a change of order, or of the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from recipes.base.errors import RecipeError
from recipes.runs.sharded import ShardedTensors
from recipes.runtime.distribution import are_sharded, sharded_like

LARGEST_COUNT = 1 << 60
AWAY = "remove that checkpoint to go on from an earlier one"
STEP = "step"
ADAM = {STEP, "exp_avg", "exp_avg_sq"}
"""What AdamW keeps for each parameter; the first is one number, the others are shaped like the parameter."""


def optimizer_tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state as `<parameter name>/<entry>`, for example `head.weight/exp_avg`.

    Raises:
        TypeError: if the optimiser keeps state that is no tensor.
    """
    tensors = {}
    for name, parameter in network.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"{type(optimizer).__name__} keeps {entry} as {type(value).__name__}, not as a tensor")
            tensors[f"{name}/{entry}"] = value
    return tensors


def shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by their names, without reading shards."""
    if isinstance(tensors, ShardedTensors):
        return dict(tensors.shapes)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def mismatch(there: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return in what the tensors of a checkpoint differ first from those of a module, None if in nothing."""
    for name in (*wanted, *there):
        if there.get(name) != wanted.get(name):
            found, asked = (str(each.get(name, "missing")) for each in (there, wanted))
            return f"size mismatch: {name} is {found} in the checkpoint and {asked} in the network"
    return None


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; learning rates and the like stay as they are.

    Raises:
        RecipeError: if an entry belongs to no parameter of the network or has another shape than it, or one is missing.
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
    there: Mapping[str, tuple[int, ...]], parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer
) -> None:
    # Fused kernels take the parameter's size for that of its state, and write beyond the end of what is smaller.
    entries: dict[str, set[str]] = {}
    for key, shape in there.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or shape != (() if entry == STEP else tuple(parameter.shape)):
            raise RecipeError(f"the checkpoint's optimiser state {key} does not fit this network: use another run_dir")
        entries.setdefault(name, set()).add(entry)
    for name, found in entries.items():
        if isinstance(optimizer, torch.optim.AdamW) and found != ADAM:
            listed = ", ".join(sorted(found))
            raise RecipeError(
                f"the checkpoint's optimiser state of {name} is {listed} and not that of AdamW: use another run_dir"
            )


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load weights strictly.

    Raises:
        RecipeError: naming the first names or shapes that differ.
    """
    try:
        now = module.state_dict()
        if different := mismatch(shapes(tensors), shapes(now)):  # before a tensor is read, of whatever size
            raise ValueError(different)
        if isinstance(tensors, ShardedTensors) and are_sharded(now):
            tensors.fill(now)
            tensors = now
        fitting = {name: sharded_like(tensor, now.get(name, tensor)) for name, tensor in tensors.items()}
        module.load_state_dict(fitting, strict=True)
    except (RuntimeError, ValueError) as error:
        reasons = " ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
        raise RecipeError(f"the checkpoint's {what} does not fit the configured network: {reasons}") from error


@dataclass(frozen=True)
class Progress:
    """What a checkpoint's record tells of a training; see `Learner.state`."""

    window: tuple[float, float, float]
    metrics_position: int
    skipped: int = 0
    skipped_in_a_row: int = 0
    rollbacks: int = 0

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Progress:
        """Read a checkpoint's record.

        Raises:
            RecipeError: naming an entry that is missing, or not what training writes there.
        """
        counts: dict[str, Any] = {"metrics_position": record.get("metrics_position")}
        counts |= {name: record.get(name, 0) for name in ("skipped", "skipped_in_a_row", "rollbacks")}
        for name, value in counts.items():
            if type(value) is not int or not 0 <= value < LARGEST_COUNT:
                raise RecipeError(f"the checkpoint's record has {name}={value!r:.80}, no count: {AWAY}")
        try:
            first, second, third = (float.fromhex(value) for value in record["window"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise RecipeError(
                f"the checkpoint's record has window={record.get('window')!r:.80}, no three hexadecimal numbers: {AWAY}"
            ) from error
        return cls((first, second, third), **counts)
