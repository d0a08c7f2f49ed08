"""Examples for validation and testing are chosen as the user says, and training never reads them."""

import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modalities.base import Dataset, Modality, split_groups
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Pixels
from modalities.wrapped import untouched
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.dataset import build_data
from recipes.data.parts import Parts, held_out_note, hold_out, validated
from recipes.evaluation.sets import real_data
from recipes.inspect import inspect
from recipes.pack import pack
from recipes.runs.settings import TrainSettings
from recipes.training.conditioning import learned_condition
from tests.helpers.tiny import assert_same, read_metrics, tiny_run
from tests.modalities.test_image import write_mnist

IMAGE = Image(size=8, channels=1)
BY_GROUP = r"validation.group='(?P<group>[a-z]+)\d'"


def pictures(root: Path, *names: str) -> Path:
    """Save one picture of its own shade under each name."""
    for number, name in enumerate(names):
        media = torch.full((1, 8, 8), (37 * number) % 256, dtype=torch.uint8)
        IMAGE.save(media, root / name)
    return root


def table(root: Path, rows: list[dict[str, str]], kind: str = "csv") -> str:
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    (root / f"list.{kind}").write_text("\n".join(lines))
    return f"data.manifest=list.{kind}"


def divided(*words: str) -> tuple[Parts, TrainSettings]:
    size = [] if any(word.startswith("experiment=") for word in words) else ["modality.size=8"]
    config = configuration.load("train", ["run_dir=unused", *size, *words])
    settings = Builder().settings(TrainSettings, config, "")
    modality: Modality = Builder().build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    dataset = build_data(settings.data, settings.corruption, settings.seed, modality, Builder())
    return hold_out(dataset, settings, Builder()), settings


def names(dataset: Dataset | None) -> list[str]:
    assert dataset is not None
    files = untouched(dataset)
    assert isinstance(files, Folder)
    return files.files


def folder_of(root: Path, *words: str) -> list[str]:
    return ["data=folder", f"data.root={root}", *words]


SPLITS = {"train": range(12), "validation": range(12, 15), "test": range(15, 20)}


def with_splits(root: Path, kind: str = "csv") -> list[str]:
    rows = [{"file": f"{n:02d}.png", "split": split} for split, numbers in SPLITS.items() for n in numbers]
    pictures(root, *(row["file"] for row in rows))
    return folder_of(root, table(root, rows, kind))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("corruption", [[], ["corruption=band"]])
def test_column_split_defines_the_parts(tmp_path: Path, kind: str, corruption: list[str]) -> None:
    words = with_splits(tmp_path, kind) + corruption
    parts, settings = divided(*words)
    for part, numbers in zip(parts[:3], SPLITS.values(), strict=True):
        assert names(part) == [f"{number:02d}.png" for number in numbers]
    assert str(parts) == "3 more for validation, 5 for testing"
    assert held_out_note(parts, settings) is None
    for word in ("validation.root=elsewhere", BY_GROUP):
        with pytest.raises(RecipeError, match=r"come with splits.*remove one"):
            divided(*words, word)


def test_column_split_without_validation_or_training(tmp_path: Path) -> None:
    rows = [{"file": f"{number}.png", "split": "train"} for number in range(3)]
    words = folder_of(pictures(tmp_path, "0.png", "1.png", "2.png"), table(tmp_path, rows))
    parts, settings = divided(*words)
    assert (len(parts.training), parts.held_out, parts.test) == (3, None, None)
    assert "no example has the split validation" in (held_out_note(parts, settings) or "")
    table(tmp_path, [row | {"split": "test"} for row in rows])
    with pytest.raises(RecipeError, match="no example has the split train"):
        divided(*words)
    with pytest.raises(RecipeError, match="splits, which tar shards do not keep"):
        pack(configuration.load("pack", [*words[1:], "modality=image", f"run_dir={tmp_path / 'shards'}"]))


