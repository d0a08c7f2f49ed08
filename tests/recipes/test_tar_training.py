"""Training on tar shards: every sample once an epoch, shared by ranks and workers, stopped and continued, moved."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from modalities.base import Batch
from modalities.image import Image
from modalities.tars import TarShards
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.order import batches
from recipes.pack import pack
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.runtime.distribution import Rank
from recipes.train import train
from tests.helpers.launching import ranks
from tests.helpers.tiny import TINY, assert_same, last_state, tiny_config, tiny_run

COUNT = 200


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first digits of scikit-learn's, as pictures of ten classes."""
    root, image, digits = tmp_path_factory.mktemp("digits"), Image(size=8, channels=1), load_digits()
    for number in range(COUNT):
        pixels = torch.from_numpy(digits.images[number] * 255 / 16).round().to(torch.uint8)
        image.save(pixels[None], root / "photos" / str(digits.target[number]) / f"{number:03}.png")
    return root / "photos"


@pytest.fixture(scope="module")
def shards(photos: Path) -> Path:
    out = photos.parent / "shards"
    pack(configuration.load("pack", [f"data.root={photos}", f"run_dir={out}", "shard_bytes=40000"]))
    assert len(list(out.glob("*.tar"))) > 8
    return out


def words(shards: Path, *more: str) -> list[str]:
    """Two epochs and a half of 160 examples in windows of three shards, 25 steps of 16."""
    return [
        *TINY, "data=webdataset", f"data.urls={shards}", "data.window=3", "modality.channels=1",
        "training.samples=400", *more,
    ]  # fmt: skip


class Watched(TarShards):
    """Shards that note which examples are asked for, and read none."""

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        self.asked.append(tuple(zip(indices, seeds or (), strict=True)))
        return Batch(torch.zeros(len(indices), 1, 8, 8))

    asked: list[Any]


def asked(shards: Path, ranks: int, workers: int, accumulation: int, start: int = 0) -> list[list[tuple[int, int]]]:
    """Return the examples, each with its seed, of every step from `start` on, all ranks and parts together."""
    overrides = words(shards, f"engine.workers={workers}", f"training.accumulation={accumulation}")
    settings = Builder().settings(TrainSettings, configuration.load("train", [*overrides, "run_dir=r"]), "")
    steps: list[list[tuple[int, int]]] = []
    for rank in range(ranks):
        data = Watched(Image(size=8, channels=1), str(shards), window=3)
        data.asked = []
        # Held out as in training.
        part = data.subset(range(160))
        part.asked = []
        runtime = Runtime(torch.device("cpu"), EngineSettings(), Rank(rank, ranks, rank))
        count = sum(1 for _ in batches(part, start, settings, runtime))
        assert len(part.asked) == count * accumulation
        if workers == 0:  # with workers, parts of several steps are asked for at once
            for step in range(count):
                mine = itertools.chain.from_iterable(part.asked[step * accumulation : (step + 1) * accumulation])
                if rank == 0:
                    steps.append([])
                steps[step] += mine
        else:
            steps = steps or [[]]
            steps[0] += itertools.chain.from_iterable(part.asked)
    return steps


def test_ranks_and_workers_share_every_epoch_without_overlap(shards: Path) -> None:
    whole = asked(shards, 1, 0, 1)
    assert len(whole) == 25
    flat = list(itertools.chain.from_iterable(whole))
    for epoch in (flat[:160], flat[160:320]):
        assert sorted(index for index, _ in epoch) == list(range(160))
    assert len({seed for _, seed in flat}) == 400
    for count, accumulation in ((2, 1), (4, 2), (8, 1), (16, 1)):
        assert asked(shards, count, 0, accumulation) == whole
    for count, workers in ((1, 3), (4, 2)):
        (all_of,) = asked(shards, count, workers, 1)
        assert sorted(all_of) == sorted(flat)
    # From the middle of an epoch, on any number of ranks.
    for count in (1, 4):
        assert asked(shards, count, 0, 1, start=112) == whole[7:]


def test_an_epoch_stays_in_few_shards_at_a_time(shards: Path) -> None:
    data = TarShards(Image(size=8, channels=1), str(shards), window=3)
    lengths = data.subset(range(160)).groups.lengths
    shard = [number for number, length in enumerate(lengths) for _ in range(length)]
    flat = [index for step in asked(shards, 1, 0, 1)[:10] for index, _ in step]
    places = [[n for n, index in enumerate(flat) if shard[index] == each] for each in range(len(lengths))]
    assert max(max(each) - min(each) for each in places) < sum(sorted(lengths)[-3:])


def test_halves_are_the_whole_bit_for_bit_wherever_the_shards_lie(shards: Path, tmp_path: Path) -> None:
    train(configuration.load("train", [*words(shards), f"run_dir={tmp_path / 'whole'}"]))
    run = [*words(shards), f"run_dir={tmp_path / 'halves'}", "every.checkpoint=16"]
    # The half lies within an epoch, and within a window of it.
    train(configuration.load("train", [*run, "training.samples=208"]))
    moved = shutil.copytree(shards, tmp_path / "moved")
    train(configuration.load("train", [*run, f"data.urls={moved}", "engine.workers=2", "data.threads=1"]))
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "halves"))
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]


def test_other_shards_do_not_continue_a_run(shards: Path, photos: Path, tmp_path: Path) -> None:
    run = [*words(shards), f"run_dir={tmp_path / 'run'}"]
    train(configuration.load("train", [*run, "training.samples=48"]))
    other = tmp_path / "other"
    pack(configuration.load("pack", [f"data.root={photos}", f"run_dir={other}", "shard_bytes=60000"]))
    with pytest.raises(RecipeError, match=r"the data of .* have changed; fingerprint"):
        train(configuration.load("train", [*run, f"data.urls={other}"]))
    with pytest.raises(RecipeError, match=r"data.window: 3 -> 4"):
        train(configuration.load("train", [*run, "data.window=4"]))


def test_broken_shards_end_a_run_before_it_begins(shards: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(shards, tmp_path / "shards")
    (copy / "000003.tar").write_bytes((copy / "000003.tar").read_bytes()[:20_000])
    with pytest.raises(RecipeError, match=r"^data: .*000003.tar: it is truncated.*Restore the damaged"):
        tiny_run(tmp_path / "run", *words(copy)[len(TINY) :])
    assert not (tmp_path / "run" / "config.yaml").exists()


def compare(run_dir: Path, other: Path) -> None:
    found, expected = last_state(run_dir), last_state(other)
    assert found.samples == expected.samples
    for part, tensors in expected.tensors.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(found.tensors[part][key], tensor, rtol=1e-9, atol=1e-12)


def test_two_ranks_learn_what_one_process_learns(shards: Path, tmp_path: Path) -> None:
    """Twenty-one steps on two ranks, on shards without indices, and then from the middle of an epoch on one process."""
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, bare)
    exact = ["engine.precision=float64", "network.dropout=0", "training.samples=336"]
    train(tiny_config(tmp_path / "alone", *words(shards, *exact)[len(TINY) :]))
    done = ranks(2, "recipes.train", *words(bare, *exact), f"run_dir={tmp_path / 'two'}")
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(list(bare.glob("*.index"))) == len(list(bare.glob("*.tar")))
    compare(tmp_path / "two", tmp_path / "alone")
    for name in ("two", "alone"):
        train(tiny_config(tmp_path / name, *words(shards, *exact[:2])[len(TINY) :]))
    assert last_state(tmp_path / "two").samples == 400
    compare(tmp_path / "two", tmp_path / "alone")
