"""Weights and optimiser state as named tensors, which survive a change of order, or of the number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recipes.engine.distribution import sharded_like
from recipes.engine.errors import RecipeError
from recipes.engine.shards import ShardedTensors, are_sharded


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


def load_optimizer(network: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` returned; learning rates and the like stay as they are.

    Raises:
        RecipeError: if an entry belongs to no parameter of the network, or has another shape than it.
    """
    parameters = dict(network.named_parameters())
    if isinstance(tensors, ShardedTensors) and are_sharded(parameters):
        targets = {key: tensors.empty_like(key, parameters.get(key.rpartition("/")[0])) for key in tensors}
        tensors.fill(targets)
        tensors = targets
    numbers = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, entry = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or (tensor.dim() and tensor.shape != parameter.shape):
            raise RecipeError(f"the checkpoint's optimiser state {key} does not fit this network: use another run_dir")
        state.setdefault(numbers[id(parameter)], {})[entry] = sharded_like(tensor, parameter)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_module(module: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load weights strictly.

    Raises:
        RecipeError: naming the first names or shapes that differ.
    """
    try:
        now = module.state_dict()
        if isinstance(tensors, ShardedTensors) and are_sharded(now):
            tensors.fill(now)
            tensors = now
        fitting = {name: sharded_like(tensor, now.get(name, tensor)) for name, tensor in tensors.items()}
        module.load_state_dict(fitting, strict=True)
    except (RuntimeError, ValueError) as error:
        reasons = " ".join(line.strip() for line in str(error).splitlines()[1:3]) or str(error)
        raise RecipeError(f"the checkpoint's {what} does not fit the configured network: {reasons}") from error