def test_pack_names_the_columns_that_shards_do_not_keep(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"file": f"{number}.png", "group": f"g{number}", "age": f"{number}"} for number in range(3)]
    words = folder_of(pictures(tmp_path, "0.png", "1.png", "2.png"), table(tmp_path, rows))
    pack(configuration.load("pack", [*words[1:], "modality=image", f"run_dir={tmp_path / 'shards'}"]))
    assert "tar shards do not keep these columns of the manifest: age, group" in caplog.text


def test_training_reads_no_test_data_and_evaluation_compares_with_them(tmp_path: Path) -> None:
    words, run_dir = [*with_splits(tmp_path / "data"), "data.max_unreadable=0"], tmp_path / "run"
    for number in SPLITS["test"]:
        (tmp_path / "data" / f"{number:02d}.png").write_bytes(b"no picture")
    tiny_run(run_dir, *words, "training.samples=32", "every.validation=16", "report=true")
    assert len(read_metrics(run_dir, "validation")) == 2
    inspect(configuration.load("inspect", [*words, "modality.size=8", f"run_dir={tmp_path / 'look'}"]))
    report = json.loads((tmp_path / "look" / "inspect.json").read_text())
    assert report["parts"] == {"training": 12, "validation": 3, "test": 5}
    training, test = real_data(run_dir, Builder())
    assert (len(training), names(test)) == (12, [f"{number}.png" for number in SPLITS["test"]])


def test_folders_define_the_parts_and_another_folder_is_test_data(tmp_path: Path) -> None:
    names_ = [f"{split}/{'ab'[n % 2]}/{n}.png" for split in ("train", "val", "test") for n in range(4)]
    words = folder_of(pictures(tmp_path / "data", *names_), "data.splits=folders")
    parts, _ = divided(*words)
    assert [{name.split("/")[0] for name in names(part)} for part in parts[:3]] == [{"train"}, {"val"}, {"test"}]
    assert parts.training.classes == ("a", "b")
    tiny_run(tmp_path / "run", *words, "training.samples=16", "every.validation=16")
    assert len(read_metrics(tmp_path / "run", "validation")) == 1
    pictures(tmp_path / "more", "b/1.png", "b/2.png", "b/3.png")
    training, test = real_data(tmp_path / "run", Builder(), reference_root=str(tmp_path / "more"))
    assert test is not None
    assert (len(training), [test.label(index) for index in range(3)]) == (4, [1, 1, 1])
    for root, message in (
        (tmp_path / "data" / "test", r"reference_root=.*is inside data.root=.*set data.splits=folders"),
        ("s3://bucket", "reference_root=s3://bucket is an address"),
        (tmp_path / "gone", "gone is not a folder"),
    ):
        with pytest.raises(RecipeError, match=message):
            real_data(tmp_path / "run", Builder(), reference_root=str(root))


PEOPLE = {"ann": 6, "bob": 3, "cid": 3, "dan": 8, "eve": 20}
TAKES = [f"{number % 2}/{name}{number}.png" for name, count in PEOPLE.items() for number in range(count)]


@pytest.mark.parametrize("corruption", [[], ["corruption=band"]])
def test_groups_are_held_out_whole(tmp_path: Path, corruption: list[str]) -> None:
    words, chosen = [*folder_of(pictures(tmp_path, *TAKES)), BY_GROUP, *corruption], set()
    for seed in range(6):
        parts, settings = divided(*words, f"seed={seed}", "validation.holdout=0.2")
        ours, theirs = (
            {re.sub(r"\d/|\d+\.png", "", name) for name in names(each)} for each in (parts.training, parts.held_out)
        )
        assert not ours & theirs
        assert ours | theirs == PEOPLE.keys()
        assert len(parts.held_out or ()) in (6, 8, 9, 11)  # 8 requested
        assert f"held out in {len(theirs)} whole group" in str(parts)
        assert held_out_note(parts, settings) is None
        again, _ = divided(*words, f"seed={seed}", "validation.holdout=0.2")
        assert names(again.held_out) == names(parts.held_out)
        chosen.add(frozenset(theirs))
    assert len(chosen) > 1
    few, settings = divided(*words, "validation.holdout=1")
    assert len(few.held_out or ()) == 3
    assert "3 examples held out, though validation.holdout=1 requests 1: groups" in (held_out_note(few, settings) or "")


