"""Where processes find each other, also after torchrun has started them again.

torchrun shares one store among all its attempts (torch 2.11), in which the addresses of dead processes still stand: who
reads them before they are written anew waits for a process that is gone. So the first process of an attempt makes up a
name for it, and all use only what stands under that name. Counting attempts would not do: machines may have seen
different numbers of them.
"""

from __future__ import annotations

import json
import secrets
import time
from datetime import timedelta

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from multisagd.files import parse_json
from recipes.base.errors import RecipeError

POLL = 0.02


def fresh_store(timeout: timedelta) -> tuple[Store, int, int]:
    """Return a store that knows nothing of earlier attempts, this process's rank, and how many there are.

    Raises:
        RecipeError: if the others have not come within the timeout.
    """
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    deadline = time.monotonic() + timeout.total_seconds()
    name = _name(store, world, deadline) if rank == 0 else _learn_name(store, rank, deadline)
    return PrefixStore(name, store), rank, world


def _name(store: Store, world: int, deadline: float) -> str:
    """Offer a name to those who are there, until all have taken it.

    An offer repeats what each process says of itself, for what is read of it may be of one that is dead.
    """
    name = f"attempt-{secrets.token_hex(8)}"
    while True:
        keys = {rank: f"multisagd/here/{rank}" for rank in range(1, world)}
        here = {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}
        store.set("multisagd/offer", json.dumps({"name": name, "to": here}))
        missing = [rank for rank in range(1, world) if not store.check([f"{name}/taken/{rank}"])]
        if not missing:
            return name
        _wait(deadline, f"processes {missing[:8]} have not come")


def _learn_name(store: Store, rank: int, deadline: float) -> str:
    """Say that this process is there, and take the name that is offered to it and not to a dead one of its rank."""
    itself = secrets.token_hex(8)
    store.set(f"multisagd/here/{rank}", itself)
    while True:
        if store.check(["multisagd/offer"]):
            offer = parse_json(store.get("multisagd/offer"))
            if offer["to"].get(str(rank)) == itself:
                store.set(f"{offer['name']}/taken/{rank}", "")
                return str(offer["name"])
        _wait(deadline, "the first process has not come")


def _wait(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise RecipeError(f"{what} within engine.timeout: are all machines started, and do they reach one another?")
    time.sleep(POLL)
