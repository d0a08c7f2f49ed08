"""`multisagd inspect` writes what a model is given as files and numbers, and overwrites nothing of others."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from modalities.image import Image
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.inspect import inspect


def run(run_dir: Path, *words: str) -> Path:
    return inspect(configuration.load("inspect", [f"run_dir={run_dir}", "count=2", "engine.threads=1", *words]))


def test_inspect_shows_sounds_and_reports_a_broken_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "sounds"
    root.mkdir()
    time = np.arange(4000) / 8000
    for number in range(6):
        soundfile.write(root / f"{number}.wav", 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * time), 8000)
    (root / "broken.wav").write_bytes(b"RIFF")
    out = run(
        tmp_path / "look", "modality=audio_mel", "modality.rate=8000", "modality.seconds=0.6", "data=folder",
        f"data.root={root}", "data.max_unreadable=0.2", "modality.representation.bands=20", "spectrum=pink",
    )  # fmt: skip
    for folder in ("originals", "decoded", "noise"):
        assert sorted(path.suffix for path in (out / folder).iterdir()) == [".png", ".png", ".wav", ".wav"]
    for name in ("originals", "decoded", "noise", "forward", "spectrum"):
        assert (out / f"{name}.png").is_file()
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert [axis["unit"] for axis in report["axes"]] == ["mel", "s"]
    assert (report["examples"], report["unreadable"]) == (7, 1)
    assert 0.1 < report["padding"] < 0.25
    assert 0 < report["round_trip_error"] < 0.5
    assert "broken.wav" in (out / "unreadable.json").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "1 files could not be read" in printed
    assert "are padding, excluded" in printed
    original, _ = soundfile.read(out / "originals" / "0.wav")
    assert len(original) == 4000  # its real length, not the length of the grid


def test_inspect_measures_exact_data_and_replaces_only_its_own_files(tmp_path: Path) -> None:
    out = run(tmp_path / "look", "modality.size=16", "spectrum=power_law", "spectrum.exponent=-1")
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert report["round_trip_error"] < 1e-6
    assert report["padding"] == 0
    assert any("zero frequency" in note for note in report["notes"])
    assert len(report["classes"]) == 10
    run(out, "count=1", "modality.size=8")
    assert [path.name for path in (out / "noise").iterdir()] == ["0.png"]
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "0.png").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not empty and not an output of inspect"):
        run(tmp_path)
    assert (tmp_path / "originals" / "0.png").read_text(encoding="utf-8") == "mine"


def test_inspect_refuses_constant_data_and_an_impossible_count(tmp_path: Path) -> None:
    Image(size=8).save(torch.full((3, 8, 8), 70, dtype=torch.uint8), tmp_path / "photos" / "only.png")
    with pytest.raises(RecipeError, match="the example is constant"):
        run(tmp_path / "look", "experiment=image_folder", f"data.root={tmp_path / 'photos'}")
    with pytest.raises(RecipeError, match="count must be a positive integer"):
        run(tmp_path / "look", "count=0")
    assert not (tmp_path / "look").exists()
