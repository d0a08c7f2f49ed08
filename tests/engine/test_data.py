import pytest
import torch

from modalities.image import Image
from modalities.image_sets import Digits, Pixels
from recipes.engine import config as configuration
from recipes.engine.build import Builder
from recipes.engine.data import Chunks, measure
from recipes.engine.settings import TrainSettings


def settings(*words: str) -> TrainSettings:
    return Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused", *words]), "")


def test_statistics_are_of_the_data_as_training_sees_them() -> None:
    # White on the left, black on the right: flips make both sides alike.
    images = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    plain, flipped = (
        measure(Pixels(Image(size=8, channels=1, flip=flip), images), settings()).mean for flip in (False, True)
    )
    assert float((plain[..., :4] - plain[..., 4:]).mean()) == pytest.approx(2.0)
    assert abs(float((flipped[..., :4] - flipped[..., 4:]).mean())) < 0.4


def test_both_passes_see_the_same() -> None:
    chunks = Chunks(Digits(Image(size=8, channels=1, flip=True)), range(50), seed=3, size=20)
    first, second = (torch.cat([x0 for x0, _ in chunks]) for _ in range(2))
    assert torch.equal(first, second)
