"""Reports, evaluations and averages name what is missing or does not fit, from hand-made inputs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

import multisagd as ms
from modalities.image import Image
from modalities.image_sets import Digits
from multisagd.analysis.profiles import radial_profile
from recipes.base.errors import RecipeError
from recipes.cli.command import take_option
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluation.metrics import choose_metrics
from recipes.evaluation.sets import load_samples
from recipes.evaluation.task import EvaluateSettings
from recipes.plotting.figures import draw_power
from recipes.reports.losses import loss_charts
from recipes.reports.page import Note
from recipes.reports.run import Overview
from recipes.runs.averages import averaged_weights
from recipes.runs.checkpoint import State
from recipes.runs.settings import Averages, TrainSettings

ENTRY: dict[str, Any] = {"samples": 32, "loss": 1.0, "gradient_norm": 1.0}


@pytest.mark.parametrize(("train", "held_out", "subsampled", "message"), [
    ([], 1, False, "No training step has been logged"),
    ([ENTRY], 1, False, "There was no validation yet"),
    ([ENTRY], 0, False, "No data were held out"),
    ([ENTRY], 0, True, "too many entries"),
])  # fmt: skip
def test_loss_charts_say_what_is_missing(train: list[Any], held_out: int, subsampled: bool, message: str) -> None:
    run = Overview(Path("run"), "run", None, {"held_out": held_out}, train, [], [], subsampled, None, ())
    assert any(message in block.text for block in loss_charts(run) if isinstance(block, Note))


def test_draw_power_omits_a_profile_without_power() -> None:
    grid = ms.Grid.of(y=8, x=8)
    plot = Figure().subplots()
    for power, lines in ((torch.zeros(grid.half_shape), 0), (torch.ones(grid.half_shape), 1)):
        draw_power(plot, radial_profile(power, grid), "data")
        assert len(plot.lines) == lines


def test_load_samples_refuses_what_does_not_fit(tmp_path: Path) -> None:
    data, x0 = Digits(Image(8, 1)), torch.zeros(4, 1, 8, 8)
    broken = x0.clone()
    broken[1, 0, 0, 0] = torch.nan
    for tensors, message in (
        ({"x0": torch.zeros(4, 1, 9, 8)}, "but the run's data have shape"),
        ({"x0": broken}, "1 of 4 samples in .* are not finite"),
        ({"x0": x0, "labels": torch.tensor([0, 1, 2, 10])}, "do not match its samples"),
        ({"x0": x0, "labels": torch.zeros(4)}, "not of the right type"),
    ):
        save_file(tensors, tmp_path / "samples.safetensors")
        with pytest.raises(RecipeError, match=message):
            load_samples(tmp_path / "samples.safetensors", data)


def evaluation(*words: str) -> EvaluateSettings:
    return Builder().settings(EvaluateSettings, configuration.load("evaluate", ["run_dir=run", *words]), "")


def test_choose_metrics_refuses_what_cannot_be_computed() -> None:
    unlabelled: Any = SimpleNamespace(classes=None, modality=Image(8, 1))
    with pytest.raises(RecipeError, match="metrics is empty"):
        choose_metrics(evaluation("metrics=[]"), unlabelled)
    with pytest.raises(RecipeError, match="classes cannot be computed"):
        choose_metrics(evaluation("metrics=[classes]"), unlabelled)
    with pytest.raises(RecipeError, match="at least 4 real examples"):
        evaluation("reference=3")


def test_averaged_weights_need_every_part_and_an_update(tmp_path: Path) -> None:
    def checkpoint(updates: int, *parts: str) -> State:
        tensors = {"module.w": torch.ones(2), "module.n": torch.tensor(3), "_extra_state": torch.tensor(updates)}
        return State(32, dict.fromkeys(parts, tensors))

    def average(state: State) -> dict[str, torch.Tensor]:
        return averaged_weights(tmp_path, state, Averages(4), 0.1, lambda shapes: None)

    both = ("average_050", "average_150")
    assert torch.equal(average(checkpoint(2, *both))["n"], torch.tensor(3))
    torch.testing.assert_close(average(checkpoint(2, *both))["w"], torch.ones(2))
    with pytest.raises(RecipeError, match="average_150 is missing"):
        average(checkpoint(2, "average_050"))
    with pytest.raises(RecipeError, match="has 0 updates"):
        average(checkpoint(0, *both))


@pytest.mark.parametrize("word", ["ema=0.28", "stable=1", "betas=[0.9,1]", "batch=30", "condition_dropout=2"])
def test_training_refuses_impossible_settings(word: str) -> None:
    config = configuration.load("train", ["run_dir=run", "training.accumulation=4", f"training.{word}"])
    with pytest.raises(RecipeError, match=word.partition("=")[0]):
        Builder().settings(TrainSettings, config, "")


def test_take_option_needs_a_value() -> None:
    words = ["--config-dir"]
    with pytest.raises(RecipeError, match="has no value"):
        take_option(words, "--config-dir")


def test_covariance_names_spectrum_and_grid() -> None:
    assert "grid=y 4×x 5" in repr(ms.SpectralCovariance(ms.Flat(), ms.Grid.of(y=4, x=5)))
