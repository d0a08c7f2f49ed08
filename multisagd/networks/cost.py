"""Count a network's operations and memory in training, and save memory by recomputing activations."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves
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
        twin = _twin(network, "meta", torch.float32)
        counter = FlopCounterMode(display=False)
        with counter:
            predicted = twin(torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta"), None)
            output = predicted if isinstance(predicted, Tensor) else predicted.sample
            output.sum().backward()
    except Exception as error:  # a user's network may fail in any way, and the result is only informative
        _logger.info("the operations of %s cannot be counted: %s", type(network).__name__, error)
        return None
    return int(counter.get_total_flops())


def activation_bytes(
    network: nn.Module, shape: Sequence[int], device: torch.device | str = "cpu", recomputed: bool = False
) -> int | None:
    """Return the number of bytes that a forward pass keeps for the backward pass, without the weights.

    The pass runs on fake tensors of this device, without a condition, so nothing is computed and no random numbers are
    drawn. `shape` is (batch, channels, *grid). The precision is that of the weights, or of autocast if it is active. If
    `recomputed`, the result is that after `recompute(network)`: the inputs of all blocks, and the activations of the
    largest one, because the backward pass recomputes one block at a time. The result is None if the network cannot run
    on fake tensors.
    """
    from torch._subclasses import FakeTensorMode  # takes a second to import

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            twin = _twin(network, device)
            saved, largest = _Saved({_identity(tensor): tensor for tensor in twin.parameters()}), [0]
            for block in blocks(twin) if recomputed else ():
                block.forward = partial(_recomputed, block.forward, saved, largest)
            dtype = next((each.dtype for each in twin.parameters() if each.is_floating_point()), torch.float32)
            x, log_snr = torch.empty(shape, device=device, dtype=dtype), torch.empty(shape[0], device=device)
            with torch.enable_grad(), saved_tensors_hooks(saved.add, _unchanged):
                twin(x, log_snr, None)
            return saved.bytes + max(largest)
    except Exception as error:  # as above
        _logger.info("the activations of %s cannot be measured: %s", type(network).__name__, error)
        return None


class _Saved:
    """The memory of saved tensors, counted once if tensors share it, and without the tensors in `known`."""

    def __init__(self, known: Mapping[int, Tensor]) -> None:
        self.known = known
        self.tensors: dict[int, Tensor] = {}  # kept, because the identity of freed memory may be used again

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor, and return it."""
        if (key := _identity(tensor)) not in self.known:
            self.tensors.setdefault(key, tensor)
        return tensor

    @property
    def bytes(self) -> int:
        """Size of the memory."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


def _identity(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, which it shares with its views."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _recomputed(forward: Callable[..., Any], saved: _Saved, sizes: list[int], *args: Any, **kwargs: Any) -> Any:
    """Call a block's `forward`, adding its inputs to `saved` and the bytes of its other activations to `sizes`."""
    for each in tree_leaves((args, kwargs)):
        if isinstance(each, Tensor):
            saved.add(each)
    own = _Saved({**saved.known, **saved.tensors})
    with saved_tensors_hooks(own.add, _unchanged):
        output = forward(*args, **kwargs)
    sizes.append(own.bytes)
    return output


def _twin(network: nn.Module, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
    """Return a copy of a network with new, undefined weights on a device; `dtype` is that of floating-point tensors."""

    def new(tensor: Tensor) -> Tensor:
        kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=kind, device=device)
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    return copy.deepcopy(network, {id(each): new(each) for each in chain(network.parameters(), network.buffers())})


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
