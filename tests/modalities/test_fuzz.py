"""Two hundred damaged files per medium: no crash, no hang, and each is either data or named in the report."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import av
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
from recipes.train import train

# Pillow warns of what it repairs.
pytestmark = pytest.mark.filterwarnings("ignore::Warning:PIL")

FILES = 200
MEDIA: dict[str, Modality] = {
    "image": Image(size=8, channels=3),
    "audio": Audio(rate=8000, seconds=0.05, representation=Waveform()),
    "video": Video(frames=3, fps=10, size=8),
}
HOPELESS = ("empty", "garbage", "text", "other", "zeros")
"""Kinds of damage that leave nothing to read."""


def good_files(medium: str, folder: Path) -> list[Path]:
    """Write a few sound files in several formats."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    if medium == "image":
        pixels = draw.integers(0, 256, size=(24, 20, 3), dtype=np.uint8)
        for ending in ("png", "jpg", "webp", "gif", "bmp", "tif"):
            PIL.Image.fromarray(pixels).save(folder / f"good.{ending}")
    elif medium == "audio":
        sound = 0.3 * draw.standard_normal(2400)
        for ending in ("wav", "flac", "ogg", "mp3"):
            soundfile.write(folder / f"good.{ending}", sound, 8000)
    else:
        for ending in ("mp4", "mkv", "avi"):
            write_clip(folder / f"good.{ending}")
    return sorted(folder.iterdir())


def write_clip(path: Path) -> None:
    """Write 12 moving frames of 32×48 at 10 per second, in the codec that goes with the ending."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        pixels = np.random.default_rng(1).integers(0, 256, size=(32, 48, 3), dtype=np.uint8)
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, 2 * number, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def damages(sources: list[Path], others: list[Path]) -> Iterator[tuple[str, str, bytes]]:
    """Yield (kind, ending, content) without end, every one another."""
    draw = random.Random(0)
    number = 0
    while True:
        source = sources[number % len(sources)]
        content = source.read_bytes()
        kinds: dict[str, Callable[[], bytes]] = {
            "truncated": lambda content=content: content[: draw.randrange(1, len(content))],
            "short": lambda content=content: content[: draw.randrange(1, 64)],
            "flipped": lambda content=content: flip(content, draw.randint(1, 40), draw, len(content)),
            "header": lambda content=content: flip(content, draw.randint(1, 8), draw, 100),
            "huge": lambda content=content: overwrite(content, b"\xff\xff\xff\x7f", draw.randrange(4, 60)),
            "doubled": lambda content=content: content + content[draw.randrange(len(content)) :],
            "hole": lambda content=content: overwrite(content, bytes(len(content) // 3), len(content) // 3),
            "empty": lambda: b"",
            "garbage": lambda: draw.randbytes(draw.randrange(1, 4000)),
            "text": lambda: b"<html>404 not found</html>" * draw.randrange(1, 50),
            "other": lambda: draw.choice(others).read_bytes(),
            "zeros": lambda: bytes(draw.randrange(1, 4000)),
        }
        kind = list(kinds)[(number // len(sources)) % len(kinds)]
        yield kind, source.suffix, kinds[kind]()
        number += 1


def flip(content: bytes, bits: int, draw: random.Random, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(bits):
        changed[draw.randrange(min(end, len(changed)))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def overwrite(content: bytes, patch: bytes, start: int) -> bytes:
    return content[:start] + patch + content[start + len(patch) :]


def damaged_folder(medium: str, tmp_path: Path, count: int) -> tuple[Path, list[Path]]:
    """Return a folder of `count` damaged files, and sound files of the medium."""
    sources = good_files(medium, tmp_path / "sources")
    others = [path for other in MEDIA if other != medium for path in good_files(other, tmp_path / other)]
    # A gif is a picture and a short clip, so it is no damage to either.
    others = [path for path in others if path.suffix not in MEDIA[medium].suffixes]
    root = tmp_path / "root"
    root.mkdir()
    for number, (kind, ending, content) in zip(range(count), damages(sources, others), strict=False):
        (root / f"{number:03d}_{kind}{ending}").write_bytes(content)
    return root, sources


@pytest.mark.timeout(240)
@pytest.mark.parametrize("medium", MEDIA)
def test_every_damaged_file_is_data_or_reported(medium: str, tmp_path: Path) -> None:
    root, sources = damaged_folder(medium, tmp_path, FILES)
    shutil.copy(sources[0], root / f"good{sources[0].suffix}")  # a set without one readable file is an error
    modality = MEDIA[medium]
    dataset = Folder(modality, root, labels="none", max_unreadable=1.0)
    assert len(dataset) == FILES + 1
    shape = (modality.channels, *modality.grid().shape)
    for index, file in enumerate(dataset.files):
        example = dataset.read(index, seed=index)
        if example is None:
            assert dataset.unreadable[file].split(": ", 1)[1].strip(), f"{file} is reported without a reason"
        else:
            assert example.x0.shape == shape
            assert bool(torch.isfinite(example.x0).all()), f"{file} is not finite"
            kind = Path(file).stem.split("_")[-1]
            assert kind not in HOPELESS, f"{file} cannot hold data"
    assert f"good{sources[0].suffix}" not in dataset.unreadable
    assert len(dataset.unreadable) >= FILES // 3


@pytest.mark.parametrize("medium", MEDIA)
def test_an_epoch_over_a_folder_of_which_a_third_is_bad(
    medium: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from recipes.config import compose as configuration

    root, sources = damaged_folder(medium, tmp_path, 0)
    for number in range(12):
        source = sources[number % len(sources)]
        content = source.read_bytes()[: 40 if number % 3 == 0 else None]
        (root / f"{number:02d}{source.suffix}").write_bytes(content)
    settings = {
        "image": ["modality=image", "modality.size=8"],
        "audio": ["modality=audio_waveform", "modality.rate=8000", "modality.seconds=0.008"],
        "video": ["modality=video", "modality.frames=4", "modality.size=8"],
    }
    words = [
        "data=folder", f"data.root={root}", "data.max_unreadable=0.5", "network.width=8", "network.blocks=1",
        "network.multipliers=[1]", "network.heads=2", "training.samples=16", "training.batch=8", "every.samples=0",
        "every.validation=16", "validation.holdout=2", "validation.levels=1", "validation.items=2", "sampling.count=1",
        "sampling.steps=1", "engine.threads=1", "engine.device=cpu", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    train(configuration.load("train", [*settings[medium], *words]))
    assert "4 files" in capsys.readouterr().out
    report = (tmp_path / "run" / "unreadable.json").read_text(encoding="utf-8")
    for number in (0, 3, 6, 9):
        assert f'"{number:02d}.' in report
