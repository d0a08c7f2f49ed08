"""The tutorial on inverse problems, run as it stands on a training of a few steps, and the benchmark of its table."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks import inverse_problems
from recipes import cli

PAGE = (Path(__file__).parents[1] / "docs" / "tutorials" / "inverse-problems.md").read_text(encoding="utf-8")
SMALL = [
    "training.samples=64", "training.batch=8", "training.statistics=200", "every.log=64", "every.validation=0",
    "every.samples=0", "every.checkpoint=0", "network.width=8", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tutorial")
    (command,) = re.findall(r"^multisagd (.*)$", blocks("bash")[0], re.MULTILINE)
    words = [word.replace("run_dir=", f"run_dir={folder}/") for word in shlex.split(command)]
    assert cli.main([*words, *SMALL]) == 0
    return folder


@pytest.mark.parametrize("place", range(4))
def test_python_of_the_tutorial_runs(
    place: int, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    assert len(blocks("python")) == 4
    names: dict[str, object] = {}
    exec(compile(blocks("python")[place], f"inverse-problems.md, Python block {place + 1}", "exec"), names)
    printed = capsys.readouterr().out
    assert not re.search(r"\b(nan|inf)\b", printed)
    if place == 1:
        error, left = (float(number) for number in re.findall(r"\d+\.\d+", printed))
        assert error < 0.2 * left


def test_the_benchmark_measures_each_arm_once(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row on two images in two steps: nothing is measured twice, and both tables show it."""

    def classify(network: object, x0: torch.Tensor, labels: torch.Tensor) -> object:
        return type("Readings", (), {"accuracy": lambda self: 0.5})()

    load = inverse_problems.Run.load
    monkeypatch.setattr(inverse_problems, "read_samples", classify)
    monkeypatch.setattr("benchmarks.runs.cached_network", lambda *_: (torch.nn.Identity(), None))
    monkeypatch.setattr(
        "benchmarks.runs.read_dataset", lambda *_: type("Readings", (), {"features": torch.zeros(3, 2)})()
    )
    path, loaded = trained / "rows.jsonl", []
    monkeypatch.setattr(inverse_problems.Run, "load", lambda *words: loaded.append(words) or load(*words))
    words = ["x", "--run", str(trained / "runs" / "digits"), "--results", str(path), "--count", "2", "--steps", "2"]
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0", "--picture", str(trained / "picture.png")])
    inverse_problems.main()
    count = len(inverse_problems.PROBLEMS) * len(inverse_problems.METHODS) + len(inverse_problems.TURNS)
    assert len(path.read_text().splitlines()) == count
    assert (trained / "picture.png").stat().st_size > 10_000
    monkeypatch.setattr("sys.argv", [*words, "--seeds", "0"])
    inverse_problems.main()
    assert len(path.read_text().splitlines()) == count
    assert len(loaded) == 2
    problems, turns = inverse_problems.tables(path)
    assert problems.row_count == len(inverse_problems.METHODS)
    assert turns.row_count == len(inverse_problems.TURNS)
