"""What every network promises, asked of all of them in one, two and three dimensions."""

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

Build = Callable[..., nn.Module]
SIZES = {1: [(16,), (13,)], 2: [(8, 8), (7, 10)], 3: [(4, 8, 4), (3, 5, 7)]}
SHAPES = [size for sizes in SIZES.values() for size in sizes]


def unet(channels: int, dimensions: int, **options: Any) -> UNet:
    return UNet(channels, dimensions, **{"width": 8, "multipliers": (1, 2, 2), "blocks": 1, "heads": 2} | options)


def transformer(channels: int, dimensions: int, **options: Any) -> Transformer:
    return Transformer(channels, dimensions, **{"width": 24, "depth": 2, "heads": 2} | options)


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Move all weights a little, as training would, so that nothing is exactly zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return network.eval()


def data(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(params=[unet, transformer], ids=["unet", "transformer"])
def build(request) -> Build:
    return request.param


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_any_size_gives_its_own_shape_and_finite_gradients_everywhere(build, size):
    network = trained(build(2, len(size), classes=3))
    x = data(2, 2, *size).requires_grad_()
    output = network(x, torch.tensor([-20.0, 20.0]), torch.tensor([0, 3]))
    assert output.shape == x.shape
    output.square().mean().backward()
    for name, tensor in [*network.named_parameters(), ("x", x)]:
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.any(), name


@pytest.mark.parametrize("size", [(1,), (1, 1), (1, 9), (2, 1, 3)], ids=str)
def test_axes_shorter_than_the_stride_work(build, size):
    assert build(1, len(size))(data(1, 1, *size), torch.zeros(1)).shape == (1, 1, *size)


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_an_untrained_network_answers_zero(build, dimensions):
    x = data(2, 1, *SIZES[dimensions][1])
    assert not build(1, dimensions, classes=4)(x, torch.zeros(2), torch.tensor([0, 1])).any()


def test_an_untrained_network_learns_from_its_first_steps(build):
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


def test_noise_level_and_label_change_the_output(build):
    network = trained(build(1, 2, classes=3))
    x, level = data(1, 1, 8, 8), torch.zeros(1)
    plain = network(x, level)
    assert torch.equal(plain, network(x, level, torch.tensor([3])))
    assert not torch.allclose(plain, network(x, level, torch.tensor([1])))
    assert not torch.allclose(plain, network(x, level + 0.1))


def test_a_condition_needs_classes(build):
    with pytest.raises(ValueError, match="classes=N"):
        build(1, 1)(data(2, 1, 8), torch.zeros(2), torch.tensor([0, 1]))


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 1, 8), (1, 8, 8)], ids=str)
def test_another_shape_is_refused(build, shape):
    with pytest.raises(ValueError, match=r"takes \(batch, 1, n1, n2\), got"):
        build(1, 2)(data(*shape), torch.zeros(shape[0]))


def test_out_channels(build):
    assert build(3, 2, out_channels=5)(data(2, 3, 7, 6), torch.zeros(2)).shape == (2, 5, 7, 6)


def test_a_sample_does_not_depend_on_its_batch(build):
    network = trained(build(2, 2, classes=3)).double()
    x, level = data(16, 2, 7, 9, dtype=torch.float64), torch.linspace(-9, 9, 16, dtype=torch.float64)
    labels = torch.arange(16) % 4
    together = network(x, level, labels)
    for index in (0, 7, 15):
        one = slice(index, index + 1)
        assert torch.allclose(network(x[one], level[one], labels[one]), together[one], rtol=0, atol=1e-10)


def test_the_same_seed_gives_the_same_network_and_dropout(build):
    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        network = build(1, 2, dropout=0.3)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1
        return network.train()(data(2, 1, 8, 8), torch.zeros(2))

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_dropout_is_off_in_evaluation(build):
    network = trained(build(1, 2, dropout=0.5))
    x = data(2, 1, 8, 8)
    assert torch.equal(network(x, torch.zeros(2)), network(x, torch.zeros(2)))
    assert not torch.equal(network.train()(x, torch.zeros(2)), network(x, torch.zeros(2)))


def test_the_output_has_the_dtype_of_the_input(build):
    network = trained(build(1, 2))
    x = data(2, 1, 8, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        mixed = network(x, torch.zeros(2))
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, network(x, torch.zeros(2)), atol=0.05 * mixed.abs().max().item())
    half = copy.deepcopy(network).to(torch.bfloat16)
    assert half(x, torch.zeros(2)).dtype == torch.float32


def test_parameters_are_contiguous_as_sharding_demands(build):
    assert all(parameter.is_contiguous() for parameter in build(2, 2).parameters())


