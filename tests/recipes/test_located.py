"""Runs find their data from any folder and after a move, and other data are named or refused."""

import json
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


def save_pictures(folder: Path, count: int = 60, classes: tuple[str, ...] = ("a", "b")) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `work` of a training on photos that lie in it, named as a path relative to it."""
    work = tmp_path_factory.mktemp("located") / "work"
    save_pictures(work / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        tiny_run(Path("run"), "data=folder", "data.root=photos", "training.samples=16", "validation.holdout=10")
    return work


def test_real_data_resolves_a_relative_root_wherever_the_run_lies(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "photos", 20)  # other pictures in a folder of the same name
    train, _ = real_data(trained / "run", Builder())
    assert isinstance(train, Folder)
    assert train.root == trained / "photos"
    # The configuration, which goes into exports, does not contain the folder of the training.
    assert read_configuration(trained / "run" / "config.yaml")["data"]["root"] == "photos"
    # Data that moved with the run are found again.
    moved = shutil.copytree(trained, tmp_path / "moved")
    facts = json.loads((moved / "run" / "run.json").read_text())
    facts["starts"][-1] |= {"folder": "/gone/work", "run_dir": "/gone/work/run"}
    (moved / "run" / "run.json").write_text(json.dumps(facts))
    for folder, run_dir in ((moved, "run"), (tmp_path, "moved/run")):
        monkeypatch.chdir(folder)
        train, _ = real_data(Path(run_dir), Builder())
        assert len(train) == 50


def test_commands_accept_the_new_place_of_data(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text((trained / "run" / "run.json").read_text().replace("work", "gone"))
    monkeypatch.chdir(tmp_path)
    quick = ["run_dir=run", "samples=8", "metrics=[axes]", "splits=1", "bootstrap=0", *WORDS]
    for words, message in (([], r"photos is not a folder.* add data.root=… to"), (["data.rot=new"], "mean 'root'")):
        with pytest.raises(RecipeError, match=message):
            evaluate(configuration.load("evaluate", [*quick, *words]))
    shutil.copytree(trained / "photos", tmp_path / "new")
    assert evaluate(configuration.load("evaluate", [*quick, "data.root=new"]))["counts"]["reference"] == 4
    assert sample(configuration.load("sample", ["run_dir=run", *WORDS, "data.root=new"])).is_dir()
    config = configuration.load("report", ["run_dir=run", "data.root=/new place", "data.urls=[a.tar,b.tar]"])
    assert config["data"] == {"root": "/new place", "urls": ["a.tar", "b.tar"]}


def test_real_data_notes_other_counts_and_refuses_other_classes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "more", 70)
    real_data(trained / "run", Builder(), {"root": str(tmp_path / "more")})
    assert "the run had 60 examples, these data have 70" in capsys.readouterr().err
    save_pictures(tmp_path / "others", 60, ("a", "c"))
    with pytest.raises(RecipeError, match="differ from those of the run's training data"):
        real_data(trained / "run", Builder(), {"root": str(tmp_path / "others")})


def test_located_leaves_patterns_hub_names_and_addresses_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "shards").mkdir(parents=True)
    facts = {"starts": [{"folder": str(home), "run_dir": str(home / "run")}]}
    urls = ["shards/*.tar", "shards/{000..009}.tar", "s3://bucket/a.tar", "gone/*.tar", "file::x"]
    config = {
        "data": {"_target_": "modalities.tars.TarShards", "urls": urls},
        "modality": {"autoencoder": {"name": "somebody/vae"}, "statistics": None},
    }
    result = located(config, facts, home / "run", {}, Builder())
    assert result["data"]["urls"] == [f"{home}/shards/*.tar", f"{home}/shards/{{000..009}}.tar", *urls[2:]]
    assert result["modality"] == config["modality"]
    assert config["data"]["urls"] == urls
    # Latents that moved bring their statistics.
    config = {"data": {"_target_": "modalities.shards.LatentShards", "root": "old"}, "modality": {"statistics": "old"}}
    result = located(config, {}, tmp_path, {"root": "new"}, Builder())
    assert (result["data"]["root"], result["modality"]["statistics"]) == ("new", "new")


def test_starting_folders_reads_records_without_one(tmp_path: Path) -> None:
    for starts in (None, [], [None], [{}], [{"folder": 3, "run_dir": "a"}], [{"command": []}]):
        assert starting_folders({"starts": starts}, tmp_path) == []
