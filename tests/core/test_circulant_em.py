"""EM of a circulant Gaussian equals dense matrices: its step, its likelihood, and the maximum of the likelihood."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import multisagd as ms
from multisagd import circulant_em
from multisagd.circulant_em import Estimate, MaskGroup, fit_power, step
from tests.helpers import dense

SHAPES = [(7,), (6,), (3, 4), (2, 3, 2)]


def random_groups(
    shape: tuple[int, ...], complex_valued: bool, observed: list[int]
) -> tuple[list[MaskGroup], Tensor, list[Tensor]]:
    """Return groups of 3, 4, … items with random masks, a random power, and the items of each group."""
    generator = torch.Generator().manual_seed(0)
    size, blocks = math.prod(shape), 2 if complex_valued else 1
    dtype = torch.complex128 if complex_valued else torch.float64
    power = torch.rand(blocks, *shape, generator=generator, dtype=torch.float64) + 0.1
    if not complex_valued:  # the power of real data is even
        power = torch.fft.fftn(torch.rand(shape, generator=generator, dtype=torch.float64)).abs()[None] + 0.1
    groups, items = [], []
    for number, count in enumerate(observed):
        places = torch.randperm(size, generator=generator)[:count].sort().values
        x = torch.randn(blocks, 3 + number, count, generator=generator, dtype=dtype)
        groups.append(MaskGroup(places, torch.cat([torch.ones_like(x[..., :1]), x], 2), 3 + number))
        items.append(x)
    return groups, power, items


def dense_step(
    groups: list[MaskGroup], items: list[Tensor], power: Tensor, mean: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return power, mean, and log-likelihood per block of the estimate before it, item by item with dense matrices."""
    shape = tuple(power.shape[1:])
    F, size = dense.tensor(dense.dft(shape)), math.prod(shape)
    new_power, new_mean = torch.zeros(len(power), size, dtype=torch.float64), torch.zeros_like(mean)
    likelihood = torch.zeros(len(power), dtype=torch.float64)
    for block in range(len(power)):
        covariance = F.mH @ torch.diag(power[block].flatten().to(F.dtype)) @ F
        filled, spread = [], []
        for group, x in zip(groups, items, strict=True):
            o = group.places
            gain = covariance[:, o] @ torch.linalg.inv(covariance[o][:, o])
            for row in x[block]:
                rest = (row - mean[block, o]).to(F.dtype)
                filled.append(gain @ rest)
                spread.append((F @ (covariance - gain @ covariance[o]) @ F.mH).diagonal().real)
                square = (rest.conj() @ torch.linalg.solve(covariance[o][:, o], rest)).real
                likelihood[block] -= 0.5 * (torch.linalg.slogdet(covariance[o][:, o])[1] + square)
        shift = torch.stack(filled).mean(0)
        new_mean[block] = mean[block] + (shift if mean.is_complex() else shift.real)
        new_power[block] = ((torch.stack(filled) - shift) @ F.T).abs().square().mean(0) + torch.stack(spread).mean(0)
    return new_power.reshape(power.shape), new_mean, likelihood


@pytest.mark.parametrize("complex_valued", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_equals_dense_matrices(shape, complex_valued):
    """With few samples observed and with most, for which there are two formulas, and with all."""
    size = math.prod(shape)
    groups, power, items = random_groups(shape, complex_valued, [1, 2, size // 2, size - 1, size - 1, size])
    mean = torch.randn(len(power), size, generator=torch.Generator().manual_seed(1), dtype=items[0].dtype)
    weight = torch.tensor([1.0, 2.0], dtype=torch.float64)[: len(power)]
    estimate, likelihood = step(Estimate(power, mean), circulant_em._stacked(groups, size), weight)
    new_power, new_mean, expected = dense_step(groups, items, power, mean)
    torch.testing.assert_close(estimate.power, new_power)
    torch.testing.assert_close(estimate.mean, new_mean)
    assert likelihood == pytest.approx(float((weight * expected).sum()), rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_and_fit_power_raise_the_likelihood_in_every_round(shape):
    size = math.prod(shape)
    groups, power, _ = random_groups(shape, False, [size // 2, size - 2, size])
    stacks, weight = circulant_em._stacked(groups, size), torch.ones(1, dtype=torch.float64)
    now, likelihoods = Estimate(power, torch.zeros(1, size, dtype=torch.float64)), []
    for _ in range(30):
        now, likelihood = step(now, stacks, weight)
        likelihoods.append(likelihood)
        assert bool((now.power > 0).all())
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(likelihoods))
    fit = fit_power(groups, power, weight)
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(fit.log_likelihood))
    # Extrapolation gets further than as many steps do.
    assert fit.log_likelihood[min(9, len(fit.log_likelihood) - 1)] >= likelihoods[9] - 1e-9


def test_fit_power_maximises_the_likelihood(monkeypatch):
    """As SciPy's search over the powers of 5 samples does, 3 to 5 of them observed, with a mean of zero."""
    monkeypatch.setattr(circulant_em, "TOLERANCE", 1e-9)
    grid = ms.Grid.of(x=5)
    root = dense.tensor(dense.operator(np.sqrt([4.0, 1.0, 0.3, 0.3, 1.0])))
    generator, groups, rows = torch.Generator().manual_seed(0), [], []
    for observed in (3, 4, 5):
        x = torch.randn(40, 5, generator=generator, dtype=torch.float64) @ root.T
        x = torch.cat([x, -x])[:, :observed]  # the mean of what is observed is zero, and its most likely value
        rows.append(x)
        groups.append(MaskGroup(torch.arange(observed), torch.cat([torch.ones(1, 80, 1).double(), x[None]], 2), 80))

    def negative(logs: np.ndarray) -> float:
        covariance = dense.tensor(dense.operator(grid.full(torch.from_numpy(np.exp(logs))).numpy()))
        total = 0.0
        for x in rows:
            part = covariance[: x.shape[1], : x.shape[1]]
            square = (x * torch.linalg.solve(part, x.T).T).sum()
            total += 0.5 * float(len(x) * torch.linalg.slogdet(part)[1] + square)
        return total

    best = scipy.optimize.minimize(negative, np.zeros(3), method="BFGS")
    fit = fit_power(groups, torch.ones(1, 5, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    assert fit.converged
    np.testing.assert_allclose(fit.estimate.power[0, :3].numpy(), np.exp(best.x), rtol=2e-3)
    np.testing.assert_allclose(fit.estimate.mean.numpy(), 0, atol=1e-9)
