"""The order of examples follows from the seed and the number seen, and `multisagd pack` writes shards of the same ones.

Training shows each of them once an epoch, in this order, on any number of ranks.
"""

import errno
import itertools
import json
import os
import shutil
import signal
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from modalities import tar_packing
from modalities.base import Batch, Groups
from modalities.files import Folder
from modalities.image import Image
from modalities.tars import TarShards
from recipes.base.errors import Interrupted, RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.order import Order, batches, prefetch
from recipes.pack import main, pack
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.runtime.distribution import Rank
from recipes.train import train
from tests.helpers.launching import ranks
from tests.helpers.tiny import TINY, assert_close, assert_same, last_state


def test_order_of_earlier_runs_is_kept() -> None:
    assert Order(10, seed=3).indices(0, 30) == [
        5, 0, 6, 2, 9, 7, 1, 3, 4, 8, 3, 5, 6, 2, 0, 1, 7, 9, 8, 4, 2, 8, 9, 5, 1, 6, 7, 4, 0, 3,
    ]  # fmt: skip
    assert Order(7, seed=1).indices(5, 12) == [0, 6, 0, 4, 5, 2, 3, 6, 1, 5, 1, 0]
    assert Order(100_000, seed=5).indices(99_998, 5) == [70227, 179, 67596, 60039, 44625]
    assert Order(10, 3, Groups((10,), 4)).indices(0, 30) == Order(10, 3).indices(0, 30)


LENGTHS = st.lists(st.integers(0, 6), min_size=1, max_size=9).filter(any)


@given(LENGTHS, st.integers(1, 5), st.integers(0, 2**31))
def test_order_shows_groups_within_a_window(lengths: list[int], window: int, seed: int) -> None:
    total = sum(lengths)
    order = Order(total, seed, Groups(lengths, window))
    group = [number for number, length in enumerate(lengths) for _ in range(length)]
    for epoch in range(3):
        shown = order.indices(epoch * total, total)
        assert sorted(shown) == list(range(total))
        places = {each: [n for n, item in enumerate(shown) if group[item] == each] for each in set(group)}
        # The last example of a group is shown before any group beyond its window begins.
        for mine in places.values():
            assert sum(other[0] <= mine[-1] and other[-1] >= mine[0] for other in places.values()) <= window


@given(LENGTHS, st.none() | st.integers(1, 5), st.integers(0, 40), st.integers(1, 30))
def test_order_is_a_function_of_the_count(lengths: list[int], window: int | None, start: int, count: int) -> None:
    groups = None if window is None else Groups(lengths, window)
    all_indices = Order(sum(lengths), 1, groups).indices(0, start + count)
    assert Order(sum(lengths), 1, groups).indices(start, count) == all_indices[start:]


