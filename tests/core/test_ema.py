"""The averaged weights against the profile written out."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from multisagd.ema import power_exponent


class Number(nn.Module):
    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(0))


def profile(updates: int, sigma_rel: float) -> np.ndarray:
    """Weight of each update in the average, measured by feeding it unit impulses one at a time."""
    network = Number()
    network.value = nn.Parameter(torch.zeros(updates, dtype=torch.float64))
    ema = ms.PowerEMA(network, sigma_rel)
    for i in range(updates):
        with torch.no_grad():
            network.value.zero_()
            network.value[i] = 1
        ema.update(network)
    return ema.module.value.detach().numpy()


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_weights_follow_the_power_profile(sigma_rel):
    gamma = power_exponent(sigma_rel)
    n = 400
    weights = profile(n, sigma_rel)
    assert weights.sum() == pytest.approx(1)
    i = np.arange(1, n + 1)
    # Each update stands for the interval since the one before: the integral of γ+1 over (i-1, i].
    np.testing.assert_allclose(weights, (i ** (gamma + 1) - (i - 1.0) ** (gamma + 1)) / n ** (gamma + 1), atol=1e-12)
    late = i > n // 2
    np.testing.assert_allclose(weights[late], ((i - 0.5) ** gamma)[late] / ((i - 0.5) ** gamma).sum(), rtol=0.01)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.15, 0.25])
def test_sigma_rel_is_the_relative_width_of_the_profile(sigma_rel):
    """2312.02696, Eq. 123: the standard deviation of the profile as a share of the training so far."""
    n = 1000
    weights, time = profile(n, sigma_rel), (np.arange(n) + 0.5) / n
    mean = (weights * time).sum()
    assert np.sqrt((weights * (time - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=0.01)


def test_published_exponents():
    """2312.02696, Section 3.1: σ_rel of 0.05 and 0.10 are γ of about 16.97 and 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.3, 1.0])
def test_impossible_widths_are_refused(sigma_rel):
    with pytest.raises(ValueError, match=r"between 0 and 0\.28"):
        ms.PowerEMA(Number(), sigma_rel)


def test_the_first_update_copies():
    ema = ms.PowerEMA(Number(5.0))
    network = Number(1.25)
    ema.update(network)
    assert ema.module.value == 1.25


def test_constant_weights_stay():
    network = Number(1.25)
    ema = ms.PowerEMA(network)
    for _ in range(100):
        ema.update(network)
    torch.testing.assert_close(ema.module.value.detach(), network.value.detach())


def test_buffers_are_copied_and_the_network_is_left_alone():
    network = Number(1.0)
    ema = ms.PowerEMA(network)
    network.count += 3
    ema.update(network)
    assert ema.module.count == 3
    network.count += 1
    assert ema.module.count == 3
    assert network.value.requires_grad
    assert network.training
    assert not ema.module.value.requires_grad
    assert not ema.module.training


def test_it_resumes_from_its_state():
    generator = torch.Generator().manual_seed(0)
    network = nn.Linear(3, 3)
    ema = ms.PowerEMA(network, 0.1)

    def advance(averaged: ms.PowerEMA, deltas: list[torch.Tensor]) -> None:
        for delta in deltas:
            with torch.no_grad():
                network.weight += delta
            averaged.update(network)

    deltas = [torch.randn(3, 3, generator=generator) for _ in range(10)]
    advance(ema, deltas[:5])
    weights, state = copy.deepcopy(network.state_dict()), copy.deepcopy(ema.state_dict())
    advance(ema, deltas[5:])
    network.load_state_dict(weights)
    resumed = ms.PowerEMA(nn.Linear(3, 3), 0.1)
    resumed.load_state_dict(state)
    assert resumed.updates == 5
    advance(resumed, deltas[5:])
    assert resumed.updates == 10
    assert torch.equal(resumed.module.weight, ema.module.weight)
    assert all(isinstance(value, torch.Tensor) for value in ema.state_dict().values())
