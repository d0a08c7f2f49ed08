"""A `Pipeline` draws what `multisagd sample` draws, here and in a fresh process, and saves and shares its model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from multisagd import DDIM
from multisagd.libraries import BrokenLibraryError
from recipes import export as recipe
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.sample import sample
from recipes.sharing.pipeline import FILES, Pipeline
from recipes.train import train
from tests.helpers.every_modality import MODALITIES, NETWORKS
from tests.helpers.tiny import TINY, tiny_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    tiny_run(root / "run", "training.samples=32", "spectrum=power_law")
    assert recipe.main([f"run_dir={root / 'run'}", f"out={root / 'image'}"]) == 0
    return root / "image"


@pytest.fixture(scope="module")
def pipeline(model: Path) -> Pipeline:
    return Pipeline.from_pretrained(model, device="cpu")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported models of sounds and videos, without classes."""
    root = tmp_path_factory.mktemp("others")
    plain = [word for word in TINY if not word.startswith(("network.", "modality."))]
    for name, medium in (("sound", "waveform"), ("film", "video")):
        words = [*plain, *MODALITIES[medium], *NETWORKS["unet"], "validation.holdout=2", "training.samples=16"]
        train(configuration.load("train", [*words, "training.conditional=false", f"run_dir={root / name}-run"]))
        assert recipe.main([f"run_dir={root / name}-run", f"out={root / name}"]) == 0
    return root


