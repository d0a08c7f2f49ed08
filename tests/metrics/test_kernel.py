"""The kernel distance equals explicit sums and torchmetrics, and has the right expectation and error."""

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.kid import KernelInceptionDistance

from multisagd.metrics.kernel import kernel_distance, pair_weights, squared_mmd


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


def test_squared_mmd_equals_torchmetrics_on_one_subset() -> None:
    features = nn.Identity()
    features.num_features = 6  # otherwise measured on an image
    a, b = gaussian(60, 0), gaussian(60, 1, 0.3)
    metric = KernelInceptionDistance(feature=features, subsets=1, subset_size=60, normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert squared_mmd(a, b) == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_squared_mmd_of_equal_distributions_is_zero_on_average() -> None:
    for count in (12, 200):
        values = torch.tensor([squared_mmd(gaussian(count, 2 * s), gaussian(count, 2 * s + 1)) for s in range(200)])
        assert abs(float(values.mean())) < 3 * float(values.std()) / 200**0.5
        assert bool((values < 0).any())


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
    with pytest.raises(ValueError, match="sizes of 6 items in total do not fit sets of 5 and 6"):
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
