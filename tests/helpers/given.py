"""Small versions of what the commands on a page read: folders of files, a trained run, pretrained weights."""

import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image as Picture

from modalities.video import Video
from recipes.cli import main as cli
from tests.helpers.blocks import blocks_of
from tests.helpers.quick import quick
from tests.helpers.tiny_autoencoders import save_tiny
from tests.helpers.tiny_text import tiny_encoder

COUNT = 12
"""Files of a folder: some to train on, and some held out."""


def photos(root: Path) -> None:
    """Pictures of several sizes in two folders, named after their classes, with captions next to them and a list."""
    rows = ["file,label,text"]
    for number in range(COUNT):
        name, text = (("cat", "a red circle"), ("dog", "a blue square"))[number % 2]
        path = root / "photos" / name / f"{name}_{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40 + number, 56, 3), dtype=np.uint8)
        Picture.fromarray(pixels).save(path)
        path.with_suffix(".txt").write_text(text)
        rows.append(f"{name}/{path.name},{name},{text}")
    (root / "photos" / "list.csv").write_text("\n".join(rows) + "\n")
    (root / "prompts.txt").write_text("a red circle\na blue square\n")


def noises(root: Path, folder: str) -> None:
    """Sounds of four seconds, each louder than the one before, whose names begin with a digit."""
    (root / folder).mkdir()
    for number in range(COUNT):
        noise = 0.02 * (1 + number) * np.random.default_rng(number).normal(size=4 * 16000)
        soundfile.write(root / folder / f"{number % 2}_{number:02d}.wav", noise.clip(-1, 1), 16000)


def clips(root: Path) -> None:
    """Clips of noise, three seconds at 16 frames per second, with captions next to them."""
    video = Video(frames=48, size=16, fps=16)
    for number in range(COUNT):
        noise = torch.rand(3, 48, 16, 16, generator=torch.Generator().manual_seed(number))
        video.save((255 * noise).to(torch.uint8), root / "clips" / f"{number:02d}.mp4")
        (root / "clips" / f"{number:02d}.txt").write_text("a red circle")


@cache
def trained(session: Path) -> Path:
    """Train on scikit-learn's digits, once in a folder of the test session."""
    folder = session / "given" / "digits"
    words = ["experiment=image_digits"]
    assert cli.main(["train", *words, *quick("train", words), "training.statistics=200", f"run_dir={folder}"]) == 0
    return folder


def run(root: Path, name: str) -> None:
    """A trained run, under the name by which the commands of a page read it."""
    shutil.copytree(trained(root.parent), root / "runs" / name)


def ecg(root: Path) -> None:
    """The module of the tutorial on a modality of one's own, and its recordings."""
    for block in blocks_of("docs/tutorials/your-own-modality.md"):
        if block.file == "ecg.py":
            (root / block.file).write_text(block.text)
    (root / "recordings").mkdir(exist_ok=True)
    for number in range(COUNT):
        np.savetxt(root / "recordings" / f"{number}.txt", np.random.default_rng(number).normal(size=1000))


def text_encoder(root: Path) -> None:
    """Random weights at the hub's name, and where the page has them moved to."""
    for name in ("google-t5/t5-small", "models/t5-small"):
        tiny_encoder(root / name, "t5")


def autoencoders(root: Path) -> None:
    """Random weights at the hub's names."""
    stride_of_8 = {
        "block_out_channels": (4, 4, 4, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    save_tiny("AutoencoderKL", root / "stabilityai/sd-vae-ft-mse", **stride_of_8)
    save_tiny("AutoencoderTiny", root / "madebyollin/taesd")
    save_tiny("AutoencoderKLWan", root / "Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae")
    save_tiny("AutoencoderOobleck", root / "stabilityai/stable-audio-open-1.0/vae")


GIVEN: dict[str, tuple[Callable[[Path], None], ...]] = {
    "README.md": (photos,),
    "docs/tutorials/index.md": (photos, clips, ecg),
    "docs/evaluation.md": (partial(run, name="mnist"),),
    "docs/explore.md": (photos,),
    "docs/first-model.md": (photos,),
    "docs/start.md": (photos,),
    "docs/clusters/long-runs.md": (partial(run, name="photos"),),
    "docs/tutorials/audio.md": (partial(noises, folder="recordings"),),
    "docs/tutorials/conditioning.md": (photos, text_encoder),
    "docs/tutorials/data-at-scale.md": (photos, clips, partial(noises, folder="recordings")),
    "docs/tutorials/latents.md": (photos, clips, partial(noises, folder="sounds"), autoencoders),
    "docs/tutorials/schedule-design.md": (partial(run, name="mnist"),),
    "docs/tutorials/video.md": (clips,),
}
"""By page; the blocks of other pages make all that they read."""
