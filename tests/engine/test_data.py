from typing import Any

import pytest
import torch

import multisagd as ms
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
from recipes.runs.assembly import process_notes
from recipes.runs.settings import TrainSettings
from recipes.training.setup import learned_condition


def settings(*words: str) -> TrainSettings:
    return Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused", *words]), "")


def test_statistics_are_of_the_data_as_training_sees_them() -> None:
    # White on the left, black on the right: flips make both sides alike.
    images = torch.zeros(400, 1, 8, 8, dtype=torch.uint8)
    images[..., :4] = 255
    images[0] = 255 - images[0]  # if all were the same, their spectrum would be that of one
    plain, flipped = (
        measure(Pixels(Image(size=8, channels=1, flip=flip), images), settings()).mean for flip in (False, True)
    )
    assert float((plain[..., :4] - plain[..., 4:]).mean()) == pytest.approx(1.99)
    assert abs(float((flipped[..., :4] - flipped[..., 4:]).mean())) < 0.4


def test_both_passes_see_the_same() -> None:
    chunks = Chunks(Digits(Image(size=8, channels=1, flip=True)), range(50), seed=3, size=20)
    first, second = (torch.cat([x0 for x0, _ in chunks]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("schedule", "prediction", "said"),
    [
        (ms.KarrasSchedule(), "v", ["sigma=80"]),
        (ms.CosineSchedule(), "noise", ["log-SNR of -20"]),
        (ms.CosineSchedule(log_snr_range=(-10.0, 20.0)), "noise", []),
        (ms.FlowSchedule(), "v", []),
        (ms.CosineSchedule(), "v", []),
    ],
)
def test_what_is_doubtful_at_pure_noise_is_noted(schedule: ms.Schedule, prediction: Any, said: list[str]) -> None:
    digits = Digits(Image(size=8, channels=1))
    statistics = measure(digits, settings())
    process = ms.Process(schedule, ms.SpectralCovariance(ms.Flat(), digits.modality.grid()))
    notes = process_notes(process, ms.Denoiser(torch.nn.Identity(), process, prediction), statistics)
    notes = [note for note in notes if "denoiser=" in note]
    assert len(notes) == len(said)
    assert all(words in note for words, note in zip(said, notes, strict=True))
    karras = ms.Denoiser(torch.nn.Identity(), process, preconditioning="karras", statistics=statistics)
    assert not [note for note in process_notes(process, karras, statistics) if "denoiser=" in note]


@pytest.mark.parametrize(("corner", "noted"), [(None, True), (1 / 16, False)])
def test_notes_noise_that_goes_mostly_into_the_mean(corner: float | None, noted: bool) -> None:
    digits = Digits(Image(size=16, channels=1))
    statistics = measure(digits, settings())
    spectrum = ms.PowerLaw(exponent=-1.0, corner=corner)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, digits.modality.grid()))
    notes = process_notes(process, ms.Denoiser(torch.nn.Identity(), process), statistics)
    assert any("zero frequency" in note for note in notes) == noted


def coloured(count: int, classes: int) -> Pixels:
    """Pictures of noise, in turn of each class."""
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    names = [f"kind{number}" for number in range(classes)]
    return Pixels(Image(size=8, channels=1), images, torch.arange(count) % classes, names)


@pytest.mark.parametrize(
    ("count", "classes", "words", "held", "said"),
    [
        (40, 4, [], 2, None),
        (5, 1, [], 1, None),
        (5, 1, ["validation.holdout=0"], None, "validation.holdout=0: nothing is held out"),
        (1, 1, [], None, "the only example is used for training"),
        (6, 6, [], None, "no examples held out, though"),
        (6, 6, ["training.conditional=false"], 1, None),
        (8, 4, ["validation.holdout=7"], 4, "4 examples held out, though validation.holdout=7"),
    ],
)
def test_small_sets_are_split_and_what_is_not_validated_is_said(
    count: int, classes: int, words: list[str], held: int | None, said: str | None
) -> None:
    training, held_out = hold_out(coloured(count, classes), settings(*words))
    assert (None if held_out is None else len(held_out)) == held
    assert len(training) == count - (held or 0)
    note = held_out_note(training, held_out, settings(*words))
    assert (note is None) if said is None else (note is not None and said in note)