def test_xformers_asked_for_on_the_cpu(build):
    network = trained(build(1, 2, attention="xformers"))
    plain = trained(build(1, 2))
    plain.load_state_dict(network.state_dict())
    x = data(2, 1, 8, 8)
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
def test_impossible_architectures_are_refused(network, options, message):
    with pytest.raises(ValueError, match=message):
        network(**{"channels": 1, "dimensions": 2} | options)


@pytest.mark.parametrize("levels", [(), (0,), (0, 1, 2)], ids=str)
def test_attention_at_chosen_levels(levels):
    network = trained(unet(1, 2, attention_levels=levels))
    assert any("attention" in name for name, _ in network.named_parameters()) == bool(levels)
    assert network(data(1, 1, 9, 6), torch.zeros(1)).isfinite().all()


def test_a_single_level_has_no_stride():
    network = unet(1, 1, multipliers=(1,))
    assert network.stride == 1
    assert network(data(1, 1, 5), torch.zeros(1)).shape == (1, 1, 5)


def test_four_dimensions_and_a_patch_per_axis():
    network = trained(transformer(1, 4, patch=(1, 2, 3, 2)))
    assert network(data(2, 1, 2, 3, 4, 5), torch.zeros(2)).shape == (2, 1, 2, 3, 4, 5)


def test_parameter_counts_of_the_docstrings():
    def count(network: nn.Module) -> str:
        return f"{sum(parameter.numel() for parameter in network.parameters()):,}"

    with torch.device("meta"):
        assert count(UNet(channels=1, dimensions=2)) in UNet.__doc__
        assert count(UNet(channels=3, dimensions=2, classes=10)) in UNet.__doc__
        assert count(Transformer(channels=3, dimensions=2)) in Transformer.__doc__
        small = Transformer(channels=1, dimensions=1, patch=4, width=64, depth=2, heads=2, classes=10)
    assert count(small) in Transformer.__doc__


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_padding_repeats_the_border_and_cropping_undoes_it(size):
    x = data(2, 3, *size)
    padded = pad_to_multiple(x, [4] * len(size))
    assert all(
        extent % 4 == 0 and 0 <= extent - before < 4 for extent, before in zip(padded.shape[2:], size, strict=True)
    )
    assert torch.equal(crop(padded, size), x)
    missing = [extent - before for extent, before in zip(padded.shape[2:], size, strict=True)]
    reach = [value for count in reversed(missing) for value in (0, count)]
    assert torch.equal(padded, nn.functional.pad(x, reach, mode="replicate"))


@pytest.mark.parametrize(("size", "patch"), [((6,), (3,)), ((4, 6), (2, 3)), ((2, 4, 6), (1, 2, 3))], ids=str)
def test_patches_are_those_of_a_strided_convolution(size, patch):
    x = data(2, 3, *size, dtype=torch.float64)
    weight = data(5, 3, *patch, dtype=torch.float64, seed=1)
    convolve = {1: nn.functional.conv1d, 2: nn.functional.conv2d, 3: nn.functional.conv3d}[len(size)]
    tokens = patchify(x, patch)
    expected = convolve(x, weight, stride=patch).flatten(2).transpose(1, 2)
    assert torch.allclose(tokens @ weight.flatten(1).T, expected, atol=1e-12)
    counts = [extent // step for extent, step in zip(size, patch, strict=True)]
    assert torch.equal(unpatchify(tokens, counts, patch), x)


def test_networks_trace_into_one_graph(build):
    network = trained(build(1, 2, classes=3))
    traced = torch.compile(network, dynamic=False, fullgraph=True, backend="eager")
    x, level = data(2, 1, 7, 8), torch.tensor([-3.0, 5.0])
    for labels in (None, torch.tensor([0, 3])):
        assert torch.allclose(traced(x, level, labels), network(x, level, labels), atol=1e-6)


@pytest.mark.parametrize(("build", "size"), [(unet, {"multipliers": (1,)}), (transformer, {"depth": 1})])
def test_compiled_networks_give_the_same_output_and_gradients(build, size):
    """Their graphs, forward and backward; what the code generator makes of these, trainings show."""
    network = trained(build(1, 2, classes=3, **size))
    compiled = torch.compile(copy.deepcopy(network), dynamic=False, fullgraph=True, backend="aot_eager")
    x, level, labels = data(2, 1, 7, 8), torch.tensor([-3.0, 5.0]), torch.tensor([0, 3])
    expected, output = network(x, level, labels), compiled(x, level, labels)
    assert torch.allclose(output, expected, atol=1e-4)
    expected.square().sum().backward()
    output.square().sum().backward()
    for (name, one), other in zip(network.named_parameters(), compiled.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-3), name


def test_a_diffusers_network_takes_the_same_call():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=4,
    )
    x = data(2, 1, 8, 8)
    assert network(x, torch.tensor([-3.0, 5.0]), torch.tensor([0, 3])).sample.shape == x.shape
