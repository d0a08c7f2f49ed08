"""Every network keeps its promises in one, two and three dimensions."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multisagd.networks import Transformer, UNet
from multisagd.networks.layers import crop, pad_to_multiple
from multisagd.networks.transformer import patchify, unpatchify
from tests.helpers.small_networks import data, trained, transformer, unet

Build = Callable[..., nn.Module]
SHAPES = [(16,), (13,), (8, 8), (7, 10), (4, 8, 4), (3, 5, 7)]


@pytest.fixture(params=[unet, transformer], ids=["unet", "transformer"])
def build(request) -> Build:
    return request.param


def conditioned(build: Build, dimensions: int, kind: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """A network of two channels, and labels or texts for two items, the second of which has none."""
    if kind == "labels":
        return build(2, dimensions, classes=3, **options), torch.tensor([0, 3])
    texts = data(2, 4, 6)
    texts[1] = 0
    return build(2, dimensions, context=6, **options), texts


@pytest.mark.parametrize("kind", ["labels", "texts"])
@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_network_of_any_size_starts_at_zero_and_trains_every_weight(build, size, kind):
    network, condition = conditioned(build, len(size), kind)
    x, levels = data(2, 2, *size).requires_grad_(), torch.tensor([-20.0, 20.0])
    assert not network(x, levels, condition).any()
    output = trained(network)(x, levels, condition)
    assert output.shape == x.shape
    output.square().mean().backward()
    for name, tensor in [*network.named_parameters(), ("x", x)]:
        assert tensor.is_contiguous(), name  # as sharding demands
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


def test_network_takes_axes_shorter_than_its_stride_and_other_output_channels(build):
    for size in ((1,), (1, 1), (1, 9), (2, 1, 3)):
        assert build(1, len(size))(data(1, 1, *size), torch.zeros(1)).shape == (1, 1, *size)
    assert build(3, 2, out_channels=5)(data(2, 3, 7, 6), torch.zeros(2)).shape == (2, 5, 7, 6)


def test_network_learns_from_its_first_steps(build):
    torch.manual_seed(0)
    network, x = build(1, 1), data(4, 1, 16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = (network(x, torch.zeros(4)) - x.roll(1, -1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_network_refuses_labels_without_classes_and_other_shapes(build):
    with pytest.raises(ValueError, match="classes=N"):
        build(1, 1)(data(2, 1, 8), torch.zeros(2), torch.tensor([0, 1]))
    for shape in ((2, 3, 8, 8), (2, 1, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"takes \(batch, 1, n1, n2\), got"):
            build(1, 2)(data(*shape), torch.zeros(shape[0]))


def test_network_output_depends_on_noise_level_and_label_but_not_on_the_batch(build):
    network = trained(build(2, 2, classes=3)).double()
    x, level = data(16, 2, 7, 9).double(), torch.linspace(-9, 9, 16, dtype=torch.float64)
    labels = torch.arange(16) % 4
    together = network(x, level, labels)
    for index in (0, 7, 15):
        one = slice(index, index + 1)
        assert torch.allclose(network(x[one], level[one], labels[one]), together[one], rtol=0, atol=1e-10)
    plain = network(x, level)
    assert torch.equal(plain, network(x, level, torch.full((16,), 3)))
    assert not torch.allclose(plain, network(x, level, torch.full((16,), 1)))
    assert not torch.allclose(plain, network(x, level + 0.1))


def test_network_weights_and_dropout_follow_the_seed_and_evaluation_has_no_dropout(build):
    x = data(2, 1, 8, 8)

    def run(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(seed)
        network = build(1, 2, dropout=0.3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1
        dropped = network.train()(x, torch.zeros(2))
        return dropped, network.eval()(x, torch.zeros(2)), network(x, torch.zeros(2))

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(first[1], first[2])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("kind", ["labels", "texts"])
def test_network_output_has_the_dtype_of_its_input(build, kind):
    network, condition = conditioned(build, 2, kind)
    x, levels = data(2, 2, 8, 8), torch.zeros(2)
    expected = trained(network)(x, levels, condition)
    with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = network(x, levels, condition)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, expected, atol=0.05 * mixed.abs().max().item())
    assert copy.deepcopy(network).to(torch.bfloat16)(x, levels, condition).dtype == torch.float32


def test_network_with_xformers_on_the_cpu_falls_back_unless_strict(build):
    network, plain, x = trained(build(1, 2, attention="xformers")), build(1, 2).eval(), data(2, 1, 8, 8)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network(x, torch.zeros(2)), plain(x, torch.zeros(2)))
    with pytest.raises(RuntimeError, match="xformers"):
        build(1, 2, attention="xformers", strict=True)(x, torch.zeros(2))


@pytest.mark.parametrize(
    ("network", "options", "message"),
    [
        (unet, {"dimensions": 4}, "the Transformer takes any number"),
        (unet, {"multipliers": ()}, "at least 1"),
        (unet, {"blocks": 0}, "at least 1"),
        (unet, {"heads": 0}, "at least 1"),
        (unet, {"heads": 3}, "heads must divide"),
        (unet, {"attention_levels": (3,)}, "lie in 0 to 2"),
        (transformer, {"patch": (2, 2, 2)}, "one per axis"),
        (transformer, {"patch": 0}, "at least 1"),
        (transformer, {"depth": 0}, "at least 1"),
        (transformer, {"heads": 12}, "take fewer heads"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_network_refuses_impossible_architectures(network, options, message):
    with pytest.raises(ValueError, match=message):
        network(**{"channels": 1, "dimensions": 2} | options)


def test_unet_attends_at_chosen_levels_and_may_have_one_level():
    for levels in ((), (0,), (0, 1, 2)):
        network = trained(unet(1, 2, attention_levels=levels))
        assert any("attention" in name for name, _ in network.named_parameters()) == bool(levels)
        assert network(data(1, 1, 9, 6), torch.zeros(1)).isfinite().all()
    network = unet(1, 1, multipliers=(1,))
    assert network.stride == 1
    assert network(data(1, 1, 5), torch.zeros(1)).shape == (1, 1, 5)


def test_transformer_takes_four_dimensions_and_a_patch_per_axis():
    network = trained(transformer(1, 4, patch=(1, 2, 3, 2)))
    assert network(data(2, 1, 2, 3, 4, 5), torch.zeros(2)).shape == (2, 1, 2, 3, 4, 5)


def test_network_docstrings_state_true_parameter_counts():
    with torch.device("meta"):
        for network in (
            UNet(channels=1, dimensions=2),
            UNet(channels=3, dimensions=2, classes=10),
            Transformer(channels=3, dimensions=2),
            Transformer(channels=1, dimensions=1, patch=4, width=64, depth=2, heads=2, classes=10),
        ):
            assert f"{sum(parameter.numel() for parameter in network.parameters()):,}" in type(network).__doc__


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_pad_to_multiple_repeats_the_border_and_crop_undoes_it(size):
    x = data(2, 3, *size)
    padded = pad_to_multiple(x, [4] * len(size))
    missing = [extent - before for extent, before in zip(padded.shape[2:], size, strict=True)]
    assert all(extent % 4 == 0 for extent in padded.shape[2:])
    assert all(0 <= count < 4 for count in missing)
    assert torch.equal(crop(padded, size), x)
    reach = [value for count in reversed(missing) for value in (0, count)]
    assert torch.equal(padded, nn.functional.pad(x, reach, mode="replicate"))


@pytest.mark.parametrize(("size", "patch"), [((6,), (3,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3))], ids=str)
def test_patchify_is_a_strided_convolution_and_unpatchify_undoes_it(size, patch):
    x, weight = data(2, 3, *size).double(), data(5, 3, *patch, seed=1).double()
    convolve = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(size)]
    tokens = patchify(x, patch)
    expected = convolve(x, weight, stride=patch).flatten(2).transpose(1, 2)
    assert torch.allclose(tokens @ weight.flatten(1).T, expected, atol=1e-12)
    counts = [extent // step for extent, step in zip(size, patch, strict=True)]
    assert torch.equal(unpatchify(tokens, counts, patch), x)


@pytest.mark.parametrize("kind", ["labels", "texts"])
@pytest.mark.parametrize(("build", "options"), [(unet, {"multipliers": (1, 2)}), (transformer, {"depth": 1})])
def test_compiled_network_gives_the_same_output_and_gradients(build, options, kind):
    """One graph with a condition and one without; the tests of training run the generated code."""
    network, condition = conditioned(build, 2, kind, **options)
    x, level = data(2, 2, 7, 8), torch.tensor([-3.0, 5.0])
    traced = torch.compile(trained(network), dynamic=False, fullgraph=True, backend="eager")
    assert torch.allclose(traced(x, level), network(x, level), atol=1e-6)
    compiled = torch.compile(copy.deepcopy(network), dynamic=False, fullgraph=True, backend="aot_eager")
    expected, output = network(x, level, condition), compiled(x, level, condition)
    assert torch.allclose(output, expected, atol=1e-4)
    expected.square().sum().backward()
    output.square().sum().backward()
    for (name, one), other in zip(network.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3), name
