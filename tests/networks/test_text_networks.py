"""What networks that read text promise: null texts, exact masks, and nothing changed for those that do not."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from multisagd.networks import CrossAttention, TextInput, Transformer, UNet, attend

WIDTH = 6
SIZES = [(13,), (8, 8), (3, 5, 7)]
Build = Callable[..., nn.Module]


def unet(channels: int, dimensions: int, **options: Any) -> UNet:
    return UNet(channels, dimensions, **{"width": 8, "multipliers": (1, 2), "blocks": 1, "heads": 2} | options)


def transformer(channels: int, dimensions: int, **options: Any) -> Transformer:
    return Transformer(channels, dimensions, **{"width": 24, "depth": 2, "heads": 2} | options)


def data(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(network: nn.Module, seed: int = 0) -> nn.Module:
    """Move all weights a little, as training would, so that nothing is exactly zero any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return network.double().eval()


def padded(texts: Tensor, more: int) -> Tensor:
    return nn.functional.pad(texts, (0, 0, 0, more))


@pytest.fixture(params=[unet, transformer], ids=["unet", "transformer"])
def build(request) -> Build:
    return request.param


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_weight_learns_in_any_dimensions(build, size):
    network = trained(build(2, len(size), context=WIDTH))
    x = data(2, 2, *size)
    texts = data(2, 4, WIDTH)
    texts[1] = 0
    output = network(x, torch.zeros(2).double(), texts)
    assert output.shape == x.shape
    output.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_an_untrained_network_answers_zero_and_its_features_do_not_depend_on_the_text_attention(build):
    torch.manual_seed(0)
    network = build(1, 2, context=WIDTH).double()
    x, level, texts = data(2, 1, 8, 8), torch.zeros(2).double(), data(2, 3, WIDTH)
    assert not network(x, level, texts).any()
    nn.init.normal_(network.head.weight)
    # With the sum silenced, attention is the only way in, and that ends in zeros.
    nn.init.zeros_(network.text.summary.weight)
    assert torch.equal(network(x, level, texts), network(x, level, data(2, 3, WIDTH, seed=1)))


def test_padding_changes_nothing(build):
    network = trained(build(1, 2, context=WIDTH))
    x, level, texts = data(3, 1, 8, 8), torch.zeros(3).double(), data(3, 5, WIDTH)
    texts[1, 2:] = 0
    texts[2] = 0
    output = network(x, level, texts)
    for more in (1, 11, 100):
        assert torch.allclose(network(x, level, padded(texts, more)), output, rtol=0, atol=1e-12)
    alone = network(x[1:2], level[:1], texts[1:2, :2])
    assert torch.allclose(alone, output[1:2], rtol=0, atol=1e-12)
    # Padding between tokens is padding too: a set of tokens has no order of its own.
    spread = torch.zeros(3, 10, WIDTH).double()
    spread[:, ::2] = texts
    assert torch.allclose(network(x, level, spread), output, rtol=0, atol=1e-12)


def test_no_text_is_the_learned_token(build):
    network = trained(build(1, 2, context=WIDTH))
    x, level = data(2, 1, 8, 8), torch.zeros(2).double()
    plain = network(x, level)
    for empty in (torch.zeros(2, 0, WIDTH), torch.zeros(2, 1, WIDTH), torch.zeros(2, 7, WIDTH)):
        assert torch.allclose(network(x, level, empty.double()), plain, rtol=0, atol=1e-12)
    one = data(2, 3, WIDTH)
    one[1] = 0
    mixed = network(x, level, one)
    assert torch.allclose(mixed[1], plain[1], rtol=0, atol=1e-12)
    assert not torch.allclose(mixed[0], plain[0], atol=1e-3)
    with torch.no_grad():
        network.text.null += torch.arange(WIDTH)
    assert not torch.allclose(network(x, level), plain, atol=1e-3)
    assert torch.allclose(network(x[:1], level[:1], one[:1]), mixed[:1], rtol=0, atol=1e-12)


