"""Distributed training: torchrun's ranks, rendezvous, and parallel networks.

Each rank processes an equal part of every global batch. With `ddp` it has the full network, and gradients are averaged;
with `fsdp` (FSDP2, arXiv 2304.11277) weights, averages, gradients and optimiser state are sharded over all ranks, or
over groups of `shard_ranks` with one copy each (hybrid sharding). Every rank must run the network the same number of
times, because gathering sharded weights is a collective operation.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, TypeGuard, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from multisagd.files import parse_json
from recipes.base.errors import RecipeError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Distribution = Literal["ddp", "fsdp"]
Group = dist.ProcessGroup | None
"""A process group; None means all ranks."""
PORT_PATIENCE = 65.0
"""Seconds to wait for a port that is in use: Linux holds the port of a closed connection for 60."""
POLL = 0.02
"""Polling interval of the rendezvous, in seconds."""


class FailedElsewhereError(RecipeError):
    """Another process failed; raised in the processes that did not fail themselves."""


@dataclass(frozen=True)
class Rank:
    """This process's rank, the number of processes, and its rank on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Rank:
        """Read torchrun's variables, or return `SINGLE` if they are not set. Raises RecipeError if they are invalid."""
        variables = os.environ if environment is None else environment
        if variables.get("WORLD_SIZE", "1") == "1":
            return SINGLE
        try:
            process = cls(*(int(variables[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
            _ = variables["MASTER_ADDR"], variables["MASTER_PORT"]
        except (KeyError, ValueError) as error:
            raise RecipeError(
                f"WORLD_SIZE={variables['WORLD_SIZE']} requests several processes, but {error} is missing or not a "
                "number: start them with torchrun, or unset WORLD_SIZE"
            ) from error
        if not 0 <= process.rank < process.world:
            problem = f"RANK={process.rank} does not fit WORLD_SIZE={process.world}"
            raise RecipeError(f"{problem}: start the processes with torchrun, or unset both")
        return process


SINGLE = Rank()


def join(process: Rank, device: torch.device, timeout: float) -> None:
    """Connect to the other processes, if any. Any later operation that waits for more than `timeout` seconds fails.

    torchrun uses one store for all its attempts (torch 2.11), which still holds the addresses of dead processes: a
    process that reads them before they are overwritten waits forever. So the first process of an attempt generates a
    name, and all processes use only keys below this name. An attempt number would not work, because it may differ
    between machines. Raises RecipeError if the others do not join in time.
    """
    if process.world == 1 or dist.is_initialized():
        return
    patience, deadline = timedelta(seconds=timeout), time.monotonic() + timeout
    store, rank, world = _rendezvous(patience)
    name = _offer_name(store, world, deadline) if rank == 0 else _accept_name(store, rank, deadline)
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    fresh = PrefixStore(name, store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=world, timeout=patience)


def _rendezvous(timeout: timedelta) -> tuple[Store, int, int]:
    """Return the store of the processes, the rank and the number of processes.

    A requeued job gets the same port again, which the system may hold for a minute after a connection has ended, and
    which any outgoing connection can use. So the first process tries again for `PORT_PATIENCE` seconds. Raises
    RecipeError if the port is still in use then.
    """
    deadline = time.monotonic() + PORT_PATIENCE
    while True:
        try:
            return next(rendezvous("env://", timeout=timeout))
        except dist.DistNetworkError as error:
            if "EADDRINUSE" not in str(error):
                raise
            if time.monotonic() > deadline:
                raise RecipeError(
                    f"port {os.environ['MASTER_PORT']} on this machine is in use by another program: "
                    "end that program, or set MASTER_PORT to a free port"
                ) from error
        time.sleep(1.0)


def _offer_name(store: Store, world: int, deadline: float) -> str:
    """Offer a new name to the other processes, whose announced ids may be outdated, until all accept it; return it."""
    name = f"attempt-{secrets.token_hex(8)}"
    while True:
        keys = {rank: f"multisagd/here/{rank}" for rank in range(1, world)}
        here = {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}
        store.set("multisagd/offer", json.dumps({"name": name, "to": here}))
        missing = [rank for rank in range(1, world) if not store.check([f"{name}/taken/{rank}"])]
        if not missing:
            return name
        _wait(deadline, f"processes {missing[:8]} have not joined")


def _accept_name(store: Store, rank: int, deadline: float) -> str:
    """Announce this process, and accept the name that is offered to its id, not to a dead process of the same rank."""
    itself = secrets.token_hex(8)
    store.set(f"multisagd/here/{rank}", itself)
    while True:
        if store.check(["multisagd/offer"]):
            offer = parse_json(store.get("multisagd/offer"))
            if offer["to"].get(str(rank)) == itself:
                store.set(f"{offer['name']}/taken/{rank}", "")
                return str(offer["name"])
        _wait(deadline, "the first process has not joined")


def _wait(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise RecipeError(
            f"{what} within engine.timeout: check that all machines have started and can reach one another"
        )
    time.sleep(POLL)


def leave() -> None:
    """Disconnect from the other processes, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def replicate(network: nn.Module, device: torch.device) -> nn.Module:
    """Return a wrapper, to be called instead of the network, that averages gradients over all ranks."""
    return DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def synchronise(network: nn.Module, enabled: bool) -> None:
    """Set whether the next backward pass averages gradients over ranks: only the last accumulated part needs to."""
    if isinstance(network, DistributedDataParallel):
        network.require_backward_grad_sync = enabled
    elif (sharded := getattr(network, "set_requires_gradient_sync", None)) is not None:  # an FSDPModule
        sharded(enabled)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is sharded over ranks."""
    # The import takes a second; before it has finished, no such tensor can exist.
    return isinstance(tensor, getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ()))


def are_sharded(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any of the tensors is sharded over ranks."""
    return any(is_sharded(tensor) for tensor in tensors.values())


def full_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor in full. If it is sharded, every rank must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def sharded_like(tensor: Tensor, model: Tensor) -> Tensor:
    """Return a tensor sharded like `model`; `tensor` is full, and equal on every rank."""
    if is_sharded(tensor) or not is_sharded(model) or not tensor.dim():
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(model.device), model.device_mesh, model.placements)


def gathered(tensor: Tensor) -> list[Tensor]:
    """Return the tensors of all ranks, in order, on the CPU; shapes must be equal on all ranks."""
    if not dist.is_initialized():
        return [tensor.cpu()]
    tensor = tensor.cpu().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts


def separate_group(timeout: float) -> Group:
    """Return a group of all ranks for a second thread, because threads must not share a group.

    Return None if this is the only process. Every rank must call this at the same point.
    """
    if not dist.is_initialized():
        return None
    return cast(Group, dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)))


def long_barrier() -> None:
    """Wait for up to a day until every rank calls this, because one of them may have to read all data first."""
    if (group := separate_group(timedelta(days=1).total_seconds())) is not None:
        dist.barrier(group=group)
        dist.destroy_process_group(group)


def barrier() -> None:
    """Wait until every rank calls this."""
    if dist.is_initialized():
        dist.barrier()


def raise_together(error: Exception | None, group: Group = None) -> None:
    """Raise on every rank if one has failed: the error on the failed rank, and FailedElsewhereError on the others."""
    failed = torch.tensor(int(error is not None))
    if dist.is_initialized():
        dist.all_reduce(failed, dist.ReduceOp.MAX, group=group)
    if error is not None:
        raise error
    if failed:
        raise FailedElsewhereError("another process failed; see its error message for the reason")


def broadcast_from_rank0(tensor: Tensor) -> None:
    """Overwrite a CPU tensor in place with that of rank 0."""
    if dist.is_initialized():
        dist.broadcast(tensor, 0)


def is_first() -> bool:
    """Whether this is the first rank, or the only process."""
    return not dist.is_initialized() or dist.get_rank() == 0


class Agreement:
    """Exchanges values over all ranks, with results from the previous call, so that no rank waits for the others."""

    def __init__(self) -> None:
        self._numbers = torch.zeros(2, dtype=torch.int64)
        self._under_way: dist.Work | None = None

    def exchange(self, signal: int | None, due: bool) -> tuple[int, bool]:
        """Send a signal number (or None), and whether something is due, to all ranks; return the previous result.

        The result is the largest number, and whether something was due on any rank; 0 and False in the first call.
        """
        if not dist.is_initialized():
            return signal or 0, due
        if self._under_way is not None:
            self._under_way.wait()
        before, self._numbers = self._numbers, torch.tensor([signal or 0, int(due)])
        self._under_way = dist.all_reduce(self._numbers, dist.ReduceOp.MAX, async_op=True)
        return int(before[0]), bool(before[1])
