"""The score of validations: it selects the best checkpoint, ends training, and is exact when a run continues."""

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from multisagd.likelihood import log_likelihood
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.evaluate import evaluate
from recipes.evaluation import classifier
from recipes.reports.run import read_run
from recipes.runs.best import BEST, Best, Selected, read_best
from recipes.runs.model import open_model
from recipes.train import train
from recipes.training import scores
from tests.helpers.launching import ranks
from tests.helpers.tiny import (
    TRANSFORMER,
    assert_same,
    last_state,
    read_metrics,
    tiny_config,
    tiny_run,
    tiny_words,
)
from tests.recipes.test_train import checkpoints_of, metrics_of, poison

SHORT = ["every.validation=32", "every.checkpoint=16", "every.samples=0", "training.samples=256"]


@contextmanager
def scored(*values: float) -> Iterator[None]:
    """Let the validation after 32 samples have the first score, that after 64 the second, and so on."""

    def prepare(job: Any, data: Any, model: Any) -> scores.Score:
        return lambda losses: float(values[-(-model.learner.samples // 32) - 1])

    with patch("recipes.train.prepare_score", prepare):
        yield


def best_of(run_dir: Path) -> Best:
    best = read_best(run_dir / "checkpoints")
    assert best is not None
    return best


OVERFITTING = [
    "network=transformer", "network.depth=1", "network.width=32", "network.heads=2", "validation.holdout=1781",
    "validation.items=16", "validation.patience=2", "training.conditional=false", "training.learning_rate=3e-2",
    "training.warmup=16", "training.samples=9600", "every.validation=320", "every.checkpoint=1600", "every.samples=0",
    "every.log=320", "keep=1",
]  # fmt: skip


def test_train_on_few_examples_stops_early_and_keeps_the_best_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    state = tiny_run(run_dir, *OVERFITTING)
    losses = {entry["samples"]: entry["loss"] for entry in read_metrics(run_dir, "validation")}
    best = min(losses, key=lambda samples: losses[samples])
    assert list(losses) == list(range(320, state.samples + 1, 320))
    assert state.samples == best + 640 < 9600
    assert best_of(run_dir) == Best(best, losses[best])
    assert {best, state.samples} <= set(checkpoints_of(run_dir))
    said = capsys.readouterr().out
    assert "the score has not improved in the last 2 validations (validation.patience=2)" in said
    assert f"The best score, {losses[best]:.4g}, was reached after {best:,} samples: `multisagd" in said
    assert f"checkpoints/{best:012d} (checkpoint=best)" in said

    weights = {name: open_model(run_dir, Builder(), checkpoint=name).weights("ema", len) for name in ("best", "last")}
    assert (weights["best"].samples, weights["last"].samples) == (best, state.samples)
    assert any(not torch.equal(each, weights["last"].tensors[n]) for n, each in weights["best"].tensors.items())

    words = [f"run_dir={run_dir}", "checkpoint=best", "samples=8", "steps=2", "metrics=[sliced]", "engine.threads=1"]
    assert evaluate(configuration.load("evaluate", [*words, "bootstrap=1", "splits=1"]))["checkpoint"] == best
    assert f"the samples are from the checkpoint after {best:,} samples seen" in capsys.readouterr().out
    assert read_run(run_dir).state == "ended early"

    metrics = metrics_of(run_dir)
    with patch("recipes.training.learner.Learner.step", side_effect=AssertionError("it has ended")):
        assert_same(tiny_run(run_dir, *OVERFITTING), state)
    assert "training ends early" in capsys.readouterr().out
    assert metrics_of(run_dir) == metrics
    assert tiny_run(run_dir, *OVERFITTING, "validation.patience=null", f"training.samples={best + 960}").samples > best


@pytest.mark.parametrize("halves", [(48,), (64, 96, 160), (80, 112)])
def test_a_continued_run_selects_as_an_uninterrupted_one(tmp_path: Path, halves: tuple[int, ...]) -> None:
    whole, split = tmp_path / "whole", tmp_path / "split"
    words = [*SHORT, "validation.patience=3", "keep=1"]
    with scored(5, 3, 4, 2, 2, math.nan, 2.5, 0):
        state = tiny_run(whole, *words)
        for samples in halves:  # in between, the final validation of the shorter training may be the best
            tiny_run(split, *words, f"training.samples={samples}")
            best = best_of(split)
            assert best.samples in checkpoints_of(split)
        assert_same(tiny_run(split, *words), state)
    assert state.samples == 224
    assert (best_of(whole), checkpoints_of(whole)) == (Best(128, 2.0), [128, 224])
    for name in ("metrics.jsonl", BEST):
        assert (split / name).read_bytes() == (whole / name).read_bytes()
    assert checkpoints_of(split) == checkpoints_of(whole)
    assert Selected.of(state.record).since == 2  # as before the last validation, which a continued run repeats

    with scored(5, 3, 4, 2, 2, math.nan, 2.5, 0):
        longer = [*SHORT, "validation.patience=4", "keep=1"]
        assert_same(tiny_run(split, *longer), tiny_run(tmp_path / "longer", *longer))
    assert metrics_of(split) == metrics_of(tmp_path / "longer")
    assert best_of(split) == Best(256, 0.0)


def test_a_crash_in_validation_changes_no_selection(tmp_path: Path) -> None:
    words = [*SHORT, "engine.save_in_background=false"]
    with scored(*range(8, 0, -1)):
        state = tiny_run(tmp_path / "whole", *words)
        for call in (2, 1):
            killed = patch("recipes.training.loop.write_best", side_effect=[None] * call + [KeyboardInterrupt])
            with killed, pytest.raises(KeyboardInterrupt):
                train(tiny_config(tmp_path / "run", *words))
        assert_same(tiny_run(tmp_path / "run", *words), state)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")


def test_the_best_checkpoint_is_saved_between_others_and_kept(tmp_path: Path) -> None:
    words = [*SHORT, "every.checkpoint=128", "training.samples=200", "keep=1"]
    with scored(3, 1, 2, 2, 2, 2, 2):
        tiny_run(tmp_path / "run", *words)
    assert (best_of(tmp_path / "run").samples, checkpoints_of(tmp_path / "run")) == (64, [64, 208])
    with scored(3, 1, 2, 2, 2, 2, 2, 0):
        tiny_run(tmp_path / "run", *words, "training.samples=256")
    assert (best_of(tmp_path / "run").samples, checkpoints_of(tmp_path / "run")) == (256, [64, 256])
    with scored(*range(8, 0, -1)):  # better and better: the others are kept as without a score
        tiny_run(tmp_path / "other", *words, "training.samples=256", "every.checkpoint=80", "keep=2")
    assert checkpoints_of(tmp_path / "other") == [224, 240, 256]


def test_divergence_returns_to_the_selection_of_the_checkpoint(tmp_path: Path) -> None:
    words = [*SHORT, "every.checkpoint=96", "training.max_skips=2", "training.samples=192", "validation.patience=4"]
    with scored(3, 2, 2, 2, 2, 2), poison(7, 8):
        state = tiny_run(tmp_path / "run", *words)
    assert (state.record["rollbacks"], best_of(tmp_path / "run")) == (1, Best(64, 2.0))
    assert Selected.of(state.record).since == 3
    assert [entry["samples"] for entry in read_metrics(tmp_path / "run", "validation")] == [32, 64, 96, 128, 160, 192]


def test_scores_of_another_measure_are_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "run", *SHORT, "training.samples=64")
    tiny_run(tmp_path / "run", *SHORT, "training.samples=80", "validation.items=10")
    assert "note: validation.score or settings that it depends on have changed" in capsys.readouterr().out
    assert best_of(tmp_path / "run").samples >= 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validation.patience=0"], "patience must be at least 1"),
        (["validation.patience=1", "every.validation=0"], "patience=1 needs validation .* every.validation is 0"),
        (["validation.patience=1", "every.checkpoint=0"], "every.checkpoint is 0"),
        (["validation.patience=1", "validation.holdout=0"], "patience=1 needs held-out examples, but there are none"),
        (["validation.score=distance", "every.validation=0"], "score=distance needs validation during training"),
        (["validation.score=likelihood", "validation.holdout=0"], "score=likelihood needs held-out"),
        (["validation.score=distance", "validation.holdout=3"], "at least 4 held-out examples, but there are 3"),
        (["validation.score=distance", "data.root=photos", "data=folder"], "score=distance needs classes"),
        (["validation.score=distance", "validation.samples=3"], "samples must be at least 4"),
        (
            ["validation.score=distance", "every.samples=0", "sampling.ends=[50,-50]"],
            "score=distance: .*50",
        ),
        (["validation.score=likelihood", "process=blur"], "score=likelihood: likelihoods need scalar coefficients"),
        (["validation.score=likelihood", "padding={height:8}"], "score=likelihood: noise drawn on a padded grid"),
    ],
)
def test_train_refuses_what_it_cannot_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if "data=folder" in words:
        from PIL import Image

        Path("photos").mkdir()
        for number in range(50):
            Image.new("L", (8, 8), number).save(f"photos/{number}.png")
    with pytest.raises(RecipeError, match=message):
        train(tiny_config(Path("run"), *words))
    assert not Path("run", "config.yaml").exists()