def test_both_ways_in_are_used(build):
    network = trained(build(1, 2, context=WIDTH))
    x, level = data(1, 1, 8, 8), torch.zeros(1).double()
    # These two texts have the same mean of normalised tokens, so that only attention tells them apart.
    tokens = nn.functional.layer_norm(data(1, 2, WIDTH), (WIDTH,), eps=0)
    flat = torch.stack([tokens[:, 0], tokens[:, 1], -tokens[:, 0], -tokens[:, 1]], 1)
    other = torch.stack([tokens[:, 0], -tokens[:, 0]] * 2, 1)
    assert torch.allclose(network.text(flat, 1).summary, network.text(other, 1).summary)
    assert not torch.allclose(network(x, level, flat), network(x, level, other), atol=1e-6)


@pytest.mark.parametrize(
    "condition",
    [torch.tensor([0, 1]), torch.zeros(2, 3, WIDTH, dtype=torch.int64), torch.zeros(2, 3, 5), torch.zeros(3, 3, WIDTH)],
    ids=["labels", "integers", "width", "batch"],
)
def test_other_conditions_are_refused(build, condition):
    with pytest.raises(ValueError, match=r"float of shape \(2, tokens, 6\); got"):
        build(1, 1, context=WIDTH)(torch.zeros(2, 1, 8), torch.zeros(2), condition)


def test_classes_and_text_exclude_each_other(build):
    with pytest.raises(ValueError, match="classes or text, not both"):
        build(1, 1, classes=3, context=WIDTH)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build(1, 1, context=0)
    with pytest.raises(ValueError, match="context=WIDTH"):
        build(1, 1)(torch.zeros(2, 1, 8), torch.zeros(2), torch.zeros(2, 3, WIDTH))


def test_without_text_no_weight_is_added_or_drawn_differently(build):
    torch.manual_seed(3)
    plain = build(1, 2, classes=4).state_dict()
    torch.manual_seed(3)
    again = build(1, 2, classes=4, context=None).state_dict()
    assert all(torch.equal(plain[name], again[name]) for name in plain)
    assert not [name for name in plain if "text" in name]


def test_cross_attention_is_softmax_over_the_valid_tokens():
    torch.manual_seed(0)
    layer = CrossAttention(8, WIDTH, heads=1).double()
    nn.init.eye_(layer.out.weight)
    samples, texts = data(2, 5, 8), data(2, 4, WIDTH, seed=1)
    texts[0, 1] = 0
    text = TextInput(WIDTH, 3).double()(texts, 2)
    query = nn.functional.rms_norm(layer.query(samples), (8,), eps=1e-6)
    tokens = [nn.functional.layer_norm(texts[0, [0, 2, 3]], (WIDTH,)), nn.functional.layer_norm(texts[1], (WIDTH,))]
    for place, rows in enumerate(tokens):
        key, value = layer.key_value(rows).chunk(2, dim=-1)
        weights = (query[place] @ nn.functional.rms_norm(key, (8,), eps=1e-6).T / 8**0.5).softmax(-1)
        assert torch.allclose(layer(samples, text)[place], weights @ value, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="heads must divide"):
        CrossAttention(8, WIDTH, heads=3)


def test_masked_attention_leaves_keys_out():
    query, key, value = data(2, 3, 2, 4), data(2, 5, 2, 4, seed=1), data(2, 5, 2, 4, seed=2)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    masked = attend(query, key, value, "xformers", strict=False, mask=mask)
    kept = [0, 1, 3]
    assert torch.allclose(masked[:1], attend(query[:1], key[:1, kept], value[:1, kept]), rtol=0, atol=1e-12)
    assert torch.allclose(masked[1:], attend(query[1:], key[1:], value[1:]), rtol=0, atol=1e-12)


def test_networks_that_read_text_trace_into_one_graph(build):
    network = trained(build(1, 2, context=WIDTH))
    traced = torch.compile(copy.deepcopy(network), dynamic=False, fullgraph=True, backend="eager")
    x, level = data(2, 1, 7, 8), torch.tensor([-3.0, 5.0]).double()
    for texts in (None, data(2, 3, WIDTH)):
        assert torch.allclose(traced(x, level, texts), network(x, level, texts), atol=1e-9)


def test_half_precision_reads_text(build):
    network = trained(build(1, 2, context=WIDTH)).float()
    x, texts = data(2, 1, 8, 8).float(), data(2, 3, WIDTH).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(x, torch.zeros(2), texts)
    assert torch.allclose(mixed, network(x, torch.zeros(2), texts), atol=0.05 * mixed.abs().max().item())
    assert copy.deepcopy(network).to(torch.bfloat16)(x, torch.zeros(2), texts).dtype == torch.float32
