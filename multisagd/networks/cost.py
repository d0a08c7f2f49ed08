"""Count the operations of a network's training step, and save memory by recomputing activations."""

import copy
import logging
from collections.abc import Sequence
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_logger = logging.getLogger("multisagd")


def training_flops(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Count the floating-point operations of one sample's forward and backward pass.

    Matrix products, convolutions and attention are counted, on a copy without memory (torch's meta device) and without
    a condition, so nothing is computed. `shape` is (channels, *grid). The result is None if the network cannot run this
    way.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes a second to import

    try:
        tensors = chain(network.parameters(), network.buffers())
        twin = copy.deepcopy(network, {id(tensor): _on_meta(tensor) for tensor in tensors})
        counter = FlopCounterMode(display=False)
        with counter:
            predicted = twin(torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta"), None)
            output = predicted if isinstance(predicted, Tensor) else predicted.sample
            output.sum().backward()
    except Exception as error:  # a user's network may fail in any way, and the result is only informative
        _logger.info("the operations of %s cannot be counted: %s", type(network).__name__, error)
        return None
    return int(counter.get_total_flops())


def _on_meta(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape without memory; floating-point tensors become float32."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def recompute(network: nn.Module) -> None:
    """Recompute the activations of a network's blocks in the backward pass, to save memory.

    The network is changed in place; the names of its weights do not change (arXiv 1604.06174).
    """
    for block in blocks(network):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the members of a network's module lists that have weights, members of inner lists first.

    Modules that `called_apart()` returns, which the network calls outside their blocks, come before all others.
    """
    apart: list[nn.Module] = getattr(network, "called_apart", list)()
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    members = (member for each in reversed(lists) for member in each if not isinstance(member, nn.ModuleList))
    return list(dict.fromkeys(member for member in (*apart, *members) if next(member.parameters(), None) is not None))
