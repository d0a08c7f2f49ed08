"""Fields of the tutorial: NaN become a mask or name their file, and samples have no seam where the map begins."""

import importlib
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modalities.files import Folder
from recipes.cli import main as cli
from tests.helpers.pages import blocks_of

PAGE = "docs/tutorials/fields.md"
BLOCKS = {block.file: block.text for block in blocks_of(PAGE) if block.file}


@pytest.fixture
def weather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the tutorial, in a folder with its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("weather.py").write_text(BLOCKS["weather.py"])
    yield importlib.import_module("weather")
    del sys.modules["weather"]


def make_fields(count: int) -> None:
    script = BLOCKS["make_fields.py"].replace("COUNT = 512", f"COUNT = {count}")
    assert f"COUNT = {count}\n" in script
    Path("make_fields.py").write_text(script)
    runpy.run_path("make_fields.py")


def test_nan_of_one_variable_is_a_mask_and_of_another_names_its_file(weather: Any) -> None:
    make_fields(3)
    land = torch.from_numpy(np.load("land.npy"))
    fields = np.load("fields/0001.npy")
    fields[0, 2, 3] = np.nan
    np.save("fields/0001.npy", fields)
    dataset = Folder(weather.Weather(), "fields", max_unreadable=1.0)
    batch = dataset.batch(range(3))
    assert list(dataset.unreadable.items()) == [("0001.npy", "ValueError: it contains NaN or infinity")]
    assert bool(batch.x0.isfinite().all())
    assert batch.mask is not None
    assert torch.equal(batch.mask[0], torch.stack([torch.ones_like(land), torch.ones_like(land), ~land]))


def test_decoded_fields_are_nan_on_land_and_others_are_refused(weather: Any) -> None:
    make_fields(1)
    modality = weather.Weather()
    x0 = torch.randn(modality.tensor_shape)
    media = modality.decode(x0)
    assert torch.equal(media.isnan()[weather.SEA], modality.on_land)
    assert not media[: weather.SEA].isnan().any()
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            modality.decode(x0.index_fill(0, torch.tensor([1]), wrong))
    with pytest.raises(ValueError, match=r"expected a tensor of shape \(3, \d+, \d+\), got"):
        modality.decode(x0[:, 1:])


@pytest.mark.slow
def test_samples_have_no_seam_at_the_date_line(weather: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The tutorial as written: within 10 % of the step inside, and clearly not with edges."""
    make_fields(512)
    for block in blocks_of(PAGE):
        for command in block.commands() if block.language == "bash" else ():
            words = command.split()[1:]
            words += ["engine.device=cpu", "engine.threads=1", "engine.workers=0"]
            words += ["every.samples=0", "report=false"] if words[0] == "train" else []
            assert cli.main(words) == 0, command
    capsys.readouterr()
    exec(BLOCKS["check_date_line.py"], {})
    ratios: dict[str, list[float]] = {"weather": [], "edges": []}
    for line in capsys.readouterr().out.splitlines():
        ratios[line.split(":")[0]].append(float(line.split(" line ")[1].split()[0]))
    assert len(ratios["weather"]) == len(ratios["edges"]) == 3
    assert all(0.9 < ratio < 1.1 for ratio in ratios["weather"]), ratios
    assert all(ratio > 1.5 for ratio in ratios["edges"]), ratios
