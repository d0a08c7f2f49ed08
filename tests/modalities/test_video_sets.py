"""Moving digits follow their physics in seconds and pixels, and clips are functions of seed and index."""

import dataclasses
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from modalities.autoencoders import Identity
from modalities.base import split
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
    rows, columns = (torch.arange(size, dtype=torch.float64) + 0.5 for size in clips.shape[-2:])
    total = light.sum((-2, -1))
    return torch.stack([(light.sum(-1) @ rows) / total, (light.sum(-2) @ columns) / total], -1)


def test_moving_digits_are_clips_of_ten_classes() -> None:
    digits = MovingDigits(GREY, count=200)
    assert (len(digits), digits.classes) == (200, tuple("0123456789"))
    batch = digits.batch(range(200))
    assert (batch.x0.shape, batch.x0.dtype) == ((200, 1, 16, 32, 32), torch.float32)
    assert (batch.x0.min().item(), batch.x0.max().item()) == (-1.0, 1.0)
    assert batch.labels is not None
    assert set(batch.labels.tolist()) == set(range(10))
    assert batch.mask is None
    two = MovingDigits(GREY, count=5, digits=2)
    assert (two.classes, two.batch([0, 1]).labels) == (None, None)
    colour = MovingDigits(dataclasses.replace(GREY, channels=3), count=5).batch([3])
    assert torch.equal(colour.x0, batch.x0[3:4].expand(-1, 3, -1, -1, -1))


def test_moving_digits_depend_on_seed_and_index_alone() -> None:
    digits, other_seed = (MovingDigits(GREY, count=100, seed=seed) for seed in (0, 1))
    batch = digits.batch([4, 90, 4], seeds=[1, 2, 3])
    assert torch.equal(batch.x0[0], batch.x0[2])
    assert torch.equal(digits.example(90, seed=5).x0, batch.x0[1])
    assert digits.example(90).label == int(batch.labels[1])  # type: ignore[index]
    assert torch.equal(MovingDigits(GREY, count=5).batch([4]).x0[0], batch.x0[0])
    assert not torch.equal(other_seed.batch([4]).x0[0], batch.x0[0])
    part = digits.subset([90, 4])
    assert torch.equal(part.batch([1, 0]).x0, batch.x0[:2])
    assert len({each.fingerprint for each in (digits, part, other_seed, digits.subset([4]))}) == 4
    assert digits.fingerprint == MovingDigits(GREY, count=100).fingerprint
    training, validation = split(digits, 0.1)
    assert (len(training), len(validation)) == (90, 10)
    for index in (100, -1):
        with pytest.raises(IndexError, match="100 clips"):
            digits.batch([index])


def test_moving_digits_show_the_digit_of_the_label_at_its_place() -> None:
    digits = MovingDigits(Video(frames=1, size=32, channels=1), count=40, speed=(0, 0))
    stills = Digits(Image(size=16, channels=1))
    batch = digits.batch(range(40))
    for index in range(40):
        track = digits.tracks(index)
        glyph = stills.batch([int(track.glyphs[0])])
        assert int(batch.labels[index]) == int(glyph.labels[0])  # type: ignore[index]
        # Between pixels the light is the same, and its centre is the digit's.
        assert (batch.x0[index] + 1).sum() == pytest.approx(float((glyph.x0 + 1).sum()), rel=0.02)
        moved = centres(batch.x0[index])[0, 0] - centres(glyph.x0[0])[0]
        assert torch.allclose(moved, track.start[0], atol=0.1)


