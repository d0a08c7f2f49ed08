"""`multisagd inspect` and `multisagd compare` on tiny data, as files and numbers."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file
from tiny import tiny_run

from modalities.base import Dataset, Example, Modality
from modalities.image import Image
from recipes import cli
from recipes.compare import compare, padding_like, read_halves
from recipes.engine import config as configuration
from recipes.engine.errors import RecipeError
from recipes.engine.outline import flatten
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
    assert "are padding, left out" in printed
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
    with pytest.raises(RecipeError, match="it is the same everywhere"):
        look(tmp_path / "look", "experiment=image_folder", f"data.root={tmp_path / 'photos'}")
    assert not (tmp_path / "look").exists()


def test_inspect_checks_its_count(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="count is a whole number"):
        look(tmp_path / "new", "count=0")


@pytest.mark.parametrize("command", ["inspect", "compare", "fidelity", "train", "sample"])
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


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("compare") / "run"
    tiny_run(run_dir)
    return run_dir


class TestCompare:
    def result(self, run_dir: Path, *words: str) -> dict:
        config = configuration.load("compare", [f"run_dir={run_dir}", "reference=128", "engine.threads=1", *words])
        return compare(config)

    def real(self, run_dir: Path) -> torch.Tensor:
        from recipes.engine.build import Builder
        from recipes.fidelity import real_data

        train, _ = real_data(run_dir, Builder())
        return train.batch(range(400)).x0

    def test_real_data_compare_as_equal(self, run_dir: Path, tmp_path: Path) -> None:
        save_file({"x0": self.real(run_dir)}, tmp_path / "samples.safetensors")
        result = self.result(run_dir, f"samples={tmp_path}")
        for axis in result["axes"].values():
            assert axis["difference"]["ratio"] == pytest.approx(1, abs=0.1)
            assert all(band["ratio"] == pytest.approx(1, abs=0.3) for band in axis["bands"])
        assert result["counts"] == {"samples": 400, "data": 128}
        assert (tmp_path / "compare.png").is_file()
        assert json.loads((tmp_path / "compare.json").read_text())["axes"].keys() == {"height", "width"}

    def test_a_change_shows_along_its_axis_alone(self, run_dir: Path, tmp_path: Path) -> None:
        x0 = self.real(run_dir)
        blurred = (x0 + x0.roll(1, -1)) / 2
        save_file({"x0": blurred}, tmp_path / "samples.safetensors")
        axes = self.result(run_dir, f"samples={tmp_path / 'samples.safetensors'}")["axes"]
        assert axes["width"]["bands"][-1]["ratio"] < 0.4
        assert axes["width"]["difference"]["ratio"] < 0.8
        assert axes["height"]["bands"][-1]["ratio"] > axes["width"]["bands"][-1]["ratio"] + 0.2

    def test_samples_are_drawn_if_none_are_given(self, run_dir: Path) -> None:
        result = self.result(run_dir, "count=6", "steps=2")
        assert result["counts"]["samples"] == 6

    def test_wrong_samples_are_refused(self, run_dir: Path, tmp_path: Path) -> None:
        save_file({"x0": torch.zeros(3, 1, 5, 5)}, tmp_path / "samples.safetensors")
        with pytest.raises(RecipeError, match="samples of shape"):
            self.result(run_dir, f"samples={tmp_path}")
        save_file({"x0": torch.zeros(1, 1, 8, 8)}, tmp_path / "samples.safetensors")
        with pytest.raises(RecipeError, match="holds one sample"):
            self.result(run_dir, f"samples={tmp_path}")
        with pytest.raises(RecipeError, match="reference >= 4"):
            self.result(run_dir, "reference=2")


class Padded(Dataset):
    """Eight constant signals of which the second half is padding with noise."""

    classes = None

    def __init__(self) -> None:
        self.modality = cast(Modality, SimpleNamespace(encode=lambda media: media, decode=lambda x0: x0))

    def __len__(self) -> int:
        return 8

    def example(self, index: int, seed: int | None = None) -> Example:
        x0 = torch.full((1, 10), float(index))
        x0[:, 5:] = torch.randn(5, generator=torch.Generator().manual_seed(index))
        return Example(x0, mask=torch.arange(10)[None] < 5)

    def subset(self, indices: Sequence[int]) -> "Padded":
        raise NotImplementedError


def test_halves_are_of_different_examples_and_samples_are_padded_as_data_are() -> None:
    one, other = read_halves(Padded(), 11, 3)
    seen = [{int(value) for x0, _ in half for value in x0[:, 0, 0]} for half in (one, other)]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(8))
    assert [sum(len(x0) for x0, _ in half) for half in (one, other)] == [6, 5]
    mask = padding_like([*one, *other], 20)
    assert mask is not None
    assert mask.shape == (20, 1, 10)
    assert mask[:, 0].sum(1).tolist() == [5] * 20
    assert padding_like([(torch.zeros(2, 1, 4), None)], 3) is None
    every = torch.tensor([[True, False, True], [False, True, True]]).expand(1, 2, 3)
    found = padding_like([(torch.zeros(1, 2, 3), None), (torch.zeros(1, 2, 3), every)], 3)
    assert found is not None
    assert found.tolist() == [[[True] * 3] * 2, every[0].tolist(), [[True] * 3] * 2]
