"""`multisagd pack` writes the same examples as the same bytes, and finishes what an earlier command began."""

import errno
import itertools
import json
import os
import shutil
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import PIL.Image
import pytest
import torch

from modalities import tar_packing
from modalities.files import Folder
from modalities.image import Image
from modalities.tars import TarShards
from recipes.base.errors import Interrupted, RecipeError
from recipes.config import compose as configuration
from recipes.pack import main, pack

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
    with monkeypatch.context() as patch:
        at_header(patch, 25, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted, match=r"[1-9] shards are in .*The same command continues"):
            run(photos, out)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert 0 < len(finished) < len(whole)
    assert tars_of(out).items() <= whole.items()
    # A shard that was cut off meanwhile is repaired too; the others are not written again.
    (out / "000000.tar").write_bytes(b"half")
    run(photos, out)
    assert tars_of(out) == whole
    for name, time in finished.items():
        assert name == "000000.tar" or (out / name).stat().st_mtime_ns == time
    assert {path.suffix for path in out.iterdir() if path.suffix} == {".tar", ".index", ".json"}


def test_pack_names_a_folder_that_becomes_unwritable(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, whole = tmp_path / "out", tars_of(run(photos, tmp_path / "whole"))
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    for act, message in ((lambda: shutil.rmtree(out), "has vanished while"), (full, "cannot write in .*No space")):
        with monkeypatch.context() as patch:
            at_header(patch, 30, act)
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
    with pytest.raises(RecipeError, match=r"data: Digits is not a folder of files: give data=folder"):
        pack(configuration.load("pack", ["data=digits", f"run_dir={tmp_path / 'none'}"]))
    assert tars_of(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match=r"full is not empty and does not hold shards"):
        run(photos, tmp_path / "full")
    example = tar_packing.Packed.of("0", photos / "cat" / "00.PNG", 7, {})
    with pytest.raises(ValueError, match=r"00.PNG has changed since this command started"):
        tar_packing.write_tar(tmp_path / "a.tar", [example])
    (photos / "cat" / "00.PNG").write_bytes(b"other")
    assert main([f"data.root={photos}", f"run_dir={out}", "shard_bytes=12000"]) == 2
    assert "holds shards of other files or settings; these differ: sizes" in capsys.readouterr().err
