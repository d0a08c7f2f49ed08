"""Files whose contents change while a run is stopped are noticed by their bytes, and copies are not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image as PILImage

from modalities.byte_ranges import Source
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.tars import TarShards
from modalities.wrapped import Corrupted
from recipes.data import contents
from recipes.data.contents import FILE, Contents, changes, keep, pieces
from recipes.pack import main as pack

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