def test_nothing_left_to_train_on_names_the_key_that_helps() -> None:
    with pytest.raises(RecipeError, match=r"validation\.holdout=0 trains on all"):
        hold_out(coloured(5, 1), settings("validation.holdout=5"))


@pytest.mark.parametrize("holdout", ["-1", ".inf", ".nan"])
def test_a_holdout_that_is_no_number_of_examples_is_refused(holdout: str) -> None:
    with pytest.raises(RecipeError, match="holdout"):
        settings(f"validation.holdout={holdout}")


@pytest.mark.parametrize("copies", [1, 3])
def test_the_spectrum_of_one_example_is_estimated_from_it(copies: int) -> None:
    one = coloured(1, 1).images
    statistics = measure(Pixels(Image(size=8, channels=1), one.repeat(copies, 1, 1, 1)), settings())
    x0 = Image(size=8, channels=1).encode(one[0]).double()
    assert statistics.count == copies
    assert statistics.mean.unique().numel() == 1
    assert float(statistics.mean[0, 0, 0]) == pytest.approx(float(x0.mean()))
    assert statistics.sigma_data == pytest.approx(float(x0.std(correction=0)))


def test_one_padded_example_counts_as_far_as_it_is_valid() -> None:
    x0, mask = torch.full((1, 8, 8), 9.0), torch.zeros(1, 8, 8, dtype=torch.bool)
    x0[:, :, :4], mask[:, :, :4] = torch.linspace(-1, 1, 4), True
    statistics = statistics_of_one(x0, Image(size=8, channels=1).grid(), mask)
    assert float(statistics.mean[0, 0, 0]) == pytest.approx(0.0, abs=1e-7)
    assert statistics.sigma_data == pytest.approx(float(torch.linspace(-1, 1, 4).std(correction=0)))


def test_classes_that_training_never_shows_are_known_and_not_drawn() -> None:
    cpu = torch.device("cpu")
    whole, rest = coloured(40, 4), coloured(40, 4)
    part = rest.subset([index for index in range(40) if index % 4 != 2])
    assert learned_condition(settings(), whole, Builder(), cpu).untrained == ()
    condition = learned_condition(settings(), part, Builder(), cpu)
    assert condition.untrained == ("kind2",)
    assert condition.shown(part, 5)[0].tolist() == [0, 1, 3, 0, 1]  # type: ignore[union-attr]
    assert condition.metadata(None)["untrained"] == ("kind2",)
    assert "kind2" in (condition.note or "")
    short = learned_condition(settings("training.samples=2", "training.batch=1"), whole, Builder(), cpu)
    shown = {int(whole.labels[index]) for index in Order(40, 0).indices(0, 2)}  # type: ignore[index]
    assert short.untrained == tuple(f"kind{number}" for number in range(4) if number not in shown)


@pytest.mark.parametrize(
    ("channels", "tint", "said"),
    [
        (1, 60, "modality.channels=3"),
        (1, 2, None),
        (3, 60, None),
        (3, 2, "modality.channels=1"),
        (3, 0, "examples are grey"),
    ],
)
def test_pictures_learned_in_other_colours_than_they_have_are_mentioned(
    channels: int, tint: int, said: str | None
) -> None:
    grey = torch.randint(0, 190, (20, 1, 8, 8), generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    images = grey.clone()
    images[:, 0] += tint
    note = colour_note(Pixels(Image(size=8, channels=channels), images.to(torch.uint8)))
    assert (note is None) if said is None else (note is not None and said in note)


def test_moving_digits_and_sounds_have_no_colour_to_lose() -> None:
    assert colour_note(MovingDigits(Video(4, 8.0, 8, 1), count=2)) is None
    assert "examples are grey" in (colour_note(MovingDigits(Video(4, 8.0, 8, 3), count=2)) or "")
    assert colour_note(PluckedStrings(Audio(8000, 0.1), count=2)) is None