def drawn_by_command(folder: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    quick = ["steps=2", "count=5", "engine.threads=1", "engine.device=cpu", f"out={out}", *words]
    return load_file(sample(configuration.load("sample", [f"run_dir={folder}", *quick])) / "samples.safetensors")


SETTINGS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "defaults": ([], {}),
    "classes, guided": (
        ["labels=[1-2,7]", "guidance.scale=3", "guidance.interval=[-2,4]"],
        {"labels": ["1-2", 7], "guidance": 3.0, "guidance_interval": (-2, 4)},
    ),
    "sampler": (["sampler=ddim", "spacing=karras", "seed=4"], {"sampler": "ddim", "spacing": "karras", "seed": 4}),
    "sampler with noise": (["sampler=ddim", "sampler.eta=1", "batch=2"], {"sampler": DDIM(eta=1.0), "batch": 2}),
    "no class": (["labels=null"], {"labels": None}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_pipeline_draws_the_samples_of_the_command(model: Path, pipeline: Pipeline, tmp_path: Path, name: str) -> None:
    words, arguments = SETTINGS[name]
    expected = drawn_by_command(model, tmp_path / "out", *words)
    drawn = pipeline(5, 2, progress=False, **arguments)
    assert torch.equal(drawn.samples, expected["x0"])
    assert drawn.seeds == expected["seeds"].tolist()
    assert drawn.labels == (expected["labels"].tolist() if "labels" in expected else None)


FRESH = """
import sys, torch
from recipes.sharing.pipeline import Pipeline
from safetensors.torch import save_file
torch.set_num_threads(1)
drawn = Pipeline.from_pretrained(sys.argv[1], device="cpu")(3, 2, progress=False)
save_file({"x0": drawn.samples}, sys.argv[2])
"""


@pytest.mark.slow
def test_pipeline_draws_the_same_in_a_fresh_process(model: Path, others: Path, tmp_path: Path) -> None:
    for source in (model, others / "sound-run"):
        Pipeline.from_pretrained(source, device="cpu").save_pretrained(tmp_path / "copy")
        words = [sys.executable, "-c", FRESH, tmp_path / "copy", tmp_path / "drawn.safetensors"]
        subprocess.run(words, check=True, timeout=200, cwd=Path(__file__).parents[2])
        here = drawn_by_command(source, tmp_path / f"{source.name}-out", "count=3")["x0"]
        assert torch.equal(load_file(tmp_path / "drawn.safetensors")["x0"], here), source.name


def test_pipeline_samples_follow_from_their_seeds(pipeline: Pipeline) -> None:
    three = pipeline(3, 2, labels=None, progress=False)
    last = pipeline(steps=2, seeds=three.seeds[2:], labels=None, progress=False)
    torch.testing.assert_close(last.samples[0], three.samples[2], rtol=1e-4, atol=1e-4)
    one, other, third = (
        pipeline(2, 1, generator=torch.Generator().manual_seed(seed), progress=False).seeds for seed in (1, 1, 2)
    )
    assert one == other
    assert len({*one, *third}) == 4


def test_pipeline_returns_and_saves_images(pipeline: Pipeline, tmp_path: Path) -> None:
    drawn = pipeline(2, 2, progress=False)
    assert "Image of 1 × 8 × 8, 10 classes" in repr(pipeline)
    assert repr(drawn) == "PipelineOutput(2 of Image, 1 × 8 × 8)"
    pixels = ((drawn.samples[:, 0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    with pytest.raises(AttributeError, match=r"these are samples of .*Image, not audios: use .media"):
        _ = drawn.audios
    drawn.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "sample.json", "samples", "samples.safetensors"}
    for number, image in enumerate(drawn.images):
        with PILImage.open(tmp_path / "samples" / f"{number}.png") as written:
            assert np.array_equal(np.asarray(written), pixels[number])
        assert np.array_equal(np.asarray(image), pixels[number])


@pytest.mark.slow
def test_pipeline_returns_sounds_and_videos(others: Path) -> None:
    sound, film = (Pipeline.from_pretrained(others / name, device="cpu")(2, 2) for name in ("sound", "film"))
    assert sound.audios[0].shape == (1, 40)
    assert film.videos[0].shape == (3, 5, 8, 8)
    assert film.videos[0].dtype == torch.uint8


def test_save_pretrained_copies_the_model_exactly(model: Path, tmp_path: Path) -> None:
    pipeline = Pipeline.from_pretrained(model, device="cpu").to("cpu")
    pipeline.save_pretrained(tmp_path / "copy")
    for name in ("model.safetensors", "model.json"):
        assert (model / name).read_bytes() == (tmp_path / "copy" / name).read_bytes(), name
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="is not empty and not an output of multisagd export"):
        pipeline.save_pretrained(tmp_path / "thesis")


def test_pipeline_refuses_mistakes(pipeline: Pipeline) -> None:
    for arguments, message in (
        ({"labels": "cat"}, "labels: there is no class 'cat'"),
        ({"prompts": "a cat"}, "prompts: this model was trained without text"),
        ({"sampler": "huen"}, "sampler=huen: there is no such choice; did you mean 'heun'"),
        ({"count": 0}, "count, steps and batch must be at least 1"),
        ({"guidance_interval": (3, 1)}, "interval must be .* increasing"),
    ):
        with pytest.raises(RecipeError, match=message):
            pipeline(**{"steps": 2, "progress": False, **arguments})


def test_from_pretrained_fetches_named_files_from_the_hub(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.chdir(tmp_path)
    with patch.object(hub, "snapshot_download", return_value=str(model)) as fetch:
        Pipeline.from_pretrained("someone/digits", revision="v1", device="cpu")
    fetch.assert_called_once_with("someone/digits", revision="v1", allow_patterns=list(FILES))
    assert not any(name.endswith((".py", ".bin", ".pt", ".pkl")) for name in FILES)
    unknown = r"there is no folder .* and it is not the name of a model on the Hub"
    for name, offline, library, message in (
        ("someone/digits", True, hub, "there is no folder someone/digits, and it cannot be fetched from the"),
        ("someone/digits", False, None, r"huggingface_hub is not installed.*pip install .*hub"),
        ("../elsewhere/model", False, hub, unknown),
        ("a/b/c", False, hub, unknown),
        ("https://example.com/model", False, hub, unknown),
    ):
        with (
            patch("huggingface_hub.constants.HF_HUB_OFFLINE", offline),
            patch.dict(sys.modules, huggingface_hub=library),
            pytest.raises((RecipeError, BrokenLibraryError), match=message),
        ):
            Pipeline.from_pretrained(name, device="cpu")
    with pytest.raises(RecipeError, match="revision=v1 is for models on the Hub"):
        Pipeline.from_pretrained(model, revision="v1", device="cpu")


def test_push_to_hub_uploads_the_saved_files(pipeline: Pipeline) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    files: dict[str, bytes] = {}

    def upload(repo_id: str, folder_path: str) -> None:
        files.update({path.name: path.read_bytes() for path in Path(folder_path).iterdir()})

    with patch.object(hub.HfApi, "create_repo") as create, patch.object(hub.HfApi, "upload_folder", side_effect=upload):
        pipeline.push_to_hub("me/digits", private=True)
    create.assert_called_once_with("me/digits", private=True, exist_ok=True)
    assert "model.safetensors" in files
    assert json.loads(files["model.json"])["samples"] == 32
