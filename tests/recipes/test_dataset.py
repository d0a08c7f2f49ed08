"""Data are measured as training sees them and split without loss, and notes mention what will not be learned."""

import pytest
import torch

from modalities.audio import Audio
from modalities.audio_sets import PluckedStrings
from modalities.image import Image
from modalities.image_sets import Digits, Pixels
from modalities.video import Video
from modalities.video_sets import MovingDigits
from multisagd.multitaper import statistics_of_one
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.dataset import Chunks, colour_note, held_out_note, hold_out, measure
from recipes.data.order import Order
from recipes.runs.settings import TrainSettings
from recipes.training.setup import learned_condition


def settings(*words: str) -> TrainSettings:
    return Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused", *words]), "")


def noise_images(count: int, classes: int) -> Pixels:
    """Pictures of noise whose classes take turns."""
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [f"kind{number}" for number in range(classes)]
    return Pixels(Image(size=8, channels=1), images, torch.arange(count) % classes, names)


def test_measure_sees_the_data_with_their_flips() -> None:
    # White on the left, black on the right: flips make both sides alike.
    images = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    images[0] = 255 - images[0]  # if all were the same, their spectrum would be that of one
    plain, flipped = (
        measure(Pixels(Image(size=8, channels=1, flip=flip), images), settings()).mean for flip in (False, True)
    )
    assert float((plain[..., :4] - plain[..., 4:]).mean()) == pytest.approx(1.99)
    assert abs(float((flipped[..., :4] - flipped[..., 4:]).mean())) < 0.4


def test_chunks_are_the_same_in_every_pass() -> None:
    chunks = Chunks(Digits(Image(size=8, channels=1, flip=True)), range(50), seed=3, size=20)
    first, second = (torch.cat([x0 for x0, _ in chunks]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("count", "classes", "words", "expected", "note"),
    [
        (40, 4, [], 2, None),
        (5, 1, [], 1, None),
        (5, 1, ["validation.holdout=0"], None, "validation.holdout=0: no examples are held out"),
        (1, 1, [], None, "the only example is used for training"),
        (6, 6, [], None, "no examples held out, though"),
        (6, 6, ["training.conditional=false"], 1, None),
        (8, 4, ["validation.holdout=7"], 4, "4 examples held out, though validation.holdout=7"),
    ],
)
def test_hold_out_splits_small_sets(
    count: int, classes: int, words: list[str], expected: int | None, note: str | None
) -> None:
    """And notes what is not validated."""
    training, held_out = hold_out(noise_images(count, classes), settings(*words))
    assert (None if held_out is None else len(held_out)) == expected
    assert len(training) == count - (expected or 0)
    assert (note or "None") in str(held_out_note(training, held_out, settings(*words)))


def test_hold_out_refuses_to_leave_nothing_and_invalid_numbers() -> None:
    with pytest.raises(RecipeError, match=r"validation\.holdout=0 trains on all"):
        hold_out(noise_images(5, 1), settings("validation.holdout=5"))
    for holdout in ("-1", ".inf", ".nan"):
        with pytest.raises(RecipeError, match="holdout"):
            settings(f"validation.holdout={holdout}")


def test_measure_estimates_the_spectrum_of_a_single_example_where_it_is_valid() -> None:
    one, modality = noise_images(1, 1).images, Image(size=8, channels=1)
    x0 = modality.encode(one[0]).double()
    for copies in (1, 3):
        statistics = measure(Pixels(modality, one.repeat(copies, 1, 1, 1)), settings())
        assert statistics.count == copies
        assert statistics.mean.unique().numel() == 1
        assert float(statistics.mean[0, 0, 0]) == pytest.approx(float(x0.mean()))
        assert statistics.sigma_data == pytest.approx(float(x0.std(correction=0)))
    x0, mask = torch.full((1, 8, 8), 9.0), torch.zeros(1, 8, 8, dtype=torch.bool)
    x0[:, :, :4], mask[:, :, :4] = torch.linspace(-1, 1, 4), True
    statistics = statistics_of_one(x0, modality.grid(), mask)
    assert float(statistics.mean[0, 0, 0]) == pytest.approx(0.0, abs=1e-7)
    assert statistics.sigma_data == pytest.approx(float(torch.linspace(-1, 1, 4).std(correction=0)))


def test_learned_condition_knows_classes_that_training_never_shows() -> None:
    cpu, data = torch.device("cpu"), noise_images(40, 4)
    part = data.subset([index for index in range(40) if index % 4 != 2])
    assert learned_condition(settings(), data, Builder(), cpu).untrained == ()
    condition = learned_condition(settings(), part, Builder(), cpu)
    assert condition.untrained == ("kind2",)
    assert condition.shown(part, 5)[0].tolist() == [0, 1, 3, 0, 1]  # type: ignore[union-attr]
    assert condition.metadata(None)["untrained"] == ("kind2",)
    assert "kind2" in (condition.note or "")
    short = learned_condition(settings("training.samples=2", "training.batch=1"), data, Builder(), cpu)
    shown = {int(data.labels[index]) for index in Order(40, 0).indices(0, 2)}  # type: ignore[index]
    assert short.untrained == tuple(f"kind{number}" for number in range(4) if number not in shown)


def test_colour_note_mentions_colours_that_are_lost_or_missing() -> None:
    grey = torch.randint(0, 190, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0)).repeat(1, 3, 1, 1)
    for channels, tint, note in (
        (1, 60, "modality.channels=3"),
        (1, 2, "None"),
        (3, 60, "None"),
        (3, 2, "modality.channels=1"),
        (3, 0, "examples are grey"),
    ):
        images = grey.clone()
        images[:, 0] += tint
        data = Pixels(Image(size=8, channels=channels), images.to(torch.uint8))
        assert note in str(colour_note(data)), (channels, tint)
    assert colour_note(MovingDigits(Video(4, 8.0, 8, 1), count=2)) is None
    assert "examples are grey" in (colour_note(MovingDigits(Video(4, 8.0, 8, 3), count=2)) or "")
    assert colour_note(PluckedStrings(Audio(8000, 0.1), count=2)) is None