def test_groups_come_from_a_manifest_or_the_names_in_shards(tmp_path: Path) -> None:
    root = pictures(tmp_path / "data", *TAKES)
    rows = [{"file": name, "group": f"room {number % 4}"} for number, name in enumerate(TAKES)]
    parts, _ = divided(*folder_of(root, table(root, rows)), "validation.group=manifest", "validation.holdout=10")
    files = untouched(parts.training)
    assert isinstance(files, Folder)
    assert len(set(files.listed_groups or ())) == 3
    with tarfile.open(tmp_path / "bob0.tar", "w") as shard:  # the name of a shard does not count
        for name in TAKES:
            shard.add(root / name, name)
    parts, _ = divided("data=webdataset", f"data.urls={tmp_path}", BY_GROUP, "validation.holdout=8")
    assert len(parts.held_out or ()) in (6, 8, 9, 11)


def test_groups_keep_every_class_for_training() -> None:
    labels = torch.tensor([0, 0, 1, 1, 0, 1])
    data = Pixels(IMAGE, torch.zeros(6, 1, 8, 8, dtype=torch.uint8), labels, ["a", "b"])
    groups = ["only a", "only a", "only b", "only b", "both", "both"]
    for seed in range(5):
        training, held_out = split_groups(data, groups, 4, seed)
        assert held_out is not None
        assert {training.label(index) for index in range(len(training))} == {0, 1}
    with pytest.raises(ValueError, match="each of the 2 groups has all examples of a class"):
        split_groups(data, ["a" if label == 0 else "b" for label in labels], 1)
    assert split_groups(data, ["a" if label == 0 else "b" for label in labels], 1, keep_classes=False)[1] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validation.group='(png)'"], r"all 40 examples are in one group, 'png'.*group=null holds out single"),
        (["validation.group='(ann|bob)'"], r"finds no group in 0/cid0\.png"),
        (["validation.group=ann"], r"no group in parentheses that marks the group: enclose this part in \(\?P<group>"),
        (["validation.group='('"], "is not a regular expression"),
        (["validation.group=manifest"], "needs a manifest with a column group"),
        ([BY_GROUP, "validation.holdout=40"], "40 of 40 examples cannot be held out"),
        ([BY_GROUP, "validation.root=there"], "contradict each other"),
    ],
)
def test_groups_that_cannot_be_found_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        divided(*folder_of(pictures(tmp_path, *TAKES)), *words)
    for word, reason in ((BY_GROUP, "has no files whose paths"), ("validation.root=there", r"has no key data\.root")):
        with pytest.raises(RecipeError, match=f"Digits {reason}"):
            divided("data=digits", word)


@pytest.mark.skipif(not os.environ.get("MULTISAGD_DATA"), reason="MULTISAGD_DATA is not set")
def test_spoken_digits_are_held_out_by_speaker() -> None:
    parts, _ = divided("experiment=audio_spoken_digits", r"validation.group='_(?P<group>[a-z]+)_'")
    ours, theirs = ({name.split("_")[1] for name in names(each)} for each in (parts.training, parts.held_out))
    assert (len(ours), len(theirs), ours & theirs) == (5, 1, set())


def test_validation_root_of_published_data_is_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", 30, packed=False)
    with pytest.raises(RecipeError, match=r"validation\.root=other: MNIST reads the same published examples"):
        divided("data=mnist", f"data.root={tmp_path}", "validation.root=other")


def two_folders(tmp_path: Path) -> list[str]:
    pictures(tmp_path / "train", *(f"{'abc'[number % 3]}/{number}.png" for number in range(12)))
    pictures(tmp_path / "other", *(f"{'cb'[number % 2]}/{number}.png" for number in range(6)))
    return folder_of(tmp_path / "train", f"validation.root={tmp_path / 'other'}")


