"""Training on tar shards shows every sample once an epoch, on any ranks and workers, and continues after a move."""

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

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
from tests.helpers.tiny import TINY, assert_same, last_state

COUNT = 200
Example = tuple[int, int]
"""The index and the seed of an example."""


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


def words(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """Two epochs and a half of 160 examples in windows of three shards, 25 steps of 16."""
    data = ["data=webdataset", f"data.urls={shards}", "data.window=3", "modality.channels=1"]
    return [*TINY, *data, "training.samples=400", f"run_dir={run_dir}", *more]


def run(shards: Path, run_dir: Path, *more: str) -> None:
    train(configuration.load("train", words(shards, run_dir, *more)))


class Watched(TarShards):
    """Shards that note which examples are requested, and read none."""

    requested: list[tuple[Example, ...]]

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        self.requested.append(tuple(zip(indices, seeds or (), strict=True)))
        return Batch(torch.zeros(len(indices), 1, 8, 8))


def requested(shards: Path, ranks: int, workers: int, accumulation: int, start: int = 0) -> list[list[Example]]:
    """Return the examples of every step from `start` on, all ranks and parts together.

    With workers, parts of several steps are requested at once: all steps are one list.
    """
    more = (f"engine.workers={workers}", f"training.accumulation={accumulation}")
    config = configuration.load("train", words(shards, Path("r"), *more))
    settings = Builder().settings(TrainSettings, config, "")
    steps: list[list[Example]] = []
    for rank in range(ranks):
        data = Watched(Image(size=8, channels=1), str(shards), window=3)
        data.requested = []
        part = data.subset(range(160))  # held out as in training
        part.requested = []
        runtime = Runtime(torch.device("cpu"), EngineSettings(), Rank(rank, ranks, rank))
        count = sum(1 for _ in batches(part, start, settings, runtime))
        assert len(part.requested) == count * accumulation
        size = len(part.requested) if workers else accumulation
        steps = steps or [[] for _ in range(0, len(part.requested), size)]
        for step, examples in enumerate(steps):
            examples += itertools.chain.from_iterable(part.requested[step * size : (step + 1) * size])
    return steps


def test_batches_share_every_epoch_among_ranks_and_workers(shards: Path) -> None:
    whole = requested(shards, 1, 0, 1)
    assert len(whole) == 25
    flat = list(itertools.chain.from_iterable(whole))
    for epoch in (flat[:160], flat[160:320]):
        assert sorted(index for index, _ in epoch) == list(range(160))
    assert len({seed for _, seed in flat}) == 400
    for count, accumulation in ((2, 1), (4, 2), (8, 1), (16, 1)):
        assert requested(shards, count, 0, accumulation) == whole
    for count, workers in ((1, 3), (4, 2)):
        (together,) = requested(shards, count, workers, 1)
        assert sorted(together) == sorted(flat)
    # From the middle of an epoch, on any number of ranks.
    for count in (1, 4):
        assert requested(shards, count, 0, 1, start=112) == whole[7:]
    # An epoch stays in few shards at a time.
    data = TarShards(Image(size=8, channels=1), str(shards), window=3)
    lengths = data.subset(range(160)).groups.lengths
    shard = [number for number, length in enumerate(lengths) for _ in range(length)]
    places = [[n for n, (index, _) in enumerate(flat[:160]) if shard[index] == each] for each in range(len(lengths))]
    assert max(max(each) - min(each) for each in places) < sum(sorted(lengths)[-3:])


def test_train_continues_bit_exactly_wherever_the_shards_lie(shards: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    run(shards, whole)
    # The half lies within an epoch, and within a window of it.
    run(shards, halves, "every.checkpoint=16", "training.samples=208")
    moved = shutil.copytree(shards, tmp_path / "moved")
    run(moved, halves, "every.checkpoint=16", "engine.workers=2", "data.threads=1")
    assert_same(last_state(whole), last_state(halves))
    assert (whole / "metrics.jsonl").read_bytes() == (halves / "metrics.jsonl").read_bytes()


def test_train_refuses_other_and_broken_shards(shards: Path, photos: Path, tmp_path: Path) -> None:
    run(shards, tmp_path / "run", "training.samples=48")
    other = tmp_path / "other"
    pack(configuration.load("pack", [f"data.root={photos}", f"run_dir={other}", "shard_bytes=60000"]))
    with pytest.raises(RecipeError, match=r"the data of .* have changed; fingerprint"):
        run(other, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"data.window: 3 -> 4"):
        run(shards, tmp_path / "run", "data.window=4")
    broken = shutil.copytree(shards, tmp_path / "broken")
    (broken / "000003.tar").write_bytes((broken / "000003.tar").read_bytes()[:20_000])
    with pytest.raises(RecipeError, match=r"^data: .*000003.tar: it is truncated.*Restore the damaged"):
        run(broken, tmp_path / "new")
    assert not (tmp_path / "new" / "config.yaml").exists()


def assert_close(run_dir: Path, other: Path, samples: int) -> None:
    state, expected = last_state(run_dir), last_state(other)
    assert state.samples == expected.samples == samples
    for part, tensors in expected.tensors.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(state.tensors[part][key], tensor, rtol=1e-9, atol=1e-12)


def test_two_ranks_learn_what_one_process_learns(shards: Path, tmp_path: Path) -> None:
    """Twenty-one steps on two ranks, on shards without indices, and then from the middle of an epoch on one process."""
    bare, two, alone = (tmp_path / name for name in ("bare", "two", "alone"))
    bare.mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, bare)
    exact = ["engine.precision=float64", "network.dropout=0"]
    run(shards, alone, *exact, "training.samples=336")
    done = ranks(2, "recipes.train", *words(bare, two, *exact, "training.samples=336"))
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(list(bare.glob("*.index"))) == len(list(bare.glob("*.tar")))
    assert_close(two, alone, 336)
    for run_dir in (two, alone):
        run(shards, run_dir, *exact)
    assert_close(two, alone, 400)
