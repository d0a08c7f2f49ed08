"""The Fréchet distance against closed forms, torchmetrics and the bias of finite samples."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from multisagd.metrics import frechet_distance, matched_counts


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


def test_diagonal_covariances_have_a_closed_form() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 1.0, 0.25]).double()
    shift = torch.tensor([0.5, -1.0, 2.0]).double()
    distance = frechet_distance(
        draw(200, torch.zeros(3).double(), a.diag(), 0), draw(300, shift, b.diag(), 1)
    )  # |m|² + Σ (√a - √b)²
    assert distance == pytest.approx(5.25 + (1 + 1 + 6.25), abs=1e-10)


def test_full_covariances_match_the_matrix_root() -> None:
    a, b = random_covariance(12, 0), random_covariance(12, 1)
    mean = torch.linspace(-1, 1, 12, dtype=torch.float64)
    root = np.real(scipy.linalg.sqrtm((a @ b).numpy()))
    expected = float(mean.square().sum() + a.trace() + b.trace()) - 2 * float(np.trace(root))
    distance = frechet_distance(draw(100, mean, a, 2), draw(150, torch.zeros(12).double(), b, 3))
    assert distance == pytest.approx(expected, abs=1e-9)


def test_same_set_is_at_distance_zero_and_order_does_not_matter() -> None:
    a, b = draw(50, torch.zeros(8).double(), random_covariance(8, 0), 0), torch.randn(40, 8).double()
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-10)


def test_fewer_items_than_dimensions() -> None:
    """A point against a Gaussian of singular covariance: the squared shift plus the total variance."""
    x = torch.randn(5, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = torch.ones(2, 20, dtype=torch.float64)
    expected = (x.mean(0) - 1).square().sum() + x.var(0).sum()
    assert frechet_distance(x, point) == pytest.approx(float(expected), abs=1e-10)


def test_agrees_with_torchmetrics() -> None:
    class Identity(nn.Module):
        num_features = 6

        def forward(self, x: Tensor) -> Tensor:
            return x

    a = draw(80, torch.zeros(6).double(), random_covariance(6, 0), 0).float()
    b = draw(90, torch.ones(6).double(), random_covariance(6, 1), 1).float()
    # It makes a dummy image to size its sums, so the identity is told its width instead.
    metric = FrechetInceptionDistance(feature=Identity(), normalize=True).set_dtype(torch.float64)
    metric.update(a.double(), real=True)
    metric.update(b.double(), real=False)
    assert frechet_distance(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_refuses_what_has_no_distance() -> None:
    good = torch.randn(10, 4)
    broken = good.clone()
    broken[3, 1] = torch.nan
    with pytest.raises(ValueError, match="1 of 10 feature vectors are not finite"):
        frechet_distance(good, broken)
    with pytest.raises(ValueError, match="equal dimensions"):
        frechet_distance(good, good[:, :3])
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(good, good[:1])


@pytest.mark.parametrize(("count", "reference"), [(500, 500), (300, 2000)])
def test_frechet_distance_between_samples_of_one_gaussian_is_its_known_bias(count: int, reference: int) -> None:
    """For unit Gaussians the expectation is (1/n + 1/m)(d + d(d+1)/4) to first order: means plus covariances."""
    dimensions, generator = 10, torch.Generator().manual_seed(0)
    values = [
        frechet_distance(
            torch.randn(count, dimensions, generator=generator), torch.randn(reference, dimensions, generator=generator)
        )
        for _ in range(20)
    ]
    expected = (1 / count + 1 / reference) * (dimensions + dimensions * (dimensions + 1) / 4)
    assert sum(values) / len(values) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("asked", "available", "reference", "counts", "references"),
    [
        ([100], [5000], 1000, [100], [1000]),  # plenty
        ([100], [400], 1000, [100], [300]),  # a smaller reference
        ([100], [150], 1000, [75], [75]),  # half against half
        ([100], [150], 80, [75], [75]),  # never fewer samples than half of what is there
        ([100], [150], 40, [100], [40]),
        ([10, 0, 30], [500, 500, 90], 1000, [10, 0, 30], [20, 0, 60]),  # the scarcest class decides, in proportion
        ([10, 10], [500, 0], 1000, [0, 0], [0, 0]),
    ],
)
def test_counts_match_per_group(
    asked: list[int], available: list[int], reference: int, counts: list[int], references: list[int]
) -> None:
    assert matched_counts(asked, available, reference) == (counts, references)