def test_validation_root_replaces_the_held_out_examples(tmp_path: Path) -> None:
    words = two_folders(tmp_path)
    parts, settings = divided(*words)
    assert len(parts.training) == 12
    assert parts.held_out is not None
    assert parts.held_out.classes == ("a", "b", "c")
    assert parts.held_out.batch(range(6)).labels.tolist() == [1, 1, 1, 2, 2, 2]  # type: ignore[union-attr]
    assert [parts.held_out[number].label for number in range(6)] == [1, 1, 1, 2, 2, 2]
    assert (str(parts), held_out_note(parts, settings)) == ("6 others for validation", None)
    pictures(tmp_path / "one", "b/1.png", "b/2.png")  # a folder of only one class
    one = divided(*words, f"validation.root={tmp_path / 'one'}")[0].held_out
    assert one is not None
    assert [one.label(0), one.label(1)] == [1, 1]
    some = divided(*words, "validation.items=3")[1]
    first = {validated(parts.held_out, some).label(index) for index in range(3)}
    assert first == {1, 2}  # not only those of the first class
    corrupted = divided(*words, "corruption=band", "corruption.level=1")[0].held_out
    assert corrupted is not None
    assert not torch.equal(corrupted[0].x0, parts.held_out[0].x0)
    assert divided(*words, "data.labels=none")[0].held_out[0].label is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: [pictures(root / "other", "dog/1.png")], r"other: unknown class 'dog'.*training data: .*train"),
        (lambda root: ["validation.root=" + str(root / "train")], "is the same folder as data.root"),
        (lambda root: [f"validation.root={root / 'train' / 'a'}"], "is inside data.root"),
        (lambda root: [f"validation.root={root}"], "contains data.root"),
        (lambda root: [f"validation.root={root / 'gone'}"], r"gone is not a folder.*set validation\.root"),
        (
            lambda root: (
                [table(root / f, [{"file": "b/1.png", "split": s}]) for f, s in [("other", "test")]]
                + [table(root / "train", [{"file": "b/1.png", "label": "b"}])]
            ),
            r"its manifest has a column split",
        ),
    ],
)
def test_validation_root_that_does_not_match_is_refused(
    tmp_path: Path, change: Callable[[Path], list[Any]], message: str
) -> None:
    words = two_folders(tmp_path)
    changed = [word for word in change(tmp_path) if isinstance(word, str)]
    with pytest.raises(RecipeError, match=message):
        divided(*words, *changed)


@pytest.mark.parametrize("way", ["split", "group", "root"])
def test_continued_runs_and_evaluation_see_the_same_parts(tmp_path: Path, way: str) -> None:
    if way == "split":
        words = with_splits(tmp_path / "data")
    elif way == "group":
        words = [*folder_of(pictures(tmp_path / "data", *TAKES)), BY_GROUP, "validation.holdout=8"]
    else:
        words = [*two_folders(tmp_path), "validation.holdout=2"]
    words += ["every.validation=32", "training.conditional=null"]
    whole = tiny_run(tmp_path / "whole", *words, "training.samples=64")
    tiny_run(tmp_path / "parts", *words, "training.samples=32")
    assert_same(tiny_run(tmp_path / "parts", *words, "training.samples=64"), whole)
    assert read_metrics(tmp_path / "parts", "validation") == read_metrics(tmp_path / "whole", "validation")
    training, held_out = real_data(tmp_path / "parts", Builder())
    parts, settings = divided(*words)
    assert training.fingerprint == parts.training.fingerprint
    assert held_out is not None
    assert held_out.fingerprint == (parts.test or parts.held_out).fingerprint  # type: ignore[union-attr]
    assert learned_condition(settings, training, Builder(), torch.device("cpu")).untrained == ()
    if way == "root":
        pictures(tmp_path / "other", "b/99.png")
        with pytest.raises(RecipeError, match=r"the validation data \(validation\.root\) of .* have changed; examples"):
            tiny_run(tmp_path / "parts", *words, "training.samples=96")
        with pytest.raises(RecipeError, match="have changed; examples: 6 -> None"):
            tiny_run(tmp_path / "parts", *words, "validation.root=null", "training.samples=96")
