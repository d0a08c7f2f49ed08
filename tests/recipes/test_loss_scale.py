"""float16: the loss is scaled as by torch's GradScaler, and an overflow costs a step but no training."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.base.errors import RecipeError
from recipes.runs.state import Progress
from recipes.training import loss_scale
from recipes.training.loss_scale import LossScale
from tests.helpers.tiny import assert_same, read_metrics, tiny_run
from tests.recipes.test_train import metrics_of, poison

HALF = ["engine.precision=float16", "every.log=16"]


def test_loss_scale_and_a_fused_optimizer_step_as_with_grad_scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_scale, "INTERVAL", 3)
    torch.manual_seed(0)
    x, networks = torch.randn(10, 4, 3), [nn.Linear(3, 1), nn.Linear(3, 1)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours, theirs = (torch.optim.AdamW(network.parameters(), 0.1, fused=True) for network in networks)
    scale = LossScale(torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", init_scale=loss_scale.INITIAL, growth_interval=3)
    for step, row in enumerate(x):
        factor = math.inf if step in (2, 7, 8) else 1.0
        (networks[0](row).mean() * factor * scale.value).backward()
        norm = nn.utils.get_total_norm([p.grad for p in networks[0].parameters() if p.grad is not None]) / scale.value
        nn.utils.clip_grads_with_norm_(networks[0].parameters(), 0.5, norm)
        ours.found_inf, ours.grad_scale = (~norm.isfinite()).float(), scale.value  # type: ignore[attr-defined]
        ours.step()
        scale.update(ours.found_inf)  # type: ignore[attr-defined]
        scaler.scale(networks[1](row).mean() * factor).backward()
        scaler.unscale_(theirs)
        nn.utils.clip_grad_norm_(networks[1].parameters(), 0.5)
        scaler.step(theirs)
        scaler.update()
        for optimizer in (ours, theirs):
            optimizer.zero_grad()
        assert scale.saved() == (scaler.get_scale(), scaler.state_dict()["_growth_tracker"]), step
        torch.testing.assert_close(*(network.weight for network in networks))
    for _ in range(40):
        scale.update(torch.tensor(1.0))
    assert scale.saved() == (1.0, 0)


def test_train_in_float16_lowers_the_scale_after_an_overflow_and_continues_exactly(tmp_path: Path) -> None:
    words = [*HALF, "training.max_skips=1"]
    with poison(2, 3, value=math.inf):
        state = tiny_run(tmp_path / "whole", *words)
    assert state.record["loss_scale"] == [loss_scale.INITIAL / 4, 3]
    assert (state.record["skipped"], state.record["rollbacks"]) == (2, 0)
    entries = read_metrics(tmp_path / "whole", "train")
    assert [entry["loss_scale"] / loss_scale.INITIAL for entry in entries] == [1, 0.5, 0.25, 0.25, 0.25, 0.25]
    with poison(2, 3, value=math.inf):
        tiny_run(tmp_path / "split", *words, "training.samples=48")
        assert_same(tiny_run(tmp_path / "split", *words), state)
    assert metrics_of(tmp_path / "split") == metrics_of(tmp_path / "whole")
    assert all(tensor.dtype != torch.float16 for part in state.tensors.values() for tensor in part.values())


def test_train_in_float16_learns_what_float32_learns(tmp_path: Path) -> None:
    tiny_run(tmp_path / "half", *HALF)
    tiny_run(tmp_path / "full", "every.log=16")
    for ours, theirs in zip(*(read_metrics(tmp_path / name, "train") for name in ("half", "full")), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-2)


def test_train_in_float16_learns_the_uncertainty_at_any_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["loss.uncertainty=true", "training.samples=32"]
    learned = tiny_run(tmp_path / "full", *words).tensors["uncertainty"]["linear.weight"]
    monkeypatch.setattr(loss_scale, "INITIAL", 2.0**18)
    state = tiny_run(tmp_path / "half", *HALF, *words)
    assert state.record["skipped"] == 0
    torch.testing.assert_close(state.tensors["uncertainty"]["linear.weight"], learned, rtol=0.1, atol=1e-6)


def test_train_in_float16_diverges_once_the_scale_is_at_its_minimum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_scale, "INITIAL", 4.0)
    with (
        poison(*range(1, 99)),
        pytest.raises(RecipeError, match=r"diverged: 2 consecutive.*within the first 64 samples"),
    ):
        tiny_run(tmp_path / "run", *HALF, "training.max_skips=2")


@pytest.mark.parametrize("value", [[0.5, 1], [math.nan, 1], [2.0], "2", [2.0, -1], [2.0**128, 0]])
def test_progress_refuses_an_invalid_scale(value: object) -> None:
    with pytest.raises(RecipeError, match=r"loss_scale=.*not a scale and a count: remove that checkpoint"):
        Progress.of({"metrics_position": 0, "window": ["0x0p+0"] * 3, "loss_scale": value})
