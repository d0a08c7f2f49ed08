"""Attention is softmax attention on every backend, and rotary positions make it depend on relative positions only."""

import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from multisagd.networks import SelfAttention, attend, attention, rotary_positions, rotate
from tests.helpers.refusals import assert_refused


@pytest.fixture
def fresh_log(monkeypatch):
    """No fallback has been reported yet."""
    monkeypatch.setattr(attention, "_reported", set())


def qkv(*shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3)]


class PretendCuda(torch.Tensor):
    """A CPU tensor whose device is an accelerator, to reach the xformers path on any machine."""

    @property
    def device(self):
        return torch.device("cuda")


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
    assert message.endswith(": attention falls back to sdpa, with the same result")


def test_attend_gives_xformers_its_own_layout(monkeypatch):
    def reference(query, key, value):
        assert query.shape == (1, 4, 2, 8)  # (batch, tokens, heads, features), as its documentation has it
        return torch.full_like(query, 7.0)

    monkeypatch.setattr(attention, "_imported", {"ops": SimpleNamespace(memory_efficient_attention=reference)})
    result = attend(*(tensor.as_subclass(PretendCuda) for tensor in qkv(1, 4, 2, 8)), backend="xformers", strict=True)
    assert (result == 7).all()


def test_attend_falls_back_where_xformers_has_no_kernel(fresh_log, monkeypatch, caplog):
    def refuse(*_):
        raise NotImplementedError("no operator found")

    monkeypatch.setattr(attention, "_imported", {"ops": SimpleNamespace(memory_efficient_attention=refuse)})
    inputs = [tensor.as_subclass(PretendCuda) for tensor in qkv(1, 4, 2, 8)]
    assert torch.equal(attend(*inputs, backend="xformers"), attend(*inputs))
    assert "8 features per head" in caplog.text
    with pytest.raises(RuntimeError, match="8 features per head"):
        attend(*inputs, backend="xformers", strict=True)


def test_attention_refuses_unknown_backends_and_impossible_widths():
    assert_refused(
        ("choose one of sdpa, xformers", lambda: SelfAttention(8, 2, "flash")),
        ("10 channels, 4 heads", lambda: SelfAttention(10, 4)),
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
