"""`multisagd analyze clean=…` measures the corruption of data, and a training can use what it measured."""

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


def analyzed(folder: Path, *words: str) -> dict:
    out = analyze(configuration.load("analyze", [*DIGITS, *words, f"run_dir={folder}"]))
    return json.loads((out / "analysis.json").read_text())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyses") / "clean"
    assert analyzed(folder)["corruption"] is None
    return folder


def test_analyze_measures_band_and_level_and_train_uses_them(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = analyzed(tmp_path / "damaged", *BAND, f"clean={clean}")["corruption"]
    spectrum = configuration.load("train", [*DIGITS, *BAND, "run_dir=unused"])["corruption"]["spectrum"]
    assert measured["deviation"] == pytest.approx(0.5, rel=0.05)
    assert spectrum["low"] - 1e-9 <= measured["radius"][0] <= measured["radius"][1] <= spectrum["high"] + 1e-9
    path = tmp_path / "damaged" / "corruption.safetensors"
    grid = DataStatistics.load(clean / "statistics.safetensors").grid
    assert Corruption.load(path, grid).deviation > 0.4
    assert f"corruption=measured corruption.path={path}" in capsys.readouterr().out
    # Data of one's own are corrupted already; these digits are not, and a corruption that is not there is refused.
    words = [*DIGITS, *SMALL, "corruption=measured", f"corruption.path={path}", "corruption.restored=mean"]
    with pytest.raises(RecipeError, match="less power in the band than this corruption"):
        train(configuration.load("train", [*words, f"run_dir={tmp_path / 'run'}"]))
    train(configuration.load("train", [*words, "corruption.added=true", f"run_dir={tmp_path / 'run'}"]))
    assert (tmp_path / "run" / "restoration.safetensors").exists()
    # An analysis that finds nothing removes what an earlier one left.
    assert analyzed(tmp_path / "damaged")["corruption"] is None
    assert not path.exists()


def test_analyze_measures_no_corruption_in_clean_data(
    clean: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = analyzed(tmp_path / "again", "seed=1", f"clean={clean / 'statistics.safetensors'}")
    assert report["corruption"] is None
    assert "the spectrum shows no corruption" in capsys.readouterr().out
    assert not (tmp_path / "again" / "corruption.safetensors").exists()


def test_analyze_refuses_clean_data_it_cannot_use(clean: Path, tmp_path: Path) -> None:
    for words, message in [
        (["clean=nowhere"], r"clean: cannot read .*nowhere"),
        (["clean=3"], "clean: expected a folder, fit or null"),
        (["modality.size=12", f"clean={clean}"], "clean: the clean data are on a grid of shape"),
    ]:
        with pytest.raises(RecipeError, match=message):
            analyzed(tmp_path / "analysis", *words)
