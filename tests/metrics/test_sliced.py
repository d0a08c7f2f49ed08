"""The sliced Wasserstein distance equals closed forms and scipy's distance along one line."""

import pytest
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor

from multisagd.metrics.sliced import directions, project, sliced_distance


def gaussian(count: int, seed: int, dimensions: int) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def test_sliced_distance_of_gaussians_is_the_closed_form() -> None:
    # Along a random direction a shift of length L has the mean square L²/d; here exactly, on all axes.
    data, lines = gaussian(50, 0, 3), torch.eye(3)
    shift = torch.tensor([1.0, 2.0, 2.0])
    assert sliced_distance(project(data, lines), project(data + shift, lines)) == pytest.approx(3 / 3**0.5, rel=1e-5)
    # Gaussians of different widths differ by the difference of the widths.
    lines = directions(8, 100)
    one, other = gaussian(8_000, 0, 8), 2 * gaussian(8_000, 1, 8)
    assert sliced_distance(project(one, lines), project(other, lines)) == pytest.approx(1.0, rel=0.03)


def test_directions_are_unit_vectors_that_depend_on_the_seed() -> None:
    assert directions(8, 100).norm(dim=0).tolist() == pytest.approx([1.0] * 100, rel=1e-5)
    assert torch.equal(directions(5, 3, seed=1), directions(5, 3, seed=1))
    assert not torch.equal(directions(5, 3, seed=1), directions(5, 3, seed=2))


def test_sliced_distance_along_one_line_is_that_of_repeated_items() -> None:
    generator = torch.Generator().manual_seed(1)
    for one, other in ((3, 7), (8, 4), (5, 5), (1, 6)):
        a, b = (torch.randn(count, 1, generator=generator, dtype=torch.float64) for count in (one, other))
        copies = [each.repeat_interleave(count, 0).sort(0).values for each, count in ((a, other), (b, one))]
        paired = (copies[0] - copies[1])[:, 0]
        assert sliced_distance(a, b) == pytest.approx(float(paired.square().mean().sqrt()), rel=1e-12)
        assert float(paired.abs().mean()) == pytest.approx(wasserstein_distance(a[:, 0], b[:, 0]), rel=1e-12)


def test_sliced_distance_refuses_different_lines_and_empty_sets() -> None:
    for one, other in ((torch.zeros(0, 2), torch.zeros(4, 2)), (torch.zeros(3, 2), torch.zeros(4, 3))):
        with pytest.raises(ValueError, match="along the same lines"):
            sliced_distance(one, other)
