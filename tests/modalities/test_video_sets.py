"""Moving digits: their physics in seconds and pixels, and that clips are functions of seed and index."""

import dataclasses
import math
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from modalities.autoencoders import Identity
from modalities.base import Dataset, Modality, split
from modalities.files import Folder
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.latent import Latent
from modalities.video import Video
from modalities.video_sets import MovingDigits
from tests.helpers.numbered_clips import write_numbered

GREY = Video(frames=16, fps=8, size=32, channels=1)


def centres(clips: torch.Tensor) -> torch.Tensor:
    """Centre of light of each frame in pixels, (batch, frames, height, width) -> (batch, frames, 2)."""
    light = (clips.double() + 1) / 2
    rows = torch.arange(clips.shape[-2], dtype=torch.float64) + 0.5
    columns = torch.arange(clips.shape[-1], dtype=torch.float64) + 0.5
    total = light.sum((-2, -1))
    return torch.stack([(light.sum(-1) @ rows) / total, (light.sum(-2) @ columns) / total], -1)


def test_is_a_dataset_of_clips_with_ten_classes() -> None:
    digits = MovingDigits(GREY, count=200)
    assert isinstance(digits, Dataset)
    assert len(digits) == 200
    assert digits.classes == tuple("0123456789")
    batch = digits.batch(range(200))
    assert (batch.x0.shape, batch.x0.dtype) == ((200, 1, 16, 32, 32), torch.float32)
    assert (batch.x0.min().item(), batch.x0.max().item()) == (-1.0, 1.0)
    assert batch.labels is not None
    assert set(batch.labels.tolist()) == set(range(10))
    assert batch.mask is None
    two = MovingDigits(GREY, count=5, digits=2)
    assert two.classes is None
    assert two.batch([0, 1]).labels is None
    colour = MovingDigits(dataclasses.replace(GREY, channels=3), count=5).batch([3])
    assert torch.equal(colour.x0, batch.x0[3:4].expand(-1, 3, -1, -1, -1))


def test_clips_are_functions_of_seed_and_index_alone() -> None:
    digits = MovingDigits(GREY, count=100)
    batch = digits.batch([4, 90, 4], seeds=[1, 2, 3])
    assert torch.equal(batch.x0[0], batch.x0[2])
    assert torch.equal(digits.example(90, seed=5).x0, batch.x0[1])
    assert digits.example(90).label == int(batch.labels[1])  # type: ignore[index]
    assert torch.equal(MovingDigits(GREY, count=5).batch([4]).x0[0], batch.x0[0])
    assert not torch.equal(MovingDigits(GREY, count=5, seed=1).batch([4]).x0[0], batch.x0[0])
    part = digits.subset([90, 4])
    assert torch.equal(part.batch([1, 0]).x0, batch.x0[:2])
    assert (
        len({set_.fingerprint for set_ in (digits, part, MovingDigits(GREY, count=100, seed=1), digits.subset([4]))})
        == 4
    )
    assert digits.fingerprint == MovingDigits(GREY, count=100).fingerprint
    training, validation = split(digits, 0.1)
    assert (len(training), len(validation)) == (90, 10)
    for wrong in ([100], [-1]):
        with pytest.raises(IndexError, match="100 clips"):
            digits.batch(wrong)


def test_digits_are_those_of_the_label_and_stand_upright() -> None:
    digits = MovingDigits(Video(frames=1, size=32, channels=1), count=40, speed=(0, 0))
    stills = Digits(Image(size=16, channels=1))
    batch = digits.batch(range(40))
    for index in range(40):
        track = digits.tracks(index)
        glyph = stills.batch([int(track.glyphs[0])])
        assert int(batch.labels[index]) == int(glyph.labels[0])  # type: ignore[index]
        # At any place between pixels the light is the same, and its centre is where the digit's is.
        assert (batch.x0[index] + 1).sum() == pytest.approx(float((glyph.x0 + 1).sum()), rel=0.02)
        moved = centres(batch.x0[index])[0, 0] - centres(glyph.x0[0])[0]
        assert torch.allclose(moved, track.start[0], atol=0.1)


@pytest.mark.parametrize("modality", [Image(size=32), Latent(GREY, Identity())], ids=lambda m: type(m).__name__)
def test_other_modalities_are_refused(modality: Modality) -> None:
    with pytest.raises(ValueError, match=f"should be a Video, got {type(modality).__name__}"):
        MovingDigits(modality)  # type: ignore[arg-type]


