"""Transforms by name: what an example becomes depends on its seed only, and unsuitable transforms are refused."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import soundfile
import torch

from modalities.audio import Audio
from modalities.augmentation import IMAGES, SOUNDS, Augmentation
from modalities.image import Image
from modalities.scalars import recording
from modalities.video import Video
from tests.helpers.refusals import assert_refused

PIXELS = torch.randint(0, 256, (3, 24, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
pictures, sounds = (
    partial(Augmentation, library, shape=shape) for library, shape in ((IMAGES, (3, 24, 20)), (SOUNDS, (1, 4096)))
)
JITTER = {"name": "ColorJitter", "brightness": 0.4, "hue": 0.2}
ROTATION = {"name": "RandomRotation", "degrees": {"uniform": [5.0, 20.0]}, "probability": 0.5}


def test_augmentation_depends_on_the_seed_only_also_in_threads():
    augmentation = pictures([JITTER, ROTATION])
    expected = [augmentation(PIXELS, seed) for seed in range(12)]
    assert len({each.numpy().tobytes() for each in expected}) == 12
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        for seed, again in enumerate(pool.map(lambda seed: augmentation(PIXELS, seed), range(12))):
            assert torch.equal(again, expected[seed])
    assert torch.equal(torch.get_rng_state(), state)
    assert augmentation(PIXELS, None) is PIXELS


def test_augmentation_applies_a_transform_with_its_probability():
    flip = {"name": "RandomVerticalFlip", "p": 1.0, "probability": 0.25}
    augmentation = pictures([flip])
    flipped = sum(torch.equal(augmentation(PIXELS, seed), PIXELS.flip(-2)) for seed in range(400))
    unchanged = sum(torch.equal(augmentation(PIXELS, seed), PIXELS) for seed in range(400))
    assert flipped + unchanged == 400
    assert abs(flipped - 100) < 35  # four standard deviations


def test_augmentation_draws_parameters():
    gains = {"name": "Vol", "gain": {"choice": [0.25, 0.5]}}
    waveform = torch.full((1, 100), 0.5)
    louder = {float(sounds([gains])(waveform, seed)[0, 0]) for seed in range(20)}
    assert louder == {0.125, 0.25}
    speeds = sounds([{"name": "SpeedPerturbation", "orig_freq": 8000, "factors": [0.8, 1.25]}])
    ends = {int((speeds(waveform, seed).abs() > 0.1).sum()) for seed in range(20)}
    assert all(speeds(waveform, seed).shape == waveform.shape for seed in range(4))
    assert min(ends) < 90 < max(ends)  # shortened sounds end in silence


def test_augmentation_refuses_what_it_cannot_use():
    assert_refused(
        ("did you mean ColorJitter", lambda: pictures([{"name": "ColourJitter"}])),
        ("no transform 'Lambda'", lambda: pictures([{"name": "Lambda"}])),
        ("no transform None", lambda: pictures([{"degrees": 3}])),
        ("no parameter 'degree'", lambda: pictures([{"name": "RandomRotation", "degree": 3}])),
        ("probability", lambda: pictures([{**JITTER, "probability": 2}])),
        ("lower one first", lambda: pictures([{**JITTER, "hue": {"uniform": [0.3, 0.1]}}])),
        ("must be a value", lambda: pictures([{**JITTER, "hue": {"normal": [0.3, 0.1]}}])),
        ("changes the shape", lambda: pictures([{"name": "Resize", "size": [8, 8]}])),
        ("RandomRotation cannot be used", lambda: pictures([{"name": "RandomRotation"}])),
        ("do not depend on the example's seed", lambda: pictures([{"name": "AugMix"}])),
        ("must be a list such as", lambda: pictures(["ColorJitter"])),
        ("no transform \\['ColorJitter'\\]", lambda: pictures([{"name": ["ColorJitter"]}])),
        ("padding must be at most 10,000, got 100000", lambda: pictures([{"name": "Pad", "padding": 100_000}])),
        ("GaussianBlur cannot be used", lambda: pictures([{"name": "GaussianBlur", "kernel_size": 51}])),
        ("GaussianBlur cannot be used",
         lambda: pictures([{"name": "GaussianBlur", "kernel_size": {"choice": [3, 3, 3, 4]}}])),
        ("GaussianBlur cannot be used",
         lambda: pictures([{"name": "GaussianBlur", "kernel_size": {"uniform": [3, 5]}}])),
        ("not finite", lambda: sounds([{"name": "Vol", "gain": {"choice": [0.5, float("nan")]}}])),
        ("Loudness cannot be used", lambda: sounds([{"name": "Loudness", "sample_rate": 8000}])),
    )  # fmt: skip


def test_augmentation_is_tried_at_the_size_of_the_examples_in_every_bucket(tmp_path):
    crop = {"name": "RandomResizedCrop", "size": [24, 20]}
    assert pictures([crop])(PIXELS, 0).shape == PIXELS.shape
    blur = {"name": "GaussianBlur", "kernel_size": 15}
    Image(16, channels=3, augment=[blur])
    assert_refused(
        ("changes the shape", lambda: Image(16, channels=3, augment=[crop])),
        ("augment: GaussianBlur cannot be used",
         lambda: Image(16, channels=3, augment=[blur], buckets=[16, [32, 6]])),
    )  # fmt: skip
    write_media(tmp_path)
    unforeseen = Image(24, channels=3, augment=[blur])
    object.__setattr__(unforeseen, "size", (6, 6))
    with pytest.raises(ValueError, match="augment: GaussianBlur cannot be applied"):
        unforeseen.load(tmp_path / "a.png", 0)


def write_media(folder):
    """A picture, a clip of two seconds and a sound of half a second."""
    pixels = PIXELS.float().div(2).add(64).to(torch.uint8)
    Video(16, size=(24, 20)).save(pixels[:, None].expand(-1, 16, -1, -1), folder / "a.mp4")  # writes a.png, too
    Image(size=(24, 20), channels=3).save(pixels, folder / "a.png")
    soundfile.write(folder / "a.wav", 0.5 * np.sin(np.arange(4000)), 8000)


def test_modalities_augment_training_examples_alike_in_all_frames(tmp_path):
    write_media(tmp_path)
    darker = {"name": "ColorJitter", "brightness": [0.4, 0.6]}
    for modality, name in (
        (Image(16, channels=3, augment=[darker]), "a.png"),
        (Video(4, size=16, augment=[darker]), "a.mp4"),
        (Audio(8000, 0.1, augment=[{"name": "Vol", "gain": 0.5}]), "a.wav"),
    ):
        path, plain = tmp_path / name, replace(modality, augment=())
        changed, before = modality.load(path, 3), plain.load(path, 3)
        assert torch.equal(modality.load(path, 3), changed)
        assert torch.equal(modality.load(path), plain.load(path))
        ratios = changed.double().abs().mean((-2, -1)) / before.double().abs().mean((-2, -1))
        assert 0.35 < ratios.min() <= ratios.max() < 0.65
        if name == "a.mp4":
            assert (ratios[:, 1:] - ratios[:, :1]).abs().max() < 0.02


def test_modalities_record_how_an_example_was_read(tmp_path):
    write_media(tmp_path)
    for modality, name, known in (
        (Image(16, channels=3), "a.png", {"height": 24, "width": 20, "crop_left": 0}),
        (Video(4, size=16, channels=3), "a.mp4", {"duration": 2, "fps": 8, "crop_left": 0}),
        (Audio(8000, 0.1), "a.wav", {"duration": 0.5}),
    ):
        path = tmp_path / name
        found = []
        for seed in (None, *range(8)):
            with recording() as scalars:
                modality.load(path, seed)
            assert scalars.keys() == modality.scalars.keys()
            assert scalars == pytest.approx(scalars | known)
            found.append(scalars)
        varies = "crop_top" if name == "a.png" else "start"
        values = {each[varies] for each in found}
        assert len(values) > 2
        # The window lies within the file, and the middle is taken without a seed.
        end = {"a.png": (24 - 20) * 16 / 20, "a.mp4": 2 - 3 / 8, "a.wav": 0.4}[name]
        assert 0 <= min(values) < found[0][varies] < max(values) <= end
    with recording() as scalars:
        excerpt = Audio(8000, 0.1).load(tmp_path / "a.wav", 5)
    start = round(scalars["start"] * 8000)
    whole = torch.from_numpy(soundfile.read(tmp_path / "a.wav", dtype="float32")[0])
    assert torch.equal(excerpt[0], whole[start : start + 800])