def test_likelihood_of_validation_is_that_of_held_out_examples(tmp_path: Path) -> None:
    words = [*TRANSFORMER, "validation.score=likelihood", "validation.items=5", "training.samples=16"]
    with patch("recipes.evaluation.likelihood.log_likelihood", side_effect=log_likelihood) as called:
        tiny_run(tmp_path / "run", *words)
    (entry,) = read_metrics(tmp_path / "run", "validation")
    assert called.call_args.kwargs["steps"] == scores.LIKELIHOOD_STEPS
    x0 = called.call_args.args[1]
    white = 64 * (math.log(2 * math.pi) / 2 + 0.5 * float(x0.square().mean()))
    assert entry["score"] == pytest.approx(white / 64 / math.log(2) + math.log2(127.5), abs=2.0)
    assert best_of(tmp_path / "run") == Best(16, entry["score"])


def distance_words(*words: str) -> list[str]:
    return ["validation.score=distance", "validation.samples=40", "validation.holdout=200", *words]


def test_distance_compares_samples_with_held_out_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classifier, "Training", partial(classifier.Training, samples=2560))
    distances: dict[str, float] = {}
    prepare = scores.prepare_score

    def observed(job: Any, data: Any, model: Any) -> scores.Score:
        score = prepare(job, data, model)

        def compute(values: Mapping[str, Any]) -> float:
            real = data.held_out.batch(range(200)).x0
            drawn = {"real": real, "noise": torch.randn(real.shape), "broken": real * math.nan}
            with (
                patch("recipes.training.scores.generate", lambda *_: real * 3e38),
                patch("recipes.training.scores.as_files", lambda _, x0: x0),  # as of media without a range
            ):
                distances["infinite features"] = score(values)
            for name, x0 in drawn.items():
                with patch("recipes.training.scores.generate", lambda *_, given=x0: given):
                    distances[name] = score(values)
            return score(values)

        return compute

    with patch("recipes.train.prepare_score", observed):
        tiny_run(tmp_path / "run", *distance_words("training.samples=16"))
    (entry,) = read_metrics(tmp_path / "run", "validation")
    assert distances["real"] == pytest.approx(0, abs=1e-6)
    assert 0.1 < distances["noise"] < math.inf
    assert distances["broken"] == distances["infinite features"] == math.inf
    assert 0 < entry["score"] < math.inf
    # The same samples have the same distance, and the classifier is trained once.
    with patch.object(classifier, "train_network", side_effect=AssertionError("it is cached")):
        tiny_run(tmp_path / "again", *distance_words("training.samples=16"))
        words = [f"run_dir={tmp_path / 'run'}", "samples=8", "steps=2", "metrics=[classifier]", "engine.threads=1"]
        evaluate(configuration.load("evaluate", [*words, "classifier.samples=2560", "bootstrap=1", "splits=1"]))
    assert metrics_of(tmp_path / "again") == metrics_of(tmp_path / "run")


