"""Bootstrap errors equal errors that are known in closed form."""

import pytest
import torch

from multisagd.metrics.bootstrap import bootstrap_error, mean_error, redrawn


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
