"""The state of an optimiser is saved by the names of weights, restored exactly, and refused where it does not fit."""

import pytest
import torch

from recipes.base.errors import RecipeError
from recipes.runs.state import load_module, load_optimizer, optimizer_tensors


def trained(width: int = 4) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    network = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_optimizer_tensors_are_named_and_restored() -> None:
    network, optimizer = trained()
    tensors = optimizer_tensors(network, optimizer)
    assert set(tensors) == {f"{p}/{e}" for p in ("weight", "bias") for e in ("step", "exp_avg", "exp_avg_sq")}
    other = torch.optim.AdamW(network.parameters(), lr=0.5)
    load_optimizer(network, other, tensors)
    restored = optimizer_tensors(network, other)
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())
    assert other.param_groups[0]["lr"] == 0.5
    optimizer.state[network.weight]["note"] = "x"
    with pytest.raises(TypeError, match="keeps note as str"):
        optimizer_tensors(network, optimizer)


def test_load_optimizer_and_load_module_refuse_the_state_of_another_network() -> None:
    tensors = optimizer_tensors(*trained(5))
    with pytest.raises(RecipeError, match="optimiser state weight/exp_avg does not fit"):
        load_optimizer(*trained(4), tensors)
    with pytest.raises(RecipeError, match=r"optimiser state .* does not fit"):
        load_optimizer(*trained(4), {"strange/step": torch.tensor(1.0)})
    with pytest.raises(RecipeError, match=r"the checkpoint's network does not match.*size mismatch"):
        load_module(trained(4)[0], trained(5)[0].state_dict(), "network")
