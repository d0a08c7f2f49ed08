"""The bootstrap against errors that are known in closed form."""

import pytest
import torch

from multisagd.metrics.bootstrap import bootstrap_error, mean_error, redrawn


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
    assert mean_error(torch.ones(1)) is None


def test_small_groups_are_not_understated() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(60, 1, generator=generator)
    values = (centres + torch.randn(60, 2, generator=generator)).flatten()
    # Two items a group: the mean of 120 values of unit variance within their groups.
    found = bootstrap_error(lambda i, _: float(values[i].mean()), [2] * 60, 400)
    within = values.reshape(60, 2).var(1).mean()
    assert found == pytest.approx(float(within / 120) ** 0.5, rel=0.1)


def test_a_group_of_one_item_has_no_spread() -> None:
    values = torch.randn(6, generator=torch.Generator().manual_seed(0))
    assert bootstrap_error(lambda i, _: float(values[i].mean()), [1] * 6, 20) is None
    assert bootstrap_error(lambda i, _: float(values[i].mean()), [5, 1], 20) is None
    assert bootstrap_error(lambda i, _: float(values[i].mean()), [6, 0], 20) is not None
    assert bootstrap_error(lambda i, _: float(values[i].mean()), [6], 20, others=[1]) is None
