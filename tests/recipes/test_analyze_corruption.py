"""What `multisagd analyze clean=…` says about the damage of data, and that a training can take it from there."""

import json
from pathlib import Path

import pytest

from multisagd import Corruption, DataStatistics
from recipes.analyze import analyze
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.train import train

DIGITS = ["experiment=image_digits", "training.statistics=1500", "engine.threads=1", "engine.device=cpu"]
BAND = ["corruption=band", "corruption.level=0.5"]
SMALL = [
    "network.width=8", "network.multipliers=[1]", "network.blocks=1", "training.batch=8", "training.samples=16",
    "training.statistics=200", "validation.items=8", "validation.levels=2", "sampling.count=2", "sampling.steps=2",
    "sampler=ddim",
]  # fmt: skip


def look(folder: Path, *words: str) -> dict:
    out = analyze(configuration.load("analyze", [*DIGITS, *words, f"run_dir={folder}"]))
    return json.loads((out / "analysis.json").read_text())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("looks") / "clean"
    assert look(folder)["corruption"] is None
    return folder


def test_band_and_level_are_found_and_trained_with(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = look(tmp_path / "damaged", *BAND, f"clean={clean}")["corruption"]
    config = configuration.load("train", [*DIGITS, *BAND, "run_dir=unused"])["corruption"]
    assert told["deviation"] == pytest.approx(0.5, rel=0.05)
    low, high = config["spectrum"]["low"], config["spectrum"]["high"]
    assert low - 1e-9 <= told["radius"][0] <= told["radius"][1] <= high + 1e-9
    path = tmp_path / "damaged" / "corruption.safetensors"
    assert f"corruption=measured corruption.path={path}" in capsys.readouterr().out
    # Data of one's own are damaged already; these digits are not, and a damage that is not there is refused.
    measured = ["corruption=measured", f"corruption.path={path}", "corruption.restored=mean"]
    with pytest.raises(RecipeError, match="less power in the band than this corruption"):
        train(configuration.load("train", [*DIGITS, *SMALL, *measured, f"run_dir={tmp_path / 'run'}"]))
    measured.append("corruption.added=true")
    train(configuration.load("train", [*DIGITS, *SMALL, *measured, f"run_dir={tmp_path / 'run'}"]))
    assert (tmp_path / "run" / "restoration.safetensors").exists()


def test_clean_data_show_nothing(clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = look(tmp_path / "again", "seed=1", f"clean={clean / 'statistics.safetensors'}")
    assert told["corruption"] is None
    assert "the spectrum shows no corruption" in capsys.readouterr().out
    assert not (tmp_path / "again" / "corruption.safetensors").exists()


def test_an_analysis_that_finds_nothing_leaves_no_older_finding(clean: Path, tmp_path: Path) -> None:
    grid = DataStatistics.load(clean / "statistics.safetensors").grid
    look(tmp_path / "look", *BAND, f"clean={clean}")
    assert Corruption.load(tmp_path / "look" / "corruption.safetensors", grid).deviation > 0.4
    look(tmp_path / "look")
    assert not (tmp_path / "look" / "corruption.safetensors").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["clean=nowhere"], r"clean: cannot read .*nowhere"),
        (["clean=3"], "clean: expected a folder, fit or null"),
    ],
)
def test_what_is_no_clean_data_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        look(tmp_path / "look", *words)


def test_other_grids_are_refused(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="clean: the clean data are on a grid of shape"):
        look(tmp_path / "look", "modality.size=12", f"clean={clean}")
