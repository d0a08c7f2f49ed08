"""Training on several sizes: the order of batches, the record of sizes, continuation, samples of any size, refusals."""

import json
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from modalities.files import Folder
from modalities.image import Image
from modalities.mixture import Mixture
from modalities.video import Video
from multisagd.files import read_json
from multisagd.networks import UNet
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data import extents
from recipes.data.extents import Record, sorted_files
from recipes.data.order import BucketOrder, TrainingOrder, batches
from recipes.evaluate import evaluate
from recipes.evaluation.sets import real_data
from recipes.inspect import inspect
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.runtime.distribution import Rank
from recipes.sample import sample
from recipes.sharing.pipeline import Pipeline
from recipes.train import train
from tests.helpers.launching import ranks
from tests.helpers.tiny import assert_same, last_state, read_metrics, tiny_config, tiny_run, tiny_words

REPORTS = ["every.validation=48", "every.samples=48"]
SHAPES = [(16, 16), (12, 24), (24, 12), (16, 16)]


def make_images(folder: Path) -> list[str]:
    """Make noisy pictures of three shapes in two folders; return the words of a training on them."""
    for number in range(40):
        path = folder / "ab"[number % 2] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, SHAPES[number % 4], dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    return [
        "data=folder", f"data.root={folder}", "modality.size=8", "modality.buckets=[8,[6,12],[12,6]]",
        "validation.holdout=8",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def trained(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    tiny_run(run_dir, *words, *REPORTS)
    return run_dir


def test_bucket_order_uses_every_item_equally_often() -> None:
    for lengths in ([7, 3, 90], [1, 1], [50, 50, 1], [5]):
        order, total = BucketOrder(lengths, 0), sum(lengths)
        turns = [order.of_batch(number) for number in range(3 * total)]
        for bucket, length in enumerate(lengths):  # every batch of the bucket once, and none left out
            assert sorted(turn for each, turn in turns if each == bucket) == list(range(3 * length))
        for seen in range(total):  # at any time within a block of the exact proportion
            count = sum(bucket == 0 for bucket, _ in turns[:seen])
            assert abs(count - seen * lengths[0] / total) <= 16


def test_bucket_order_is_a_function_of_the_seed_and_the_batch() -> None:
    first = [BucketOrder([9, 20, 5], 0).of_batch(number) for number in range(200)]
    late = BucketOrder([9, 20, 5], 0)
    assert [late.of_batch(number) for number in reversed(range(200))] == first[::-1]
    assert first != [BucketOrder([9, 20, 5], 1).of_batch(number) for number in range(200)]
    with pytest.raises(ValueError, match="at least one item"):
        BucketOrder([3, 0], 0)


def test_batches_of_two_ranks_are_those_of_one(words: list[str], tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", *words, "training.accumulation=2")
    builder = Builder()
    settings = builder.settings(TrainSettings, config, "")
    root = next(word for word in words if word.startswith("data.root")).split("=")[1]
    dataset = Folder(Image(size=8, channels=1, buckets=[8, (6, 12), (12, 6)]), root)

    def read(rank: int, world: int, start: int = 0) -> list[list[torch.Tensor]]:
        runtime = Runtime(torch.device("cpu"), EngineSettings(), Rank(rank, world, rank))
        return [[part.x0 for part in parts] for parts in batches(dataset, start, settings, runtime)]

    alone = read(0, 1)
    assert Counter(parts[0].shape[2:] for parts in alone).keys() == {(8, 8), (6, 12), (12, 6)}
    for parts, *halves in zip(alone, read(0, 2), read(1, 2), strict=True):
        assert torch.equal(torch.cat(parts), torch.cat([part for half in halves for part in half]))
    for parts, later in zip(alone[2:], read(0, 1, 32), strict=True):
        assert all(map(torch.equal, parts, later))


def test_training_order_knows_the_classes_of_the_first_batches(tmp_path: Path) -> None:
    for name, (height, width) in {"a": (8, 8), "b": (8, 8), "c": (6, 12), "d": (6, 12)}.items():
        (tmp_path / name).mkdir()
        for number in range(8):
            PIL.Image.new("L", (width, height)).save(tmp_path / name / f"{number}.png")
    dataset = Folder(Image(size=8, channels=1, buckets=[8, (6, 12)]), tmp_path)
    order = TrainingOrder(dataset, 0, 2)
    seen = {bucket.label(index) for bucket, indices in [order.examples(0, range(2))] for index in indices}
    assert order.classes(2) == seen
    assert len(seen) <= 2
    assert order.classes(64) == {0, 1, 2, 3}


def test_buckets_of_a_mixture_keep_the_shares_of_its_sources(words: list[str], tmp_path: Path) -> None:
    """Source a has mostly square pictures and b mostly tall ones, so that both buckets have both."""
    for name, squares, tall in (("a", 9, 3), ("b", 2, 10)):
        (tmp_path / name).mkdir()
        for number in range(squares + tall):
            size = (8, 8) if number < squares else (6, 12)
            PIL.Image.new("L", size, ord(name)).save(tmp_path / name / f"{number:02d}.png")
    modality = Image(size=8, channels=1, buckets=[8, (12, 6)])
    sources = {name: Folder(modality, tmp_path / name, labels="none") for name in "ab"}
    for options, expected in (
        ({"weights": {"a": 3.0, "b": 1.0}}, {"a": 0.75, "b": 0.25}),
        ({"repeats": {"b": 3}}, {"a": 0.25, "b": 0.75}),
    ):
        order, counts = TrainingOrder(Mixture(modality, sources, **options), 0, 4), Counter()
        examples: Counter[str] = Counter()
        for first in range(0, 9600, 4):
            part, indices = order.examples(first, range(4))
            paths = [part.path(index) for index in indices]
            counts.update(path[0] for path in paths)
            examples.update(paths)
        for name, share in expected.items():
            assert counts[name] / 9600 == pytest.approx(share, abs=0.03)  # cycles have whole numbers of batches
            own = [count for path, count in examples.items() if path[0] == name]
            assert len(own) == 12
            assert max(own) < 1.25 * min(own)
        assert order.longest_pass >= 24


def test_train_continues_bit_for_bit_without_reading_headers_again(
    words: list[str], trained: Path, tmp_path: Path
) -> None:
    tiny_run(tmp_path / "run", *words, *REPORTS, "training.samples=48")
    with patch.object(extents, "scan", side_effect=AssertionError("the headers are read again")):
        tiny_run(tmp_path / "run", *words, *REPORTS)
    assert_same(last_state(tmp_path / "run"), last_state(trained))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (trained / "metrics.jsonl").read_bytes()


def test_train_measures_a_constant_mean_and_validates_all_buckets(trained: Path) -> None:
    statistics = load_file(trained / "statistics.safetensors")
    assert statistics["mean"].shape == (1, 8, 8)
    assert bool((statistics["mean"] == statistics["mean"].flatten()[0]).all())
    # Uniform noise, averaged to half its size or cropped, has power at all frequencies.
    assert float(statistics["power"].min()) > 0.1 * float(statistics["power"].mean())
    entry = read_metrics(trained, "validation")[-1]
    assert entry["loss"] == pytest.approx(sum(level["loss"] for level in entry["level"].values()) / 2)
    assert all(0 < error < 50 for bands in entry["band"].values() for error in bands.values())


@pytest.mark.parametrize("change", ["shape", "value", "other files", "not safetensors"])
def test_sorted_files_reads_headers_again_if_the_record_is_damaged(
    words: list[str], trained: Path, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    record, root = tmp_path / extents.FILES[0], words[1].split("=")[1]
    tensors = load_file(trained / extents.FILES[0])
    if change == "shape":
        tensors["extents"] = tensors["extents"][:-1].clone()
    elif change == "value":
        tensors["extents"][0, 0] = -1
    elif change == "other files":
        tensors["fingerprint"] += 1
    save_file(tensors, record)
    if change == "not safetensors":
        record.write_bytes(b"\xff" * 100)
    known = sorted_files(Folder(Image(size=8, channels=1, buckets=[8, (6, 12)]), root), Record(record))
    assert known.extent(1).width == SHAPES[2][1]
    assert "the headers of all files are read again" in caplog.text


def test_sample_and_pipeline_draw_any_size(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = [f"run_dir={trained}", "count=2", "steps=2", "engine.threads=1", "engine.device=cpu"]
    own = sample(configuration.load("sample", base))
    wide = sample(configuration.load("sample", [*base, "size=[10,20]"]))
    assert wide != own
    assert PIL.Image.open(wide / "samples" / "1.png").size == (20, 10)
    assert not caplog.text
    drawn = Pipeline.from_pretrained(trained, device="cpu")(count=2, steps=2, size=(10, 20), progress=False)
    assert torch.equal(drawn.samples, load_file(wide / "samples.safetensors")["x0"])
    assert drawn.images[0].size == (20, 10)
    sample(configuration.load("sample", [*base, "size=40"]))
    assert "height has 40 points, but 6 to 12 in training" in caplog.text
    with pytest.raises(RecipeError, match="seconds: Image has no such size; it has size"):
        sample(configuration.load("sample", [*base, "seconds=1"]))


def test_real_data_are_of_the_size_of_the_samples(trained: Path) -> None:
    train, test = real_data(trained, Builder())
    assert test is not None
    assert (len(train) + len(test), train.modality.grid().shape) == (20, (8, 8))
    wide, _ = real_data(trained, Builder(), sizes={"size": (6, 12)})
    other, _ = real_data(trained, Builder(), sizes={"size": (9, 9)})
    assert [wide.example(0).x0.shape, other.example(0).x0.shape] == [(1, 6, 12), (1, 9, 9)]
    assert len(other) > len(train) > len(wide)


def test_evaluate_compares_samples_and_data_of_one_size(trained: Path) -> None:
    common = ["samples=8", "steps=1", "bootstrap=2", "splits=2", "metrics=[spectrum]", "engine.threads=1"]
    report = evaluate(configuration.load("evaluate", [f"run_dir={trained}", *common, "labels=null", "size=9"]))
    assert report["scores"]["spectrum_error_db"] > 0


def test_inspect_shows_buckets_and_omitted_files(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["run_dir=" + str(tmp_path / "look"), "count=2", "modality.min_size=14", "engine.threads=1"]
    inspect(configuration.load("inspect", [*words, *small, "validation.holdout=2", "training.statistics=8"]))
    report = read_json(tmp_path / "look" / "inspect.json")
    assert report["buckets"] == {"size=[8,8]": 20, "size=[6,12]": 0, "size=[12,6]": 0}
    assert report["omitted"] == {"min_size=14": 20}
    assert "20 files are not used: modality.min_size=14" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["corruption=band"], "corruption and modality.buckets exclude each other"),
        (["data=digits"], "Digits has no media files whose sizes could be read, which modality.buckets"),
        (["modality.min_size=99"], r"modality\.min_size=99 omits 40 of 40 files"),
        (["modality.size=10"], r"size=\[10, 10\] is not one of the buckets"),
        (["validation.score=distance", "validation.holdout=3"], "at least 4 held-out examples of the size"),
    ],
)
def test_train_refuses_what_buckets_cannot_do(words: list[str], tmp_path: Path, more: list[str], message: str) -> None:
    digits = [word for word in words if not ("data=digits" in more and word.startswith("data"))]
    with pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path / "run", *digits, *more)


def test_train_records_the_sizes_of_other_validation_data_too(words: list[str], tmp_path: Path) -> None:
    root = Path(words[1].split("=")[1])
    shutil.copytree(root, tmp_path / "other")
    more = [f"validation.root={tmp_path / 'other'}", "training.samples=48", *REPORTS]
    tiny_run(tmp_path / "run", *words, *more)
    assert (tmp_path / "run" / extents.FILES[1]).exists()
    tiny_run(tmp_path / "run", *words, *more, "training.samples=96")


def test_train_on_clips_of_several_lengths_and_sample_another(tmp_path: Path) -> None:
    video = Video(frames=6, size=8, fps=8)
    for number in range(8):
        colours = torch.rand(3, 2 + number % 5, 8, 8, generator=torch.Generator().manual_seed(number))
        video.save((255 * colours).to(torch.uint8), tmp_path / "clips" / f"{number}.mp4")
    words = [
        "modality=video", "modality.frames=4", "modality.size=8", "modality.buckets=[2,4,6,[4,6,10]]", "data=folder",
        f"data.root={tmp_path / 'clips'}", "data.labels=none", "validation.holdout=2", "training.samples=32",
        "network.multipliers=[1]", "validation.items=2", "validation.levels=1", "every.checkpoint=0",
    ]  # fmt: skip
    more = [word for word in tiny_words(tmp_path / "run") if not word.startswith("modality.")]
    train(configuration.load("train", [*more, *words]))
    entry = [f"run_dir={tmp_path / 'run'}", "count=1", "steps=1", "frames=5", "engine.threads=1"]
    out = sample(configuration.load("sample", entry))
    assert load_file(out / "samples.safetensors")["x0"].shape == (1, 3, 5, 8, 8)


@pytest.mark.slow
def test_compiled_has_one_graph_per_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for more sizes than torch compiles by default; beyond that it would silently run without compiling."""
    import torch._dynamo.config as limits

    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(limits, "recompile_limit", 8)
    monkeypatch.setattr(limits, "fail_on_recompile_limit_hit", True)
    network = UNet(1, 2, width=8, multipliers=[1, 2], blocks=1, heads=2)
    compiled = Runtime(torch.device("cpu"), EngineSettings(compile=True)).compiled(network, 10)
    for size in [*range(8, 28, 2)] * 2:
        compiled(torch.zeros(2, 1, size, 36 - size), torch.zeros(2), None).sum().backward()
    assert len(graphs) == 10


def make_sounds(folder: Path) -> list[str]:
    """Make notes of 2 to 6 seconds; return the words of a training on them."""
    folder.mkdir()
    for number in range(18):
        time = np.arange(250 * (2 + number % 5)) / 250
        rng = np.random.default_rng(number)
        sound = 0.3 * np.sin(2 * np.pi * (10 + 5 * number) * time) + 0.1 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{number:02d}.wav", np.repeat(sound, 4), 1000)
    return [
        "modality=audio_mel", "data=folder", f"data.root={folder}", "data.labels=none", "modality.rate=1000",
        "modality.seconds=4", "modality.buckets=[2,3,4,5,6]", "modality.representation.window=128",
        "modality.representation.hop=64", "modality.representation.bands=8", "validation.holdout=4",
    ]  # fmt: skip


def train_like(run_dir: Path, words: list[str], count: int) -> list[dict[str, Any]]:
    exact = ["network.dropout=0", "training.samples=320", "every.log=16", "every.validation=160", "every.samples=0"]
    more = [word for word in tiny_words(run_dir, *exact) if not word.startswith("modality.")]
    done = ranks(count, "recipes.train", *more[: -len(exact)], *exact, *words)
    assert done.returncode == 0, done.stderr[:6000]
    return read_metrics(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("medium", ["images", "sounds"])
def test_train_on_two_ranks_equals_one_and_continues(tmp_path: Path, medium: str) -> None:
    words = make_images(tmp_path / "data") if medium == "images" else make_sounds(tmp_path / "data")
    one, two = (train_like(tmp_path / str(count), words, count) for count in (1, 2))
    losses = [[entry["loss"] for entry in entries] for entries in (one, two)]
    assert len(losses[0]) == 22
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    shutil.rmtree(tmp_path / "1" / "checkpoints" / f"{320:012d}")
    before = json.dumps(one)
    assert json.dumps(train_like(tmp_path / "1", words, 1)) == before
    if medium == "sounds":
        small = [f"run_dir={tmp_path / '1'}", "count=1", "steps=2", "engine.threads=1", "seconds=5.5"]
        out = sample(configuration.load("sample", small))
        assert soundfile.info(out / "samples" / "0.wav").frames == 5500
