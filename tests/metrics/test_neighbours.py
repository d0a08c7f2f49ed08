"""Nearest training examples: found as by brute force, and telling copies from new data."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from multisagd.metrics.neighbours import NearestExamples, repetitions, share_nearer


def gaussian(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def looked_up(points: Tensor, examples: Tensor, batch: int = 70) -> NearestExamples:
    search = NearestExamples(points, 2)
    for part in examples.split(batch):
        search.add(part)
    return search


def test_finds_what_brute_force_finds_whatever_the_batches() -> None:
    points, examples = gaussian(20, 0), gaussian(211, 1)
    distances, places = torch.cdist(points, examples).sort(1)
    for batch in (1, 70, 500):
        search = looked_up(points, examples, batch)
        assert torch.equal(search.places, places[:, :2])
        torch.testing.assert_close(search.distances, distances[:, :2])
    assert looked_up(points, examples[:1]).distances.shape == (20, 1)


def test_the_share_is_the_statistic_of_mann_and_whitney() -> None:
    samples, held_out = gaussian(50, 0)[:, 0].abs(), gaussian(70, 1)[:, 0].abs() + 0.1
    samples[:5] = held_out[:5]  # ties count half
    statistic = mannwhitneyu(held_out.numpy(), samples.numpy()).statistic
    assert share_nearer(samples, held_out) == pytest.approx(statistic / (50 * 70))


def test_copies_are_told_from_new_data() -> None:
    examples, held_out, new = gaussian(2000, 0), gaussian(300, 1), gaussian(300, 2)
    usual = looked_up(held_out, examples).distances
    near = gaussian(300, 3) * 0.02 + examples[:300]
    mixed = torch.cat([near[:60], new[60:]])
    shares = [share_nearer(looked_up(x, examples).distances[:, 0], usual[:, 0]) for x in (new, mixed, near)]
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.99
    found = [float(repetitions(looked_up(x, examples).distances).double().mean()) for x in (new, mixed, near)]
    assert found[0] < 0.02
    assert found[1] == pytest.approx(0.2, abs=0.03)
    assert found[2] > 0.95
    assert bool(repetitions(looked_up(examples[:9], examples).distances).all())
    assert np.isfinite(shares).all()
