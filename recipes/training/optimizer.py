"""The optimiser of a network, and which of its parameters decay."""

from typing import Any

import torch
from torch import nn

from recipes.runs.settings import Training


def build_optimizer(network: nn.Module, training: Training) -> torch.optim.AdamW:
    """Return AdamW for a network, with weight decay of its weight matrices only (see `decaying`).

    It is fused, and so can skip a step by a flag on the device, without synchronisation.
    """
    names = decaying(network)
    decayed = [parameter for name, parameter in network.named_parameters() if name in names]
    others = [parameter for name, parameter in network.named_parameters() if name not in names]
    groups: list[dict[str, Any]] = [{"params": decayed}] if decayed else []
    groups += [{"params": others, "weight_decay": 0.0}] if others else []
    return torch.optim.AdamW(
        groups, training.learning_rate, training.betas,
        weight_decay=training.weight_decay, fused=True,
    )  # fmt: skip


def decaying(network: nn.Module) -> set[str]:
    """Return the names of the parameters that decay: matrices and kernels, but no norms, biases or embeddings.

    Norms, biases and embeddings have a size of their own, which decay would take from them.
    """
    embeddings = {
        f"{name}.{own}" for name, module in network.named_modules() if isinstance(module, nn.Embedding)
        for own, _ in module.named_parameters(recurse=False)
    }  # fmt: skip
    return {name for name, parameter in network.named_parameters() if parameter.ndim >= 2} - embeddings
