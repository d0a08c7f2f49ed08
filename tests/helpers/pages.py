"""The fenced blocks of README, CONTRIBUTING, examples and docs, and what makes their commands quick.

`test_docs.py` checks all blocks, and runs them page by page and in order, unless an HTML comment on the line before
gives the reason why not, such as <!-- not run: trains for an hour -->. Before it, `GIVEN` makes small versions of what
the commands of a page read; `quick` returns overrides that make a command take seconds, without any other change.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image as Picture

from modalities.video import Video
from recipes.cli import main as cli
from tests.helpers import array_sets
from tests.helpers.tables import FEATURES, pictures, write_parquet, write_saved
from tests.helpers.tiny_autoencoders import save_tiny
from tests.helpers.tiny_text import tiny_encoder

ROOT = Path(__file__).parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
]
RUNNABLE = ("python", "bash", "yaml")
BLOCK = re.compile(
    r"^(?: *<!-- not run: (?P<reason>\S.{8,}) -->\n)?(?P<fence> *```)(?P<language>[^\s`]*)[^`\n]*\n"
    r"(?P<text>(?:.*\n)*?) *```$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its place, language and text, and the reason why it is not run, if there is one."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name in a first line such as `# ecg.py`: the block is a file of that name."""
        first = re.match(r"# ([\w./-]+\.(?:py|yaml))\n", self.text)
        return first and first[1]

    def commands(self) -> list[str]:
        """Return the commands of a shell block, each on one line."""
        joined = self.text.replace("\\\n", " ")
        return [line.strip() for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """Return the blocks of a page in order.

    Raises:
        ValueError: for a fence that is not closed, and a comment `not run` without a reason or a block after it.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    rest = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
    if wrong := re.search(r"^ *(```|<!-- not run).*", rest, re.MULTILINE):
        line = rest.count("\n", 0, wrong.start()) + 1
        raise ValueError(f"{page}:{line}: close the fence, or give a reason and a block on the next line: {wrong[0]}")
    blocks = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("fence")) + 1
        inner = re.sub(f"^{match['fence'][:-3]}", "", match["text"], flags=re.MULTILINE)
        blocks.append(Block(page, line, match["language"], inner, match["reason"]))
    return tuple(blocks)


ONE_CORE = ["engine.threads=1", "engine.device=cpu", "engine.workers=0"]
CLASSIFIER = ["classifier.samples=64", "classifier.batch=16", "classifier.widths=[8]"]
UNET = ["network.width=8", "network.heads=1", "network.multipliers=[1,1]", "network.blocks=1"]
TRANSFORMER = ["network.width=12", "network.depth=1", "network.heads=1"]
SMALL = {
    "train": [
        "training.samples=8", "training.batch=4", "training.statistics=8", "every.log=8", "every.validation=8",
        "every.samples=8", "every.checkpoint=8", "validation.holdout=4", "validation.items=2", "validation.levels=1",
        "sampling.count=2", "sampling.steps=1", "report=false", *ONE_CORE,
    ],
    "sample": ["count=4", "batch=4", *ONE_CORE],
    "evaluate": [
        "samples=40", "conditions=2", "members=2", "steps=1", "splits=2", "bootstrap=2", "bands=2", "directions=8",
        "neighbours.items=20", "neighbours.examples=200", *CLASSIFIER, *ONE_CORE,
    ],
    "inspect": ["training.statistics=8", "count=2", *ONE_CORE],
    "analyze": ["training.statistics=64", *ONE_CORE],
    "design": ["restarts=1"],
    "encode": ["passes=1", *ONE_CORE],
}  # fmt: skip
"""By command; the others are quick without."""
TURBULENCE = [
    "data.trajectories=20", "data.snapshots=10", "data.interval=0.05", "data.spin_up=0.05", "data.test=0.5",
    "data.cache=fields",
]  # fmt: skip
MEDIA = {
    "experiment=audio_notes": ["modality.seconds=0.064"],
    "experiment=audio_clips": ["modality.seconds=0.3"],
    "experiment=audio_vocoder": ["modality.seconds=0.128"],
    "modality=latent_video": ["modality.modality.size=16", "modality.modality.frames=5"],
    "modality=latent_audio": ["modality.modality.seconds=0.02"],
    "modality=cached_video": ["modality.modality.size=8", "modality.modality.frames=5"],
    "modality=audio_mel": ["modality.seconds=0.3"],
    "modality=audio_waveform": ["modality.seconds=0.1"],
    "experiment=video_moving_digits": ["modality.size=16"],
    "experiment=video_clips_cached": ["modality.modality.size=8", "modality.modality.frames=5"],
    "experiment=image_folder": ["modality.size=16"],
    "experiment=video_predict": ["modality.size=16", "modality.frames=8", "condition.count=2"],
    "data=vorticity_forecast": [
        "data.trajectories=10", "data.snapshots=6", "data.interval=0.05", "data.spin_up=0.05", "data.cache=fields",
    ],
    "data=vorticity": TURBULENCE,
    "data=vorticity_tracer": TURBULENCE,
    "experiment=field_superresolve": TURBULENCE,
}  # fmt: skip
"""By option: smaller data, the same in all commands of a page."""
EVERY = ("log", "validation", "samples", "checkpoint")
TEN_CLASSES = ["training.samples=64", "training.batch=32", *(f"every.{each}=64" for each in EVERY)]
"""Enough examples to show each of the ten classes, which the commands after a training then ask for."""


def quick(command: str, words: Sequence[str]) -> list[str]:
    """Return the words to add to a command."""
    if command == "launch":
        return ["--show"]
    small = [*SMALL.get(command, []), *(word for option in MEDIA if option in words for word in MEDIA[option])]
    if command == "train":
        if {"experiment=image_digits", "experiment=video_moving_digits"} & set(words):
            small += TEN_CLASSES
        if not {"network=diffusers", "experiment=adopted"} & set(words):
            small += TRANSFORMER if "network=transformer" in words else UNET
    if command == "sample" and any(word.startswith("members=") for word in words):
        small.append("members=2")
    if command == "sample" and not any(word.startswith("steps_file=") for word in words):
        small.append("steps=2")
    if any(word.startswith("vocoder=") for word in words):
        small.append("vocoder_steps=1")
    return small


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


def small_photos(root: Path) -> None:
    """Photos, and versions of half the size in a folder of their own."""
    photos(root)
    for path in sorted((root / "photos").rglob("*.jpg")):
        small = root / "low_resolution" / path.parent.name / f"{path.stem}.png"
        small.parent.mkdir(parents=True, exist_ok=True)
        with Picture.open(path) as picture:
            picture.resize((picture.width // 2, picture.height // 2)).save(small)


def media_to_start_from(root: Path) -> None:
    """A picture of what is unknown in a photo, and the beginning of a sound."""
    with Picture.open(root / "photos" / "cat" / "cat_0000.jpg") as photo:
        mask = Picture.new("L", photo.size)
    mask.paste(255, (20, 10, 40, 30))
    mask.save(root / "mask.png")
    soundfile.write(root / "beginning.wav", 0.1 * np.random.default_rng(0).normal(size=2400), 8000)


def kept(root: Path) -> None:
    """Photos as people keep them: nested, with a table, without some captions, and divided by folders."""
    photos(root)
    files = sorted((root / "photos").rglob("*.jpg"))
    rows = ["file_name,caption,label"]
    for number, path in enumerate(files):
        named = f"{path.parent.name}/{path.name}"
        copies = [f"deep/{2019 + number % 2}/summer/{named}", f"tagged/{path.name}", f"gaps/{named}"]
        copies += [f"other_photos/{named}", *(f"divided/{split}/{named}" for split in ("train", "val", "test"))]
        for copy in copies:
            (root / copy).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / copy)
        rows.append(f"{path.name},a red circle,{path.parent.name}")
        if number % 3:
            shutil.copy(path.with_suffix(".txt"), root / "gaps" / path.parent.name)
    (root / "tagged" / "metadata.csv").write_text("\n".join(rows) + "\n")


def noises(root: Path, folder: str) -> None:
    """Sounds of four seconds, each louder than the one before, whose names begin with a digit."""
    (root / folder).mkdir()
    for number in range(COUNT):
        noise = 0.02 * (1 + number) * np.random.default_rng(number).normal(size=4 * 16000)
        soundfile.write(root / folder / f"{number % 2}_{number:02d}.wav", noise.clip(-1, 1), 16000)


def divided(root: Path) -> None:
    """Photos and their splits, other photos, and recordings of two speakers."""
    kept(root)
    files = sorted(path.relative_to(root / "photos").as_posix() for path in (root / "photos").rglob("*.jpg"))
    splits = ("train", "validation", "test", "test", "test", "test")
    rows = [f"{file},{splits[number % len(splits)]}" for number, file in enumerate(files)]
    (root / "photos" / "splits.csv").write_text("\n".join(["file,split", *rows]) + "\n")
    noises(root, "recordings")
    for number, path in enumerate(sorted((root / "recordings").iterdir())):
        path.rename(path.with_name(f"{number}_{('george', 'theo')[number % 2]}_0.wav"))


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


def tables(root: Path) -> None:
    """Parquet files of pictures and sounds, a folder of `save_to_disk`, and a dataset at its name on the Hub."""
    photos(root)
    noises(root, "recordings")
    write_parquet(pictures(COUNT, text=["a red circle"] * COUNT), root / "tables", group=4)
    write_saved(pictures(COUNT), root / "saved", "train")
    digits = FEATURES | {"label": {"names": list("0123456789"), "_type": "ClassLabel"}}
    every_class = [number % 10 for number in range(80)]
    write_parquet(pictures(80, digits, label=every_class), root / "ylecun" / "mnist", each=70, names=("train", "test"))
    sounds = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted((root / "recordings").iterdir())]
    write_parquet(pictures(COUNT, None, image=None, label=None, audio=sounds), root, each=COUNT, names=("sounds",))


def arrays(root: Path) -> None:
    """Files of arrays, in every format."""
    for name in ("weather.nc", "weather.zarr"):
        array_sets.weather(root / name)
    for name in ("simulations.h5", "simulations.zarr"):
        array_sets.simulations(root / name)
    array_sets.scans(root / "scans")
    array_sets.sensors(root / "sensors")
    array_sets.sensor_table(root / "sensor.parquet")
    array_sets.images(root / "images.npz")


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
    "docs/tutorials/index.md": (photos, clips, ecg, partial(noises, folder="sounds")),
    "docs/evaluation.md": (partial(run, name="mnist"),),
    "docs/explore.md": (photos,),
    "docs/first-model.md": (photos,),
    "docs/start.md": (photos,),
    "docs/clusters/long-runs.md": (partial(run, name="photos"),),
    "docs/tutorials/arrays.md": (arrays,),
    "docs/tutorials/audio.md": (partial(noises, folder="recordings"),),
    "docs/tutorials/captions-and-classes.md": (kept, text_encoder),
    "docs/tutorials/conditioning.md": (photos, text_encoder),
    "docs/tutorials/conditions.md": (small_photos,),
    "docs/tutorials/data-at-scale.md": (photos, clips, partial(noises, folder="recordings")),
    "docs/tutorials/from-media.md": (photos, clips, partial(noises, folder="sounds"), media_to_start_from),
    "docs/tutorials/latents.md": (photos, clips, partial(noises, folder="sounds"), autoencoders),
    "docs/tutorials/schedule-design.md": (partial(run, name="mnist"),),
    "docs/tutorials/sizes-and-lengths.md": (photos, clips, partial(noises, folder="sounds")),
    "docs/tutorials/tables.md": (tables,),
    "docs/tutorials/training-well.md": (photos,),
    "docs/tutorials/validation.md": (divided,),
    "docs/tutorials/video.md": (clips,),
    "docs/tutorials/your-own-spectrum.md": (photos,),
    "docs/tutorials/vocoder.md": (partial(noises, folder="recordings"),),
}
"""By page; the blocks of other pages make all that they read."""
