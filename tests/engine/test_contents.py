"""Files whose contents change while a run is stopped are noticed by their bytes, and copies are not."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from PIL import Image as PILImage

from modalities.base import Dataset
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


def photos(root: Path, count: int = 12, ending: str = "bmp") -> Folder:
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write(root / f"{number:02d}.{ending}", number)
    return Folder(SMALL, root)


def write(path: Path, seed: int) -> None:
    """Write pixels as they are, so that any two pictures are equally long."""
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4), dtype=np.uint8)
    PILImage.fromarray(pixels).save(path)


def later(root: Path) -> None:
    """Let all files have been written at another time, as after a copy."""
    for path in root.rglob("*.*"):
        os.utime(path, ns=(10**18, path.stat().st_mtime_ns + 10**9))


def test_what_is_as_it_was_is_not_read_and_not_spoken_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, photos(tmp_path / "photos"))
    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("nothing needs to be read"))
    assert changes(tmp_path, Folder(SMALL, tmp_path / "photos")) is None


def test_a_copy_is_no_change_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(tmp_path, photos(tmp_path / "photos"))
    shutil.copytree(tmp_path / "photos", tmp_path / "elsewhere" / "copy", copy_function=shutil.copyfile)
    later(tmp_path / "elsewhere")
    copied = Folder(SMALL, tmp_path / "elsewhere" / "copy")
    assert changes(tmp_path, copied) is None
    monkeypatch.setattr(Source, "read", lambda *_: pytest.fail("it has been read"))
    assert changes(tmp_path, copied) is None


@pytest.mark.parametrize("longer", [False, True])
def test_other_contents_under_the_same_names_are_told(tmp_path: Path, longer: bool) -> None:
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    later(tmp_path / "photos")
    for number in (3, 7):
        path = tmp_path / "photos" / f"{number:02d}.bmp"
        size = path.stat().st_size
        write(path, 100 + number)
        assert path.stat().st_size == size
        os.utime(path, ns=(10**18, 10**18))
        if longer:
            path.write_bytes(path.read_bytes() + b"more")
    for _ in range(2):  # as long as it is so
        told = changes(tmp_path, data)
        assert told is not None
        assert told.startswith(f"2 of 12 {NOTE}: {tmp_path}/photos/03.bmp, {tmp_path}/photos/07.bmp. ")
        assert "restore them, or train in another run_dir" in told


def test_of_very_many_files_some_speak_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_READ", 4)
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    assert len(Contents.load(tmp_path / FILE).digests) == 4
    write(tmp_path / "photos" / "01.bmp", 99)
    os.utime(tmp_path / "photos" / "01.bmp", ns=(10**18, 10**18))
    told = changes(tmp_path, data)
    assert told == "1 of 12 files were written since this run began; their bytes were not compared"
    write(tmp_path / "photos" / "11.bmp", 99)
    os.utime(tmp_path / "photos" / "11.bmp", ns=(10**18, 10**18))
    assert NOTE in str(changes(tmp_path, data))


def test_shards_and_what_is_made_of_a_set_have_its_files(tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    words = ["modality=image", f"data.root={tmp_path / 'photos'}", "shuffle=false"]
    assert pack([*words, f"run_dir={tmp_path / 'shards'}"]) == 0
    data = TarShards(Image(size=4, channels=1), str(tmp_path / "shards"), index=tmp_path / "index")
    assert [Path(source.path).suffix for source in data.stored()] == [".tar"]
    keep(tmp_path, data)
    shard = Path(next(iter(data.stored())).path)
    later(tmp_path / "shards")
    assert changes(tmp_path, data) is None
    held = bytearray(shard.read_bytes())
    held[held.index(b"BM") + 1070] ^= 255
    shard.write_bytes(held)
    os.utime(shard, ns=(10**18, 10**18))
    assert f"1 of 1 {NOTE}: {shard}" in str(changes(tmp_path, data))
    made = Corrupted(data, None, 0, False)  # type: ignore[arg-type]
    assert list(made.stored()) == list(data.stored())


def test_a_set_in_memory_has_no_record(tmp_path: Path) -> None:
    data: Dataset = Digits(SMALL)
    keep(tmp_path, data)
    assert changes(tmp_path, data) is None
    assert not list(tmp_path.iterdir())


def test_a_run_from_before_there_was_a_record_gets_one(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    assert changes(tmp_path, data) is None
    assert (tmp_path / FILE).exists()


def test_the_record_holds_no_names_and_no_contents(tmp_path: Path) -> None:
    data = photos(tmp_path / "secret")
    keep(tmp_path, data)
    kept = (tmp_path / FILE).read_bytes()
    assert b"secret" not in kept
    assert b"bmp" not in kept


def test_a_record_that_is_none_is_a_note(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    good = safetensors.numpy.load_file(tmp_path / FILE)
    for bad in (
        good | {"digests": good["digests"][:3]}, good | {"limit": np.array([0])}, good | {"sizes": good["states"] / 2},
        {"sizes": good["sizes"]},
    ):  # fmt: skip
        safetensors.numpy.save_file(bad, tmp_path / FILE)
        assert "it is unknown whether files have changed" in str(changes(tmp_path, data))
    (tmp_path / FILE).write_bytes(b"nothing")
    assert "it is unknown whether files have changed" in str(changes(tmp_path, data))


def test_a_file_that_is_gone_or_locked_is_no_failure(tmp_path: Path) -> None:
    data = photos(tmp_path / "photos")
    keep(tmp_path, data)
    (tmp_path / "photos" / "03.bmp").unlink()
    assert f"1 of 12 {NOTE}" in str(changes(tmp_path, data))


@pytest.mark.parametrize("size", [0, 1, 8, 9, 1000, 10**10])
def test_pieces_lie_in_the_file_and_hold_both_ends(size: int) -> None:
    found = pieces(size, 8)
    assert sum(stop - start for start, stop in found) <= 8
    assert (found[0][0], found[-1][1]) == (0, size)
    assert all(0 <= start <= stop <= size for start, stop in found)
