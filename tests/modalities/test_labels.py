"""Classes and captions of a folder come from names, manifests and text files, and mistakes in them are named."""

import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from modalities.base import Example, collate
from modalities.files import Folder
from modalities.image import Image
from modalities.labels import number
from modalities.manifest import read_manifest

IMAGE = Image(size=8)
NAMES = ["3_ann_0.png", "3_bob_1.png", "10_ann_0.png", "9_ann_7.png"]


def picture(path: Path, value: int = 0) -> None:
    IMAGE.save(torch.full((3, 8, 8), value, dtype=torch.uint8), path)


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


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "1"], ("1", "9", "10")),
        (["x10y", "x9z", "x9a"], ("x9a", "x9z", "x10y")),
        (["01", "1", "a", ""], ("", "01", "1", "a")),
        (["²", "2"], ("2", "²")),
        (["x" + "9" * 5000, "x2", "x1" + "0" * 5000], ("x2", "x" + "9" * 5000, "x1" + "0" * 5000)),
    ],
    ids=lambda names: str(names)[:40],
)
def test_number_sorts_classes_with_numbers_by_value(names: list[str], expected: tuple[str, ...]) -> None:
    classes, numbers = number(names)
    assert classes == expected
    assert [classes[each] for each in numbers] == names


def test_folder_match_selects_files_by_their_path(root: Path) -> None:
    picture(root / "more" / "1_ann_5.png")
    assert Folder(IMAGE, root, match=r"_0\.png$").files == ["10_ann_0.png", "3_ann_0.png"]
    assert Folder(IMAGE, root, match="^more/").files == ["more/1_ann_5.png"]
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
        ({"pattern": "(a)"}, r"pattern='\(a\)' is only for labels=name, but labels is auto"),
        ({"labels": "manifest"}, "labels=manifest needs a manifest"),
        ({"labels": "names"}, "labels must be one of auto, folder, name, manifest, none"),
        ({"captions": "side"}, "captions one of auto, sidecar, labels, none"),
        ({"captions": "labels"}, "captions=labels needs classes"),
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
    for dataset in (Folder(IMAGE, root, manifest=path.name), Folder(IMAGE, root, "manifest", manifest=path)):
        assert dataset.files == ["10_ann_0.png", "3_ann_0.png", "9_ann_7.png"]
        assert dataset.classes == ("9", "10", "two")
        assert classes(dataset) == {"9_ann_7.png": "10", "3_ann_0.png": "two", "10_ann_0.png": "9"}
        assert dataset.texts == ["Grün", "", 'a "red", square']
        assert dataset.batch([2, 0]).texts == ('a "red", square', "Grün")
        assert dataset.caption(0) == "Grün"
        part = dataset.subset([2, 1])
        assert (part.texts, part[0].text) == (['a "red", square', ""], 'a "red", square')
    assert Folder(IMAGE, root, "none", manifest=path, captions="none").batch([0])[1:] == (None,) * 4


def test_manifest_columns_are_optional(root: Path) -> None:
    labels = Folder(IMAGE, root, manifest=manifest(root, "label,file\n1,3_ann_0.png\n"))
    assert (labels.classes, labels.texts) == (("1",), None)
    texts = Folder(IMAGE, root, manifest=jsonl(root, {"file": "3_ann_0.png", "text": "one"}))
    assert (texts.classes, texts.texts) == (None, ["one"])
    with pytest.raises(ValueError, match="column label"):
        Folder(IMAGE, root, labels="manifest", manifest=root / "list.jsonl")
    assert Folder(IMAGE, root, manifest=jsonl(root, {"file": "3_ann_0.png", "label": 7})).classes == ("7",)


GOOD = {"file": "3_ann_0.png", "label": "a"}
WRONG = [
    ("name,label\na,b\n", "list.csv:1: no column file among name, label"),
    ("", "list.csv:1: no column file among none"),
    ("file,class\n3_ann_0.png,b\n", "lists no file with a label or text"),
    ("file,label\n", "lists no file with a label or text"),
    ("file,label,label\na,b,c\n", "list.csv:1: a column is repeated"),
    ("file,label\n3_ann_0.png,a\n3_bob_1.png,b,c\n", "list.csv:3: more values than columns"),
    ("file,label\n3_ann_0.png\n", "lists no file with a label or text"),
    ("file,label\n3_ann_0.png,\n", "list.csv:2: label is missing or empty"),
    ("file,label\n,a\n", "list.csv:2: file is missing or empty"),
    ("file,label\n3_ann_0.png,a\n3_bob_1.png\n", "list.csv:3: label is missing here"),
    ("file,label\n3_ann_0.png,a\n./3_ann_0.png,a\n", "list.csv:3: 3_ann_0.png is already in line 2"),
    ("file,label\n../secret.png,a\n", r"list.csv:2: \.\./secret\.png should be a path under root"),
    ("file,label\n/etc/secret.png,a\n", r"list.csv:2: /etc/secret\.png should be a path under root"),
    ('file,label\n"3_ann_0.png,a\n', "list.csv:2: invalid CSV: unexpected end of data"),
    ("file,label\n3_ann_0.png,a\nlist.csv,b\n", r"list.csv:3: list.csv does not end in \.png"),
    ((GOOD, '{"file": "3_ann_0.png", "label"'), "list.jsonl:2: invalid JSON: .*column"),
    ((GOOD, "[1, 2]"), r"list.jsonl:2: each line should be one JSON object, got \[1, 2\]"),
    ((GOOD, "[" * 100_000), "list.jsonl:2: invalid JSON: "),
    ((GOOD, {"label": "a"}), "list.jsonl:2: file is missing or empty"),
    ((GOOD, {"file": "3_bob_1.png", "label": ["a"]}), r"list.jsonl:2: label should be text, got \['a'\]"),
    ((GOOD, {"file": "3_bob_1.png", "label": True}), "list.jsonl:2: label should be text, got True"),
    ((GOOD, {"file": "3_bob_1.png"}), "list.jsonl:2: label is missing here"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message for _, message in WRONG])