def test_a_damaged_record_of_the_best_is_refused_and_written_again(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", *SHORT, "training.samples=32")
    path = tmp_path / "run" / BEST
    good = path.read_text()
    for bad in ("", "[]", '{"score": 1}', '{"samples": -1, "score": 1}', '{"samples": 32, "score": NaN}', "pipe"):
        path.unlink()
        if bad == "pipe":
            os.mkfifo(path)
        else:
            path.write_text(bad)
        with pytest.raises(RecipeError, match=r"cannot read .*best.json .*by its number of samples"):
            open_model(tmp_path / "run", Builder(), checkpoint="best")
    path.unlink()
    path.write_text(good.replace("32", "8"))
    with pytest.raises(RecipeError, match=r"no checkpoint after 8 samples in .*existing checkpoints: 16, 32$"):
        open_model(tmp_path / "run", Builder(), checkpoint="best").weights("ema", len)
    path.write_text("[")
    tiny_run(tmp_path / "run", *SHORT, "training.samples=48", "validation.levels=1")
    assert best_of(tmp_path / "run").samples >= 32


@pytest.mark.parametrize("value", [3, {"measure": "loss", "since": -1, "best": None}, {"measure": "", "since": 0},
                                   {"measure": "", "since": 0, "best": {"samples": 1, "score": "1"}}])  # fmt: skip
def test_selected_refuses_an_invalid_record(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"selection=.*remove that checkpoint"):
        Selected.of({"selection": value})


def test_best_is_refused_where_there_is_none(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "every.validation=0", "training.samples=16")
    with pytest.raises(RecipeError, match=r"no checkpoint of .* is known to be the best"):
        open_model(tmp_path / "run", Builder(), checkpoint="best")


@pytest.mark.slow
def test_two_ranks_select_as_one_process_does(tmp_path: Path) -> None:
    words = ["every.validation=16", "validation.patience=2", "engine.precision=float64", "network.dropout=0"]
    words += ["training.learning_rate=0.5", "validation.score=likelihood", "validation.items=6"]
    alone = tiny_run(tmp_path / "alone", *words)
    done = ranks(2, "recipes.train", *tiny_words(tmp_path / "together", *words))
    assert done.returncode == 0, done.stderr[-6000:]
    one, two = (best_of(tmp_path / name) for name in ("alone", "together"))
    assert (two.samples, two.score) == (one.samples, pytest.approx(one.score, rel=1e-6))
    assert last_state(tmp_path / "together").samples == alone.samples < 96
