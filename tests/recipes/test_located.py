"""Data that lie elsewhere than where a run was trained, or that were named from another folder."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage

from modalities.files import Folder
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluate import evaluate
from recipes.evaluation.sets import real_data
from recipes.runs.model import located, starting_folders
from recipes.sample import sample
from tests.helpers.tiny import tiny_run

WORDS = ["steps=1", "count=4", "engine.threads=1", "engine.device=cpu"]
PICTURES = {"_target_": "modalities.files.Folder", "root": "photos"}


def pictures(folder: Path, count: int = 60, classes: tuple[str, ...] = ("a", "b")) -> None:
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `work` of a training on photos that lie in it, named as a path relative to it."""
    work = tmp_path_factory.mktemp("located") / "work"
    pictures(work / "photos")
    here = Path.cwd()
    os.chdir(work)
    try:
        tiny_run(Path("run"), "data=folder", "data.root=photos", "training.samples=16", "validation.holdout=10")
    finally:
        os.chdir(here)
    return work


def compared(run_dir: Path | str, *words: str) -> dict:
    words = ("samples=8", "metrics=[axes]", "splits=1", "bootstrap=0", *WORDS, *words)
    return evaluate(configuration.load("evaluate", [f"run_dir={run_dir}", *words]))


def test_a_relative_root_is_found_from_any_folder(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures(tmp_path / "photos", 20)  # of somebody else, by chance
    train, _ = real_data(trained / "run", Builder())
    assert isinstance(train, Folder)
    assert train.root == trained / "photos"
    # Nothing of where it was trained is in the configuration, which goes into exports.
    assert read_configuration(trained / "run" / "config.yaml")["data"]["root"] == "photos"


@pytest.mark.parametrize("inside", [True, False])
def test_a_run_that_moved_with_its_data_finds_them(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: bool
) -> None:
    shutil.copytree(trained, tmp_path / "moved")
    facts = json.loads((tmp_path / "moved" / "run" / "run.json").read_text())
    facts["starts"][-1] |= {"folder": "/gone/work", "run_dir": "/gone/work/run"}
    (tmp_path / "moved" / "run" / "run.json").write_text(json.dumps(facts))
    monkeypatch.chdir(tmp_path / "moved" if inside else tmp_path)
    train, _ = real_data(Path("run" if inside else "moved/run"), Builder())
    assert len(train) == 50


def test_data_that_moved_are_named_to_what_judges(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text((trained / "run" / "run.json").read_text().replace("work", "gone"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"photos is not a folder.* add data.root=… to the command"):
        compared("run")
    shutil.copytree(trained / "photos", tmp_path / "new")
    assert compared("run", "data.root=new")["counts"]["reference"] == 4
    assert sample(configuration.load("sample", ["run_dir=run", *WORDS, "data.root=new"])).is_dir()
    with pytest.raises(RecipeError, match=r"unknown key data.rot: .*did you mean 'root'"):
        compared("run", "data.rot=new")


@pytest.mark.parametrize("command", ["sample", "evaluate", "report"])
def test_every_command_that_judges_takes_any_key_of_the_data(command: str) -> None:
    config = configuration.load(command, ["run_dir=run", "data.root=/new place", "data.urls=[a.tar,b.tar]"])
    assert config["data"] == {"root": "/new place", "urls": ["a.tar", "b.tar"]}
    assert configuration.load(command, ["run_dir=run"])["data"] == {}
    with pytest.raises(RecipeError, match="unknown key 'foo'"):
        configuration.load(command, ["data.root=x", "run_dir=run", "foo=1"])


def test_other_data_than_those_of_the_training_are_mentioned_or_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures(tmp_path / "more", 70)
    real_data(trained / "run", Builder(), {"root": str(tmp_path / "more")})
    assert "60 examples then, 70 now" in capsys.readouterr().err
    pictures(tmp_path / "others", 60, ("a", "c"))
    with pytest.raises(RecipeError, match="other classes than the run's training data"):
        real_data(trained / "run", Builder(), {"root": str(tmp_path / "others")})


def test_patterns_hub_names_and_addresses_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "home" / "shards").mkdir(parents=True)
    facts = {"starts": [{"folder": str(tmp_path / "home"), "run_dir": str(tmp_path / "home" / "run")}]}
    urls = ["shards/*.tar", "shards/{000..009}.tar", "s3://bucket/a.tar", "gone/*.tar", "file::x"]
    config = {
        "data": {"_target_": "modalities.tars.TarShards", "urls": urls},
        "modality": {"autoencoder": {"name": "somebody/vae"}, "statistics": None},
    }
    found = located(config, facts, tmp_path / "home" / "run", {}, Builder())
    home = str(tmp_path / "home")
    assert found["data"]["urls"] == [f"{home}/shards/*.tar", f"{home}/shards/{{000..009}}.tar", *urls[2:]]
    assert found["modality"] == config["modality"]
    assert config["data"]["urls"] == urls


def test_moved_latents_bring_their_scale(tmp_path: Path) -> None:
    config = {"data": {"_target_": "modalities.shards.LatentShards", "root": "old"}, "modality": {"statistics": "old"}}
    found = located(config, {}, tmp_path, {"root": "new"}, Builder())
    assert (found["data"]["root"], found["modality"]["statistics"]) == ("new", "new")


@pytest.mark.parametrize("starts", [None, [], [None], [{}], [{"folder": 3, "run_dir": "a"}], [{"command": []}]])
def test_records_without_a_starting_folder_are_read(tmp_path: Path, starts: object) -> None:
    assert starting_folders({"starts": starts}, tmp_path) == []
