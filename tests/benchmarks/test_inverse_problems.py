"""The benchmark of inverse problems measures every arm once and shows each in its tables, on a short training."""

from pathlib import Path

import pytest
import torch

from benchmarks import inverse_problems
from recipes.cli import main as cli

SMALL = [
    "training.samples=64", "training.batch=8", "training.statistics=200", "every.log=64", "every.validation=0",
    "every.samples=0", "every.checkpoint=0", "network.width=8", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip


def test_inverse_problems_measures_each_arm_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row on two images in two steps: nothing is measured twice, and both tables show it."""
    run = tmp_path / "digits"
    assert cli.main(["train", "experiment=image_digits", "spectrum=power_law", *SMALL, f"run_dir={run}"]) == 0

    def classify(network: object, x0: torch.Tensor, labels: torch.Tensor) -> object:
        return type("ClassifierOutputs", (), {"accuracy": lambda self: 0.5})()

    load = inverse_problems.Run.load
    monkeypatch.setattr(inverse_problems, "read_samples", classify)
    monkeypatch.setattr("benchmarks.runs.cached_network", lambda *_: (torch.nn.Identity(), None))
    monkeypatch.setattr(
        "benchmarks.runs.read_dataset", lambda *_: type("ClassifierOutputs", (), {"features": torch.zeros(3, 2)})()
    )
    path, loaded = tmp_path / "rows.jsonl", []
    monkeypatch.setattr(inverse_problems.Run, "load", lambda *words: loaded.append(words) or load(*words))
    words = ["x", "--run", str(run), "--results", str(path), "--count", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0", "--picture", str(tmp_path / "picture.png")])
    inverse_problems.main()
    count = len(inverse_problems.PROBLEMS) * len(inverse_problems.METHODS) + len(inverse_problems.TURNS)
    assert len(path.read_text().splitlines()) == count
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0"])
    inverse_problems.main()
    assert len(path.read_text().splitlines()) == count
    assert len(loaded) == 2
    problems, turns = inverse_problems.tables(path)
    assert problems.row_count == len(inverse_problems.METHODS)
    assert turns.row_count == len(inverse_problems.TURNS)
