"""Damaged files of every medium never crash or hang a folder: each is either data or reported with its reason."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from modalities.audio import Audio
from modalities.base import Modality
from modalities.files import Folder
from modalities.image import Image
from modalities.representation import Waveform
from modalities.video import Video
from tests.helpers.numbered_clips import write_numbered

# Pillow warns about what it repairs.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")

FILES = 200
MEDIA: dict[str, Modality] = {
    "image": Image(size=8, channels=3),
    "audio": Audio(rate=8000, seconds=0.05, representation=Waveform()),
    "video": Video(frames=3, fps=10, size=8),
}
CODECS = {"mp4": "libx264", "mkv": "libx264", "avi": "mpeg4", "gif": "gif", "ts": "mpeg2video"}
HOPELESS = ("empty", "garbage", "text", "other", "zeros")
"""Kinds of damage that leave nothing to read."""


def good_files(medium: str, folder: Path) -> list[Path]:
    """Write undamaged files in several formats."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    if medium == "image":
        picture = PIL.Image.fromarray(draw.integers(0, 256, size=(24, 20, 3), dtype=np.uint8))
        for ending in ("png", "jpg", "webp", "gif", "bmp", "tif"):
            picture.save(folder / f"good.{ending}")
    elif medium == "audio":
        for ending in ("wav", "flac", "ogg", "mp3"):
            soundfile.write(folder / f"good.{ending}", 0.3 * draw.standard_normal(2400), 8000)
    else:
        for ending, codec in CODECS.items():
            write_numbered(folder / f"good.{ending}", codec, rate=25, count=30)
    return sorted(folder.iterdir())


def damages(sources: list[Path], others: list[Path]) -> Iterator[tuple[str, bytes]]:
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
        "other": lambda _: draw.choice(others).read_bytes(),
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


@pytest.mark.timeout(240)
@pytest.mark.parametrize("medium", MEDIA)
def test_folder_reads_or_reports_every_damaged_file(medium: str, tmp_path: Path) -> None:
    modality, root = MEDIA[medium], tmp_path / "root"
    sources = good_files(medium, tmp_path / "sources")
    # A GIF is both a picture and a short clip.
    others = [path for other in MEDIA if other != medium for path in good_files(other, tmp_path / other)]
    others = [path for path in others if path.suffix not in modality.suffixes]
    root.mkdir()
    for number, (name, content) in zip(range(FILES), damages(sources, others), strict=False):
        (root / f"{number:03d}_{name}").write_bytes(content)
    good = f"good{sources[0].suffix}"
    shutil.copy(sources[0], root / good)  # a folder without a readable file is an error
    folder = Folder(modality, root, labels="none", max_unreadable=1.0)
    assert len(folder) == FILES + 1
    for index, file in enumerate(folder.files):
        example = folder.read(index, seed=index)
        if example is None:
            assert folder.unreadable[file].split(": ", 1)[1].strip(), f"{file} is reported without a reason"
        else:
            assert example.x0.shape == (modality.channels, *modality.grid().shape)
            assert bool(torch.isfinite(example.x0).all()), f"{file} is not finite"
            assert Path(file).stem.split("_")[-1] not in HOPELESS, f"{file} cannot contain data"
    assert good not in folder.unreadable
    assert len(folder.unreadable) >= FILES // 3
