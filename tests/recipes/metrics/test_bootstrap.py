"""The bootstrap against errors that are known in closed form."""

import pytest
import torch

from recipes.metrics.bootstrap import bootstrap_error, mean_error, redrawn


def test_the_error_of_a_difference_of_means_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(300, generator=generator), 2 * torch.randn(200, generator=generator)
    found = bootstrap_error(lambda i, j: float(a[i].mean() - b[j].mean()), [300], 400, others=[200])
    assert found == pytest.approx((mean_error(a) ** 2 + mean_error(b) ** 2) ** 0.5, rel=0.1)
    assert mean_error(a) == pytest.approx(1 / 300**0.5, rel=0.1)


def test_classes_are_redrawn_apart() -> None:
    places = redrawn([3, 0, 4], seed=5)
    assert places.shape == (7,)
    assert bool((places[:3] < 3).all())
    assert bool(((places[3:] >= 3) & (places[3:] < 7)).all())
    assert torch.equal(places, redrawn([3, 0, 4], seed=5))
    # So what differs between classes alone adds nothing.
    values = torch.tensor([0.0, 0, 0, 10, 10, 10, 10])
    assert bootstrap_error(lambda i, _: float(values[i].mean()), [3, 4], 20) == 0.0


def test_one_resample_has_no_spread() -> None:
    assert bootstrap_error(lambda i, j: 1.0, [4], 1) is None
    assert mean_error(torch.ones(1)) == 0.0
