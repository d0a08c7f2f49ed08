"""The data of a run are measured and split, found again wherever they lie, and noticed when their contents change."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from PIL import Image as PILImage

from modalities.audio import Audio
from modalities.audio_sets import PluckedStrings
from modalities.byte_ranges import Source
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits, Pixels
from modalities.tars import TarShards
from modalities.video import Video
from modalities.video_sets import MovingDigits
from modalities.wrapped import Corrupted
from multisagd.multitaper import statistics_of_one
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data import contents
from recipes.data.contents import FILE, Contents, changes, keep, pieces
from recipes.data.dataset import Chunks, colour_note, measure
from recipes.data.order import Order
from recipes.data.parts import held_out_note, hold_out
from recipes.evaluate import evaluate
from recipes.evaluation.sets import real_data
from recipes.pack import main as pack
from recipes.runs.model import located, starting_folders
from recipes.runs.settings import TrainSettings
from recipes.sample import sample
from recipes.training.conditioning import learned_condition
from tests.helpers.tiny import tiny_run


def settings(*words: str) -> TrainSettings:
    return Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused", *words]), "")


def noise_images(count: int, classes: int) -> Pixels:
    """Pictures of noise whose classes take turns."""
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [f"kind{number}" for number in range(classes)]
    return Pixels(Image(size=8, channels=1), images, torch.arange(count) % classes, names)


def test_measure_sees_the_data_with_their_flips() -> None:
    # White on the left, black on the right: flips make both sides alike.
    images = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    images[0] = 255 - images[0]  # if all were the same, their spectrum would be that of one
    plain, flipped = (
        measure(Pixels(Image(size=8, channels=1, flip=flip), images), settings()).mean for flip in (False, True)
    )
    assert float((plain[..., :4] - plain[..., 4:]).mean()) == pytest.approx(1.99)
    assert abs(float((flipped[..., :4] - flipped[..., 4:]).mean())) < 0.4


def test_chunks_are_the_same_in_every_pass() -> None:
    chunks = Chunks(Digits(Image(size=8, channels=1, flip=True)), range(50), seed=3, size=20)
    first, second = (torch.cat([x0 for x0, _ in chunks]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("count", "classes", "words", "expected", "note"),
    [
        (40, 4, [], 2, None),
        (5, 1, [], 1, None),
        (5, 1, ["validation.holdout=0"], None, "validation.holdout=0: no examples are held out"),
        (1, 1, [], None, "the only example is used for training"),
        (6, 6, [], None, "no examples held out, though"),
        (6, 6, ["training.conditional=false"], 1, None),
        (8, 4, ["validation.holdout=7"], 4, "4 examples held out, though validation.holdout=7"),
    ],
)
def test_hold_out_splits_small_sets(
    count: int, classes: int, words: list[str], expected: int | None, note: str | None
) -> None:
    """And notes what is not validated."""
    parts = hold_out(noise_images(count, classes), settings(*words), Builder())
    assert (None if parts.held_out is None else len(parts.held_out)) == expected
    assert len(parts.training) == count - (expected or 0)
    assert (note or "None") in str(held_out_note(parts, settings(*words)))


def test_hold_out_refuses_to_leave_nothing_and_invalid_numbers() -> None:
    with pytest.raises(RecipeError, match=r"validation\.holdout=0 trains on all"):
        hold_out(noise_images(5, 1), settings("validation.holdout=5"), Builder())
    for holdout in ("-1", ".inf", ".nan"):
        with pytest.raises(RecipeError, match="holdout"):
            settings(f"validation.holdout={holdout}")


def test_measure_estimates_the_spectrum_of_a_single_example_where_it_is_valid() -> None:
    one, modality = noise_images(1, 1).images, Image(size=8, channels=1)
    x0 = modality.encode(one[0]).double()
    for copies in (1, 3):
        statistics = measure(Pixels(modality, one.repeat(copies, 1, 1, 1)), settings())
        assert statistics.count == copies
        assert statistics.mean.unique().numel() == 1
        assert float(statistics.mean[0, 0, 0]) == pytest.approx(float(x0.mean()))
        assert statistics.sigma_data == pytest.approx(float(x0.std(correction=0)))
    x0, mask = torch.full((1, 8, 8), 9.0), torch.zeros(1, 8, 8, dtype=torch.bool)
    x0[:, :, :4], mask[:, :, :4] = torch.linspace(-1, 1, 4), True
    statistics = statistics_of_one(x0, modality.grid(), mask)
    assert float(statistics.mean[0, 0, 0]) == pytest.approx(0.0, abs=1e-7)
    assert statistics.sigma_data == pytest.approx(float(torch.linspace(-1, 1, 4).std(correction=0)))


def test_learned_condition_knows_classes_that_training_never_shows() -> None:
    cpu, data = torch.device("cpu"), noise_images(40, 4)
    part = data.subset([index for index in range(40) if index % 4 != 2])
    assert learned_condition(settings(), data, Builder(), cpu).untrained == ()
    condition = learned_condition(settings(), part, Builder(), cpu)
    assert condition.untrained == ("kind2",)
    assert condition.shown(part, 5)[0].tolist() == [0, 1, 3, 0, 1]  # type: ignore[union-attr]
    assert condition.metadata(None)["untrained"] == ("kind2",)
    assert "kind2" in (condition.note or "")
    short = learned_condition(settings("training.samples=2", "training.batch=1"), data, Builder(), cpu)
    shown = {int(data.labels[index]) for index in Order(40, 0).indices(0, 2)}  # type: ignore[index]
    assert short.untrained == tuple(f"kind{number}" for number in range(4) if number not in shown)


def test_colour_note_mentions_colours_that_are_lost_or_missing() -> None:
    grey = torch.randint(0, 190, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1)
    for channels, tint, note in (
        (1, 60, "modality.channels=3"),
        (1, 2, "None"),
        (3, 60, "None"),
        (3, 2, "modality.channels=1"),
        (3, 0, "examples are grey"),
    ):
        images = grey.clone()
        images[:, 0] += tint
        data = Pixels(Image(size=8, channels=channels), images.to(torch.uint8))
        assert note in str(colour_note(data)), (channels, tint)
    assert colour_note(MovingDigits(Video(4, 8.0, 8, 1), count=2)) is None
    assert "examples are grey" in (colour_note(MovingDigits(Video(4, 8.0, 8, 3), count=2)) or "")
    assert colour_note(PluckedStrings(Audio(8000, 0.1), count=2)) is None


WORDS = ["steps=1", "count=4", "engine.threads=1", "engine.device=cpu"]


def save_pictures(folder: Path, count: int = 60, classes: tuple[str, ...] = ("a", "b")) -> None:
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PILImage.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `work` of a training on photos that lie in it, named as a path relative to it."""
    work = tmp_path_factory.mktemp("located") / "work"
    save_pictures(work / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        tiny_run(Path("run"), "data=folder", "data.root=photos", "training.samples=16", "validation.holdout=10")
    return work


def test_real_data_resolves_a_relative_root_wherever_the_run_lies(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pictures(tmp_path / "photos", 20)  # other pictures in a folder of the same name
    train, _ = real_data(trained / "run", Builder())
    assert isinstance(train, Folder)
    assert train.root == trained / "photos"
    # The configuration, which goes into exports, does not contain the folder of the training.
    assert read_configuration(trained / "run" / "config.yaml")["data"]["root"] == "photos"
    # Data that moved with the run are found again.
    moved = shutil.copytree(trained, tmp_path / "moved")
    facts = json.loads((moved / "run" / "run.json").read_text())
    facts["starts"][-1] |= {"folder": "/gone/work", "run_dir": "/gone/work/run"}
    (moved / "run" / "run.json").write_text(json.dumps(facts))
    for folder, run_dir in ((moved, "run"), (tmp_path, "moved/run")):
        monkeypatch.chdir(folder)
        train, _ = real_data(Path(run_dir), Builder())
        assert len(train) == 50


def test_commands_accept_the_new_place_of_data(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text((trained / "run" / "run.json").read_text().replace("work", "gone"))
    monkeypatch.chdir(tmp_path)
    quick = ["run_dir=run", "samples=8", "metrics=[axes]", "splits=1", "bootstrap=0", *WORDS]
    for words, message in (([], r"photos is not a folder.* add data.root=… to"), (["data.rot=new"], "mean 'root'")):
        with pytest.raises(RecipeError, match=message):
            evaluate(configuration.load("evaluate", [*quick, *words]))
    shutil.copytree(trained / "photos", tmp_path / "new")
    assert evaluate(configuration.load("evaluate", [*quick, "data.root=new"]))["counts"]["reference"] == 4
    assert sample(configuration.load("sample", ["run_dir=run", *WORDS, "data.root=new"])).is_dir()
    config = configuration.load("report", ["run_dir=run", "data.root=/new place", "data.urls=[a.tar,b.tar]"])
    assert config["data"] == {"root": "/new place", "urls": ["a.tar", "b.tar"]}


def test_real_data_notes_other_counts_and_refuses_other_classes(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pictures(tmp_path / "more", 70)
    real_data(trained / "run", Builder(), {"root": str(tmp_path / "more")})
    assert "the run had 60 examples, now there are 70" in capsys.readouterr().err
    save_pictures(tmp_path / "others", 60, ("a", "c"))
    with pytest.raises(RecipeError, match="differ from those of the run's training data"):
        real_data(trained / "run", Builder(), {"root": str(tmp_path / "others")})


def test_located_leaves_patterns_hub_names_and_addresses_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "shards").mkdir(parents=True)
    facts = {"starts": [{"folder": str(home), "run_dir": str(home / "run")}]}
    urls = ["shards/*.tar", "shards/{000..009}.tar", "s3://bucket/a.tar", "gone/*.tar", "file::x"]
    config = {
        "data": {"_target_": "modalities.tars.TarShards", "urls": urls},
        "modality": {"autoencoder": {"name": "somebody/vae"}, "statistics": None},
    }
    result = located(config, facts, home / "run", {}, Builder())
    assert result["data"]["urls"] == [f"{home}/shards/*.tar", f"{home}/shards/{{000..009}}.tar", *urls[2:]]
    assert result["modality"] == config["modality"]
    assert config["data"]["urls"] == urls
    # Latents that moved bring their statistics.
    config = {"data": {"_target_": "modalities.shards.LatentShards", "root": "old"}, "modality": {"statistics": "old"}}
    result = located(config, {}, tmp_path, {"root": "new"}, Builder())
    assert (result["data"]["root"], result["modality"]["statistics"]) == ("new", "new")


def test_starting_folders_reads_records_without_one(tmp_path: Path) -> None:
    for starts in (None, [], [None], [{}], [{"folder": 3, "run_dir": "a"}], [{"command": []}]):
        assert starting_folders({"starts": starts}, tmp_path) == []


SMALL = Image(size=4, channels=1)
NOTE = "files have changed since this run began"


def photos(root: Path) -> Folder:
    root.mkdir(parents=True)
    for number in range(12):
        write(root / f"{number:02d}.bmp", number)
    return Folder(SMALL, root)


def write(path: Path, seed: int) -> None:
    """Write an uncompressed picture, so that all are equally long, with another time than at first."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)
    if seed >= 12:
        os.utime(path, ns=(10**18, 10**18))


def touch(root: Path) -> None:
    """Change the modification time of all files, as a copy does."""
    for path in root.rglob("*.*"):
        os.utime(path, ns=(10**18, path.stat().st_mtime_ns + 10**9))


def test_changes_reads_nothing_unchanged_and_a_copy_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, photos(tmp_path / "photos"))
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    touch(tmp_path / "elsewhere")
    copied = Folder(SMALL, tmp_path / "elsewhere" / "copy")
    with monkeypatch.context() as patch:
        patch.setattr(Source, "read", lambda *_: pytest.fail("nothing needs to be read"))
        assert changes(tmp_path, Folder(SMALL, tmp_path / "photos")) is None
    assert changes(tmp_path, copied) is None
    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("it has been read"))
    assert changes(tmp_path, copied) is None


@pytest.mark.parametrize("longer", [False, True])
def test_changes_names_files_with_other_contents(tmp_path: Path, longer: bool) -> None:
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    touch(tmp_path / "photos")
    for number in (3, 7):
        path = tmp_path / "photos" / f"{number:02d}.bmp"
        size = path.stat().st_size
        write(path, 100 + number)
        assert path.stat().st_size == size
        if longer:
            path.write_bytes(path.read_bytes() + b"more")
    for _ in range(2):  # every time until they are restored
        note = changes(tmp_path, data)
        assert note is not None
        assert note.startswith(f"2 of 12 {NOTE}: {tmp_path}/photos/03.bmp, {tmp_path}/photos/07.bmp. ")
        assert "restore those, or train in another run_dir" in note


def test_changes_compares_only_some_of_very_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_READ", 4)
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    assert len(Contents.load(tmp_path / FILE).digests) == 4
    write(tmp_path / "photos" / "01.bmp", 99)
    expected = "1 of 12 files were written since this run began; their bytes were not compared"
    assert changes(tmp_path, data) == expected
    write(tmp_path / "photos" / "11.bmp", 99)
    assert NOTE in str(changes(tmp_path, data))


def test_changes_finds_other_bytes_in_shards_and_behind_a_corruption(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    words = ["modality=image", f"data.root={tmp_path / 'photos'}", "shuffle=false"]
    assert pack([*words, f"run_dir={tmp_path / 'shards'}"]) == 0
    data = TarShards(SMALL, str(tmp_path / "shards"), index=tmp_path / "index")
    (source,) = data.stored()
    shard = Path(source.path)
    assert shard.suffix == ".tar"
    keep(tmp_path, data)
    touch(tmp_path / "shards")
    assert changes(tmp_path, data) is None
    stored = bytearray(shard.read_bytes())
    stored[stored.index(b"BM") + 1070] ^= 255
    shard.write_bytes(stored)
    os.utime(shard, ns=(10**18, 10**18))
    assert f"1 of 1 {NOTE}: {shard}" in str(changes(tmp_path, data))
    assert list(Corrupted(data, None, 0, False).stored()) == [source]  # type: ignore[arg-type]


def test_keep_writes_no_names_and_nothing_for_data_in_memory(tmp_path: Path) -> None:
    digits = Digits(SMALL)
    keep(tmp_path, digits)
    assert changes(tmp_path, digits) is None
    assert not list(tmp_path.iterdir())
    data = photos(tmp_path / "secret")
    assert changes(tmp_path, data) is None  # a run of an earlier version has no record: it gets one
    kept = (tmp_path / FILE).read_bytes()
    assert b"secret" not in kept
    assert b"bmp" not in kept


def test_changes_notes_missing_files_and_unreadable_records(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    (tmp_path / "photos" / "03.bmp").unlink()
    assert f"1 of 12 {NOTE}" in str(changes(tmp_path, data))
    good = safetensors.numpy.load_file(tmp_path / FILE)
    for bad in (
        good | {"digests": good["digests"][:3]}, good | {"limit": np.array([0])}, good | {"sizes": good["states"] / 2},
        {"sizes": good["sizes"]},
    ):  # fmt: skip
        safetensors.numpy.save_file(bad, tmp_path / FILE)
        assert "it is unknown whether files have changed" in str(changes(tmp_path, data))
    (tmp_path / FILE).write_bytes(b"nothing")
    assert "it is unknown whether files have changed" in str(changes(tmp_path, data))


def test_pieces_lie_in_the_file_and_include_both_ends() -> None:
    for size in (0, 1, 8, 9, 1000, 10**10):
        parts = pieces(size, 8)
        assert sum(stop - start for start, stop in parts) <= 8
        assert (parts[0][0], parts[-1][1]) == (0, size)
        assert all(0 <= start <= stop <= size for start, stop in parts), size
