"""Networks conditioned on text ignore padding exactly, have a learned null text, and change nothing without text."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from multisagd.networks import CrossAttention, TextInput, attend
from tests.helpers.dense import random as data
from tests.helpers.small_networks import trained, transformer, unet

WIDTH = 6
Build = Callable[..., nn.Module]


@pytest.fixture(params=[unet, transformer], ids=["unet", "transformer"])
def build(request) -> Build:
    return request.param


def text_network(build: Build) -> nn.Module:
    return trained(build(1, 2, context=WIDTH)).double()


def test_text_network_starts_without_text_attention(build):
    torch.manual_seed(0)
    network = build(1, 2, context=WIDTH).double()
    x, level, texts = data(2, 1, 8, 8), torch.zeros(2).double(), data(2, 3, WIDTH)
    nn.init.normal_(network.head.weight)
    # Without the summary, attention is the only path of the text, and it ends in zeros.
    nn.init.zeros_(network.text.summary.weight)
    assert torch.equal(network(x, level, texts), network(x, level, data(2, 3, WIDTH, seed=1)))


def test_text_network_ignores_padding(build):
    network = text_network(build)
    x, level, texts = data(3, 1, 8, 8), torch.zeros(3).double(), data(3, 5, WIDTH)
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
    x, level = data(2, 1, 8, 8), torch.zeros(2).double()
    plain = network(x, level)
    for tokens in (0, 1, 7):
        assert torch.allclose(network(x, level, torch.zeros(2, tokens, WIDTH).double()), plain, rtol=0, atol=1e-12)
    one = data(2, 3, WIDTH)
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
    x, level = data(1, 1, 8, 8), torch.zeros(1).double()
    # These two texts have the same mean of normalised tokens, so that only attention can distinguish them.
    tokens = nn.functional.layer_norm(data(1, 2, WIDTH), (WIDTH,), eps=0)
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
    with pytest.raises(ValueError, match="classes or text, not both"):
        build(1, 1, classes=3, context=WIDTH)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        build(1, 1, context=0)
    with pytest.raises(ValueError, match="context=WIDTH"):
        build(1, 1)(x, level, torch.zeros(2, 3, WIDTH))


def test_network_without_text_has_no_text_weights_and_draws_the_same(build):
    states = []
    for options in ({}, {"context": None}):
        torch.manual_seed(3)
        states.append(build(1, 2, classes=4, **options).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not [name for name in states[0] if "text" in name]


def test_cross_attention_is_softmax_over_the_valid_tokens():
    torch.manual_seed(0)
    layer = CrossAttention(8, WIDTH, heads=1).double()
    nn.init.eye_(layer.out.weight)
    samples, texts = data(2, 5, 8), data(2, 4, WIDTH, seed=1)
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


def test_attend_with_a_mask_leaves_keys_out():
    query, key, value = data(2, 3, 2, 4), data(2, 5, 2, 4, seed=1), data(2, 5, 2, 4, seed=2)
    mask = torch.tensor([[True, True, False, True, False], [True] * 5])
    masked = attend(query, key, value, "xformers", strict=False, mask=mask)
    kept = [0, 1, 3]
    assert torch.allclose(masked[:1], attend(query[:1], key[:1, kept], value[:1, kept]), rtol=0, atol=1e-12)
    assert torch.allclose(masked[1:], attend(query[1:], key[1:], value[1:]), rtol=0, atol=1e-12)
