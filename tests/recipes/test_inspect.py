"""`multisagd inspect` on tiny data, as files and numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from modalities.image import Image
from recipes.base.errors import RecipeError
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.config.groups import flatten
from recipes.inspect import inspect


def look(run_dir: Path, *words: str) -> Path:
    return inspect(configuration.load("inspect", [f"run_dir={run_dir}", "count=2", "engine.threads=1", *words]))


def test_inspect_a_folder_of_sounds_with_a_broken_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "sounds"
    root.mkdir()
    time = np.arange(4000) / 8000
    for number in range(6):
        soundfile.write(root / f"{number}.wav", 0.5 * np.sin(2 * np.pi * (200 + 50 * number) * time), 8000)
    (root / "broken.wav").write_bytes(b"RIFF")
    out = look(
        tmp_path / "look", "modality=audio_mel", "modality.rate=8000", "modality.seconds=0.6", "data=folder",
        f"data.root={root}", "data.max_unreadable=0.2", "modality.representation.bands=20", "spectrum=pink",
    )  # fmt: skip
    for folder in ("originals", "decoded", "noise"):
        assert sorted(path.suffix for path in (out / folder).iterdir()) == [".png", ".png", ".wav", ".wav"]
        assert (out / f"{folder}.png").is_file()
    assert (out / "forward.png").is_file()
    assert (out / "spectrum.png").is_file()
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert [axis["unit"] for axis in report["axes"]] == ["mel", "s"]
    assert report["examples"] == 7
    assert report["unreadable"] == 1
    assert 0.1 < report["padding"] < 0.25
    assert 0 < report["round_trip_error"] < 0.5
    assert "broken.wav" in (out / "unreadable.json").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "1 files could not be read" in printed
    assert "are padding, excluded" in printed
    original, _ = soundfile.read(out / "originals" / "0.wav")
    assert len(original) == 4000  # its real length, not that of the grid


def test_inspect_exact_data_that_lie_in_memory(tmp_path: Path) -> None:
    out = look(tmp_path / "look", "modality.size=16", "spectrum=power_law", "spectrum.exponent=-1")
    report = json.loads((out / "inspect.json").read_text(encoding="utf-8"))
    assert report["round_trip_error"] < 1e-6
    assert report["padding"] == 0
    assert any("zero frequency" in note for note in report["notes"])
    assert len(report["classes"]) == 10


def test_inspect_leaves_what_others_wrote_alone_and_replaces_its_own(tmp_path: Path) -> None:
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals" / "0.png").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="is not empty and not what inspect left"):
        look(tmp_path)
    assert (tmp_path / "originals" / "0.png").read_text(encoding="utf-8") == "mine"
    out = look(tmp_path / "look", "modality.size=8")
    look(out, "count=1", "modality.size=8")
    assert [path.name for path in (out / "noise").iterdir()] == ["0.png"]


def test_a_picture_of_one_colour_has_no_spectrum_and_one_line_says_so(tmp_path: Path) -> None:
    Image(size=8).save(torch.full((3, 8, 8), 70, dtype=torch.uint8), tmp_path / "photos" / "only.png")
    with pytest.raises(RecipeError, match="it is constant"):
        look(tmp_path / "look", "experiment=image_folder", f"data.root={tmp_path / 'photos'}")
    assert not (tmp_path / "look").exists()


def test_inspect_checks_its_count(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="count must be a whole number"):
        look(tmp_path / "new", "count=0")


@pytest.mark.parametrize("command", ["inspect", "train", "sample"])
def test_help_explains_every_key_once_and_truly(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"usage: multisagd {command} run_dir=…" in text
    assert "as in `multisagd train`: " not in text  # a heading, and no part of what the first key is
    parts = text.split("keys, with their defaults:")[1].split("# as in `multisagd")
    shown: dict[str, Any] = {}
    for part in parts:
        keys = flatten(yaml.safe_load(part.partition("`:")[2] or part))
        assert not shown.keys() & keys.keys()
        shown |= keys
    composed = flatten(configuration.load(command, ["run_dir=r"])) | {"run_dir": "???"}
    assert {key: composed[key] for key in shown} == shown
    groups = {key.split(".")[0] for key in composed} - {key.split(".")[0] for key in shown}
    assert all(f"  {group}: " in text for group in groups)
