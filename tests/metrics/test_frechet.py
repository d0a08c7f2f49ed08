"""The Fréchet distance equals closed forms, torchmetrics, and the known bias of finite samples."""

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


def test_frechet_distance_is_zero_for_equal_sets_and_symmetric() -> None:
    a, b = draw(50, torch.zeros(8).double(), random_covariance(8, 0), 0), torch.randn(40, 8).double()
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-12)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), abs=1e-10)


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
    generator = torch.Generator().manual_seed(0)
    values = [
        frechet_distance(*(torch.randn(n, 10, generator=generator) for n in (count, reference))) for _ in range(20)
    ]
    expected = (1 / count + 1 / reference) * (10 + 10 * 11 / 4)
    assert sum(values) / len(values) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(
    ("samples", "available", "reference", "expected"),
    [
        ([100], [5000], 1000, ([100], [1000])),
        ([100], [400], 1000, ([100], [300])),  # a smaller reference
        ([100], [150], 1000, ([75], [75])),  # half of the available each
        ([100], [150], 80, ([75], [75])),  # never fewer samples than half of the available
        ([100], [150], 40, ([100], [40])),
        ([10, 0, 30], [500, 500, 90], 1000, ([10, 0, 30], [20, 0, 60])),  # the scarcest class decides, in proportion
        ([10, 10], [500, 0], 1000, ([0, 0], [0, 0])),
    ],
)
def test_matched_counts_shrink_the_reference_first(
    samples: list[int], available: list[int], reference: int, expected: tuple[list[int], list[int]]
) -> None:
    assert matched_counts(samples, available, reference) == expected