def test_manifest_mistakes_are_named_with_their_line(root: Path, content: Any, message: str) -> None:
    path = manifest(root, content) if isinstance(content, str) else jsonl(root, *content)
    with pytest.raises(ValueError, match=message):
        Folder(IMAGE, root, manifest=path)


def test_manifest_that_cannot_be_read_is_named(root: Path) -> None:
    path = manifest(root, "file,label\n3_ann_0.png,a\nabsent.png,b\n")
    with pytest.raises(FileNotFoundError, match=r"list.csv:3: there is no file absent.png under"):
        Folder(IMAGE, root, manifest=path)
    with pytest.raises(FileNotFoundError, match=r"no manifest .*other.csv"):
        Folder(IMAGE, root, manifest="other.csv")
    with pytest.raises(ValueError, match=r"must end in \.csv or \.jsonl"):
        read_manifest(manifest(root, "", "list.txt"))
    path.write_bytes(b"file,label\n3_ann_0.png,gr\xfcn\n")
    with pytest.raises(ValueError, match=r"list.csv is not UTF-8 text \(invalid start byte, byte 25\)"):
        read_manifest(path)


def test_captions_come_from_sidecars_or_classes(root: Path) -> None:
    for value, name in enumerate(NAMES):
        (root / name).with_suffix(".txt").write_text(f" number {value}\n", encoding="utf-8")
    dataset = Folder(IMAGE, root, captions="sidecar")
    assert dataset.texts == ["number 2", "number 0", "number 1", "number 3"]
    assert int(IMAGE.decode(dataset[0].x0).max()) == 2
    (root / "9_ann_7.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"9_ann_7.txt is not UTF-8 text"):
        Folder(IMAGE, root, captions="sidecar")
    (root / "9_ann_7.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"9_ann_7\.png has no caption: write it to 9_ann_7\.txt"):
        Folder(IMAGE, root, captions="sidecar")
    assert Folder(IMAGE, root, captions="sidecar", match="^(3|10)").texts == ["number 2", "number 0", "number 1"]
    named = Folder(IMAGE, root, labels="name", pattern="(.*)_", captions="labels")
    assert named.texts == ["10 ann", "3 ann", "3 bob", "9 ann"]
    assert named.classes == ("3_ann", "3_bob", "9_ann", "10_ann")


def test_folder_fingerprint_depends_on_labels_and_texts(root: Path) -> None:
    lines = "file,label,text\n3_ann_0.png,{},{}\n3_bob_1.png,b,x\n"
    fingerprints = {
        Folder(IMAGE, root, manifest=manifest(root, lines.format(*words))).fingerprint
        for words in [("a", "x"), ("b", "x"), ("a", "y"), ("a", "x")]
    }
    assert len(fingerprints) == 3


def test_collate_keeps_what_every_example_has_and_stacks_masks() -> None:
    x0, one = torch.zeros(2, 3), torch.tensor([[True, False, True]])
    every = torch.tensor([[True, True, False], [False, True, True]])
    assert collate([Example(x0, text="a"), Example(x0, text="")]).texts == ("a", "")
    assert collate([Example(x0, text="a"), Example(x0)]).texts is None
    assert collate([Example(x0, 1), Example(x0, 2)]).labels.tolist() == [1, 2]
    assert collate([Example(x0), Example(x0)]).mask is None
    assert collate([Example(x0, mask=one), Example(x0)]).mask.tolist() == [one.tolist(), [[True] * 3]]
    mask = collate([Example(x0, mask=one), Example(x0), Example(x0, mask=every)]).mask
    assert mask.tolist() == [one.repeat(2, 1).tolist(), [[True] * 3] * 2, every.tolist()]
    with pytest.raises(ValueError, match=r"of shape \(1, 3\), or \(2, 3\) if it differs among channels, got \(3,\)"):
        collate([Example(x0, mask=one[0])])


@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder of real data")
def test_folder_of_spoken_digits_has_classes_and_speakers_from_names() -> None:
    root = Path(os.environ["MULTISAGD_DATA"]) / "audio" / "fsdd" / "recordings"
    wave: Any = SimpleNamespace(suffixes=(".wav",))
    digits = Folder(wave, root, labels="name", pattern=r"^(?P<label>\d)_", match=r"_([5-9]|[1-9][0-9])\.wav$")
    # Six speakers said each digit 50 times; the first five times are for testing.
    assert Counter(classes(digits).values()) == {str(digit): 6 * 45 for digit in range(10)}
    speakers = Folder(wave, root, labels="name", pattern=r"^\d_([a-z]+)_", captions="labels")
    assert speakers.classes == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
    assert Counter(speakers.texts) == dict.fromkeys(speakers.classes, 500)
