"""A run so small that it takes a second: real digits at 8×8, a U-Net of a few thousand parameters."""

import json
from pathlib import Path
from typing import Any

import torch

from recipes.config import compose as configuration
from recipes.runs.checkpoint import Checkpoints, State
from recipes.train import train

BATCH = 16
TINY = [
    "modality.size=8", "network.width=8", "network.multipliers=[1,2]", "network.blocks=1", "network.heads=2",
    "network.dropout=0.1", "training.samples=96", f"training.batch={BATCH}", "training.warmup=64",
    "training.statistics=100", "every.log=32", "every.validation=96", "every.samples=96", "every.checkpoint=48",
    "validation.holdout=40", "validation.items=20", "validation.levels=2", "validation.bands=3", "sampling.count=4",
    "sampling.steps=2", "report=false", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip


TRANSFORMER = ["network=transformer", "network.depth=1", "network.width=16", "network.heads=2"]


def tiny_words(run_dir: Path, *overrides: str) -> list[str]:
    """Return the words of a tiny run; its U-Net's give way to another network."""
    other = any(word.startswith("network=") for word in overrides)
    words = [word for word in TINY if not (other and word.startswith("network."))]
    return [*words, f"run_dir={run_dir}", *overrides]


def tiny_config(run_dir: Path, *overrides: str) -> dict[str, Any]:
    return configuration.load("train", tiny_words(run_dir, *overrides))


def tiny_run(run_dir: Path, *overrides: str) -> State:
    """Train and return the last checkpoint."""
    train(tiny_config(run_dir, *overrides))
    return last_state(run_dir)


def read_metrics(run_dir: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Return all entries of a run's `metrics.jsonl`, those of one kind if given."""
    entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [entry for entry in entries if kind in (None, entry["kind"])]


def last_state(run_dir: Path) -> State:
    state = Checkpoints(run_dir / "checkpoints").latest()
    assert state is not None
    return state


def assert_close(state: State, expected: State, rtol: float, atol: float) -> None:
    """Compare two checkpoints up to rounding."""
    assert state.samples == expected.samples
    torch.testing.assert_close(state.tensors, expected.tensors, rtol=rtol, atol=atol)


def assert_same(left: State, right: State) -> None:
    """Compare two checkpoints bit for bit."""
    assert_close(left, right, rtol=0, atol=0)
    assert left.record == right.record
