"""An exported model gives the samples of the run that it was made of."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from modalities.image import Image
from recipes import export as recipe
from recipes.base.errors import RecipeError
from recipes.cli.main import main
from recipes.config import compose as configuration
from recipes.export import load_denoiser
from recipes.sample import sample
from tests.helpers.tiny import tiny_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and what was exported of it."""
    root = tmp_path_factory.mktemp("export")
    tiny_run(root / "run", "training.samples=32", "spectrum=data_power", "engine.distribution=ddp")
    assert recipe.main([f"run_dir={root / 'run'}", f"out={root / 'model'}"]) == 0
    return root


def drawn(run_dir: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    words = ("count=3", "steps=2", "engine.threads=1", "engine.device=cpu", *words)
    return load_file(
        sample(configuration.load("sample", [f"run_dir={run_dir}", f"out={out}", *words])) / "samples.safetensors"
    )


def test_its_samples_are_those_of_the_run(folder: Path, tmp_path: Path) -> None:
    assert sorted(path.name for path in (folder / "model").iterdir()) == [
        "README.md", "model.json", "model.safetensors", "samples.png", "spectrum.png"
    ]  # fmt: skip
    ours, theirs = (drawn(folder / name, tmp_path / name) for name in ("model", "run"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_last_weights_are_others(folder: Path, tmp_path: Path) -> None:
    assert recipe.main([f"run_dir={folder / 'run'}", f"out={tmp_path / 'last'}", "weights=network"]) == 0
    with pytest.raises(RecipeError, match=r"holds the weights 'network' alone, and ema are asked for"):
        drawn(tmp_path / "last", tmp_path / "one")
    ours = drawn(tmp_path / "last", tmp_path / "one", "weights=network")
    assert not torch.equal(ours["x0"], drawn(folder / "model", tmp_path / "two")["x0"])


def test_a_script_gets_denoiser_and_modality(folder: Path) -> None:
    (ours, modality), (theirs, _) = load_denoiser(folder / "model"), load_denoiser(folder / "run")
    assert isinstance(modality, Image)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    assert torch.equal(ours(x, t), theirs(x, t))


def test_it_can_be_exported_again_and_over_itself(folder: Path, tmp_path: Path) -> None:
    words = [f"run_dir={folder / 'model'}", f"out={tmp_path / 'copy'}"]
    assert recipe.main(words) == 0
    assert recipe.main(words) == 0
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (
        folder / "model" / "model.safetensors"
    ).read_bytes()


def test_it_is_judged_by_the_run_it_came_from(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"run_dir={folder / 'model'}", "engine.device=cpu", "engine.threads=1"]) == 2
    assert "is an exported model, which does not name its training data: give the run" in capsys.readouterr().err


def test_what_is_not_a_model_is_left_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert recipe.main([f"run_dir={folder / 'run'}", f"out={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert recipe.main([f"run_dir={tmp_path / 'nowhere'}", f"out={tmp_path / 'out'}"]) == 2
    assert "no run or exported model is in" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["altered", "truncated", "other shapes", "no notes", "version", "config", "pickle"])
def test_damaged_models_are_refused(folder: Path, tmp_path: Path, damage: str) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in (folder / "model").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    tensors, notes = copy / "model.safetensors", copy / "model.json"
    content, told = tensors.read_bytes(), json.loads(notes.read_text())
    if damage == "altered":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "other shapes":
        with safe_open(tensors, framework="pt") as file:
            metadata = file.metadata()
        changed = load_file(tensors)
        name = next(name for name in changed if name.startswith("network."))
        save_file({**changed, name: torch.zeros(3, 3, 3)}, tensors, metadata)
    elif damage == "no notes":
        notes.write_text("{}")
    elif damage == "version":
        notes.write_text(json.dumps({**told, "format_version": 99}))
    elif damage == "config":
        notes.write_text(json.dumps({**told, "config": {**told["config"], "network": {"_target_": "os.system"}}}))
    elif damage == "pickle":
        torch.save({"weights": torch.ones(3)}, tensors)
    with pytest.raises(RecipeError, match=r"export it again|does not fit|not under an allowed package"):
        drawn(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
