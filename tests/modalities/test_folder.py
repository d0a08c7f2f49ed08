"""Folders of files: which files are a dataset, their classes, damaged files, batches and splits."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from modalities.base import split
from modalities.files import Folder
from modalities.image import Image
from modalities.reading import FileReport, UnreadableFilesError

IMAGE = Image(size=8)


def picture(path: Path, value: int = 3) -> Path:
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


def test_folder_lists_media_in_order_and_follows_links_once(flat: Path) -> None:
    (flat / "notes.txt").write_text("not a picture")
    (flat / "03.png").rename(flat / "03.jpg")  # the content of a file decides, not its suffix
    (flat / "loop").symlink_to(flat, target_is_directory=True)
    os.mkfifo(flat / "pipe.png")
    dataset = Folder(IMAGE, flat)
    assert dataset.classes is None
    assert [value(example.x0) for example in dataset] == list(range(20))
    assert dataset[3].label is None
    assert dataset.batch([0, 1]).labels is None
    for index in (-1, 20):
        with pytest.raises(IndexError, match=str(index)):
            dataset.example(index)


def test_folder_ignores_hidden_and_system_files(tmp_path: Path) -> None:
    hidden = [
        "@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "cat/@eaDir/1.png", "__MACOSX/cat/._1.png", "__MACOSX/cat/1.png",
        ".hidden/1.png", "cat/.1.png", "#recycle/1.png", "$RECYCLE.BIN/1.png", "lost+found/1.png",
        "System Volume Information/1.png",
    ]  # fmt: skip
    for file in ["cat/1.png", "dog/1.png", *hidden]:
        picture(tmp_path / file)
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"thumbs")
    dataset = Folder(IMAGE, tmp_path)
    assert (dataset.files, dataset.classes) == (["cat/1.png", "dog/1.png"], ("cat", "dog"))


def test_folder_refuses_roots_without_media_and_files_without_a_class(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"it contains nothing"):
        Folder(IMAGE, tmp_path)
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"ends in \.png.*1 × \.txt"):
        Folder(IMAGE, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing is not a folder"):
        Folder(IMAGE, tmp_path / "missing")
    picture(tmp_path / "one" / "a.png")
    picture(tmp_path / "stray.png")
    with pytest.raises(ValueError, match=r"stray\.png .*labels=none"):
        Folder(IMAGE, tmp_path, labels="folder")


@pytest.mark.parametrize(
    ("files", "options", "classes"),
    [
        (["dog/a.PNG", "cat/deep/er/b.jpeg", "cat/c.webp"], {}, ("cat", "dog")),
        (["train/cat/1.png", "train/dog/1.png"], {}, ("cat", "dog")),
        (["cat/images/1.png", "dog/images/1.png"], {}, ("cat", "dog")),
        (["a/b/c/1.png", "a/b/d/e/1.png"], {}, ("c", "d")),
        (["train/cat/1.png", "train/dog/1.png", "test/cat/1.png"], {"match": "^train/"}, ("cat", "dog")),
        (["train/cat/1.png", "train/2.png"], {}, None),
        (["train/cat/1.png"], {}, None),
        (["train/cat/1.png"], {"labels": "folder"}, ("cat",)),
        (["cat/1.png", "dog/1.png"], {"labels": "none"}, None),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_folder_classes_are_the_first_level_at_which_paths_differ(
    tmp_path: Path, files: list[str], options: dict[str, Any], classes: tuple[str, ...] | None
) -> None:
    for file in files:
        picture(tmp_path / file)
    dataset = Folder(IMAGE, tmp_path, **options)
    assert dataset.classes == classes
    if classes is not None:
        labels = [next(name for name in classes if f"{name}/" in file) for file in dataset.files]
        assert [classes[label] for label in dataset.batch(range(len(dataset))).labels] == labels  # type: ignore[union-attr]


def test_folder_warns_of_classes_named_like_splits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(tmp_path / "Train" / "cat" / "a.png")
    picture(tmp_path / "val" / "cat" / "b.png")
    assert Folder(IMAGE, tmp_path).classes == ("Train", "val")
    assert "Train, val" in caplog.text
    caplog.clear()
    Folder(IMAGE, tmp_path, labels="none")
    picture(tmp_path / "cat" / "c.png")
    Folder(IMAGE, tmp_path)
    assert caplog.text == ""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_folder_reports_names_that_are_not_utf_8(tmp_path: Path) -> None:
    picture(tmp_path / "media" / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/media/bad\xff.png")).write_bytes(b"broken")
    dataset, saved = Folder(IMAGE, tmp_path / "media", max_unreadable=0.9), tmp_path / "unreadable.json"
    dataset.batch([0, 1])
    dataset.save_unreadable(saved)
    (entry,) = json.loads(saved.read_text(encoding="utf-8"))["unreadable"]
    assert os.fsencode(entry["path"]) == b"bad\xff.png"
    assert len(dataset.fingerprint) == 64


def test_file_report_is_saved_as_json_if_files_are_unreadable(tmp_path: Path) -> None:
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
    picture(tmp_path / "a.png")
    dataset, saved = Folder(IMAGE, tmp_path, max_unreadable=1), tmp_path / "unreadable.json"
    dataset.save_unreadable(saved)
    assert not saved.exists()
    (tmp_path / "a.png").write_bytes(b"broken")
    with pytest.raises(UnreadableFilesError, match="1 of 1"):
        dataset.subset([0]).example(0)
    dataset.save_unreadable(saved)
    assert [entry["path"] for entry in json.loads(saved.read_text())["unreadable"]] == ["a.png"]


@pytest.mark.timeout(20)
def test_folder_replaces_an_unreadable_file_deterministically(flat: Path) -> None:
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


def test_split_replaces_unreadable_files_within_each_part(flat: Path) -> None:
    for bad in (3, 7):
        (flat / f"{bad:02}.png").write_bytes(b"x")
    parts = split(Folder(IMAGE, flat, max_unreadable=0.1), 0.3, seed=1)
    assert [len(part) for part in parts] == [14, 6]
    seen = [{value(part.example(n, seed).x0) for n in range(len(part)) for seed in range(5)} for part in parts]
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(20)) - {3, 7}
    assert parts[0].unreadable == parts[1].unreadable


def test_folder_with_too_many_unreadable_files_is_one_error(flat: Path) -> None:
    for bad in range(4):
        (flat / f"{bad:02}.png").write_bytes(b"x")
    dataset = Folder(IMAGE, flat, max_unreadable=0.15)
    for index in range(3):
        dataset.example(index)
    with pytest.raises(UnreadableFilesError, match=r"4 of 20 files .* allows 3: 00\.png .*02\.png.*max_unreadable"):
        dataset.example(3)
    with pytest.raises(UnreadableFilesError, match="allows 0"):
        Folder(IMAGE, flat, max_unreadable=0).batch([0, 9])
    with pytest.raises(UnreadableFilesError, match="none of the 1 files of this part"):
        Folder(IMAGE, flat).subset([0])[0]


def test_folder_batch_depends_on_seeds_and_not_on_threads(tmp_path: Path) -> None:
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


def test_split_is_a_partition_that_follows_its_seed(flat: Path) -> None:
    dataset = Folder(IMAGE, flat)
    train, validation = split(dataset, 5, seed=3)
    assert sorted(train.files + validation.files) == dataset.files
    assert split(dataset, 0.25, seed=3)[1].files == validation.files
    assert split(dataset, 5, seed=4)[1].files != validation.files
    for count in (20, 21, -1):
        with pytest.raises(ValueError, match="at least one is needed to train on"):
            split(dataset, count)
    for share, held in ((0.001, 1), (0.999, 19)):
        assert [len(part) for part in split(dataset, share)] == [20 - held, held], "one on either side"
    one = dataset.subset([3])
    assert split(dataset, 0)[1] is None
    assert split(one, 0.05)[1] is None
    assert split(one, 0.9)[0].files == one.files


def test_split_keeps_an_example_of_every_class_for_training(tmp_path: Path) -> None:
    for number in range(8):
        for copy in range(1 + number % 3 * 5):
            picture(tmp_path / f"kind{number}" / f"{copy}.png")
    dataset = Folder(IMAGE, tmp_path)
    for share in (0.3, 0.5, 0.95, 40):
        for seed in range(5):
            train, validation = split(dataset, share, seed)
            assert sorted(train.files + validation.files) == dataset.files
            assert {label for label in train.labels if label is not None} == set(range(8)), (share, seed)
            count = share if share >= 1 else round(share * len(dataset))
            assert len(validation) == min(count, len(dataset) - 8)
    freely = split(dataset, 0.5, 1, keep_classes=False)[1]
    assert len(set(freely.files) & set(split(dataset, 0.5, 1)[1].files)) >= len(freely) - 8


def test_split_is_a_plain_permutation_where_no_class_is_lost(tmp_path: Path) -> None:
    for number in range(40):
        picture(tmp_path / f"kind{number % 2}" / f"{number}.png")
    dataset = Folder(IMAGE, tmp_path)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3)).tolist()
    assert split(dataset, 0.2, 3)[1].files == [dataset.files[place] for place in sorted(order[:8])]


class Measured(Image):
    """Pictures in which the grey values 7 and 8 stand for broken numbers and 9 for no measurement."""

    def encode(self, media: torch.Tensor) -> torch.Tensor:
        x0 = super().encode(media)
        for level, number in ((7, "nan"), (8, "-inf"), (9, "inf")):
            x0[media == level] = float(number)
        return x0

    def mask(self, media: torch.Tensor) -> torch.Tensor:
        return (media != 9).all(0, keepdim=True)


def test_folder_refuses_values_that_are_not_finite_unless_masked(tmp_path: Path) -> None:
    for number in (1, 7, 8, 9):
        pixels = np.ones((8, 8, 3), np.uint8)
        pixels[0, 5] = number
        PIL.Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    dataset, reason = Folder(Measured(size=8), tmp_path, max_unreadable=0.5), "ValueError: it contains NaN or infinity"
    assert bool(dataset.batch(range(4)).x0.isfinite().all())
    assert dict(dataset.unreadable) == {"7.png": reason, "8.png": reason}
    valid, masked = dataset[0], dataset[3]
    assert masked.mask.logical_not().nonzero().tolist() == [[0, 0, 5]]
    assert torch.equal(masked.x0, valid.x0 * masked.mask)
    with pytest.raises(UnreadableFilesError, match=rf"7\.png \({reason}\)"):
        Folder(Measured(size=8), tmp_path, max_unreadable=0).batch(range(3))
