"""Trainings on Parquet files and folders of `datasets`: local, from a web server, and continued."""

import io
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import soundfile

from modalities.image import Image
from modalities.parquet import ParquetFiles
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.dataset import drawn
from recipes.data.parts import hold_out, validated
from recipes.evaluation.sets import real_data
from recipes.runs.run import Run
from recipes.runs.settings import TrainSettings
from recipes.train import train
from tests.helpers.tables import pictures, write_parquet, write_saved
from tests.helpers.tiny import TINY, assert_same, last_state
from tests.helpers.web_server import serving

COUNT = 40
SOUNDS = ["modality=audio_waveform", "modality.seconds=0.03", "modality.rate=8000", "spectrum=white"]


def words(run_dir: Path, *more: str) -> list[str]:
    replaced = {word.partition("=")[0] for word in more}
    tiny = [word for word in TINY if word.partition("=")[0] not in replaced]
    return [*tiny, "validation.holdout=8", "validation.items=4", f"run_dir={run_dir}", *more]


def train_on(run_dir: Path, *more: str) -> None:
    train(configuration.load("train", words(run_dir, *more)))


def sounds(count: int) -> list[dict[str, Any]]:
    rows = []
    for number in range(count):
        content = io.BytesIO()
        noise = np.random.default_rng(number).uniform(-0.5, 0.5, 800)
        soundfile.write(content, noise, 8000, format="WAV")
        rows.append({"bytes": content.getvalue(), "path": f"{number}.wav"})
    return rows


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_parquet(pictures(COUNT), tmp_path_factory.mktemp("data") / "tables", each=20, group=4)


def test_drawn_and_validated_read_few_row_groups_one_after_the_other(tables: Path) -> None:
    data = ParquetFiles(Image(8), str(tables), window=2)
    indices = drawn(data, 1, 8)
    assert len({index // 4 for index in indices}) == 2
    config = configuration.load("train", words(Path("r"), "data=parquet", f"data.urls={tables}"))
    settings = Builder().settings(TrainSettings, config, "")
    held_out = hold_out(data, settings, Builder()).held_out
    assert held_out is not None
    chosen = validated(held_out, settings)
    names = [chosen.name(index) for index in range(8)]  # type: ignore[attr-defined]
    assert names[:4] == sorted(names[:4], key=lambda name: (name.partition(":")[0], int(name.rpartition(" ")[2])))
    assert len(set(names)) == 8


def test_hold_out_uses_the_splits_and_groups_of_a_table(tmp_path: Path) -> None:
    speakers = [f"speaker {number // 5}" for number in range(COUNT)]
    splits = [("train", "train", "validation", "test")[number % 4] for number in range(COUNT)]
    for name, more in (("groups", {"group": speakers}), ("splits", {"split": splits})):
        write_parquet(pictures(COUNT, **more), tmp_path / name)
    config = configuration.load("train", words(Path("r"), "data=parquet", "data.urls=x", "validation.group=manifest"))
    settings = Builder().settings(TrainSettings, config, "")
    parts = hold_out(ParquetFiles(Image(8), str(tmp_path / "groups")), settings, Builder())
    assert parts.held_out is not None
    assert not set(parts.held_out.listed_groups or ()) & set(parts.training.listed_groups or ())  # type: ignore[attr-defined]
    config = configuration.load("train", words(Path("r"), "data=parquet", "data.urls=x"))
    settings = Builder().settings(TrainSettings, config, "")
    parts = hold_out(ParquetFiles(Image(8), str(tmp_path / "splits")), settings, Builder())
    assert [len(each) for each in (parts.training, parts.held_out, parts.test) if each is not None] == [20, 10, 10]


@pytest.mark.slow
def test_train_continues_bit_exactly_on_parquet_wherever_it_lies(tables: Path, tmp_path: Path) -> None:
    """Pictures from a disk, then from a web server, and sounds; the stop lies within a window of row groups."""
    more = ["data=parquet", "data.window=3"]
    train_on(tmp_path / "whole", *more, f"data.urls={tables}")
    with serving(tables) as address:
        urls = f"data.urls='{address}/{{000..001}}.parquet'"
        train_on(tmp_path / "served", *more, urls, "engine.workers=2")
        train_on(tmp_path / "halves", *more, urls, "every.checkpoint=16", "training.samples=48")
    train_on(tmp_path / "halves", *more, f"data.urls={tables}", "every.checkpoint=16", "data.threads=1")
    for name in ("served", "halves"):
        assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / name))
    assert Run(tmp_path / "whole").metadata["data"]["classes"] == ["dog", "cat", "10", "9"]
    write_parquet(pictures(COUNT, None, image=None, audio=sounds(COUNT)), tmp_path / "sounds", each=20, group=4)
    heard = [*SOUNDS, "data=parquet", f"data.urls={tmp_path / 'sounds'}", "modality.size=null"]
    heard = [word for word in heard if not word.startswith("modality.size")]
    for name, samples in (("heard", 64), ("parts", 32), ("parts", 64)):
        train_sounds(tmp_path / name, *heard, f"training.samples={samples}")
    assert_same(last_state(tmp_path / "heard"), last_state(tmp_path / "parts"))


def train_sounds(run_dir: Path, *more: str) -> None:
    train(configuration.load("train", [word for word in words(run_dir, *more) if not word.startswith("modality.size")]))


@pytest.mark.slow
def test_train_on_a_saved_dataset_continues_and_names_no_hub_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = write_saved(pictures(COUNT), tmp_path / "saved", "train")
    more = ["data=hub", f"data.name={saved}"]
    train_on(tmp_path / "whole", *more)
    train_on(tmp_path / "halves", *more, "training.samples=48")
    train_on(tmp_path / "halves", *more)
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "halves"))
    training, held_out = real_data(tmp_path / "whole", Builder())
    assert (len(training), len(held_out)) == (32, 8)
    with pytest.raises(RecipeError, match="have changed; examples: 40 -> 30"):
        train_on(tmp_path / "whole", "data=hub", f"data.name={write_saved(pictures(30), tmp_path / 'other')}")
    # A run that names a hub is believed only if the command line repeats it.
    config = configuration.write
    content = configuration.load("train", words(tmp_path / "whole", "data=hub", "data.name=someone/photos"))
    config(content, tmp_path / "whole" / "config.yaml")
    refuse = Mock(side_effect=OSError("no network"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(
        RecipeError, match=r"contacts no hub: if you trust it, repeat it in the command, such as data.name=some"
    ):
        real_data(tmp_path / "whole", Builder())
    refuse.assert_not_called()