@pytest.mark.parametrize("fps", [4, 12.5, 30])
def test_velocity_is_constant_between_walls_in_pixels_per_second(fps: float) -> None:
    video = Video(frames=int(4 * fps), fps=fps, size=(40, 64), channels=1)
    digits = MovingDigits(video, count=30, speed=(10, 20))
    room = torch.tensor([20.0, 44.0], dtype=torch.float64)
    straight = 0
    for index in range(30):
        track = digits.tracks(index)
        speed = float(track.velocity[0].norm())
        assert 10 <= speed <= 20
        path = centres(digits.batch([index]).x0[:, 0])[0]
        line = track.start + track.velocity * (torch.arange(video.frames, dtype=torch.float64) / fps)[:, None]
        # Inside, the centre moves with the velocity; a frame step over a wall is left out.
        for axis in range(2):
            inside = (line[1:, axis] / room[axis]).floor() == (line[:-1, axis] / room[axis]).floor()
            steps = (path[1:, axis] - path[:-1, axis])[inside] * fps
            straight += int(inside.sum())
            assert torch.allclose(steps.abs(), track.velocity[0, axis].abs().expand_as(steps), atol=0.02 * fps)
    assert straight > 30 * 2 * video.frames / 2


def test_the_same_clip_at_another_rate_shows_the_same_motion() -> None:
    slow = MovingDigits(dataclasses.replace(GREY, frames=16, fps=8), count=10, digits=2).batch(range(10)).x0
    fast = MovingDigits(dataclasses.replace(GREY, frames=46, fps=24), count=10, digits=2).batch(range(10)).x0
    assert torch.equal(slow, fast[:, :, ::3])


def test_digits_bounce_as_on_a_mirrored_floor_and_stay_inside() -> None:
    video = Video(frames=200, fps=10, size=(24, 32), channels=1)
    digits = MovingDigits(video, count=20, digits=3, speed=(30, 60))
    for index in range(20):
        track = digits.tracks(index)
        corners = digits.corners(track.start, track.velocity)
        assert corners.shape == (3, 200, 2)
        for digit in range(3):
            for axis, room in ((0, 12.0), (1, 20.0)):
                # Step by step: at a wall the rest of the way is walked back.
                place, speed = float(track.start[digit, axis]), float(track.velocity[digit, axis])
                for frame in range(200):
                    assert 0 <= float(corners[digit, frame, axis]) <= room
                    assert float(corners[digit, frame, axis]) == pytest.approx(place, abs=1e-6)
                    place += speed / 10
                    while not 0 <= place <= room:
                        place = -place if place < 0 else 2 * room - place
                        speed = -speed
    # No light is lost over an edge: one digit keeps its brightness wherever it goes.
    one = (MovingDigits(video, count=8, speed=(30, 60)).batch(range(8)).x0 + 1).sum((1, 3, 4))
    assert ((one.amax(1) - one.amin(1)) / one.mean(1)).max() < 0.02


def test_the_brighter_digit_shows() -> None:
    digits = MovingDigits(GREY, count=4, digits=2)
    for index in range(4):
        track = digits.tracks(index)
        corners = digits.corners(track.start, track.velocity)
        alone = [digits.draw(track.glyphs[None, n : n + 1], corners[None, n : n + 1]) for n in range(2)]
        both = digits.draw(track.glyphs[None], corners[None])
        assert torch.equal(both, torch.maximum(*alone))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "count"),
        ({"digits": 0}, "digits"),
        ({"speed": (3,)}, "speed"),
        ({"speed": (5, 3)}, "speed"),
        ({"speed": (-1, 3)}, "speed"),
        ({"speed": (0, math.inf)}, "speed"),
        ({"modality": Video(size=7)}, "8 pixels"),
    ],
)
def test_refuses_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingDigits(**{"modality": GREY} | options)


def settings(name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(files("configs") / name))  # type: ignore[return-value, arg-type]


def test_the_configurations_hold_the_defaults(tmp_path: Path) -> None:
    video, digits, folder = (
        settings(f"{name}.yaml") for name in ("modality/video", "data/moving_digits", "data/folder")
    )
    assert video.pop("_target_") == "modalities.video.Video"
    assert Video(**video) == Video()
    assert digits.pop("_target_") == "modalities.video_sets.MovingDigits"
    assert MovingDigits(GREY, **digits).fingerprint == MovingDigits(GREY).fingerprint
    assert folder.pop("_target_") == "modalities.files.Folder"
    write_numbered(tmp_path / "a.mp4", count=8)
    assert len(Folder(GREY, **folder | {"root": tmp_path})) == 1
