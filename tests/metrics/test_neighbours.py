"""Nearest training examples are those of brute force, and distinguish copies from new data."""

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from multisagd.metrics.neighbours import NearestExamples, repetitions, share_nearer


def gaussian(count: int, seed: int) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))


def search_in(points: Tensor, examples: Tensor, batch: int = 70) -> NearestExamples:
    search = NearestExamples(points, 2)
    for part in examples.split(batch):
        search.add(part)
    return search


def test_nearest_examples_are_those_of_brute_force_for_any_batches() -> None:
    points, examples = gaussian(20, 0), gaussian(211, 1)
    distances, places = torch.cdist(points, examples).sort(1)
    for batch in (1, 70, 500):
        search = search_in(points, examples, batch)
        assert torch.equal(search.indices, places[:, :2])
        torch.testing.assert_close(search.distances, distances[:, :2])
    assert search_in(points, examples[:1]).distances.shape == (20, 1)


def test_share_nearer_is_the_mann_whitney_statistic() -> None:
    samples, held_out = gaussian(50, 0)[:, 0].abs(), gaussian(70, 1)[:, 0].abs() + 0.1
    samples[:5] = held_out[:5]  # ties count half
    statistic = mannwhitneyu(held_out.numpy(), samples.numpy()).statistic
    assert share_nearer(samples, held_out) == pytest.approx(statistic / (50 * 70))


def test_repetitions_and_share_nearer_distinguish_copies_from_new_data() -> None:
    examples, held_out, new = gaussian(2000, 0), gaussian(300, 1), gaussian(300, 2)
    usual = search_in(held_out, examples).distances
    near = gaussian(300, 3) * 0.02 + examples[:300]
    mixed = torch.cat([near[:60], new[60:]])
    shares = [share_nearer(search_in(x, examples).distances[:, 0], usual[:, 0]) for x in (new, mixed, near)]
    assert shares[0] == pytest.approx(0.5, abs=0.05)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.99
    copies = [float(repetitions(search_in(x, examples).distances).double().mean()) for x in (new, mixed, near)]
    assert copies[0] < 0.02
    assert copies[1] == pytest.approx(0.2, abs=0.03)
    assert copies[2] > 0.95
    assert bool(repetitions(search_in(examples[:9], examples).distances).all())
