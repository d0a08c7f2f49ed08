"""Precision, recall, density and coverage against their definitions, and on sets that differ in a known way."""

import pytest
import torch
from torch import Tensor

from multisagd.metrics.manifold import Manifold, manifold
from multisagd.metrics.neighbours import nearer, smallest_distances


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


def test_manifold_density_of_equal_distributions_is_one() -> None:
    values = [means(manifold(gaussian(300, 2 * s), gaussian(300, 2 * s + 1)))[2] for s in range(20)]
    assert sum(values) / 20 == pytest.approx(1, abs=0.05)


def test_manifold_separates_fidelity_from_variety() -> None:
    # Half of the modes: half of the variety, and the same fidelity.
    centres = 20 * gaussian(10, 3)
    real, again = ((centres[:, None] + gaussian(500, seed).reshape(10, 50, 4)).flatten(0, 1) for seed in range(2))
    fewer = (centres[:5, None] + gaussian(500, 2).reshape(5, 100, 4)).flatten(0, 1)
    complete, half = means(manifold(real, again)), means(manifold(real, fewer))
    assert half[0] == pytest.approx(complete[0], abs=0.05)
    assert half[1] == pytest.approx(complete[1] / 2, abs=0.05)
    assert half[3] == pytest.approx(complete[3] / 2, abs=0.05)
    # Noise costs fidelity.
    real, made = gaussian(400, 0), gaussian(400, 1)
    clean, noisy = means(manifold(real, made)), means(manifold(real, made + 2 * gaussian(400, 2)))
    assert noisy[0] < clean[0] - 0.2
    assert noisy[2] < clean[2] / 2


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
    with pytest.raises(ValueError, match="need more items"):
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
