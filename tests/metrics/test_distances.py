"""Distances of sets, their errors, and neighbours equal closed forms, brute force, SciPy and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from scipy.stats import mannwhitneyu, wasserstein_distance
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from multisagd.metrics import frechet_distance, matched_counts
from multisagd.metrics.bootstrap import bootstrap_error, mean_error, redrawn
from multisagd.metrics.kernel import kernel_distance, pair_weights, squared_mmd
from multisagd.metrics.manifold import Manifold, manifold
from multisagd.metrics.neighbours import NearestExamples, nearer, nearer_fraction, repetitions, smallest_distances
from multisagd.metrics.sliced import directions, project, sliced_distance
from tests.helpers.refusals import assert_refused


def draw(count: int, mean: Tensor, covariance: Tensor, seed: int) -> Tensor:
    """Return samples whose own mean and unbiased covariance are exactly those given."""
    dimensions = len(mean)
    x = torch.randn(count, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    root = torch.linalg.qr(x / (count - 1) ** 0.5, mode="r").R
    white = torch.linalg.solve_triangular(root, x, upper=True, left=False)
    return white @ torch.linalg.cholesky(covariance).T + mean


def random_covariance(dimensions: int, seed: int) -> Tensor:
    x = torch.randn(dimensions, dimensions, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.T / dimensions + 0.05 * torch.eye(dimensions, dtype=torch.float64)


def test_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    shift = torch.tensor([0.5, -1.0, 2.0]).double()
    distance = frechet_distance(draw(200, torch.zeros(3).double(), a.diag(), 0), draw(300, shift, b.diag(), 1))
    assert distance == pytest.approx(5.25 + (1 + 1 + 6.25), abs=1e-10)  # |m|² + Σ (√a - √b)²
    # Full covariances, by scipy's matrix root.
    a, b = random_covariance(12, 0), random_covariance(12, 1)
    mean = torch.linspace(-1, 1, 12, dtype=torch.float64)
    root = np.real(scipy.linalg.sqrtm((a @ b).numpy()))
    expected = float(mean.square().sum() + a.trace() + b.trace()) - 2 * float(np.trace(root))
    distance = frechet_distance(draw(100, mean, a, 2), draw(150, torch.zeros(12).double(), b, 3))
    assert distance == pytest.approx(expected, abs=1e-9)


def test_frechet_distance_handles_fewer_items_than_dimensions() -> None:
    """A point and a Gaussian of singular covariance: the squared shift plus the total variance."""
    x = torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = torch.ones(2, 20, dtype=torch.float64)
    expected = (x.mean(0) - 1).square().sum() + x.var(0).sum()
    assert frechet_distance(x, point) == pytest.approx(float(expected), abs=1e-10)


def test_frechet_distance_equals_torchmetrics() -> None:
    features = nn.Identity()
    features.num_features = 6  # otherwise measured on an image
    a = draw(80, torch.zeros(6).double(), random_covariance(6, 0), 0).float()
    b = draw(90, torch.ones(6).double(), random_covariance(6, 1), 1).float()
    metric = FrechetInceptionDistance(feature=features, normalize=True).set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_distance_refuses_unfit_features() -> None:
    good, broken = torch.randn(10, 4), torch.randn(10, 4)
    broken[3, 1] = torch.nan
    assert_refused(
        ("1 of 10 feature vectors are not finite", lambda: frechet_distance(good, broken)),
        ("equal dimensions", lambda: frechet_distance(good, good[:, :3])),
        ("at least 2", lambda: frechet_distance(good, good[:1])),
    )


def test_matched_counts_shrink_the_reference_first() -> None:
    for samples, available, reference, expected in (
        ([100], [5000], 1000, ([100], [1000])),
        ([100], [400], 1000, ([100], [300])),  # a smaller reference
        ([100], [150], 1000, ([75], [75])),  # half of the available each
        ([100], [150], 80, ([75], [75])),  # never fewer samples than half of the available
        ([100], [150], 40, ([100], [40])),
        ([10, 0, 30], [500, 500, 90], 1000, ([10, 0, 30], [20, 0, 60])),  # the scarcest class decides, in proportion
        ([10, 10], [500, 0], 1000, ([0, 0], [0, 0])),
    ):
        assert matched_counts(samples, available, reference) == expected, (samples, available, reference)


def gaussian(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + shift


def test_squared_mmd_is_the_sum_over_pairs() -> None:
    a, b = gaussian(5, 0), gaussian(7, 1, 0.5)

    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 6 + 1) ** 3)

    within_a = sum(kernel(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_b = sum(kernel(b[i], b[j]) for i in range(7) for j in range(7) if i != j) / 42
    between = sum(kernel(x, y) for x in a for y in b) / 35
    assert squared_mmd(a, b) == pytest.approx(within_a + within_b - 2 * between, rel=1e-10)


@pytest.mark.parametrize(("sizes", "size"), [((4,) * 5, 100), ((2, 4, 12, 0, 2), 5)])
def test_kernel_distance_of_equal_classes_is_zero_on_average(sizes: tuple[int, ...], size: int) -> None:
    centres = 2 * gaussian(5, 99).repeat_interleave(torch.tensor(sizes), dim=0)
    values, plain = [], []
    for seed in range(200):
        a, b = (centres + gaussian(20, 2 * seed + each) for each in range(2))
        values.append(kernel_distance(a, b, sizes, size=size)[0])
        plain.append(squared_mmd(a, b))
    corrected, uncorrected = torch.tensor(values), torch.tensor(plain)
    assert abs(float(corrected.mean())) < 3 * float(corrected.std()) / 200**0.5
    assert float(uncorrected.mean()) < -3 * float(uncorrected.std()) / 200**0.5


def test_pair_weights_are_one_on_average() -> None:
    for sizes in ([7], [4, 4, 2], [1, 1, 5], [1] * 6, [0, 3]):
        within, between = pair_weights(sizes)
        count = torch.tensor(sizes, dtype=torch.float64)
        pairs, alike = float(count.sum() * (count.sum() - 1)), count * (count - 1)
        assert float((within * alike).sum() + between * (pairs - alike.sum())) == pytest.approx(pairs)
    assert pair_weights([7])[0].tolist() == pytest.approx([1.0])
    assert pair_weights([1] * 6)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="sizes that add up to 6 items do not match sets of 5 and 6"):
        kernel_distance(gaussian(5, 0), gaussian(6, 1), [3, 3])


def test_kernel_distance_states_its_own_spread() -> None:
    pairs = [kernel_distance(gaussian(400, 2 * s), gaussian(400, 2 * s + 1, 0.3), size=50) for s in range(40)]
    values, errors = torch.tensor(pairs).T
    assert float(errors.mean()) == pytest.approx(float(values.std()), rel=0.35)
    assert kernel_distance(gaussian(400, 0), gaussian(400, 1, 0.15))[0] < float(values.mean()) / 2
    # Few items still make several subsets.
    value, error = kernel_distance(gaussian(20, 0), gaussian(20, 1, 1.0))
    assert value > 0
    assert error is not None
    with pytest.raises(ValueError, match="at least 2 items"):
        squared_mmd(gaussian(1, 0), gaussian(5, 0))


def normal(count: int, seed: int, dimensions: int = 4) -> Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(seed))


def test_sliced_distance_of_gaussians_is_the_closed_form() -> None:
    # Along a random direction a shift of length L has the mean square L²/d; here exactly, on all axes.
    data, lines = normal(50, 0, 3), torch.eye(3)
    shift = torch.tensor([1.0, 2.0, 2.0])
    assert sliced_distance(project(data, lines), project(data + shift, lines)) == pytest.approx(3 / 3**0.5, rel=1e-5)
    # Gaussians of different widths differ by the difference of the widths.
    lines = directions(8, 100)
    one, other = normal(8_000, 0, 8), 2 * normal(8_000, 1, 8)
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
        with pytest.raises(ValueError, match="projected onto the same lines"):
            sliced_distance(one, other)


def test_bootstrap_error_of_a_difference_of_means_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, generator=generator), 2 * torch.randn(200, generator=generator)
    error = bootstrap_error(lambda i, j: float(a[i].mean() - b[j].mean()), [300], 400, others=[200])
    assert error == pytest.approx((mean_error(a) ** 2 + mean_error(b) ** 2) ** 0.5, rel=0.1)
    assert mean_error(a) == pytest.approx(1 / 300**0.5, rel=0.1)


def test_redrawn_stays_within_each_class() -> None:
    places = redrawn([3, 0, 4], seed=5)
    assert places.shape == (7,)
    assert bool((places[:3] < 3).all())
    assert bool(((places[3:] >= 3) & (places[3:] < 7)).all())
    assert torch.equal(places, redrawn([3, 0, 4], seed=5))
    # Differences between classes therefore add nothing.
    values = torch.tensor([0.0, 0, 0, 10, 10, 10, 10])
    assert bootstrap_error(lambda i, _: float(values[i].mean()), [3, 4], 20) == 0.0


def test_bootstrap_error_is_not_understated_for_small_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(60, 1, generator=generator)
    values = (centres + torch.randn(60, 2, generator=generator)).flatten()
    # The mean of 120 values in groups of two, of unit variance within a group.
    error = bootstrap_error(lambda i, _: float(values[i].mean()), [2] * 60, 400)
    within = values.reshape(60, 2).var(1).mean()
    assert error == pytest.approx(float(within / 120) ** 0.5, rel=0.1)


def test_bootstrap_error_is_none_for_one_resample_or_a_group_of_one() -> None:
    values = torch.randn(6, generator=torch.Generator().manual_seed(0))
    cases = [([1] * 6, None, True), ([5, 1], None, True), ([6, 0], None, False), ([6], [1], True)]
    for sizes, others, undefined in cases:
        error = bootstrap_error(lambda i, _: float(values[i].mean()), sizes, 20, others=others)
        assert (error is None) == undefined, (sizes, others)
    assert bootstrap_error(lambda i, j: 1.0, [4], 1) is None
    assert mean_error(torch.ones(1)) is None


def means(found: Manifold) -> tuple[float, float, float, float]:
    return tuple(float(each.mean()) for each in (found.precision, found.recall, found.density, found.coverage))  # type: ignore[return-value]


def test_manifold_is_what_the_papers_define() -> None:
    real, made = normal(30, 0), normal(40, 1) * 1.3 + 0.4
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
    once = normal(60, 5, 32) + offset
    real = once.repeat(4, 1)
    made = real[torch.randperm(240, generator=torch.Generator().manual_seed(6))]
    precision, recall, _, coverage = means(manifold(real, made))
    assert (precision, recall, coverage) == (1.0, 1.0, 1.0)
    # With two copies each, the balls reach other items.
    twice = once.repeat(2, 1)
    assert means(manifold(twice, twice[:100]))[0] == 1.0
    density, reversed_density = (manifold(twice, x, density_neighbours=6).density for x in (twice, twice.flip(0)))
    assert density.tolist() == reversed_density.flip(0).tolist()
    with pytest.raises(ValueError, match=r"must have at least [0-9]+ items"):
        manifold(once[:5], once)


def test_smallest_distances_are_exact_in_blocks_and_parts() -> None:
    points, others = normal(37, 0) + 100, normal(53, 1) + 100
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
    points, examples = normal(20, 0), normal(211, 1)
    distances, places = torch.cdist(points, examples).sort(1)
    for batch in (1, 70, 500):
        search = search_in(points, examples, batch)
        assert torch.equal(search.indices, places[:, :2])
        torch.testing.assert_close(search.distances, distances[:, :2])
    assert search_in(points, examples[:1]).distances.shape == (20, 1)


def test_share_nearer_is_the_mann_whitney_statistic() -> None:
    samples, held_out = normal(50, 0)[:, 0].abs(), normal(70, 1)[:, 0].abs() + 0.1
    samples[:5] = held_out[:5]  # ties count half
    statistic = mannwhitneyu(held_out.numpy(), samples.numpy()).statistic
    assert nearer_fraction(samples, held_out) == pytest.approx(statistic / (50 * 70))


def test_repetitions_distinguish_copies_from_new_data() -> None:
    examples, new = normal(2000, 0, 6), normal(300, 2, 6)
    near = normal(300, 3, 6) * 0.02 + examples[:300]
    mixed = torch.cat([near[:60], new[60:]])
    copies = [float(repetitions(search_in(x, examples).distances).double().mean()) for x in (new, mixed, near)]
    assert copies[0] < 0.02
    assert copies[1] == pytest.approx(0.2, abs=0.03)
    assert copies[2] > 0.95
    assert bool(repetitions(search_in(examples[:9], examples).distances).all())
