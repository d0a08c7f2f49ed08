"""The fidelity recipe on samples whose quality is known: real digits, wrong labels, and noise."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modalities.image import Image
from modalities.image_sets import Digits
from recipes import fidelity as recipe
from recipes import train
from recipes.engine import config as configuration
from recipes.engine.errors import RecipeError

QUICK = ["classifier.samples=6400", "classifier.batch=64", "classifier.widths=[16,32]", "classifier.shift=1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a configuration, a cache beside it, and no checkpoint: samples are handed over."""
    folder = tmp_path_factory.mktemp("fidelity")
    run = folder / "run"
    run.mkdir()
    arguments = ["experiment=image_digits", f"run_dir={run}", "validation.holdout=0.3"]
    configuration.write(configuration.load("train", arguments), run / "config.yaml")
    return folder


def judge(folder: Path, x0: Tensor, labels: Tensor | None = None, *more: str) -> dict[str, Any]:
    path = folder / "samples.safetensors"
    save_file({"x0": x0.contiguous(), **({} if labels is None else {"labels": labels})}, path)
    arguments = [f"run_dir={folder / 'run'}", f"samples={path}", f"cache={folder / 'cache'}", *QUICK, *more]
    return recipe.fidelity(configuration.load("fidelity", arguments))


def digits() -> tuple[Tensor, Tensor]:
    x0, labels = Digits(Image(size=16, channels=1)).batch(range(600))[:2]
    assert labels is not None
    return x0, labels


def test_real_digits_score_the_noise_floor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x0, labels = digits()
    result = judge(folder, x0, labels)
    floor = result["noise_floor"]
    # The scarcest class of the 1,258 training examples does not suffice for all 600: half against half.
    assert 500 < floor["count"] == floor["reference_count"] < 600
    # Many of these are in the training set, so the distance is not quite a draw from the floor.
    assert result["frechet_distance"] < 3 * floor["mean"]
    assert result["accuracy"] > 0.95
    assert sum(row["asked"] for row in result["classes"]) == 600
    assert json.loads((folder / "fidelity.json").read_text())["frechet_distance"] == result["frechet_distance"]
    printed = capsys.readouterr().out
    assert "noise floor" in printed
    assert f"{result['accuracy']:.2%}" in printed


def test_wrong_labels_cost_the_accuracy_and_not_the_distance(folder: Path) -> None:
    x0, labels = digits()
    right, wrong = judge(folder, x0, labels), judge(folder, x0, (labels + 1) % 10)
    assert wrong["accuracy"] < 0.05
    # The proportions of the classes are the only difference.
    assert wrong["frechet_distance"] < right["frechet_distance"] + 5 * right["noise_floor"]["mean"]


def test_one_class_is_compared_with_that_class(folder: Path) -> None:
    x0, labels = digits()
    threes = labels == 3
    result = judge(folder, x0[threes], labels[threes])
    assert result["frechet_distance"] < 3 * result["noise_floor"]["mean"]
    assert judge(folder, x0[threes])["frechet_distance"] > 10 * result["frechet_distance"]


def test_worse_samples_are_further_away(folder: Path) -> None:
    x0, _ = digits()
    noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0))
    distances = [judge(folder, x0 + level * noise)["frechet_distance"] for level in (0.0, 0.3, 1.0)]
    assert distances[0] < distances[1] < distances[2]
    assert distances[2] > 10 * judge(folder, x0)["noise_floor"]["mean"]


def test_samples_without_labels_have_counts_and_no_accuracy(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x0, _ = digits()
    result = judge(folder, x0)
    assert result["accuracy"] is None
    assert sum(row["seen"] for row in result["classes"]) == 600
    assert "without classes" in capsys.readouterr().out


def test_samples_are_judged_as_they_are_saved(folder: Path) -> None:
    """Values beyond the range of pixels are clipped, as in the file that a person would look at."""
    x0, _ = digits()
    loud = torch.where(x0 > 0.999, 1e6, x0)
    assert judge(folder, loud)["frechet_distance"] == judge(folder, x0)["frechet_distance"]


def test_refusals_name_what_is_wrong(folder: Path) -> None:
    x0, labels = digits()
    broken = x0.clone()
    broken[2, 0, 0, 0] = torch.inf
    with pytest.raises(RecipeError, match="1 of 600 samples"):
        judge(folder, broken)
    with pytest.raises(RecipeError, match=r"shape \(1, 8, 16\), the run's data have \(1, 16, 16\)"):
        judge(folder, x0[:, :, :8])
    with pytest.raises(RecipeError, match="10 classes"):
        judge(folder, x0, labels + 1)
    for nothing in (x0[:0], x0.to(torch.complex64), x0.to(torch.int64)):
        with pytest.raises(RecipeError, match="holds none, or of another kind"):
            judge(folder, nothing, None)
    with pytest.raises(RecipeError, match="at least 2"):
        judge(folder, x0[:1])
    (folder / "empty").mkdir()
    with pytest.raises(RecipeError, match="multisagd sample"):
        judge(folder, x0, None, f"samples={folder / 'empty'}")
    with pytest.raises(RecipeError, match="no run or exported model is in"):
        judge(folder, x0, None, f"run_dir={folder / 'nowhere'}")


def test_unknown_key_is_refused_and_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["run_dir=x", "sample=y"]) == 2
    assert "did you mean 'samples'" in capsys.readouterr().err
    assert recipe.main(["--help"]) == 0
    assert "noise floor" in capsys.readouterr().out


def test_draws_samples_of_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = ["network.width=8", "network.multipliers=[1]", "modality.size=8", "training.samples=128"]
    assert train.main(["experiment=image_digits", f"run_dir={run}", *small, "every.samples=0"]) == 0
    arguments = [f"run_dir={run}", "count=20", "steps=2", f"cache={tmp_path / 'cache'}", *QUICK]
    result = recipe.fidelity(configuration.load("fidelity", arguments))
    assert result["noise_floor"]["count"] == 20
    assert [row["asked"] for row in result["classes"]] == [2] * 10
    assert Path(result["samples"]).with_name("fidelity.json").is_file()