def test_order_varies_groups_and_windows_and_mixes_within_a_window() -> None:
    groups = Groups([10] * 20, 3)
    epochs = [Order(200, 0, groups).indices(200 * epoch, 200) for epoch in range(3)]
    epochs.append(Order(200, 1, groups).indices(0, 200))
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(item // 10 for item in epoch[:30]) for epoch in epochs}) == 4
    assert all(len({item // 10 for item in epoch[:12]}) == 3 for epoch in epochs)
    with pytest.raises(ValueError, match="groups must contain 10 items in total, got 9"):
        Order(10, 0, Groups([4, 5], 2))


def test_prefetch_keeps_the_order() -> None:
    def fetch(key: int) -> int:
        time.sleep(0.001 * (key % 3))
        return key * key

    for workers in (0, 1, 3, 50):
        assert list(prefetch(fetch, range(20), workers)) == [key * key for key in range(20)], workers


def test_prefetch_is_bounded_stops_when_left_and_passes_errors_on() -> None:
    fetched, lock = [], threading.Lock()

    def fetch(key: int) -> int:
        with lock:
            fetched.append(key)
        if key == 3:
            raise OSError("broken file")
        return key

    loader = prefetch(fetch, range(1000), 2)
    assert [next(loader), next(loader)] == [0, 1]
    time.sleep(0.05)
    loader.close()  # type: ignore[attr-defined]
    assert len(fetched) <= 6
    loader = prefetch(fetch, range(10), 2)
    assert [next(loader) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="broken file"):
        next(loader)


COUNT = 30
IMAGE = Image(size=8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rows = []
    for number in range(COUNT):
        file = f"{('cat', 'dog', '2', '10')[number % 4]}/{number:02}.PNG"
        (tmp_path / "photos" / file).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "photos" / file)
        rows.append(json.dumps({"file": file, "text": f"“number” {number}"}))
    (tmp_path / "photos" / "list.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path / "photos"


def run(photos: Path, out: Path, *words: str) -> Path:
    pack(configuration.load("pack", [f"data.root={photos}", f"run_dir={out}", "shard_bytes=12000", *words]))
    return out


def tars_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.glob("*.tar")}


def at_header(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], object]) -> None:
    """Do something while the header of the given number is written."""
    real, numbers = tar_packing._header, itertools.count(1)

    def header(name: str, size: int) -> bytes:
        if next(numbers) == count:
            act()
        return real(name, size)

    monkeypatch.setattr(tar_packing, "_header", header)


def test_pack_writes_the_examples_of_the_folder(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(photos, tmp_path / "out", "data.manifest=list.jsonl", "data.labels=folder")
    shards = sorted(tars_of(out))
    assert shards == [f"{number:06}.tar" for number in range(len(shards))]
    assert len(shards) > 3
    assert all(len(data) <= 12_000 + 10_240 for data in tars_of(out).values())
    folder, data = Folder(IMAGE, photos, "folder", manifest="list.jsonl"), TarShards(IMAGE, str(out))
    assert data.classes == folder.classes == ("2", "10", "cat", "dog")
    facts: list[dict[str, Any]] = []
    for shard in shards:
        with tarfile.open(out / shard) as archive:
            names = archive.getnames()
            assert [name.split(".")[1] for name in names] == ["png", "json"] * (len(names) // 2)
            facts += [json.load(archive.extractfile(name)) for name in names[1::2]]  # type: ignore[arg-type]
            assert {(each.mtime, each.uid, each.gid, each.mode) for each in archive} == {(0, 0, 0, 0o644)}
    order = [folder.files.index(each["file"]) for each in facts]
    assert sorted(order) == list(range(COUNT))
    assert order != sorted(order)
    whole, expected = data.batch(range(COUNT)), folder.batch(order)
    assert torch.equal(whole.x0, expected.x0)
    assert whole.labels is not None
    assert whole.labels.equal(expected.labels)  # type: ignore[arg-type]
    assert whole.texts == expected.texts
    assert f"data=webdataset data.urls={out}" in " ".join(capsys.readouterr().out.split())


def test_pack_keeps_the_order_without_shuffling_and_leaves_out_classes(photos: Path, tmp_path: Path) -> None:
    out = run(photos, tmp_path / "out", "shuffle=false", "data.labels=none", "shard_bytes=1000000000")
    assert list(tars_of(out)) == ["000000.tar"]
    data = TarShards(IMAGE, str(out))
    assert data.classes is None
    assert data.caption(0) is None
    assert torch.equal(data.batch(range(COUNT)).x0, Folder(IMAGE, photos, "none").batch(range(COUNT)).x0)


def test_pack_bytes_follow_from_the_files_and_the_seed(photos: Path, tmp_path: Path) -> None:
    first = run(photos, tmp_path / "first")
    copy = shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile)
    assert tars_of(run(copy, tmp_path / "second")) == tars_of(first)
    assert tars_of(run(photos, tmp_path / "third", "seed=1")) != tars_of(first)


def test_pack_finishes_what_a_signal_stopped(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, whole = tmp_path / "out", tars_of(run(photos, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        at_header(patched, 25, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"[1-9] shards are in .*Run the same command to continue"):
            run(photos, out)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 0 < len(finished) < len(whole)
    assert tars_of(out).items() <= whole.items()
    # A shard that was cut off meanwhile is repaired too; the others are not written again.
    (out / "000000.tar").write_bytes(b"half")
    run(photos, out)
    assert tars_of(out) == whole
    for name, written in finished.items():
        assert name == "000000.tar" or (out / name).stat().st_mtime_ns == written
    assert {path.suffix for path in out.iterdir() if path.suffix} == {".tar", ".index", ".json"}


def test_pack_names_a_folder_that_becomes_unwritable(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tars_of(run(photos, tmp_path / "whole"))
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    for act, message in ((lambda: shutil.rmtree(out), "has vanished while"), (full, "cannot write in .*No space")):
        with monkeypatch.context() as patched:
            at_header(patched, 30, act)
            with pytest.raises(RecipeError, match=message):
                run(photos, out)
    # No half shard is under the name of a whole one, and what a killed process left is no obstacle.
    assert 0 < len(tars_of(out)) < len(whole)
    assert tars_of(out).items() <= whole.items()
    (out / f"{len(tars_of(out)):06}.tar.partial").write_bytes(b"half")
    assert tars_of(run(photos, out)) == whole


def test_pack_refuses_other_files_and_settings(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(photos, tmp_path / "out")
    before = tars_of(out)
    for words, message in (
        (["seed=1"], "these differ: seed: 0 -> 1"),
        (["data.labels=none"], r"these differ: .*fingerprint"),
        (["shard_bytes=0"], "shard_bytes must be at least 1"),
    ):
        with pytest.raises(RecipeError, match=message):
            run(photos, out, *words)
    with pytest.raises(RecipeError, match=r"data: Digits is not a folder of files: use data=folder"):
        pack(configuration.load("pack", ["data=digits", f"run_dir={tmp_path / 'none'}"]))
    assert tars_of(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match=r"full is not empty and does not contain shards"):
        run(photos, tmp_path / "full")
    example = tar_packing.Packed.of("0", ".png", photos / "cat" / "00.PNG", 7, {})
    with pytest.raises(ValueError, match=r"00.PNG has changed since this command started"):
        tar_packing.write_tar(tmp_path / "a.tar", [example])
    (photos / "cat" / "00.PNG").write_bytes(b"other")
    assert main([f"data.root={photos}", f"run_dir={out}", "shard_bytes=12000"]) == 2
    assert "contains shards made from other files or settings; these differ: sizes" in capsys.readouterr().err


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first digits of scikit-learn's, as pictures of ten classes."""
    folder, image, known = tmp_path_factory.mktemp("digits") / "photos", Image(size=8, channels=1), load_digits()
    for number in range(200):
        pixels = torch.from_numpy(known.images[number] * 255 / 16).round().to(torch.uint8)
        image.save(pixels[None], folder / str(known.target[number]) / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def shards(digits: Path) -> Path:
    return run(digits, digits.parent / "shards", "shard_bytes=40000")


def train_words(shards: Path, run_dir: Path, *more: str) -> list[str]:
    """Two epochs and a half of 160 examples in windows of three shards, 25 steps of 16."""
    data = ["data=webdataset", f"data.urls={shards}", "data.window=3", "modality.channels=1"]
    return [*TINY, *data, "training.samples=400", f"run_dir={run_dir}", *more]


def train_on(shards: Path, run_dir: Path, *more: str) -> None:
    train(configuration.load("train", train_words(shards, run_dir, *more)))


def requested(shards: Path, ranks: int, workers: int, accumulation: int, start: int = 0) -> list[list[tuple[int, int]]]:
    """Return the index and the seed of each example of every step from `start` on, all ranks and parts together.

    With workers, parts of several steps are requested at once: all steps are one list.
    """
    more = (f"engine.workers={workers}", f"training.accumulation={accumulation}")
    config = configuration.load("train", train_words(shards, Path("r"), *more))
    settings = Builder().settings(TrainSettings, config, "")
    data = TarShards(Image(size=8, channels=1), str(shards), window=3).subset(range(160))  # held out as in training
    steps: list[list[tuple[int, int]]] = []
    for rank in range(ranks):
        runtime = Runtime(torch.device("cpu"), EngineSettings(), Rank(rank, ranks, rank))
        with patch.object(TarShards, "batch", return_value=Batch(torch.zeros(1, 1, 8, 8))) as batch:
            count = sum(1 for _ in batches(data, start, settings, runtime))
        parts = [list(zip(*call.args, strict=True)) for call in batch.call_args_list]
        assert len(parts) == count * accumulation
        size = len(parts) if workers else accumulation
        steps = steps or [[] for _ in range(0, len(parts), size)]
        for step, examples in enumerate(steps):
            examples += itertools.chain.from_iterable(parts[step * size : (step + 1) * size])
    return steps


def test_batches_share_every_epoch_among_ranks_and_workers(shards: Path) -> None:
    whole = requested(shards, 1, 0, 1)
    assert len(whole) == 25
    flat = list(itertools.chain.from_iterable(whole))
    for epoch in (flat[:160], flat[160:320]):
        assert sorted(index for index, _ in epoch) == list(range(160))
    assert len({seed for _, seed in flat}) == 400
    for count, accumulation in ((2, 1), (4, 2), (16, 1)):
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
    train_on(shards, whole)
    # The half lies within an epoch, and within a window of it.
    train_on(shards, halves, "every.checkpoint=16", "training.samples=208")
    moved = shutil.copytree(shards, tmp_path / "moved")
    train_on(moved, halves, "every.checkpoint=16", "engine.workers=2", "data.threads=1")
    assert_same(last_state(whole), last_state(halves))
    assert (whole / "metrics.jsonl").read_bytes() == (halves / "metrics.jsonl").read_bytes()


def test_train_refuses_other_and_broken_shards(shards: Path, digits: Path, tmp_path: Path) -> None:
    train_on(shards, tmp_path / "run", "training.samples=48")
    other = run(digits, tmp_path / "other", "shard_bytes=60000")
    with pytest.raises(RecipeError, match=r"the data of .* have changed; fingerprint"):
        train_on(other, tmp_path / "run")
    with pytest.raises(RecipeError, match=r"data.window: 3 -> 4"):
        train_on(shards, tmp_path / "run", "data.window=4")
    broken = shutil.copytree(shards, tmp_path / "broken")
    (broken / "000003.tar").write_bytes((broken / "000003.tar").read_bytes()[:20_000])
    with pytest.raises(RecipeError, match=r"^data: .*000003.tar: it is truncated.*Restore the damaged"):
        train_on(broken, tmp_path / "new")
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_two_ranks_learn_what_one_process_learns(shards: Path, tmp_path: Path) -> None:
    """Twenty-one steps on two ranks, on shards without indices, and then from the middle of an epoch on one process."""
    bare, two, alone = (tmp_path / name for name in ("bare", "two", "alone"))
    bare.mkdir()
    for path in shards.glob("*.tar"):
        shutil.copy(path, bare)
    exact = ["engine.precision=float64", "network.dropout=0"]
    train_on(shards, alone, *exact, "training.samples=336")
    done = ranks(2, "recipes.train", *train_words(bare, two, *exact, "training.samples=336"))
    assert done.returncode == 0, done.stderr[-6000:]
    assert len(list(bare.glob("*.index"))) == len(list(bare.glob("*.tar")))
    assert_close(last_state(two), last_state(alone), rtol=1e-9, atol=1e-12)
    for run_dir in (two, alone):
        train_on(shards, run_dir, *exact)
    assert_close(last_state(two), last_state(alone), rtol=1e-9, atol=1e-12)
