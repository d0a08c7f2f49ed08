"""Arithmetic of a training step, and how much of a device's it is: model FLOPs utilisation (arXiv 2204.02311, B)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

log = logging.getLogger("multisagd")

PEAKS: dict[str, dict[torch.dtype, float]] = {
    "B200": {torch.bfloat16: 2250e12, torch.float32: 1125e12},
    "H200": {torch.bfloat16: 989e12, torch.float32: 494e12},
    "H100 PCIe": {torch.bfloat16: 756e12, torch.float32: 378e12},
    "H100": {torch.bfloat16: 989e12, torch.float32: 494e12},
    "A100": {torch.bfloat16: 312e12, torch.float32: 156e12},
    "L40S": {torch.bfloat16: 362e12, torch.float32: 183e12},
    "L4": {torch.bfloat16: 121e12, torch.float32: 60e12},
    "V100": {torch.float32: 15.7e12},
}
"""Operations of dense matrix products per second, a multiply-add being two, by NVIDIA's data sheets.

For float32 those of TF32 where the device has it, since `Runtime` lets products round to it. The first name that a
device's own contains counts; `engine.peak_flops` overrides it.
"""


def training_flops(network: nn.Module, shape: Sequence[int]) -> int | None:
    """Count the operations of one sample's forward and backward pass: matrix products, convolutions, attention.

    `shape` is (channels, *grid). Counted on a copy without memory (torch's meta device) and without a condition, so
    nothing is computed; None for a network that cannot run so.
    """
    try:
        twin = copy.deepcopy(network, {id(tensor): _hollow(tensor) for tensor in _tensors(network)})
        counter = FlopCounterMode(display=False)
        with counter:
            predicted = twin(torch.empty(1, *shape, device="meta"), torch.empty(1, device="meta"), None)
            output = predicted if isinstance(predicted, Tensor) else predicted.sample
            output.sum().backward()
    except Exception as error:  # a network of the user's own may fail in any way here, and this is but a figure
        log.info("the operations of %s cannot be counted: %s", type(network).__name__, error)
        return None
    return int(counter.get_total_flops())


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()


def _hollow(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape that holds nothing, in float32 if it is of floats."""
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    empty = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the most operations per second that a device is said to do; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = next((peaks for part, peaks in PEAKS.items() if part in name), {})
    return known.get(dtype)
