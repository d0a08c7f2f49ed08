"""Networks, their attention, conditions and costs keep their promises in one to three dimensions."""

import copy
import logging
import math
import sys
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn

import multisagd as ms
from multisagd.networks import Conditioning, CrossAttention, NoiseLevelFeatures, TextInput, Transformer, UNet, attention
from multisagd.networks.attention import SelfAttention, attend, rotary_positions, rotate
from multisagd.networks.cost import activation_bytes, recompute, training_flops
from multisagd.networks.embedding import ScalarEmbedding
from multisagd.networks.layers import around, crop, pad_to_multiple, patchify, unpatchify
from tests.helpers import dense
from tests.helpers.networks import data, trained, transformer, unet
from tests.helpers.refusals import assert_refused

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
    network = transformer(1, 4, patch=(1, 2, 3, 2))
    assert network(data(2, 1, 2, 3, 4, 5), torch.zeros(2)).shape == (2, 1, 2, 3, 4, 5)
    assert build(3, 2, out_channels=5)(data(2, 3, 7, 6), torch.zeros(2)).shape == (2, 5, 7, 6)


def test_network_refuses_labels_without_classes_and_other_shapes(build):
    with pytest.raises(ValueError, match="classes=N"):
        build(1, 1)(data(2, 1, 8), torch.zeros(2), torch.tensor([0, 1]))
    for shape in ((2, 3, 8, 8), (2, 1, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"expects shape \(batch, 1, n1, n2\), got"):
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


def test_network_drops_out_in_training_only(build):
    network, x, levels = trained(build(1, 2, dropout=0.3)), data(2, 1, 8, 8), torch.zeros(2)
    plain = network(x, levels)
    assert torch.equal(network(x, levels), plain)
    assert not torch.equal(network.train()(x, levels), plain)


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


def test_network_refuses_impossible_architectures():
    assert_refused(
        ("use Transformer instead", lambda: unet(1, 4)),
        ("at least 1", lambda: unet(1, 2, multipliers=())),
        ("at least 1", lambda: unet(1, 2, blocks=0)),
        ("at least 1", lambda: unet(1, 2, heads=0)),
        ("heads must divide", lambda: unet(1, 2, heads=3)),
        ("lie in 0 to 2", lambda: unet(1, 2, attention_levels=(3,))),
        ("one per axis", lambda: transformer(1, 2, patch=(2, 2, 2))),
        ("at least 1", lambda: transformer(1, 2, patch=0)),
        ("at least 1", lambda: transformer(1, 2, depth=0)),
        ("use fewer heads", lambda: transformer(1, 2, heads=12)),
    )
    for network in (unet, transformer):
        with pytest.raises(RuntimeError, match="xformers"):
            network(1, 2, attention="xformers", strict=True)(data(2, 1, 8, 8), torch.zeros(2))


def test_unet_attends_at_chosen_levels_and_may_have_one_level():
    for levels in ((), (0,), (0, 1, 2)):
        network = trained(unet(1, 2, attention_levels=levels))
        assert any("attention" in name for name, _ in network.named_parameters()) == bool(levels)
        assert network(data(1, 1, 9, 6), torch.zeros(1)).isfinite().all()
    network = unet(1, 1, multipliers=(1,))
    assert network.stride == 1
    assert network(data(1, 1, 5), torch.zeros(1)).shape == (1, 1, 5)


def test_network_docstrings_state_true_parameter_counts():
    with torch.device("meta"):
        for network in (
            UNet(channels=1, dimensions=2),
            UNet(channels=3, dimensions=2, classes=10),
            Transformer(channels=3, dimensions=2),
            Transformer(channels=1, dimensions=1, patch=4, width=64, depth=2, heads=2, classes=10),
        ):
            assert f"{sum(parameter.numel() for parameter in network.parameters()):,}" in type(network).__doc__


PERIODIC = [
    ((8,), (True,), 4), ((8, 12), (False, True), 4), ((4, 5, 8), (True, False, True), 4), ((7, 5), (True, True), 1),
]  # fmt: skip


@pytest.mark.parametrize(("size", "periodic", "step"), PERIODIC, ids=str)
def test_network_has_no_edge_along_periodic_axes(build, size, periodic, step):
    fine = {} if step > 1 else {"multipliers": (1,)} if build is unet else {"patch": 1}
    x, level = data(2, 2, *size).double(), torch.tensor([-3.0, 5.0], dtype=torch.float64)

    def equivariant(axes, periodic):
        torch.manual_seed(0)
        network = trained(build(2, len(size), periodic=periodic, **fine)).double()
        shifts = [step] * len(axes)
        before, after = network(x.roll(shifts, axes), level), network(x, level).roll(shifts, axes)
        return torch.allclose(before, after, rtol=0, atol=1e-5 * after.abs().max().item())  # positions are float32

    circles = [axis for axis, circle in enumerate(periodic, 2) if circle]
    assert equivariant(circles, periodic)
    assert not equivariant(circles, None)
    for axis in (axis for axis, circle in enumerate(periodic, 2) if not circle):
        assert not equivariant([axis], periodic)


def test_network_pads_periodic_axes_around_the_circle(build):
    x = data(1, 1, 21).double()
    assert trained(build(1, 1, periodic=(True,)).double())(x, torch.zeros(1).double()).shape == x.shape
    padded = pad_to_multiple(x, (4,), (True,))
    assert torch.equal(padded[0, 0], x[0, 0, torch.arange(-4, 28) % 21])
    assert torch.equal(crop(padded, (21,), (4,), (True,)), x)
    assert torch.equal(around(x[..., :3], 2, 7, 5)[0, 0], x[0, 0, torch.arange(-7, 8) % 3])
    with pytest.raises(ValueError, match="one value per axis"):
        build(1, 2, periodic=(True,))


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
@pytest.mark.parametrize(
    ("build", "options"),
    [
        (unet, {"multipliers": (1, 2), "periodic": (True, False)}),
        (transformer, {"depth": 1, "periodic": (False, True)}),
    ],
)
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


WIDTH = 6


def text_network(build: Build) -> nn.Module:
    return trained(build(1, 2, context=WIDTH)).double()


def test_text_network_starts_without_text_attention(build):
    torch.manual_seed(0)
    network = build(1, 2, context=WIDTH).double()
    x, level, texts = dense.random(2, 1, 8, 8), torch.zeros(2).double(), dense.random(2, 3, WIDTH)
    nn.init.normal_(network.head.weight)
    # Without the summary, attention is the only path of the text, and it ends in zeros.
    nn.init.zeros_(network.text.summary.weight)
    assert torch.equal(network(x, level, texts), network(x, level, dense.random(2, 3, WIDTH, seed=1)))


def test_text_network_ignores_padding(build):
    network = text_network(build)
    x, level, texts = dense.random(3, 1, 8, 8), torch.zeros(3).double(), dense.random(3, 5, WIDTH)
    texts[1, 2:] = 0
    texts[2] = 0
    output = network(x, level, texts)
    # Padding between tokens is padding too: a set of tokens has no order of its own.
    apart = torch.zeros(3, 10, WIDTH).double()
    apart[:, ::2] = texts
    for padded in (apart, *(nn.functional.pad(texts, (0, 0, 0, more)) for more in (1, 11, 100))):
        assert torch.allclose(network(x, level, padded), output, rtol=0, atol=1e-12)
    alone = network(x[1:2], level[:1], texts[1:2, :2])
    assert torch.allclose(alone, output[1:2], rtol=0, atol=1e-12)


def test_text_network_without_text_uses_the_learned_null_token(build):
    network = text_network(build)
    x, level = dense.random(2, 1, 8, 8), torch.zeros(2).double()
    plain = network(x, level)
    for tokens in (0, 1, 7):
        assert torch.allclose(network(x, level, torch.zeros(2, tokens, WIDTH).double()), plain, rtol=0, atol=1e-12)
    one = dense.random(2, 3, WIDTH)
    one[1] = 0
    mixed = network(x, level, one)
    assert torch.allclose(mixed[1], plain[1], rtol=0, atol=1e-12)
    assert not torch.allclose(mixed[0], plain[0], atol=1e-3)
    with torch.no_grad():
        network.text.null += torch.arange(WIDTH)
    assert not torch.allclose(network(x, level), plain, atol=1e-3)
    assert torch.allclose(network(x[:1], level[:1], one[:1]), mixed[:1], rtol=0, atol=1e-12)


def test_text_network_reads_more_than_the_mean_of_the_tokens(build):
    network = text_network(build)
    x, level = dense.random(1, 1, 8, 8), torch.zeros(1).double()
    # These two texts have the same mean of normalised tokens, so that only attention can distinguish them.
    tokens = nn.functional.layer_norm(dense.random(1, 2, WIDTH), (WIDTH,), eps=0)
    flat = torch.stack([tokens[:, 0], tokens[:, 1], -tokens[:, 0], -tokens[:, 1]], 1)
    other = torch.stack([tokens[:, 0], -tokens[:, 0]] * 2, 1)
    assert torch.allclose(network.text(flat, 1).summary, network.text(other, 1).summary)
    assert not torch.allclose(network(x, level, flat), network(x, level, other), atol=1e-6)


def test_text_network_refuses_other_conditions(build):
    network, x, level = build(1, 1, context=WIDTH), torch.zeros(2, 1, 8), torch.zeros(2)
    integers = torch.zeros(2, 3, WIDTH, dtype=torch.int64)
    for condition in (torch.tensor([0, 1]), integers, torch.zeros(2, 3, 5), torch.zeros(3, 3, WIDTH)):
        with pytest.raises(ValueError, match=r"float of shape \(2, tokens, 6\); got"):
            network(x, level, condition)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build(1, 1, context=0)
    with pytest.raises(ValueError, match="context=WIDTH"):
        build(1, 1)(x, level, torch.zeros(2, 3, WIDTH))


def test_cross_attention_is_softmax_over_the_valid_tokens():
    torch.manual_seed(0)
    layer = CrossAttention(8, WIDTH, heads=1).double()
    nn.init.eye_(layer.out.weight)
    samples, texts = dense.random(2, 5, 8), dense.random(2, 4, WIDTH, seed=1)
    texts[0, 1] = 0
    text = TextInput(WIDTH, 3).double()(texts, 2)
    query = nn.functional.rms_norm(layer.query(samples), (8,), eps=1e-6)
    tokens = [nn.functional.layer_norm(texts[0, [0, 2, 3]], (WIDTH,)), nn.functional.layer_norm(texts[1], (WIDTH,))]
    for item, rows in enumerate(tokens):
        key, value = layer.key_value(rows).chunk(2, dim=-1)
        weights = (query[item] @ nn.functional.rms_norm(key, (8,), eps=1e-6).T / 8**0.5).softmax(-1)
        assert torch.allclose(layer(samples, text)[item], weights @ value, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="heads must divide"):
        CrossAttention(8, WIDTH, heads=3)


def test_noise_level_features_differ_for_all_levels():
    levels = torch.arange(-20.0, 20.05, 0.1)
    distances = torch.cdist(NoiseLevelFeatures(64)(levels), NoiseLevelFeatures(64)(levels))
    apart = distances + 100 * torch.eye(len(levels))
    # Features have norm √32; the closest pair of all must be a pair of neighbours, and still well apart.
    assert apart.min() > 0.5
    assert apart.min() == pytest.approx(distances.diagonal(1).min().item(), rel=1e-3)


def test_noise_level_features_stay_exact_in_half_precision():
    levels = torch.tensor([12.0, 12.01])
    features = NoiseLevelFeatures(64).to(torch.bfloat16)(levels)
    assert features.dtype == torch.float32
    assert torch.equal(features, NoiseLevelFeatures(64)(levels))
    assert (features[0] - features[1]).abs().max() > 0.01
    assert Conditioning(8).double()(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


def test_conditioning_refuses_labels_levels_and_sizes_that_do_not_fit():
    level, with_classes = torch.zeros(2), Conditioning(8, classes=3)
    assert_refused(
        ("classes=N", lambda: Conditioning(8)(level, torch.tensor([0, 1]))),
        ("label -1 is out of range.*0 to 2", lambda: with_classes(level, torch.tensor([0, -1]))),
        ("label 4 is out of range.*0 to 2", lambda: with_classes(level, torch.tensor([0, 4]))),
        ("integer labels of shape", lambda: with_classes(level, torch.tensor([0]))),
        ("integer labels of shape", lambda: with_classes(level, torch.tensor([0.0, 1.0]))),
        ("log_snr must have shape", lambda: Conditioning(8)(torch.zeros(2, 1))),
        ("at least", lambda: Conditioning(8, None, 3)),
        ("at least", lambda: Conditioning(8, 0)),
    )


class Perceptron(nn.Module):
    """Two products, whose operations are counted on paper."""

    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 20, bias=False), nn.Linear(20, 12, bias=False)
        self.output = output

    def forward(self, x: Tensor, log_snr: Tensor, condition: object = None) -> Any:
        return self.output(self.two(self.one(x.flatten(1))).reshape_as(x))


def test_training_flops_are_those_counted_on_paper_or_unknown():
    """Forward 2·in·out each; backward as much again for the weights, and for all inputs except the data."""
    forward = 2 * 12 * 20 + 2 * 20 * 12
    for output in (Tensor.clone, lambda x: SimpleNamespace(sample=x)):  # as networks of diffusers return it
        assert training_flops(Perceptron(output), (1, 3, 4)) == 3 * forward - 2 * 12 * 20
    for fails in (lambda x: x * float(x.detach().mean()), lambda x: {}["missing"]):
        assert training_flops(Perceptron(fails), (1, 3, 4)) is None


def test_training_flops_of_networks_grow_with_the_grid(build):
    for shape in ((2, 16), (1, 9, 12), (1, 4, 6, 8)):
        network = build(shape[0], len(shape) - 1)
        small, large = (training_flops(network, (*shape[:-1], factor * shape[-1])) for factor in (1, 2))
        assert 1.5 * small < large < 5 * small, shape
        assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """The memory of the tensors that a real forward pass saves, except the weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    saved = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network(x, torch.zeros(len(x)))
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("size", [(16,), (7, 10), (4, 8, 4)], ids=str)
def test_activation_bytes_are_those_that_a_forward_pass_saves(build, size):
    network, before = build(2, len(size), classes=3, dropout=0.1).train(), torch.get_rng_state()
    small, large = (activation_bytes(network, (batch, 2, *size)) for batch in (1, 3))
    kept = activation_bytes(network, (3, 2, *size), recomputed=True)
    half = [activation_bytes(network.double(), (3, 2, *size))]
    with torch.autocast("cpu", torch.bfloat16):
        half.append(activation_bytes(network.float(), (3, 2, *size)))
    assert torch.equal(before, torch.get_rng_state())
    assert saved_bytes(network, data(3, 2, *size)) == large
    assert 2.5 * small < large < 3.2 * small
    assert half[0] > 1.7 * large
    assert half[1] != large
    recompute(network)
    assert saved_bytes(network, data(3, 2, *size)) < kept < large


def test_activation_bytes_of_networks_that_cannot_run_without_data_are_unknown():
    assert activation_bytes(Perceptron(Tensor.clone), (5, 3, 4)) == 4 * 5 * (12 + 20)  # the inputs of both layers
    assert activation_bytes(Perceptron(lambda x: x * float(x.detach().mean())), (1, 3, 4)) is None


@pytest.fixture
def fresh_log(monkeypatch):
    """No fallback has been reported yet."""
    monkeypatch.setattr(attention, "_reported", set())


def qkv(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


def test_attend_is_softmax_attention():
    query, key, value = qkv(2, 5, 3, 4, dtype=torch.float64)
    weights = torch.einsum("bqhd,bkhd->bhqk", query, key).div(2).softmax(-1)
    expected = torch.einsum("bhqk,bkhd->bqhd", weights, value)
    assert torch.allclose(attend(query, key, value), expected, atol=1e-12)


def test_attend_with_xformers_on_the_cpu_falls_back_with_one_warning(fresh_log, caplog):
    inputs = qkv(1, 4, 2, 8)
    with caplog.at_level(logging.WARNING, logger="multisagd"):
        results = [attend(*inputs, backend="xformers") for _ in range(3)]
    assert all(torch.equal(result, attend(*inputs)) for result in results)
    (record,) = [record for record in caplog.records if record.name == "multisagd"]
    assert "falls back to sdpa" in record.message
    with pytest.raises(RuntimeError, match='attention="sdpa"'):
        attend(*inputs, backend="xformers", strict=True)


def test_self_attention_reports_missing_xformers_when_it_is_built(fresh_log, monkeypatch, caplog):
    monkeypatch.setattr(attention, "_imported", {})
    with caplog.at_level(logging.WARNING):
        attention._xformers()
    assert not caplog.records
    monkeypatch.setattr(attention, "_imported", {})
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(RuntimeError, match="xformers is not installed"):
        SelfAttention(8, 2, "xformers", strict=True)
    with caplog.at_level(logging.WARNING, logger="multisagd"):
        SelfAttention(8, 2, "xformers")
        SelfAttention(8, 2, "xformers")
    (message,) = [record.message for record in caplog.records if "is not installed" in record.message]
    assert message.endswith(": attention falls back to sdpa, which gives the same result")


class PretendCuda(torch.Tensor):
    """A CPU tensor whose device is an accelerator, to reach the xformers path on any machine."""

    @property
    def device(self):
        return torch.device("cuda")


def test_attend_calls_xformers_in_its_own_layout_and_falls_back_without_a_kernel(fresh_log, monkeypatch, caplog):
    kernel = Mock(return_value=torch.full((1, 4, 2, 8), 7.0))
    monkeypatch.setattr(attention, "_imported", {"ops": Mock(memory_efficient_attention=kernel)})
    inputs = [tensor.as_subclass(PretendCuda) for tensor in qkv(1, 4, 2, 8)]
    assert (attend(*inputs, backend="xformers", strict=True) == 7).all()
    # (batch, tokens, heads, features), as its documentation has it.
    assert kernel.call_args.args[0].shape == (1, 4, 2, 8)
    kernel.side_effect = NotImplementedError("no operator found")
    assert torch.equal(attend(*inputs, backend="xformers"), attend(*inputs))
    assert "8 features per head" in caplog.text
    with pytest.raises(RuntimeError, match="8 features per head"):
        attend(*inputs, backend="xformers", strict=True)


def test_attention_refuses_unknown_backends_and_impossible_widths():
    assert_refused(
        ("choose one of sdpa, xformers", lambda: SelfAttention(8, 2, "flash")),
        ("4 heads for a width of 10", lambda: SelfAttention(10, 4)),
        ("increase the width or use fewer heads", lambda: rotary_positions((4, 4), 7)),
        ("increase the width or use fewer heads", lambda: rotary_positions((4, 4, 4), 4)),
    )


@pytest.mark.parametrize(
    ("sizes", "steps"), [((7,), (2,)), ((5, 6), (1, 3)), ((4, 3, 5), (2, 1, 2)), ((2, 3, 2, 4), (0, 1, 1, 2))]
)
def test_rotary_positions_make_logits_depend_on_relative_positions_only(sizes, steps):
    features = 22
    larger = [size + step for size, step in zip(sizes, steps, strict=True)]
    tables = [table.double().unflatten(0, larger) for table in rotary_positions(larger, features)]
    near = tuple(slice(0, size) for size in sizes)
    far = tuple(slice(step, step + size) for size, step in zip(sizes, steps, strict=True))
    query, key, _ = qkv(1, math.prod(sizes), 2, features, dtype=torch.float64)

    def logits(where):
        positions = tuple(table[where].flatten(0, -2) for table in tables)
        return torch.einsum("bqhd,bkhd->bhqk", rotate(query, positions), rotate(key, positions))

    assert torch.allclose(logits(near), logits(far), atol=1e-5)  # the tables themselves are float32
    unrotated = torch.einsum("bqhd,bkhd->bhqk", query, key)
    assert not torch.allclose(logits(near), unrotated, atol=0.1)


def test_rotary_positions_give_every_axis_features_of_its_own():
    cosine = rotary_positions((3, 4, 5), 22)[0].reshape(3, 4, 5, 11)
    changes = [cosine.narrow(axis, 1, 1) != cosine.narrow(axis, 0, 1) for axis in range(3)]
    moved = [change.flatten(0, 2).any(0) for change in changes]
    assert [int(features.sum()) for features in moved] == [4, 4, 3]
    assert (torch.stack(moved).sum(0) == 1).all()


def test_self_attention_bounds_its_logits(monkeypatch):
    recorded = []
    monkeypatch.setattr(attention, "attend", lambda query, key, value, *_: recorded.append((query, key)) or value)
    torch.manual_seed(0)
    layer = SelfAttention(32, 2)
    for scale in (1.0, 1e4):
        layer(scale * torch.randn(3, 9, 32), rotary_positions((3, 3), 16))
        logits = torch.einsum("bqhd,bkhd->bhqk", *recorded.pop()) / 4
        assert 1 < logits.abs().max() <= 4 * (1 + 1e-5), scale  # √16


def test_network_combines_classes_text_and_scalars(build):
    network = trained(build(1, 1, classes=3, context=WIDTH, scalars=2)).double()
    x, level = dense.random(2, 1, 8), torch.zeros(2).double()
    labels, text, scalars = torch.tensor([0, 1]), dense.random(2, 3, WIDTH), dense.random(2, 2, seed=1)
    full = network(x, level, ms.Condition(labels, text, scalars))
    for other in (
        ms.Condition(labels.flip(0), text, scalars), ms.Condition(labels, text**3, scalars),
        ms.Condition(labels, text, scalars.flip(1)), ms.Condition(labels, text),
    ):  # fmt: skip
        assert not torch.allclose(network(x, level, other), full, atol=1e-6)
    # Labels or text alone need no `Condition`; an unknown part is the same as a missing one.
    assert torch.equal(network(x, level, labels), network(x, level, ms.Condition(labels=labels)))
    assert torch.equal(network(x, level, text), network(x, level, ms.Condition(text=text)))
    unknown = torch.full((2, 2), torch.nan).double()
    nothing = ms.Condition(torch.tensor([3, 3]), torch.zeros_like(text), unknown)
    assert torch.allclose(network(x, level, nothing), network(x, level), rtol=0, atol=1e-12)
    one = scalars.clone()
    one[0, 1] = torch.nan
    mixed = network(x, level, ms.Condition(scalars=one))
    assert torch.allclose(mixed[1], network(x, level, ms.Condition(scalars=scalars))[1], rtol=0, atol=1e-12)
    assert mixed.isfinite().all()


def test_network_refuses_scalars_that_do_not_fit():
    level, values = torch.zeros(2), torch.zeros(2, 3)
    assert_refused(
        ("scalars=N", lambda: Conditioning(8)(level, scalars=values)),
        (r"float of shape \(2, 2\)", lambda: Conditioning(8, scalars=2)(level, scalars=values)),
        (r"float of shape \(2, 3\)", lambda: Conditioning(8, scalars=3)(level, scalars=values.long())),
        ("scalars must be at least 1", lambda: Conditioning(8, scalars=0)),
    )


def test_scalar_embedding_distinguishes_near_values():
    embedding = ScalarEmbedding(1, 8)
    embedding.mlp = nn.Identity()
    values = torch.arange(-8.0, 8.0, 0.05)[:, None]
    features = embedding(values, len(values))
    apart = torch.cdist(features, features) + 100 * torch.eye(len(values))
    assert apart.min() > 0.1
