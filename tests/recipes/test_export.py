"""An exported model gives the samples of its run, can be exported again, and is refused once it is damaged."""

import json
import shutil
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
    """A folder with a run and its exported model."""
    root = tmp_path_factory.mktemp("export")
    tiny_run(root / "run", "training.samples=32", "spectrum=data_power", "engine.distribution=ddp")
    assert recipe.main([f"run_dir={root / 'run'}", f"out={root / 'model'}"]) == 0
    return root


def drawn(run_dir: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    words = (f"run_dir={run_dir}", f"out={out}", "count=3", "steps=2", "engine.threads=1", "engine.device=cpu", *words)
    return load_file(sample(configuration.load("sample", words)) / "samples.safetensors")


def test_export_gives_samples_and_denoiser_of_the_run(folder: Path, tmp_path: Path) -> None:
    names = ["README.md", "model.json", "model.safetensors", "samples.png", "spectrum.png"]
    assert sorted(path.name for path in (folder / "model").iterdir()) == names
    ours, theirs = (drawn(folder / name, tmp_path / name) for name in ("model", "run"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (denoiser, modality), (expected, _) = load_denoiser(folder / "model"), load_denoiser(folder / "run")
    assert isinstance(modality, Image)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    assert torch.equal(denoiser(x, t), expected(x, t))


def test_export_of_the_last_weights_differs_from_their_average(folder: Path, tmp_path: Path) -> None:
    assert recipe.main([f"run_dir={folder / 'run'}", f"out={tmp_path / 'last'}", "weights=network"]) == 0
    with pytest.raises(RecipeError, match=r"only holds the weights 'network', but ema was requested"):
        drawn(tmp_path / "last", tmp_path / "one")
    ours = drawn(tmp_path / "last", tmp_path / "one", "weights=network")
    assert not torch.equal(ours["x0"], drawn(folder / "model", tmp_path / "two")["x0"])


def test_export_repeats_over_itself_and_leaves_foreign_folders_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert recipe.main([f"run_dir={folder / 'model'}", f"out={tmp_path / 'copy'}"]) == 0
    copy, model = (root / "model.safetensors" for root in (tmp_path / "copy", folder / "model"))
    assert copy.read_bytes() == model.read_bytes()
    (tmp_path / "thesis.txt").write_text("years of work")
    assert recipe.main([f"run_dir={folder / 'run'}", f"out={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert recipe.main([f"run_dir={tmp_path / 'nowhere'}", f"out={tmp_path / 'out'}"]) == 2
    assert "no run or exported model is in" in capsys.readouterr().err


def test_evaluate_refuses_an_exported_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"run_dir={folder / 'model'}", "engine.device=cpu", "engine.threads=1"]) == 2
    assert "is an exported model, which does not name its training data: specify the run" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["changed", "truncated", "other shapes", "no notes", "version"])
def test_sample_refuses_damaged_models(folder: Path, tmp_path: Path, damage: str) -> None:
    """Foreign targets and pickles: test_malicious_models."""
    copy = shutil.copytree(folder / "model", tmp_path / "model")
    tensors, notes = copy / "model.safetensors", copy / "model.json"
    content, facts = tensors.read_bytes(), json.loads(notes.read_text())
    if damage == "changed":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "other shapes":
        with safe_open(tensors, framework="pt") as file:
            metadata = file.metadata()
        weights = load_file(tensors)
        name = next(name for name in weights if name.startswith("network."))
        save_file({**weights, name: torch.zeros(3, 3, 3)}, tensors, metadata)
    elif damage == "no notes":
        notes.write_text("{}")
    elif damage == "version":
        notes.write_text(json.dumps({**facts, "format_version": 99}))
    with pytest.raises(RecipeError, match=r"export it again|does not match"):
        drawn(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
