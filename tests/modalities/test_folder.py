"""Folders list files in order, with classes, captions and splits; damaged files and mistakes are named."""

import gzip
import json
import math
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from modalities.audio import Audio
from modalities.base import Example, Modality, collate, split
from modalities.files import Folder
from modalities.image import Image
from modalities.labels import number as number_classes
from modalities.reading import UnreadableFilesError
from modalities.representation import Waveform
from modalities.tar_packing import Packing, write_tar
from modalities.tars import TarShards
from modalities.video import Video
from tests.helpers.numbered_clips import write_numbered

IMAGE = Image(size=8)


def picture(path: Path, value: int | np.ndarray = 3) -> Path:
    """Save a picture of one grey value, or of an array of pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.fromarray(np.full((8, 8, 3), value, np.uint8) if isinstance(value, int) else value).save(path)
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
        "@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "cat/@eaDir/1.png", "__MACOSX/cat/1.png", ".hidden/1.png", "cat/.1.png",
        "$RECYCLE.BIN/1.png",
    ]  # fmt: skip
    for file in ["cat/1.png", "dog/1.png", *hidden]:
        picture(tmp_path / file)
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


def test_folder_counts_the_files_that_it_passes_over(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.HEIC", "b.heic", "c.jp2", "none", ".hidden", "00.txt"):
        (flat / name).write_text("caption")
    Folder(IMAGE, flat)
    assert "5 of 25 files under" in caplog.text
    assert "2 × .heic" in caplog.text
    assert "1 × (none)" in caplog.text
    caplog.clear()
    for path in flat.glob("*.png"):
        path.with_suffix(".txt").write_text("caption")
    Folder(IMAGE, flat, captions="sidecar")
    assert "4 of 24 files" in caplog.text


@dataclass(frozen=True)
class Compressed(Image):
    """Pictures whose names end in two parts, as compressed volumes do."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        return (".pic.gz", ".gz")

    def load(self, path: Path, seed: int | None = None) -> torch.Tensor:
        assert path.name.endswith(".pic.gz")
        with gzip.open(path) as file:
            return torch.full((3, 8, 8), int(file.read()), dtype=torch.uint8)


