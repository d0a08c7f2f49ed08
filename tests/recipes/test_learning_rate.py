"""The learning rate follows its shape, ends where training was to end, and continues exactly; only matrices decay."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import multisagd as ms
from recipes.base.errors import RecipeError
from recipes.runs.learning_rate import LearningRate, Span
from recipes.training.optimizer import decaying
from tests.helpers.tiny import BATCH, assert_same, last_state, read_metrics, tiny_run

EVERY_STEP = f"every.log={BATCH}"
LINEAR = ["training.learning_rate_schedule=linear", "training.warmup=0", EVERY_STEP]


def rates_of(run_dir: Path) -> list[float]:
    return [entry["learning_rate"] for entry in read_metrics(run_dir, "train")]


PROGRESS = np.arange(100) / 100
SHAPES = {
    "constant": np.ones(100),
    "linear": 1 - PROGRESS,
    "cosine": (1 + np.cos(np.pi * PROGRESS)) / 2,
    "inverse_sqrt": 1 / np.sqrt(np.maximum(PROGRESS / 0.1, 1)),
    "warmup_stable_decay": np.where(PROGRESS <= 0.8, 1, 1 - np.sqrt(np.maximum(PROGRESS - 0.8, 0) / 0.2)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_learning_rate_follows_its_formula(shape: str) -> None:
    rate, span = LearningRate(0.5, shape), Span(0, 1000)  # type: ignore[arg-type]
    np.testing.assert_allclose([rate(10 * step, 10, span) for step in range(100)], 0.5 * SHAPES[shape], rtol=1e-12)
    assert rate(5000, 10, span) == rate(990, 10, span) > 0, "after the end, the last rate"
    assert rate(1500, 10, Span(1000, 2000)) == rate(500, 10, span), "a later span"


def test_learning_rate_warms_up_linearly() -> None:
    rate = LearningRate(1.0, "linear", warmup=100, stable=0.5)
    assert rate(0, 10, Span(0, 1000)) == pytest.approx(0.1)
    assert rate(90, 10, Span(0, 1000)) == 1
    assert rate(750, 10, Span(0, 1000)) == pytest.approx(0.5)


def test_train_continues_at_the_last_rate_or_with_a_new_decay(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The end of the decay is fixed when training starts, and kept in the checkpoint."""
    steps = 96 // BATCH
    tiny_run(tmp_path / "run", *LINEAR)
    assert rates_of(tmp_path / "run") == pytest.approx([1e-3 * (1 - step / steps) for step in range(steps)])
    capsys.readouterr()
    tiny_run(tmp_path / "run", *LINEAR, "training.samples=128")
    assert rates_of(tmp_path / "run")[steps:] == pytest.approx([1e-3 / steps] * 2)
    assert "training.decay=restart" in capsys.readouterr().out
    tiny_run(tmp_path / "run", *LINEAR, "training.samples=192", "training.decay=restart")
    assert rates_of(tmp_path / "run")[steps + 2 :] == pytest.approx([1e-3 * (1 - step / 4) for step in range(4)])
    tiny_run(tmp_path / "run", *LINEAR, "training.samples=224", "training.decay=once")
    assert rates_of(tmp_path / "run")[-2:] == pytest.approx([1e-3 / 4] * 2), "the restarted span is kept"


def test_train_continues_schedule_and_uncertainty_bit_for_bit(tmp_path: Path) -> None:
    options = ["training.learning_rate_schedule=cosine", "loss=clamped", "loss.uncertainty=true", EVERY_STEP]
    whole = tiny_run(tmp_path / "whole", *options)
    for stop in (48, 64):
        tiny_run(tmp_path / "parts", *options, f"training.samples={stop}", "training.decay=once")
    assert_same(tiny_run(tmp_path / "parts", *options), last_state(tmp_path / "parts"))
    assert whole.tensors["uncertainty"]["linear.weight"].abs().max() > 0
    assert "uncertainty_optimizer" in whole.tensors


def test_checkpoint_with_an_invalid_decay_is_refused(tmp_path: Path) -> None:
    from recipes.runs.state import Progress

    window = [(0.0).hex()] * 3
    for decay in ([1], [0, -1], "0-5", [0, 1.5], [True, 5]):
        with pytest.raises(RecipeError, match="decay"):
            Progress.of({"metrics_position": 0, "window": window, "decay": decay})
    assert Progress.of({"metrics_position": 0, "window": window}).decay is None


@pytest.mark.parametrize("network", [
    ms.networks.UNet(1, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, classes=3),
    ms.networks.Transformer(1, 2, width=16, depth=1, heads=2, context=5),
    nn.Sequential(nn.Embedding(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
], ids=["unet", "transformer", "other"])  # fmt: skip
def test_optimizer_decays_matrices_and_kernels_only(network: nn.Module) -> None:
    decayed = decaying(network)
    weights = {
        f"{name}.weight" for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }  # fmt: skip
    assert decayed == weights


def test_class_and_caption_act_from_the_start_at_every_width() -> None:
    """Their embeddings are as large as other features: at least as large as that of the noise level."""
    for width in (8, 64, 256):
        torch.manual_seed(0)
        unet = ms.networks.UNet(1, 2, width=width, multipliers=(1,), blocks=1, heads=2, classes=10)
        transformer = ms.networks.Transformer(1, 2, width=4 * width, depth=1, heads=2, context=32)
        levels = unet.conditioning.mlp(unet.conditioning.features(torch.linspace(-10, 10, 50)))
        classes = unet.conditioning.labels.weight
        captions = transformer.text(torch.randn(50, 4, 32), 50).summary
        for name, embedding in (("classes", classes), ("captions", captions)):
            assert embedding.std(0).mean() > levels.std(0).mean(), (name, width)
        assert math.isclose(float(classes.detach().std()), 1, rel_tol=0.1)