@pytest.mark.parametrize("fps", [4, 12.5, 30])
def test_moving_digits_keep_their_velocity_between_walls(fps: float) -> None:
    video = Video(frames=int(4 * fps), fps=fps, size=(40, 64), channels=1)
    digits = MovingDigits(video, count=30, speed=(10, 20))
    room = torch.tensor([20.0, 44.0], dtype=torch.float64)
    straight = 0
    for index in range(30):
        track = digits.tracks(index)
        assert 10 <= float(track.velocity[0].norm()) <= 20
        path = centres(digits.batch([index]).x0[:, 0])[0]
        line = track.start + track.velocity * (torch.arange(video.frames, dtype=torch.float64) / fps)[:, None]
        for axis in range(2):
            # Steps that cross a wall are left out.
            inside = (line[1:, axis] / room[axis]).floor() == (line[:-1, axis] / room[axis]).floor()
            steps = path[:, axis].diff()[inside] * fps
            straight += int(inside.sum())
            assert torch.allclose(steps.abs(), track.velocity[0, axis].abs().expand_as(steps), atol=0.02 * fps)
    assert straight > 30 * 2 * video.frames / 2


def test_moving_digits_show_the_same_motion_at_another_rate() -> None:
    slow = MovingDigits(dataclasses.replace(GREY, frames=16, fps=8), count=10, digits=2).batch(range(10)).x0
    fast = MovingDigits(dataclasses.replace(GREY, frames=46, fps=24), count=10, digits=2).batch(range(10)).x0
    assert torch.equal(slow, fast[:, :, ::3])


def test_moving_digits_bounce_off_the_walls_and_stay_inside() -> None:
    video = Video(frames=200, fps=10, size=(24, 32), channels=1)
    digits = MovingDigits(video, count=20, digits=3, speed=(30, 60))
    room = torch.tensor([12.0, 20.0], dtype=torch.float64)
    for index in range(20):
        track = digits.tracks(index)
        corners = digits.corners(track.start, track.velocity)
        assert corners.shape == (3, 200, 2)
        # Step by step, reflected at each wall.
        place, velocity = track.start.clone(), track.velocity.clone()
        for frame in range(200):
            assert bool(((corners[:, frame] >= 0) & (corners[:, frame] <= room)).all())
            torch.testing.assert_close(corners[:, frame], place, rtol=0, atol=1e-6)
            place += velocity / 10
            while bool((outside := (place < 0) | (place > room)).any()):
                place = torch.where(place < 0, -place, torch.where(place > room, 2 * room - place, place))
                velocity[outside] *= -1
    # No light is lost over an edge: one digit keeps its brightness everywhere.
    one = (MovingDigits(video, count=8, speed=(30, 60)).batch(range(8)).x0 + 1).sum((1, 3, 4))
    assert ((one.amax(1) - one.amin(1)) / one.mean(1)).max() < 0.02


def test_moving_digits_draw_the_brighter_pixel() -> None:
    digits = MovingDigits(GREY, count=4, digits=2)
    for index in range(4):
        track = digits.tracks(index)
        corners = digits.corners(track.start, track.velocity)
        alone = [digits.draw(track.glyphs[None, n : n + 1], corners[None, n : n + 1]) for n in range(2)]
        assert torch.equal(digits.draw(track.glyphs[None], corners[None]), torch.maximum(*alone))


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
        ({"modality": Image(size=32)}, "must be a Video, got Image"),
        ({"modality": Latent(GREY, Identity())}, "must be a Video, got Latent"),
    ],
)
def test_moving_digits_refuse_impossible_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MovingDigits(**{"modality": GREY} | options)


def settings(name: str, target: str) -> dict[str, Any]:
    """Return the settings of a configuration, whose class is `target`."""
    values: Any = OmegaConf.to_container(OmegaConf.load(files("configs") / f"{name}.yaml"))  # type: ignore[arg-type]
    assert values.pop("_target_") == target
    return values


def test_video_configurations_hold_the_defaults(tmp_path: Path) -> None:
    assert Video(**settings("modality/video", "modalities.video.Video")) == Video()
    digits = settings("data/moving_digits", "modalities.video_sets.MovingDigits")
    assert MovingDigits(GREY, **digits).fingerprint == MovingDigits(GREY).fingerprint
    write_numbered(tmp_path / "a.mp4", count=8)
    folder = settings("data/folder", "modalities.files.Folder")
    assert len(Folder(GREY, **folder | {"root": tmp_path})) == 1
