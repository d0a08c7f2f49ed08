"""Networks read dense conditions point by point, on the grid of the data or a coarser one."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F

import multisagd as ms
from multisagd.networks.dense import refined, with_dense
from tests.helpers import dense
from tests.helpers.networks import data, trained, transformer, unet
from tests.helpers.refusals import assert_refused

GRIDS = [((8,), (4,)), ((6, 8), (6, 8)), ((6, 8), (2, 4)), ((4, 6, 4), (1, 3, 4))]
"""Grids of the data, each with that of a condition."""


@pytest.fixture(params=[unet, transformer], ids=["unet", "transformer"])
def build(request):
    return request.param


@pytest.fixture(params=["concatenation", "attention"])
def dense_input(request):
    return request.param


@pytest.mark.parametrize(("grid", "coarse"), GRIDS, ids=str)
def test_network_reads_a_dense_condition_with_all_its_weights(build, dense_input, grid, coarse):
    network = build(2, len(grid), dense=3, classes=2, scalars=1, dense_input=dense_input)
    x, level = data(2, 2, *grid), torch.tensor([-5.0, 5.0])
    condition = ms.Condition(
        torch.tensor([0, 1]), scalars=torch.tensor([[0.5], [torch.nan]]), dense=data(2, 3, *coarse, seed=1)
    )
    condition.dense[1] = torch.nan  # a token of its own
    assert not network(x, level, condition).any()
    output = trained(network)(x, level, condition)
    output.square().mean().backward()
    assert all(each.grad.isfinite().all() and each.grad.any() for each in network.parameters())
    for other in (None, condition.labels, condition._replace(dense=condition.dense.flip(-1))):
        assert not torch.allclose(network(x, level, other), output, atol=1e-6)


def test_network_distinguishes_an_unknown_condition_from_zeros_and_no_item_from_its_batch(build, dense_input):
    network = trained(build(1, 2, dense=2, dense_input=dense_input)).double()
    x, level = dense.random(3, 1, 6, 8), torch.zeros(3).double()
    values = dense.random(3, 2, 3, 4, seed=1)
    values[1], values[2, :, 1:] = torch.nan, torch.nan
    together, unknown = network(x, level, ms.Condition(dense=values)), network(x, level)
    assert torch.allclose(together[1], unknown[1], rtol=0, atol=1e-12)
    for index, other in ((0, unknown), (2, unknown), (1, network(x, level, ms.Condition(dense=values.nan_to_num())))):
        assert not torch.allclose(together[index], other[index], atol=1e-6)
        one = slice(index, index + 1)
        assert torch.allclose(
            network(x[one], level[one], ms.Condition(dense=values[one])), together[one], rtol=0, atol=1e-10
        )


def test_network_that_attends_to_a_dense_condition_knows_its_place(build):
    """Data and condition that are shifted together around a circle give an output that is shifted likewise."""
    network = trained(build(1, 2, dense=1, dense_input="attention", periodic=(True, True))).double()
    x, condition, level = dense.random(1, 1, 8, 8), dense.random(1, 1, 8, 8, seed=1), torch.zeros(1).double()
    whole = network(x, level, ms.Condition(dense=condition))
    together = network(x.roll(4, 3), level, ms.Condition(dense=condition.roll(4, 3)))
    alone = network(x, level, ms.Condition(dense=condition.roll(4, 3)))
    scale = float(whole.detach().abs().max())
    assert torch.allclose(together, whole.roll(4, 3), rtol=0, atol=1e-5 * scale)  # positions are float32
    assert not torch.allclose(alone, whole, rtol=0, atol=1e-3 * scale)


def test_network_without_a_dense_condition_is_unchanged(build):
    torch.manual_seed(0)
    before = build(2, 2).state_dict()
    torch.manual_seed(0)
    after = build(2, 2, dense=None).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    x = data(2, 2, 6, 8)
    assert with_dense(x, None, None, (False, False)) is x


def test_dense_condition_is_interpolated_as_by_torch_and_around_periodic_axes():
    x = dense.random(2, 3, 3, 4)
    for edges in product((False, True), repeat=2):
        ours = refined(x, (12, 8), edges)
        padded = x
        for axis, circle in enumerate(edges):
            sides = [0, 0, 0, 0]
            sides[2 - 2 * axis : 4 - 2 * axis] = [1, 1]
            padded = F.pad(padded, sides, mode="circular" if circle else "replicate")
        wide = F.interpolate(padded, scale_factor=(4.0, 2.0), mode="bilinear", align_corners=False)
        torch.testing.assert_close(ours, wide[..., 4:-4, 2:-2], rtol=0, atol=1e-12)
    assert torch.equal(refined(x, (3, 4), (False, False)), x)
    shifted = refined(x.roll(1, 2), (12, 4), (True, False))
    torch.testing.assert_close(shifted, refined(x, (12, 4), (True, False)).roll(4, 2))


def test_dense_condition_with_holes_keeps_the_known_values():
    constant = torch.full((1, 1, 3, 4), 2.5)
    constant[..., 0, 0] = torch.nan
    read = with_dense(torch.zeros(1, 1, 6, 8), constant, 1, (False, False))
    values, known = read[0, 1], read[0, 2]
    torch.testing.assert_close(values[known > 0], torch.full_like(values[known > 0], 2.5))
    assert known[0, 0] == 0
    assert known[3:, 3:].eq(1).all()
    assert 0 < known[1, 1] < 1
    assert values.isfinite().all()


def test_networks_refuse_dense_conditions_that_do_not_fit(build):
    x, level = data(2, 1, 8), torch.zeros(2)

    def read(condition, channels=1):
        return build(1, 1, dense=channels)(x, level, ms.Condition(dense=condition))

    assert_refused(
        ("dense=CHANNELS", lambda: build(1, 1)(x, level, ms.Condition(dense=x))),
        (r"float of shape \(2, 2, \*grid\)", lambda: read(x, 2)),
        ("whole factor fewer samples", lambda: read(data(2, 1, 3))),
        ("whole factor fewer samples", lambda: read(data(2, 1, 16))),
        ("whole factor fewer samples", lambda: read(data(2, 1, 8, 8))),
        ("int64", lambda: read(torch.zeros(2, 1, 8, dtype=torch.int64))),
        ("at least 1 channel", lambda: build(1, 1, dense=0)),
        ("one of concatenation, attention", lambda: build(1, 1, dense=1, dense_input="sum")),
        ("needs a level with attention", lambda: unet(1, 1, dense=1, dense_input="attention", attention_levels=())),
    )
