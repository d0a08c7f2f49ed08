"""A mixture is the concatenation of its sources, with one list of classes, whatever each of them is."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modalities.base import Groups, split
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Pixels
from modalities.mixture import Mixture
from modalities.tar_packing import Packing, write_tar
from modalities.tars import TarShards

IMAGE = Image(size=8, channels=1)


def folder(root: Path, *names: str, **options: Any) -> Folder:
    """A folder of pictures, each of its own shade, with a caption next to it."""
    for number, name in enumerate(names):
        IMAGE.save(torch.full((1, 8, 8), 30 * number, dtype=torch.uint8), root / name)
        (root / name).with_suffix(".txt").write_text(f"{root.name} {number}")
    return Folder(IMAGE, root, **{"captions": "sidecar", **options})


@pytest.fixture
def photos(tmp_path: Path) -> Folder:
    return folder(tmp_path / "photos", "cat/0.png", "cat/1.png", "dog/2.png")


@pytest.fixture
def more(tmp_path: Path) -> Folder:
    return folder(tmp_path / "more", "ant/0.png", "ant/1.png", "dog/2.png", "dog/3.png", "dog/4.png")


def test_mixture_warns_of_files_in_two_sources(
    photos: Folder, more: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Mixture(IMAGE, {"photos": photos, "more": more})
    assert not caplog.text
    (tmp_path / "link").symlink_to(tmp_path / "more" / "dog")
    dogs = Folder(IMAGE, tmp_path / "link", labels="name", pattern=r"(\d)", captions="sidecar")
    Mixture(IMAGE, {"more": more, "dogs": dogs})
    assert "3 files are in both sources more and dogs" in caplog.text


def test_mixture_reads_its_sources_with_classes_by_name(photos: Folder, more: Folder) -> None:
    data = Mixture(IMAGE, {"photos": photos, "more": more})
    assert (len(data), data.classes, data.weights, data.groups) == (8, ("ant", "cat", "dog"), None, None)
    indices, seeds = [7, 0, 3, 2, 0], [5, 6, 7, 8, 9]
    batch = data.batch(indices, seeds)
    assert batch.labels is not None
    assert batch.labels.tolist() == [2, 1, 0, 2, 1] == [data.label(index) for index in indices]
    assert batch.texts == ("more 4", "photos 0", "more 0", "photos 2", "photos 0")
    for slot, (index, seed) in enumerate(zip(indices, seeds, strict=True)):
        source, row = (photos, index) if index < 3 else (more, index - 3)
        for x0 in (source.example(row, seed).x0, data.example(index, seed).x0):
            assert torch.equal(batch.x0[slot], x0)
    part = data.subset([6, 1])
    assert [part.path(index) for index in range(2)] == ["more/dog/3.png", "photos/cat/1.png"]
    assert [part[index].label for index in range(2)] == [2, 1]
    assert part.fingerprint != data.subset([1, 6]).fingerprint
    assert [Path(source.path).name for source in data.stored()] == [Path(f).name for f in (*photos.files, *more.files)]
    for index in (-1, 8):
        with pytest.raises(IndexError, match=str(index)):
            data.batch([index])


def test_mixture_weights_follow_the_examples_that_are_left(photos: Folder, more: Folder) -> None:
    sources = {"photos": photos, "more": more}
    assert Mixture(IMAGE, sources, weights={"photos": 2, "more": 1}).weights == [(3, 2.0), (5, 1.0)]
    data = Mixture(IMAGE, sources, repeats={"more": 4})
    assert data.weights == [(3, 3.0), (5, 20.0)]
    assert data.subset([0, 4, 5]).weights == [(1, 1.0), (2, 8.0)]
    assert Mixture(IMAGE, sources, weights={"photos": 2, "more": 1}).subset([4, 0, 1, 5]).weights == [
        (1, 0.5), (2, 2.0), (1, 0.5)
    ]  # fmt: skip
    training, held_out = split(data, 3)
    assert held_out is not None
    paths = [{each.path(index) for index in range(len(each))} for each in (training, held_out)]
    assert (len(paths[0]), len(paths[1]), paths[0] & paths[1]) == (5, 3, set()), "no example is in both parts"


def test_mixture_keeps_groups_splits_and_listed_groups(photos: Folder, more: Folder, tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [Packing(photos, range(3), 10**9).example(number) for number in range(3)])
    write_tar(tmp_path / "1.tar", [Packing(more, range(5), 10**9).example(number) for number in range(5)])
    shards = {name: TarShards(IMAGE, str(tmp_path / name), window=n) for n, name in ((3, "0.tar"), (2, "1.tar"))}
    data = Mixture(IMAGE, {"a": shards["0.tar"], "b": shards["1.tar"]})
    assert data.groups == Groups([3, 5], 2)
    assert data.subset([0, 3, 4, 5]).groups == Groups([1, 3], 2)
    assert Mixture(IMAGE, {"a": shards["0.tar"], "b": shards["1.tar"]}, {"a": 1, "b": 1}).groups is None
    assert torch.equal(Mixture(IMAGE, {"photos": photos, "shards": shards["0.tar"]}).batch([1, 4]).x0[1], photos[1].x0)
    for each, people in ((photos, "xyx"), (more, "zzyyy")):
        rows = zip(each.files, people, "tvsvs", strict=False)
        splits = {"t": "train", "v": "validation", "s": "test"}
        lines = [f"{file},{person},{splits[letter]}" for file, person, letter in rows]
        (each.root / "list.csv").write_text("\n".join(["file,group,split", *lines]))
    listed = {each.root.name: Folder(IMAGE, each.root, manifest="list.csv") for each in (photos, more)}
    data = Mixture(IMAGE, listed)
    assert data.listed_groups == list("xyxzzyyy")
    assert data.splits == ["train", "validation", "test", "train", "validation", "test", "validation", "test"]
    assert data.subset([4, 0]).splits == ["validation", "train"]
    assert Mixture(IMAGE, {"photos": photos}).listed_groups is None


def test_mixture_reports_the_files_of_all_sources(photos: Folder, more: Folder, tmp_path: Path) -> None:
    (photos.root / "cat" / "0.png").write_bytes(b"")
    data = Mixture(IMAGE, {"photos": photos, "more": more})
    data.save_unreadable(tmp_path / "unreadable.json")
    assert not (tmp_path / "unreadable.json").exists()
    assert torch.equal(data.batch([0], [1]).x0[0], photos.example(0, 1).x0)
    assert dict(data.unreadable) == {"photos/cat/0.png": "ValueError: the file is empty"}
    data.recall_unreadable({"more/dog/2.png": "gone"}, since=1e12)
    assert dict(more.unreadable) == {"dog/2.png": "gone"}
    data.save_unreadable(tmp_path / "unreadable.json")
    saved = json.loads((tmp_path / "unreadable.json").read_text())
    assert (saved["files"], saved["allowed"]) == (8, 2)
    assert [each["path"] for each in saved["unreadable"]] == ["more/dog/2.png", "photos/cat/0.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"photos": 1, "more": 1}, "repeats": {"more": 2}}, "weights and repeats contradict each other"),
        ({"weights": {"photos": 1}}, "weights has no value for more"),
        ({"weights": {"photos": 1, "mor": 1}}, "weights names 'mor', but the sources are photos, more"),
        ({"weights": {"photos": 1, "more": 1e308}}, r"weights\.more must be .* at most 1e\+12, got 1e\+308"),
        ({"weights": {"photos": 1, "more": 0}}, r"weights\.more must be a number above 0, and at most 1e.12, got 0"),
        ({"weights": {"photos": 1, "more": float("nan")}}, r"weights\.more must be a number above 0"),
        ({"repeats": {"more": 1.5}}, r"repeats\.more must be a whole number, at least 1"),
        ({"sources": {}}, "a mixture needs sources"),
        ({"sources": {"a/b": "photos"}}, "letters, digits, - and _, got 'a/b'"),
        ({"sources": {"a": "mixture"}}, "the source a is a mixture"),
        ({"sources": {"a": "large"}}, r"the source a has examples of shape \(1, 16, 16\)"),
        ({"sources": {"a": "photos", "b": "plain"}}, r"a has classes, but b has none.*data\.sources\.a\.labels=none"),
        ({"sources": {"a": "photos", "b": "silent"}}, r"a has captions, but b has none.*sources\.a\.captions=none"),
        ({"sources": {"a": "photos", "b": "divided"}}, r"b has splits, but a has none.*sources\.b\.splits=auto"),
    ],
)
def test_mixture_refuses_sources_that_do_not_match(
    photos: Folder, more: Folder, options: dict[str, Any], message: str
) -> None:
    IMAGE.save(torch.zeros(1, 8, 8, dtype=torch.uint8), photos.root.parent / "divided" / "train" / "cat" / "0.png")
    known = {
        "photos": photos,
        "mixture": Mixture(IMAGE, {"more": more}),
        "large": Pixels(Image(size=16, channels=1), torch.zeros(2, 1, 16, 16, dtype=torch.uint8)),
        "plain": Folder(IMAGE, more.root, labels="none", captions="sidecar"),
        "silent": Folder(IMAGE, more.root),
        "divided": Folder(
            IMAGE, photos.root.parent / "divided", splits="folders", labels="folder", captions="labels"
        ),
    }  # fmt: skip
    sources = {name: known[each] for name, each in options.pop("sources", {}).items()} if "sources" in options else None
    with pytest.raises(ValueError, match=message):
        Mixture(IMAGE, {"photos": photos, "more": more} if sources is None else sources, **options)
