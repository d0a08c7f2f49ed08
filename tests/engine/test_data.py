from typing import Any

import pytest
import torch

import multisagd as ms
from modalities.image import Image
from modalities.image_sets import Digits, Pixels
from recipes.engine import config as configuration
from recipes.engine.build import Builder
from recipes.engine.data import Chunks, measure, process_notes
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