def test_endings_of_several_parts_are_kept_in_folders_manifests_and_shards(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.pic.gz").write_bytes(gzip.compress(b"%d" % number))
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    (tmp_path / "list.csv").write_text("file,label\n" + "".join(f"{number}.pic.gz,x\n" for number in range(3)))
    modality = Compressed(8)
    folder = Folder(modality, tmp_path, manifest="list.csv", captions="sidecar")
    assert folder.texts == [("text 0",), ("text 1",), ("text 2",)]
    packing = Packing(folder, range(3), 10**6)
    write_tar(tmp_path / "0.tar", [packing.example(number) for number in range(3)])
    for data in (folder, TarShards(modality, str(tmp_path / "0.tar"))):
        assert [value(example.x0) for example in data] == [0, 1, 2]


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


# Other systems refuse names that are not UTF-8.
@pytest.mark.parametrize("name", ["a.png", *(["bad\udcff.png"] if sys.platform == "linux" else [])], ids=ascii)
def test_folder_saves_its_unreadable_files_as_json(tmp_path: Path, name: str) -> None:
    path, saved = picture(tmp_path / "media" / name), tmp_path / "new" / "unreadable.json"
    dataset = Folder(IMAGE, tmp_path / "media", max_unreadable=1)
    assert len(dataset.fingerprint) == 64
    dataset.save_unreadable(saved)
    assert not saved.exists()
    path.write_bytes(b"")
    with pytest.raises(UnreadableFilesError, match="1 of 1"):
        dataset.subset([0]).example(0)
    dataset.save_unreadable(saved)
    entry = {"path": name, "reason": "ValueError: the file is empty"}
    assert json.loads(saved.read_text()) == {"files": 1, "allowed": 1, "unreadable": [entry]}


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


def test_folder_uses_a_file_with_a_bad_part_whatever_was_read_before(tmp_path: Path) -> None:
    for number in range(8):
        samples = np.random.default_rng(number).normal(0, 0.1, 4000).astype(np.float32)
        samples[1000 : 2500 if number % 2 else 1000] = math.nan
        soundfile.write(tmp_path / f"{number}.wav", samples, 1000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(4000), 1000)
    audio = Audio(rate=1000, seconds=0.5, representation=Waveform())
    pairs = [(index, seed) for seed in range(6) for index in range(9)]
    alone = [Folder(audio, tmp_path, max_unreadable=1).example(*each).x0 for each in pairs]
    for threads, order in ((1, pairs), (4, pairs), (1, pairs[::-1])):
        folder = Folder(audio, tmp_path, max_unreadable=1, threads=threads)
        read = dict(zip(order, folder.batch(*zip(*order, strict=True)).x0, strict=True))
        assert all(torch.equal(read[pair], x0) for pair, x0 in zip(pairs, alone, strict=True))
    assert set(folder.unreadable) == {"1.wav", "3.wav", "5.wav", "7.wav", "silent.wav"}
    assert folder.report.unusable == {"silent.wav"}


def test_folder_counts_files_of_which_only_the_first_page_is_read(flat: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [PIL.Image.new("L", (8, 8), level) for level in (0, 255)]
    for name in ("a.tif", "b.gif", "c.png"):
        pages[0].save(flat / name, save_all=True, append_images=pages[1:])
    dataset = Folder(Image(size=8), flat)
    dataset.batch(range(len(dataset)))
    assert [(text.split(",")[0], count) for text, count in dataset.remarks.items()] == [
        ("a file of several pages or frames", 3)
    ]
    assert caplog.text.count("only the first is read") == 1


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
    with pytest.raises(UnreadableFilesError, match="none of the 1 files of this part of the dataset"):
        Folder(IMAGE, flat).subset([0])[0]


def test_folder_batch_depends_on_seeds_and_not_on_threads(tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / f"{number}.png", np.random.default_rng(number).integers(0, 256, (8, 24, 3), np.uint8))
    many, one = (Folder(Image(size=8, flip=True), tmp_path, threads=threads) for threads in (4, 1))
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
        with pytest.raises(ValueError, match="at least one must remain for training"):
            split(dataset, count)
    for share, held in ((0.001, 1), (0.999, 19)):
        assert [len(part) for part in split(dataset, share)] == [20 - held, held], "one on either side"


def test_split_keeps_an_example_of_every_class_for_training(tmp_path: Path) -> None:
    for number in range(8):
        for copy in range(1 + number % 3 * 5):
            picture(tmp_path / f"kind{number}" / f"{copy}.png")
    dataset = Folder(IMAGE, tmp_path)
    for share, seed in product((0.3, 0.5, 0.95, 40), range(5)):
        train, validation = split(dataset, share, seed)
        assert sorted(train.files + validation.files) == dataset.files
        assert set(train.labels) == set(range(8)), (share, seed)
        assert len(validation) == min(share if share >= 1 else round(share * len(dataset)), len(dataset) - 8)
    # Without loss of a class it is a plain permutation.
    freely = split(dataset, 0.5, 1, keep_classes=False)[1]
    held_out = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(1))[: len(freely)].tolist()
    assert freely.files == [dataset.files[place] for place in sorted(held_out)]
    assert len(set(freely.files) & set(split(dataset, 0.5, 1)[1].files)) >= len(freely) - 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_folder_refuses_values_that_are_not_finite_unless_masked(
    flat: Path, bad: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Image.encode
    monkeypatch.setattr(Image, "encode", lambda self, media: encode(self, media).masked_fill(media >= 18, bad))
    monkeypatch.setattr(Image, "mask", lambda self, media: (media != 19).all(0, keepdim=True))
    pixels = np.ones((8, 8, 3), np.uint8)
    pixels[0, 5] = 19
    picture(flat / "19.png", pixels)
    dataset, reason = Folder(IMAGE, flat), "ValueError: it contains NaN or infinity"
    assert bool(dataset.batch(range(20)).x0.isfinite().all())
    assert dict(dataset.unreadable) == {"18.png": reason}
    valid, masked = dataset[1], dataset[19]
    assert masked.mask.logical_not().nonzero().tolist() == [[0, 0, 5]]
    assert torch.equal(masked.x0, valid.x0 * masked.mask)


NAMES = ["3_ann_0.png", "3_bob_1.png", "10_ann_0.png", "9_ann_7.png"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four pictures in one folder, whose grey value is their place in `NAMES`."""
    for value, name in enumerate(NAMES):
        picture(tmp_path / name, value)
    return tmp_path


def manifest(root: Path, text: str, name: str = "list.csv") -> Path:
    (root / name).write_text(text, encoding="utf-8")
    return root / name


def jsonl(root: Path, *rows: Any) -> Path:
    return manifest(root, "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "list.jsonl")


def classes(dataset: Folder) -> dict[str, str]:
    return {file: dataset.classes[label] for file, label in zip(dataset.files, dataset.labels, strict=True)}


@pytest.mark.parametrize("pattern", [r"(?P<label>\d+)_.*", r"^(\d+)_", r"(\d+)", r"(?P<speaker>x)?(?P<label>\d+)_"])
def test_labels_from_names_search_the_file_name_only(root: Path, pattern: str) -> None:
    dataset = Folder(IMAGE, root, labels="name", pattern=pattern)
    assert dataset.classes == ("3", "9", "10")
    assert classes(dataset) == {name: name.split("_")[0] for name in NAMES}
    batch = dataset.batch(range(4))
    assert batch.labels.tolist() == dataset.labels
    assert batch.texts is None
    picture(root / "7_zoe" / "2_ann_0.png")
    assert classes(Folder(IMAGE, root, labels="name", pattern=pattern))["7_zoe/2_ann_0.png"] == "2"


def test_number_sorts_classes_with_numbers_by_value() -> None:
    large, larger = "x" + "9" * 5000, "x1" + "0" * 5000
    for names, expected in (
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "1"], ("1", "9", "10")),
        (["x10y", "x9z", "x9a"], ("x9a", "x9z", "x10y")),
        (["01", "1", "a", ""], ("", "01", "1", "a")),
        (["²", "2"], ("2", "²")),
        ([large, "x2", larger], ("x2", large, larger)),
    ):
        classes, numbers = number_classes(names)
        assert classes == expected
        assert [classes[each] for each in numbers] == names


def test_folder_match_selects_files_by_their_path(root: Path) -> None:
    picture(root / "more" / "1_ann_5.png")
    assert Folder(IMAGE, root, match=r"_0\.png$").files == ["10_ann_0.png", "3_ann_0.png"]
    listed = manifest(root, "file,label\n3_ann_0.png,x\nabsent_1.png,y\n")
    assert Folder(IMAGE, root, manifest=listed, match=r"_0\.png$").files == ["3_ann_0.png"]
    with pytest.raises(FileNotFoundError, match=r"match='wav' selects no file under "):
        Folder(IMAGE, root, match="wav")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "name", "pattern": "(a"}, r"pattern='\(a' is not a regular expression: .* at position 0"),
        ({"match": "a["}, r"match='a\[' is not a regular expression: .* at position 1"),
        ({"labels": "name", "pattern": "[0-9]"}, r"no group .*\(\?P<label>"),
        ({"labels": "name", "pattern": r"_bob_(\d)"}, r"pattern='_bob_.*' finds no class in the name of 10_ann_0\.png"),
        ({"labels": "name"}, "labels=name needs pattern"),
        ({"pattern": "(a)"}, r"pattern='\(a\)' applies only to labels=name, but labels is auto"),
        ({"labels": "manifest"}, "labels=manifest needs a manifest"),
        ({"labels": "names"}, "labels must be one of auto, folder, parent, name, manifest, none"),
        ({"captions": "side"}, "captions must be one of auto, sidecar, labels, none"),
        ({"captions": "labels"}, "captions=labels requires classes"),
        ({"max_unreadable": 2}, "fraction"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_folder_refuses_incompatible_settings(root: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(IMAGE, root, **options)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_manifest_lists_files_labels_and_texts(root: Path, kind: str) -> None:
    rows = [("9_ann_7.png", "10", 'a "red", square'), ("./3_ann_0.png", "two", ""), ("10_ann_0.png", "9", "Grün")]
    if kind == "csv":
        lines = [f'{file},x,{label},"{text.replace(chr(34), chr(34) * 2)}"' for file, label, text in rows]
        # A byte order mark, as spreadsheets write it, and Windows' ends of lines.
        path = manifest(root, "\ufeff" + "\r\n".join(["file,other,label,text", *lines]))
    else:
        path = jsonl(root, *({"file": f, "label": la, "text": t, "size": [8, 8]} for f, la, t in rows), "")
    dataset = Folder(IMAGE, root, manifest=path.name)
    assert classes(dataset) == {"10_ann_0.png": "9", "3_ann_0.png": "two", "9_ann_7.png": "10"}
    assert dataset.classes == ("9", "10", "two")
    assert dataset.batch([2, 0]).texts == ('a "red", square', "Grün")
    assert (dataset.caption(0), dataset.subset([2, 1])[0].text) == ("Grün", 'a "red", square')
    assert Folder(IMAGE, root, "none", manifest=path, captions="none").batch([0])[1:5] == (None,) * 4


GOOD = {"file": "3_ann_0.png", "label": "a"}
WRONG = [
    ("name,label\na,b\n", "list.csv:1: no column file among name, label"),
    ("file,class\n3_ann_0.png,b\n", "lists no file with a label, text, split or group"),
    ("file,label,label\na,b,c\n", "list.csv:1: a column is repeated"),
    ("file,text,caption\na,b,c\n", "text and caption mean the same"),
    ("file;label\na;b\n", "no column file among file;label: separate columns by commas"),
    (({"file": "3_ann_0.png", "label": "a\ud83d"},), r"list.jsonl:1: label: half of a character"),
    (({"file": "3_ann_0.png", "text": "a\ud83d"},), r"list.jsonl:1: text half of a character"),
    ("file,label\n3_ann_0.png,a\n3_bob_1.png,b,c\n", "list.csv:3: more values than columns"),
    ("file,label\n3_ann_0.png,\n", "list.csv:2: label is missing or empty"),
    ("file,label\n,a\n", "list.csv:2: file is missing or empty"),
    ("file,group\n3_ann_0.png,\n", "list.csv:2: group is missing or empty"),
    ("file,split\n3_ann_0.png,train\n3_bob_1.png\n", "list.csv:3: split is missing here"),
    ("file,split\n3_ann_0.png,dev\n", "list.csv:2: a split is one of train, .*, got 'dev'"),
    (({"file": "3_ann_0.png", "split": ""},), "list.jsonl:1: a split is one of train, .*, got ''"),
    ("file,label\n3_ann_0.png,a\n3_bob_1.png\n", "list.csv:3: label is missing here"),
    ("file,label\n3_ann_0.png,a\n./3_ann_0.png,a\n", "list.csv:3: 3_ann_0.png is already in .*list.csv:2"),
    ("file,label\n../secret.png,a\n", r"list.csv:2: \.\./secret\.png must be a path under root"),
    ("file,label\n/etc/secret.png,a\n", r"list.csv:2: /etc/secret\.png must be a path under root"),
    ('file,label\n"3_ann_0.png,a\n', "list.csv:2: invalid CSV: unexpected end of data"),
    ("file,label\n3_ann_0.png,a\nlist.csv,b\n", r"list.csv:3: list.csv does not end in \.png"),
    ((GOOD, '{"file": "3_ann_0.png", "label"'), "list.jsonl:2: invalid JSON: .*column"),
    ((GOOD, "[1, 2]"), r"list.jsonl:2: each line must be one JSON object, got \[1, 2\]"),
    ((GOOD, "[" * 100_000), "list.jsonl:2: invalid JSON: "),
    ((GOOD, {"file": "3_bob_1.png", "label": ["a"]}), r"list.jsonl:2: label must be text, got \['a'\]"),
    ((GOOD, {"file": "3_bob_1.png", "label": True}), "list.jsonl:2: label must be text, got True"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message for _, message in WRONG])
def test_manifest_mistakes_are_named_with_their_line(root: Path, content: Any, message: str) -> None:
    path = manifest(root, content) if isinstance(content, str) else jsonl(root, *content)
    with pytest.raises(ValueError, match=message):
        Folder(IMAGE, root, manifest=path)


def test_manifest_that_cannot_be_read_is_named(root: Path) -> None:
    manifest(root, "file,label\n3_ann_0.png,a\nabsent.png,b\n")
    manifest(root, "", "list.txt")
    manifest(root, "file,label\nmore\\1.png,b\n", "windows.csv")
    (root / "latin.csv").write_bytes(b"file,label\n3_ann_0.png,gr\xfcn\n")
    for name, message in (
        ("list.csv", r"list.csv:3: there is no file absent.png under"),
        ("windows.csv", r"there is no file more.1.png .*: separate folders by / instead of"),
        ("other.csv", r"no manifest .*other.csv"),
        ("list.txt", r"must end in \.csv or \.jsonl"),
        ("latin.csv", r"latin.csv is not UTF-8 text \(invalid start byte, byte 25\)"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=message):
            Folder(IMAGE, root, manifest=name)


def test_captions_come_from_sidecars_classes_or_a_manifest(root: Path) -> None:
    for value, name in enumerate(NAMES):
        (root / name).with_suffix(".txt").write_text(f" number {value}\n", encoding="utf-8")
    assert Folder(IMAGE, root, captions="sidecar").texts == [("number 2",), ("number 0",), ("number 1",), ("number 3",)]
    (root / "9_ann_7.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"9_ann_7.txt is not UTF-8 text"):
        Folder(IMAGE, root, captions="sidecar")
    (root / "9_ann_7.txt").unlink()
    with pytest.raises(ValueError, match=r"9_ann_7\.png has no caption: write it to 9_ann_7\.txt.*missing_captions"):
        Folder(IMAGE, root, captions="sidecar")
    named = Folder(IMAGE, root, labels="name", pattern="(.*)_", captions="labels")
    assert named.texts == [("10 ann",), ("3 ann",), ("3 bob",), ("9 ann",)]
    assert named.classes == ("3_ann", "3_bob", "9_ann", "10_ann")
    listed = Folder(IMAGE, root, manifest=jsonl(root, {"file": "3_ann_0.png", "text": "one"}))
    assert (listed.classes, listed.texts) == (None, [("one",)])


def test_sidecars_of_several_endings_may_have_several_captions(root: Path) -> None:
    (root / "3_ann_0.caption").write_text(" a line\nand another ")
    (root / "3_bob_1.json").write_text('{"caption": ["one", "two "], "text": "other", "size": NaN}')
    (root / "9_ann_7.json").write_text('{"text": 7}')
    (root / "10_ann_0.json").write_text("[[0, 1]]")
    (root / "10_ann_0.txt").write_text("before .json")
    dataset = Folder(IMAGE, root, captions="sidecar")
    assert dataset.texts == [("before .json",), ("a line\nand another",), ("one", "two"), ("7",)]
    assert dataset.caption(2) == dataset[2].text == "one"
    drawn = [dataset.example(2, seed).text for seed in range(20)]
    assert set(drawn) == {"one", "two"}
    assert dataset.batch([2] * 20, range(20)).texts == tuple(drawn) == tuple(dataset.caption(2, s) for s in range(20))
    before = dataset.fingerprint
    (root / "3_bob_1.json").write_text('{"caption": ["one", "three"]}')
    assert Folder(IMAGE, root, captions="sidecar").fingerprint != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "3_ann_0.json: .*column"),
        ('{"caption": {"a": 1}}', r"3_ann_0.json: caption must be text or a list of texts, got \{'a': 1\}"),
        ('{"text": ["a", 1]}', "3_ann_0.json: text must be text or a list"),
        ("[" * 10**5, "3_ann_0.json: it is nested too deeply"),
        (" " * (1 << 20) + "{}", "3_ann_0.json: it has 1,048,578 bytes, more than the limit"),
        (None, "3_ann_0.json: it is a pipe and not a file"),
    ],
    ids=["json", "object", "number", "nested", "large", "pipe"],
)
def test_sidecars_that_cannot_be_read_are_named(root: Path, content: str | None, message: str) -> None:
    path = root / "3_ann_0.json"
    os.mkfifo(path) if content is None else path.write_text(content)
    with pytest.raises(ValueError, match=message):
        Folder(IMAGE, root, captions="sidecar", missing_captions="empty")


@pytest.mark.parametrize("source", ["sidecar", "manifest"])
def test_missing_captions_are_errors_or_empty_or_skipped(
    root: Path, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    texts = {"3_ann_0.png": "", "3_bob_1.png": "bob", "9_ann_7.png": "nine"}
    if source == "sidecar":
        for name, text in texts.items():
            (root / name).with_suffix(".txt").write_text(text)
        options: dict[str, Any] = {"captions": "sidecar", "labels": "name", "pattern": r"^(\d+)_"}
    else:
        options = {"manifest": jsonl(root, *({"file": n, "text": texts.get(n), "label": n[0]} for n in sorted(NAMES)))}
    with pytest.raises(ValueError, match=r"10_ann_0|list.jsonl:1.* missing_captions=empty or skip"):
        Folder(IMAGE, root, **options)
    empty = Folder(IMAGE, root, **options, missing_captions="empty")
    assert [empty.caption(index) for index in range(4)] == ["", "", "bob", "nine"]
    skipped = Folder(IMAGE, root, **options, missing_captions="skip")
    assert "2 of 4 examples have no caption and are not used" in caplog.text
    assert (skipped.files, skipped.texts) == (["3_bob_1.png", "9_ann_7.png"], [("bob",), ("nine",)])
    assert (skipped.classes, skipped.labels) == (("3", "9"), [0, 1])
    for name in texts:
        (root / name).with_suffix(".txt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="missing_captions=skip: none of the 4 examples has a caption"):
        Folder(IMAGE, root, captions="sidecar", missing_captions="skip")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"caption": null, "text": "b"}', "b"),
        ('["b"]', r"must be an object such as .*, got \["),
        ('{"caption": "b\\ud83d"}', "caption half of a character"),
        ('{"Caption": "b"}', r"has no caption: .*1.json under the key caption or text"),
    ],
)
def test_sidecars_in_json_are_read_or_named(tmp_path: Path, content: str, expected: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "1.json").write_text(content)
    if expected == "b":
        assert Folder(IMAGE, tmp_path, captions="sidecar").texts == [("b",)]
    else:
        with pytest.raises(ValueError, match=expected):
            Folder(IMAGE, tmp_path, captions="sidecar")


def test_columns_without_a_name_are_ignored_and_unknown_numbers_are_scalars(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manifest(root, ",file,label,age,size,height,\n0,3_ann_0.png,a,NaN,inf,3,\n1,3_bob_1.png,b,5,7,4,\n")
    dataset = Folder(IMAGE, root, manifest="list.csv")
    assert dataset.scalars == {**IMAGE.scalars, "age": ""}
    assert np.array_equal([dataset.numbers(index)["age"] for index in range(2)], [np.nan, 5], equal_nan=True)
    assert "the columns height of the manifest are not scalars" in caplog.text
    assert dataset.scalars["height"] == "pixel"


def test_tables_of_other_libraries_are_manifests_without_being_asked_for(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(root / "more" / "deep" / "5.png")
    manifest(root, "file_name,caption,label\n3_ann_0.png,one,a\n3_bob_1.png,two,b\n", "metadata.csv")
    row = {"file_name": "deep/5.png", "text": ["three", "four"], "label": "a"}
    manifest(root / "more", json.dumps(row), "metadata.jsonl")
    dataset = Folder(IMAGE, root)
    assert dataset.files == ["3_ann_0.png", "3_bob_1.png", "more/deep/5.png"]
    assert (dataset.texts, dataset.classes) == ([("one",), ("two",), ("three", "four")], ("a", "b"))
    assert "metadata.csv, more/metadata.jsonl under" in caplog.text
    assert "3 of 5 files are listed and used (manifest=null reads the folder without it)" in caplog.text
    plain = Folder(IMAGE, root, manifest=None)
    assert (len(plain), plain.texts) == (5, None)
    for text, message in (
        ("file_name,file\n1,2\n", "metadata.csv:1: a column is repeated"),
        ("file_name,size\n3_ann_0.png,7\n", "Mend this table; manifest=null reads the folder without it"),
        ("file_name,label\nmore/deep/5.png,a\n", r"metadata.jsonl:1: more/deep/5.png is already in .*metadata.csv:2"),
        ("file_name,text\n3_ann_0.png,one\n", r"metadata.csv:2: label is missing here"),
    ):
        manifest(root, text, "metadata.csv")
        with pytest.raises(ValueError, match=message):
            Folder(IMAGE, root)
    manifest(root, "file_name,label\n../3_ann_0.png,a\n", "more/metadata.csv")
    with pytest.raises(ValueError, match="must be a path under root"):
        Folder(IMAGE, root)


def test_labels_parent_is_the_folder_of_the_file_at_any_depth(tmp_path: Path) -> None:
    for file in ("a/x/1.png", "b/deep/x/2.png", "b/y/3.png"):
        picture(tmp_path / file)
    assert classes(Folder(IMAGE, tmp_path, labels="parent")) == {
        "a/x/1.png": "x", "b/deep/x/2.png": "x", "b/y/3.png": "y"
    }  # fmt: skip
    picture(tmp_path / "4.png")
    with pytest.raises(ValueError, match=r"4\.png is not in a subfolder"):
        Folder(IMAGE, tmp_path, labels="parent")


def test_splits_come_from_folders_and_classes_from_the_folders_below(tmp_path: Path) -> None:
    for file in ("Train/cat/1.png", "Train/dog/2.png", "val/dog/3.png", "testing/cat/x/4.png"):
        picture(tmp_path / file)
    for labels in ("auto", "folder"):
        dataset = Folder(IMAGE, tmp_path, splits="folders", labels=labels)
        assert dataset.splits == ["train", "train", "test", "validation"]
        assert classes(dataset) == {file: "cat" if "cat" in file else "dog" for file in dataset.files}
    assert dataset.subset([3]).splits == ["validation"]
    parents = Folder(IMAGE, tmp_path, splits="folders", labels="parent")
    assert parents.classes == ("cat", "dog", "x")
    picture(tmp_path / "val" / "5.png")
    assert Folder(IMAGE, tmp_path, splits="folders").classes is None
    with pytest.raises(ValueError, match=r"val/5\.png is not in a subfolder"):
        Folder(IMAGE, tmp_path, splits="folders", labels="parent")
    table = manifest(tmp_path, "file,split\nval/5.png,test\n")
    with pytest.raises(ValueError, match="splits=folders, but the manifest has a column split"):
        Folder(IMAGE, tmp_path, splits="folders", manifest=table)
    picture(tmp_path / "extra" / "6.png")
    with pytest.raises(ValueError, match=r"extra/6\.png is not in a folder train, validation or test directly below"):
        Folder(IMAGE, tmp_path, splits="folders")
    assert len(Folder(IMAGE, tmp_path, splits="folders", match="^(?!extra)")) == 5


def test_folder_fingerprint_depends_on_labels_texts_splits_and_groups(root: Path) -> None:
    lines = "file,label,text,split,group\n3_ann_0.png,{},{},{},{}\n3_bob_1.png,b,x,train,1\n"
    rows = [("a", "x", "train", "1"), ("b", "x", "train", "1"), ("a", "y", "train", "1"), ("a", "x", "test", "1")]
    rows += [("a", "x", "train", "2"), ("a", "x", "train", "1")]
    tables = [manifest(root, lines.format(*words), f"{'-'.join(words)}.csv") for words in rows]
    assert len({Folder(IMAGE, root, manifest=table).fingerprint for table in tables}) == 5


def test_collate_keeps_what_every_example_has_and_stacks_masks() -> None:
    x0, one = torch.zeros(2, 3), torch.tensor([[True, False, True]])
    every = torch.tensor([[True, True, False], [False, True, True]])
    assert collate([Example(x0, text="a"), Example(x0, text="")]).texts == ("a", "")
    assert collate([Example(x0, text="a"), Example(x0)]).texts is None
    assert collate([Example(x0, mask=one), Example(x0)]).mask.tolist() == [one.tolist(), [[True] * 3]]
    mask = collate([Example(x0, mask=one), Example(x0), Example(x0, mask=every)]).mask
    assert mask.tolist() == [one.repeat(2, 1).tolist(), [[True] * 3] * 2, every.tolist()]
    with pytest.raises(ValueError, match=r"shape \(1, 3\), or \(2, 3\) if it differs among channels, got \(3,\)"):
        collate([Example(x0, mask=one[0])])


FILES = 200
MEDIA: dict[str, Modality] = {
    "image": Image(size=8, channels=3),
    "audio": Audio(rate=8000, seconds=0.05, representation=Waveform()),
    "video": Video(frames=3, fps=10, size=8),
}
ENDINGS = {
    "image": ("png", "jpg", "webp", "gif", "bmp", "tif"),
    "audio": ("wav", "flac", "ogg", "mp3", "aiff", "mkv", "mp4"),
    "video": ("mp4", "mkv", "avi", "gif", "ts"),
}
CODECS = {"avi": "mpeg4", "gif": "gif", "ts": "mpeg2video"}
HOPELESS = ("empty", "garbage", "text", "zeros")  # nothing is left to read


def undamaged(medium: str, folder: Path) -> list[Path]:
    """Write a file in each of several formats."""
    folder.mkdir()
    paths, draw = [folder / f"good.{ending}" for ending in ENDINGS[medium]], np.random.default_rng(0)
    for path, ending in zip(paths, ENDINGS[medium], strict=True):
        if medium == "image":
            picture(path, draw.integers(0, 256, size=(24, 20, 3), dtype=np.uint8))
        elif medium == "audio" and ending in ("mkv", "mp4"):
            write_numbered(path, count=3, sound=0.3)
        elif medium == "audio":
            soundfile.write(path, 0.3 * draw.standard_normal(2400), 8000)
        else:
            write_numbered(path, CODECS.get(ending, "libx264"), count=30)
    return paths


def damages(sources: list[Path]) -> Iterator[tuple[str, bytes]]:
    """Yield (kind and ending, content) without end, each different."""
    draw = random.Random(0)
    kinds = {
        "truncated": lambda content: content[: draw.randrange(1, len(content))],
        "short": lambda content: content[: draw.randrange(1, 64)],
        "flipped": lambda content: flip(content, draw.randint(1, 40), draw, len(content)),
        "header": lambda content: flip(content, draw.randint(1, 8), draw, 100),
        "huge": lambda content: content[: (at := draw.randrange(4, 60))] + b"\xff\xff\xff\x7f" + content[at + 4 :],
        "doubled": lambda content: content + content[draw.randrange(len(content)) :],
        "hole": lambda content: content[: (third := len(content) // 3)] + bytes(third) + content[2 * third :],
        "empty": lambda _: b"",
        "garbage": lambda _: draw.randbytes(draw.randrange(1, 4000)),
        "text": lambda _: b"<html>404 not found</html>" * draw.randrange(1, 50),
        "zeros": lambda _: bytes(draw.randrange(1, 4000)),
    }
    while True:
        for kind, damage in kinds.items():
            for source in sources:
                yield f"{kind}{source.suffix}", damage(source.read_bytes())


def flip(content: bytes, bits: int, draw: random.Random, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(bits):
        changed[draw.randrange(min(end, len(changed)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def open_files() -> int | None:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else None


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("ignore::Warning:PIL")  # Pillow warns about what it repairs
@pytest.mark.parametrize("medium", MEDIA)
def test_folder_reads_or_reports_every_damaged_file(medium: str, tmp_path: Path) -> None:
    modality, root = MEDIA[medium], tmp_path / "root"
    sources = undamaged(medium, tmp_path / "sources")
    root.mkdir()
    for number, (name, content) in zip(range(FILES), damages(sources), strict=False):
        (root / f"{number:03d}_{name}").write_bytes(content)
    good = f"good{sources[0].suffix}"
    shutil.copy(sources[0], root / good)  # a folder without a readable file is an error
    folder = Folder(modality, root, labels="none", max_unreadable=1.0)
    assert folder.read(folder.files.index(good), seed=0) is not None
    before = open_files()
    for index, file in enumerate(folder.files):
        began = time.monotonic()
        example = folder.read(index, seed=index)
        assert time.monotonic() - began < 20, f"{file} takes long"
        if example is None:
            reason = re.fullmatch(r"(ValueError|UnusableFileError): .+", folder.unreadable[file], re.DOTALL)
            assert reason, f"{file} is reported as {folder.unreadable[file]}"
        else:
            assert example.x0.shape == (modality.channels, *modality.grid().shape)
            assert bool(torch.isfinite(example.x0).all()), f"{file} is not finite"
            assert Path(file).stem.split("_")[-1] not in HOPELESS, f"{file} cannot contain data"
    assert FILES // 3 <= len(folder.unreadable) < FILES
    assert open_files() == before, "files are left open"
