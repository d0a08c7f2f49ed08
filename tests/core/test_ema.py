"""Averaged weights follow the published profile, and an average resumes from its state bit for bit."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from multisagd.ema import power_exponent, reconstruction


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


@pytest.mark.parametrize("sigma_rel", [0.05, 0.25])
def test_power_ema_weights_follow_the_power_profile(sigma_rel):
    """2312.02696, Eq. 123: sigma_rel is the standard deviation of the profile as a share of the training so far."""
    gamma, n = power_exponent(sigma_rel), 1000
    weights, i = profile(n, sigma_rel), np.arange(1, n + 1)
    # Each update stands for the interval since the one before: the integral of γ+1 over (i-1, i].
    np.testing.assert_allclose(weights, (i ** (gamma + 1) - (i - 1.0) ** (gamma + 1)) / n ** (gamma + 1), atol=1e-12)
    time = (i - 0.5) / n
    mean = (weights * time).sum()
    assert np.sqrt((weights * (time - mean) ** 2).sum()) == pytest.approx(sigma_rel, rel=0.01)


def test_power_exponent_gives_the_published_values_and_refuses_impossible_widths():
    """2312.02696, Section 3.1: σ_rel of 0.05 and 0.10 are γ of about 16.97 and 6.94."""
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for sigma_rel in (0.0, -0.1, 0.3, 1.0):
        with pytest.raises(ValueError, match=r"between 0 and 0\.28"):
            ms.PowerEMA(Number(), sigma_rel)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.07, 0.1, 0.13, 0.15])
def test_reconstruction_makes_any_width_from_stored_averages(sigma_rel: float) -> None:
    """Against the average itself, of 50 random walks whose steps get smaller; 16 snapshots of two widths."""
    updates, interval = 640, 40
    steps = np.random.default_rng(0).normal(size=(updates, 50)) * np.linspace(1, 0.05, updates)[:, None]
    weights = torch.from_numpy((steps + 0.1).cumsum(0))
    network = Number()
    network.value = nn.Parameter(torch.zeros(50, dtype=torch.float64))
    exact, kept = ms.PowerEMA(network, sigma_rel), {width: ms.PowerEMA(network, width) for width in (0.05, 0.15)}
    stored = {}
    for update in range(1, updates + 1):
        network.value.data.copy_(weights[update - 1])
        for average in (exact, *kept.values()):
            average.update(network)
        if update % interval == 0:
            stored |= {(update, width): each.module.value.detach().clone() for width, each in kept.items()}
    factors = reconstruction(list(stored), updates, sigma_rel)
    made = (factors[:, None] * torch.stack(list(stored.values()))).sum(0)
    expected = exact.module.value.detach()
    assert (made - expected).norm() < 0.02 * (expected - weights[-1]).norm()
    assert float(factors.sum()) == pytest.approx(1)


def test_reconstruction_is_the_least_squares_fit_of_profiles() -> None:
    """Against quadrature of the profiles, `(γ+1) τ^γ / t^(γ+1)` up to t."""
    tau = (np.arange(200_000) + 0.5) / 200_000
    stored = [(1000, 0.05), (500, 0.05), (1000, 0.1)]

    def profile_of(time: int, width: float) -> np.ndarray:
        gamma, end = power_exponent(width), time / 1000
        return np.where(tau < end, (gamma + 1) * tau**gamma / end ** (gamma + 1), 0)

    basis, target = np.stack([profile_of(*each) for each in stored]), profile_of(1000, 0.08)
    # The weights sum to one, so the last is one minus the others.
    differences, rest = basis[:-1] - basis[-1], target - basis[-1]
    first = np.linalg.solve(differences @ differences.T, differences @ rest)
    expected = [*first, 1 - first.sum()]
    np.testing.assert_allclose(reconstruction(stored, 1000, 0.08).numpy(), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="no stored averages"):
        reconstruction([], 1000, 0.1)


def test_power_ema_copies_first_weights_and_buffers_and_leaves_the_network_alone():
    network = Number(1.25)
    ema = ms.PowerEMA(Number(5.0))
    network.count += 3
    ema.update(network)
    assert ema.module.value == 1.25
    assert ema.module.count == 3
    network.count += 1
    assert ema.module.count == 3
    for _ in range(100):
        ema.update(network)
    torch.testing.assert_close(ema.module.value.detach(), network.value.detach())
    assert (network.training, network.value.requires_grad) == (True, True)
    assert (ema.module.training, ema.module.value.requires_grad) == (False, False)


def test_power_ema_resumes_from_its_state():
    network = nn.Linear(3, 3)
    ema, resumed = ms.PowerEMA(network, 0.1), ms.PowerEMA(nn.Linear(3, 3), 0.1)
    for update, change in enumerate(torch.randn(10, 3, 3, generator=torch.Generator().manual_seed(0))):
        if update == 5:
            state = copy.deepcopy(ema.state_dict())
            assert all(isinstance(value, torch.Tensor) for value in state.values())
            resumed.load_state_dict(state)
        network.weight.data += change
        for each in (ema, resumed):
            each.update(network)
    assert resumed.updates == 10
    assert torch.equal(resumed.module.weight, ema.module.weight)
