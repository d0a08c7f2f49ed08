"""Nearest neighbours and precision, recall, density and coverage are what brute force and the papers define."""

import pytest
import torch
from scipy.stats import mannwhitneyu
from torch import Tensor

from multisagd.metrics.manifold import Manifold, manifold
from multisagd.metrics.neighbours import NearestExamples, nearer, nearer_fraction, repetitions, smallest_distances


def gaussian(count: int, seed: int, dimensions: int = 4) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def means(found: Manifold) -> tuple[float, float, float, float]:
    return tuple(float(each.mean()) for each in (found.precision, found.recall, found.density, found.coverage))  # type: ignore[return-value]


def test_manifold_is_what_the_papers_define() -> None:
    real, made = gaussian(30, 0), gaussian(40, 1) * 1.3 + 0.4
    found = manifold(real, made, neighbours=3, density_neighbours=5)

    def reach(points: Tensor, k: int) -> list[float]:
        return [
            sorted(float((p - q).norm()) for j, q in enumerate(points) if j != i)[k - 1] for i, p in enumerate(points)
        ]

    real3, real5, made3 = reach(real, 3), reach(real, 5), reach(made, 3)
    distance = [[float((m - r).norm()) for r in real] for m in made]
    precision = [any(d <= r for d, r in zip(row, real3, strict=True)) for row in distance]
    density = [sum(d <= r for d, r in zip(row, real5, strict=True)) / 5 for row in distance]
    recall = [any(distance[m][r] <= made3[m] for m in range(40)) for r in range(30)]
    coverage = [min(distance[m][r] for m in range(40)) <= real5[r] for r in range(30)]
    assert found.precision.tolist() == [float(each) for each in precision]
    assert found.density.tolist() == pytest.approx(density)
    assert found.recall.tolist() == [float(each) for each in recall]
    assert found.coverage.tolist() == [float(each) for each in coverage]


@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_manifold_gives_copies_of_duplicates_full_scores(offset: float) -> None:
    once = gaussian(60, 5, 32) + offset
    real = once.repeat(4, 1)
    made = real[torch.randperm(240, generator=torch.Generator().manual_seed(6))]
    precision, recall, _, coverage = means(manifold(real, made))
    assert (precision, recall, coverage) == (1.0, 1.0, 1.0)
    # With two copies each, the balls reach other items.
    twice = once.repeat(2, 1)
    assert means(manifold(twice, twice[:100]))[0] == 1.0
    density, reversed_density = (manifold(twice, x, density_neighbours=6).density for x in (twice, twice.flip(0)))
    assert density.tolist() == reversed_density.flip(0).tolist()
    with pytest.raises(ValueError, match=r"need at least [0-9]+ items"):
        manifold(once[:5], once)


def test_smallest_distances_are_exact_in_blocks_and_parts() -> None:
    points, others = gaussian(37, 0) + 100, gaussian(53, 1) + 100
    others[7] = points[3]
    distances, places = smallest_distances(points, others, 4, block=10)
    expected, order = torch.cdist(points.double(), others.double()).sort(1)
    assert torch.equal(places, order[:, :4])
    torch.testing.assert_close(distances.double(), expected[:, :4], rtol=1e-4, atol=1e-5)
    assert float(distances[3, 0]) == 0.0  # equal vectors
    first, (distances, places) = smallest_distances(points, others[:20], 4), smallest_distances(points, others[20:], 4)
    assert torch.equal(nearer(first, (distances, places + 20), 4)[1], order[:, :4])
    with pytest.raises(ValueError, match="nearest 60 of only 53"):
        smallest_distances(points, others, 60)


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
    assert nearer_fraction(samples, held_out) == pytest.approx(statistic / (50 * 70))


def test_repetitions_distinguish_copies_from_new_data() -> None:
    examples, new = gaussian(2000, 0, 6), gaussian(300, 2, 6)
    near = gaussian(300, 3, 6) * 0.02 + examples[:300]
    mixed = torch.cat([near[:60], new[60:]])
    copies = [float(repetitions(search_in(x, examples).distances).double().mean()) for x in (new, mixed, near)]
    assert copies[0] < 0.02
    assert copies[1] == pytest.approx(0.2, abs=0.03)
    assert copies[2] > 0.95
    assert bool(repetitions(search_in(examples[:9], examples).distances).all())
