"""Folders of files: what counts as a dataset, and what becomes of damaged files."""

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import PIL.Image
import pytest
import torch

from modalities.base import Modality, split
from modalities.files import Folder
from modalities.image import Image
from modalities.reading import FileReport, UnreadableFilesError
from multisagd import Grid

IMAGE = Image(size=8)


def picture(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)
    return path


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Twenty pictures, each of one grey value: its number."""
    for value in range(20):
        picture(tmp_path / f"{value:02}.png", value)
    return tmp_path


def value(x0: torch.Tensor) -> int:
    return int(IMAGE.decode(x0)[0, 0, 0])


def test_a_flat_folder_has_no_classes(flat: Path) -> None:
    (flat / "notes.txt").write_text("not a picture")
    picture(flat / ".hidden.png", 200)
    picture(flat / ".cache" / "thumb.png", 200)
    dataset = Folder(IMAGE, flat)
    assert dataset.classes is None
    assert [value(example.x0) for example in dataset] == list(range(20))
    assert dataset[3].label is None
    assert dataset.batch([0, 1]).labels is None
    for index in (-1, 20):
        with pytest.raises(IndexError, match=str(index)):
            dataset.example(index)


def test_classes_are_the_first_folders_and_nesting_is_free(tmp_path: Path) -> None:
    picture(tmp_path / "dog" / "a.PNG", 1)
    picture(tmp_path / "cat" / "deep" / "er" / "b.jpeg", 2)
    picture(tmp_path / "cat" / "c.webp", 3)
    (tmp_path / "empty").mkdir()
    dataset = Folder(IMAGE, tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels == [0, 0, 1]
    batch = dataset.batch([2, 0])
    assert batch.labels is not None
    assert batch.labels.tolist() == [1, 0]
    assert batch.x0.shape == (2, 3, 8, 8)
    assert Folder(IMAGE, tmp_path, labels="none").classes is None


def test_classes_named_like_parts_of_a_dataset_are_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "Train" / "cat" / "a.png", 1)
    picture(tmp_path / "val" / "cat" / "b.png", 2)
    assert Folder(IMAGE, tmp_path).classes == ("Train", "val")
    assert "Train, val" in caplog.text
    caplog.clear()
    Folder(IMAGE, tmp_path, labels="none")
    picture(tmp_path / "cat" / "c.png", 3)
    Folder(IMAGE, tmp_path)
    assert caplog.text == ""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf_8_are_reported_too(tmp_path: Path) -> None:
    picture(tmp_path / "media" / "a.png", 1)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/media/bad\xff.png")).write_bytes(b"broken")
    dataset, saved = Folder(IMAGE, tmp_path / "media", max_unreadable=0.9), tmp_path / "unreadable.json"
    dataset.batch([0, 1])
    dataset.save_unreadable(saved)
    (entry,) = json.loads(saved.read_text(encoding="utf-8"))["unreadable"]
    assert os.fsencode(entry["path"]) == b"bad\xff.png"
    assert len(dataset.fingerprint) == 64


def test_unreadable_files_are_saved_if_there_are_any(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1)
    dataset, saved = Folder(IMAGE, tmp_path, max_unreadable=1), tmp_path / "unreadable.json"
    dataset.save_unreadable(saved)
    assert not saved.exists()
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(UnreadableFilesError):
        dataset.subset([0]).example(0)
    dataset.save_unreadable(saved)
    assert [entry["path"] for entry in json.loads(saved.read_text())["unreadable"]] == ["a.png"]


def test_labels_are_on_request_where_the_folder_does_not_say(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "a.png", 1)
    assert Folder(IMAGE, tmp_path).classes is None
    assert Folder(IMAGE, tmp_path, labels="folder").classes == ("one",)
    picture(tmp_path / "stray.png", 1)
    with pytest.raises(ValueError, match=r"stray\.png .*labels=none"):
        Folder(IMAGE, tmp_path, labels="folder")


def test_an_empty_or_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it holds nothing"):
        Folder(IMAGE, tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"ends in \.png.*1 × \.txt"):
        Folder(IMAGE, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing is not a folder"):
        Folder(IMAGE, tmp_path / "missing")


def test_links_are_followed_once_and_pipes_passed_over(flat: Path) -> None:
    (flat / "loop").symlink_to(flat, target_is_directory=True)
    os.mkfifo(flat / "pipe.png")
    assert len(Folder(IMAGE, flat)) == 20


@pytest.mark.timeout(20)
def test_a_bad_file_is_named_and_replaced_deterministically(flat: Path) -> None:
    (flat / "05.png").write_bytes(b"")
    dataset = Folder(IMAGE, flat)
    seeds = list(range(8))
    first = dataset.batch([5] * 8, seeds).x0
    assert dict(dataset.unreadable) == {"05.png": "ValueError: the file is empty"}
    again = Folder(IMAGE, flat, threads=1)
    assert torch.equal(again.batch([5] * 8, seeds).x0, first)
    assert again.unreadable == dataset.unreadable
    assert torch.equal(dataset.batch([5] * 8, seeds).x0, first)
    assert 5 not in {value(x0) for x0 in first}
    assert len({value(x0) for x0 in first}) > 3


def test_a_replacement_stays_within_its_part(flat: Path) -> None:
    for bad in (3, 7):
        (flat / f"{bad:02}.png").write_bytes(b"x")
    train, validation = split(Folder(IMAGE, flat, max_unreadable=0.1), 0.3, seed=1)
    assert len(train) == 14
    assert len(validation) == 6
    seen = [
        {value(part.example(index, seed).x0) for index in range(len(part)) for seed in range(5)}
        for part in (train, validation)
    ]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(20)) - {3, 7}
    assert train.unreadable == validation.unreadable


def test_beyond_the_limit_is_one_clear_error(flat: Path) -> None:
    for bad in range(4):
        (flat / f"{bad:02}.png").write_bytes(b"x")
    dataset = Folder(IMAGE, flat, max_unreadable=0.15)
    for index in range(3):
        dataset.example(index)
    with pytest.raises(UnreadableFilesError, match=r"4 of 20 files .* allows 3: 00\.png .*02\.png.*max_unreadable"):
        dataset.example(3)
    with pytest.raises(UnreadableFilesError, match="allows 0"):
        Folder(IMAGE, flat, max_unreadable=0).batch([0, 9])


def test_nothing_readable_is_an_error_whatever_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UnreadableFilesError, match="1 of 1"):
        Folder(IMAGE, tmp_path, max_unreadable=1)[0]
    picture(tmp_path / "b.png", 1)
    with pytest.raises(UnreadableFilesError, match="none of the 1 files of this part"):
        Folder(IMAGE, tmp_path).subset([0])[0]


def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    report = FileReport(total=40, max_unreadable=0.1)
    report.add("b.png", ValueError("broken"))
    report.add("a.png", OSError("gone"))
    report.save(tmp_path / "new" / "files.json")
    assert json.loads((tmp_path / "new" / "files.json").read_text()) == {
        "files": 40,
        "allowed": 4,
        "unreadable": [{"path": "a.png", "reason": "OSError: gone"}, {"path": "b.png", "reason": "ValueError: broken"}],
    }
    with pytest.raises(ValueError, match="fraction"):
        FileReport(10, 5)


def test_a_batch_depends_on_seeds_and_not_on_threads(tmp_path: Path) -> None:
    for number in range(6):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 24, 3), np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    image = Image(size=8, flip=True)
    many, one = Folder(image, tmp_path, threads=4), Folder(image, tmp_path, threads=1)
    seeds = [11, 12, 13, 14, 15, 16]
    batch = many.batch(range(6), seeds).x0
    assert torch.equal(batch, one.batch(range(6), seeds).x0)
    assert torch.equal(batch[4], many.example(4, 15).x0)
    assert not torch.equal(batch, many.batch(range(6), [seed + 100 for seed in seeds]).x0)
    assert torch.equal(many.batch([2]).x0[0], many[2].x0)
    with pytest.raises(ValueError, match="one seed per index"):
        many.batch([0, 1], [5])
    with pytest.raises(ValueError, match="at least one index"):
        many.batch([])


def damaged(kind: str, data: bytes, draw: random.Random) -> bytes:
    if kind == "truncated":
        return data[: draw.randrange(len(data))]
    if kind == "flipped":
        bits = bytearray(data)
        for _ in range(draw.randint(1, 30)):
            bits[draw.randrange(len(bits))] ^= 1 << draw.randrange(8)
        return bytes(bits)
    # A damaged header is where sizes and offsets lie.
    return bytes(draw.randrange(256) if 4 <= n < 64 and draw.random() < 0.2 else byte for n, byte in enumerate(data))


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["truncated", "flipped", "header"])
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_damaged_files_are_read_or_reported_but_never_crash(tmp_path: Path, kind: str, suffix: str) -> None:
    draw = random.Random(f"{kind} {suffix}")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / f"source.{suffix}")
    data = (tmp_path / f"source.{suffix}").read_bytes()
    for number in range(8):
        (tmp_path / f"{number}.{suffix}").write_bytes(damaged(kind, data, draw))
    (tmp_path / f"named_wrongly.{suffix}").write_text("this is no picture")
    dataset = Folder(Image(size=8), tmp_path, max_unreadable=1)
    batch = dataset.batch(range(len(dataset)), range(len(dataset)))
    assert batch.x0.shape == (10, 3, 8, 8)
    assert batch.x0.isfinite().all()
    assert f"named_wrongly.{suffix}" in dataset.unreadable
    assert all(reason for reason in dataset.unreadable.values())


def test_a_picture_under_another_pictures_name_is_read(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 77).rename(tmp_path / "a.jpg")
    assert value(Folder(IMAGE, tmp_path)[0].x0) == 77


def test_split_is_a_partition_and_follows_its_seed(flat: Path) -> None:
    dataset = Folder(IMAGE, flat)
    train, validation = split(dataset, 5, seed=3)
    assert sorted(train.files + validation.files) == dataset.files
    assert split(dataset, 0.25, seed=3)[1].files == validation.files
    assert split(dataset, 5, seed=4)[1].files != validation.files
    for count in (20, 21, -1):
        with pytest.raises(ValueError, match="at least one is needed to train on"):
            split(dataset, count)


def test_a_share_leaves_one_example_on_either_side_and_none_of_one(flat: Path) -> None:
    dataset = Folder(IMAGE, flat)
    for share, held in ((0.001, 1), (0.999, len(dataset) - 1)):
        train, validation = split(dataset, share)
        assert validation is not None
        assert (len(train), len(validation)) == (len(dataset) - held, held)
    assert split(dataset, 0) == (ANY, None)
    one = dataset.subset([3])
    assert split(one, 0.05) == (ANY, None)
    assert split(one, 0.9)[0].files == one.files


@pytest.mark.parametrize("share", [0.3, 0.5, 0.95, 40])
def test_every_class_keeps_an_example_for_training(tmp_path: Path, share: float) -> None:
    for number in range(8):
        for copy in range(1 + number % 3 * 5):
            picture(tmp_path / f"kind{number}" / f"{copy}.png", 7)
    dataset = Folder(IMAGE, tmp_path)
    for seed in range(5):
        train, validation = split(dataset, share, seed)
        assert validation is not None
        assert sorted(train.files + validation.files) == dataset.files
        assert {label for label in train.labels if label is not None} == set(range(8))
        asked = share if share >= 1 else round(share * len(dataset))
        assert len(validation) == min(asked, len(dataset) - 8)
    freely = split(dataset, 0.5, 1, keep_classes=False)[1]
    assert freely is not None
    assert len(set(freely.files) & set(split(dataset, 0.5, 1)[1].files)) >= len(freely) - 8  # type: ignore[union-attr]


def test_a_split_that_loses_no_class_is_the_plain_one(tmp_path: Path) -> None:
    for number in range(2):
        for copy in range(20):
            picture(tmp_path / f"kind{number}" / f"{copy}.png", 7)
    dataset = Folder(IMAGE, tmp_path)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    validation = split(dataset, 0.2, 3)[1]
    assert validation is not None
    assert validation.files == [dataset.files[place] for place in sorted(order[:8])]


@pytest.mark.parametrize(
    ("files", "options", "classes"),
    [
        (["train/cat/1.png", "train/dog/1.png"], {}, ("cat", "dog")),
        (["cat/images/1.png", "dog/images/1.png"], {}, ("cat", "dog")),
        (["a/b/c/1.png", "a/b/d/e/1.png"], {}, ("c", "d")),
        (["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"], {"match": "^train/"}, ("cat", "dog")),
        (["train/cat/1.png", "train/2.png"], {}, None),
        (["train/cat/1.png"], {}, None),
        (["train/cat/1.png"], {"labels": "folder"}, ("cat",)),
    ],
)
def test_classes_are_the_first_level_at_which_files_differ(
    tmp_path: Path, files: list[str], options: dict[str, Any], classes: tuple[str, ...] | None
) -> None:
    for file in files:
        picture(tmp_path / file, 3)
    assert Folder(IMAGE, tmp_path, **options).classes == classes


def test_what_systems_keep_for_themselves_is_neither_file_nor_class(tmp_path: Path) -> None:
    hidden = [
        "@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "cat/@eaDir/1.png", "__MACOSX/cat/._1.png", "__MACOSX/cat/1.png",
        ".hidden/1.png", "cat/.1.png", "#recycle/1.png", "$RECYCLE.BIN/1.png", "lost+found/1.png",
        "System Volume Information/1.png",
    ]  # fmt: skip
    for file in ["cat/1.png", "dog/1.png", *hidden]:
        picture(tmp_path / file, 3)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"thumbs")
    dataset = Folder(IMAGE, tmp_path)
    assert (dataset.files, dataset.classes) == (["cat/1.png", "dog/1.png"], ("cat", "dog"))


@dataclass(frozen=True)
class Measured(Modality):
    """Fields of 8 numbers in .npy files; what is above 50 is not valid."""

    channels = 1
    suffixes = (".npy",)

    def grid(self) -> Grid:
        return Grid.of(height=8)

    def load(self, path: Path, seed: int | None = None) -> torch.Tensor:
        return torch.from_numpy(np.load(path, allow_pickle=False))

    def encode(self, media: torch.Tensor) -> torch.Tensor:
        return media[None]

    def decode(self, x0: torch.Tensor) -> torch.Tensor:
        return x0[0]

    def save(self, media: torch.Tensor, path: Path) -> None:
        np.save(path, media.numpy())

    def mask(self, media: torch.Tensor) -> torch.Tensor | None:
        return (media != np.inf)[None] if bool((media == np.inf).any()) else None


@pytest.mark.parametrize("broken", [float("nan"), -float("inf")])
def test_a_file_with_a_number_that_is_none_is_named_and_replaced(tmp_path: Path, broken: float) -> None:
    for number in range(20):
        values = np.full(8, number / 20, np.float32)
        values[5] = broken if number == 7 else values[5]
        np.save(tmp_path / f"{number:02}.npy", values)
    dataset = Folder(Measured(), tmp_path)
    assert bool(dataset.batch(range(20)).x0.isfinite().all())
    assert dict(dataset.unreadable) == {"07.npy": "ValueError: it contains NaN or infinity"}
    with pytest.raises(UnreadableFilesError, match=r"07\.npy \(ValueError: it contains NaN or infinity\)"):
        Folder(Measured(), tmp_path, max_unreadable=0).batch(range(20))


def test_what_a_mask_leaves_out_may_be_no_number(tmp_path: Path) -> None:
    np.save(tmp_path / "land.npy", np.array([1, np.inf, 2, 3, 4, 5, 6, 7], np.float32))
    example = Folder(Measured(), tmp_path)[0]
    assert example.x0[0].tolist() == [1, 0, 2, 3, 4, 5, 6, 7]
    assert example.mask is not None
    assert example.mask[0].tolist() == [True, False, *[True] * 6]
