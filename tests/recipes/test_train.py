"""Training: bit-exact continuation from any checkpoint, the record in the run folder, divergence, and refusals."""

import itertools
import json
import math
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from PIL import Image as PILImage

import multisagd as ms
from modalities.base import Batch
from modalities.image import Image
from modalities.image_sets import Pixels
from multisagd.ema import PowerEMA
from recipes.base.errors import Interrupted, RecipeError
from recipes.base.signals import StopRequest, handled_signals
from recipes.base.untrusted import read_configuration
from recipes.config.build import Builder
from recipes.runs.checkpoint import Checkpoints, State
from recipes.runs.lock import VanishedError, lock_run
from recipes.runs.run import Run
from recipes.runs.settings import TrainSettings
from recipes.runs.state import load_module, load_optimizer, optimizer_tensors
from recipes.runtime.device import EngineSettings, Runtime
from recipes.train import main, train
from recipes.training.learner import DivergedError, Learner
from tests.helpers.tiny import BATCH, TINY, TRANSFORMER, assert_same, last_state, read_metrics, tiny_config, tiny_run

REPORTS = ["every.validation=48", "every.samples=48"]


def metrics_of(run_dir: Path) -> bytes:
    return (run_dir / "metrics.jsonl").read_bytes()


def checkpoints_of(run_dir: Path) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "checkpoints").glob("0*"))


def all_finite(state: State) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.tensors["network"].values())


def same_network(one: State, other: State) -> bool:
    networks = (one.tensors["network"], other.tensors["network"])
    return all(torch.equal(tensor, networks[1][name]) for name, tensor in networks[0].items())


def sizes_in(pattern: str, text: str) -> list[float]:
    """The sizes, each written S in the pattern, that a text contains."""
    found = re.search(pattern.replace("S", r"[\d.]+ .B"), text)
    assert found, text
    units = {"kB": 1e3, "MB": 1e6}
    return [float(size.split()[0]) * units[size.split()[1]] for size in found.groups()]


def grey_files(folder: Path, count: int = 12) -> list[str]:
    """Make pictures and return the words of a training on them."""
    folder.mkdir()
    for number in range(count):
        PILImage.new("L", (8, 8), 10 * number).save(folder / f"{number}.png")
    return ["data=folder", "validation.holdout=2", f"data.root={folder}"]


@contextmanager
def after_step(samples: int, act: Callable[[], object]) -> Iterator[None]:
    """Call `act` once the learner has seen a number of samples."""
    real = Learner.step

    def step(learner: Learner, parts: Any) -> None:
        real(learner, parts)
        if learner.samples == samples:
            act()

    with patch.object(Learner, "step", step):
        yield


@contextmanager
def poison(*poisoned: int, value: float = math.nan) -> Iterator[None]:
    """Make the losses of some calls infinite or NaN, counted from the first; a training step here is one call."""
    real, calls = ms.Denoiser.loss, itertools.count(1)

    def loss(*words: Any, **more: Any) -> torch.Tensor:
        return real(*words, **more) * (value if next(calls) in poisoned else 1)

    with patch.object(ms.Denoiser, "loss", loss):
        yield


@pytest.mark.parametrize("words", [
    pytest.param([], id="plain"),
    pytest.param(
        ["spectrum=power_law", "denoiser=spectral", "loss=octaves", "training.accumulation=4", "engine.workers=2"],
        id="shaped, octaves, accumulated",
    ),
    pytest.param(["denoiser=karras", "loss=karras", *TRANSFORMER, "network.dropout=0.1"], id="karras, transformer"),
])  # fmt: skip
def test_train_continues_bit_exactly(tmp_path: Path, words: list[str]) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    state = tiny_run(whole, *words)
    # The half lies within a window of the log, so that sums are carried over too.
    assert tiny_run(halves, *words, "training.samples=48").samples == 48
    assert_same(tiny_run(halves, *words), state)
    assert metrics_of(halves) == metrics_of(whole)
    pictures = [(folder / "samples" / "000000000096.png").read_bytes() for folder in (whole, halves)]
    assert pictures[0] == pictures[1]


def test_train_lists_the_unreadable_files_of_all_its_parts(tmp_path: Path) -> None:
    words = [*grey_files(tmp_path / "data", 40), "data.max_unreadable=0.5", "training.statistics=8"]
    broken = [tmp_path / "data" / f"{number}.png" for number in range(0, 40, 3)]
    for path in broken:
        path.write_bytes(b"no picture")
    lists = []
    for name, samples in (("whole", [96]), ("parts", [16, 48, 96])):
        for count in samples:
            tiny_run(tmp_path / name, *words, f"training.samples={count}")
        lists.append(json.loads((tmp_path / name / "unreadable.json").read_text())["unreadable"])
    assert lists[0] == lists[1]
    assert len(lists[0]) > 2
    # What was repaired is no longer listed.
    PILImage.new("L", (8, 8), 50).save(tmp_path / "data" / lists[1][0]["path"])
    tiny_run(tmp_path / "parts", *words, "training.samples=112")
    assert lists[0][0] not in json.loads((tmp_path / "parts" / "unreadable.json").read_text())["unreadable"]


def test_train_leaves_a_complete_record(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(run_dir, "every.validation=96", "spectrum=power_law")
    train(config)
    assert read_configuration(run_dir / "config.yaml") == config
    facts = json.loads((run_dir / "run.json").read_text())
    assert facts["seed"] == 0
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["starts"][0]["versions"]["torch"] == torch.__version__
    assert ms.DataStatistics.load(run_dir / "statistics.safetensors").count == 100
    with PILImage.open(run_dir / "samples" / "000000000096.png") as picture:
        assert picture.size == (2 * (8 * 8 + 2) + 2, 2 * (8 * 8 + 2 + 14) + 2)  # a line for the class under each
    assert [entry["samples"] for entry in read_metrics(run_dir, "train")] == [32, 64, 96]
    (validation,) = read_metrics(run_dir, "validation")
    assert list(validation["level"]) == ["t=0.250", "t=0.750"]
    assert all(set(levels) == {"log_snr", "loss", "error"} for levels in validation["level"].values())
    assert list(validation["band"]["t=0.250"]) == ["0", "0.00-0.24", "0.24-0.47", "0.47-0.71"]
    # The same command leaves the finished run unchanged, and another seed is another training.
    state, metrics = last_state(run_dir), metrics_of(run_dir)
    train(config)
    assert_same(last_state(run_dir), state)
    assert metrics_of(run_dir) == metrics
    assert not same_network(tiny_run(tmp_path / "other", "spectrum=power_law", "seed=1"), state)


def test_train_refuses_another_configuration_or_folder(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(RecipeError) as caught:
        tiny_run(tmp_path / "run", "training.learning_rate=0.5", "spectrum=power_law", "every.log=16")
    for words in ("training.learning_rate: 0.001 -> 0.5", "spectrum.exponent: missing -> -0.06", "another run_dir"):
        assert words in str(caught.value)
    assert "every.log" not in str(caught.value)
    # A run without a checkpoint has learned nothing, so its configuration may change.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    tiny_run(tmp_path / "run", "training.learning_rate=0.002")
    assert read_configuration(tmp_path / "run" / "config.yaml")["training"]["learning_rate"] == 0.002
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="not empty and does not contain a run"):
        tiny_run(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]  # no lock either


def test_train_locks_its_folder_before_reading_it(tmp_path: Path) -> None:
    run_dir, locked = tmp_path / "run", pytest.raises(RecipeError, match="another process is using")
    with patch("recipes.train.Checkpoints.latest", lambda _: lock_run(run_dir).__enter__()), locked:
        tiny_run(run_dir)
    assert not run_dir.exists()
    with lock_run(run_dir), locked:
        tiny_run(run_dir)
    assert tiny_run(run_dir).samples == 96


def test_train_saves_on_a_signal_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C has its own tests, and SIGUSR2 those on Slurm."""
    words = ["every.checkpoint=0", "every.log=16"]
    with after_step(48, lambda: signal.raise_signal(signal.SIGTERM)):
        assert main([*TINY, *words, f"run_dir={tmp_path / 'run'}"]) == 128 + signal.SIGTERM
    assert "stopped; saved in" in capsys.readouterr().err
    assert last_state(tmp_path / "run").samples == 48
    assert_same(tiny_run(tmp_path / "run", *words), tiny_run(tmp_path / "whole", *words))


def test_stop_request_keeps_the_first_signal_and_ends_at_a_later_ctrl_c() -> None:
    for number in handled_signals():
        with StopRequest() as stop:
            signal.raise_signal(number)
            for later in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):  # schedulers repeat themselves
                signal.raise_signal(later)
            assert stop.signal_number == number
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        assert Interrupted("", number).status == 128 + number


def test_train_saves_its_end_even_where_nothing_else_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    never = [f"every.{name}=0" for name in ("log", "validation", "samples", "checkpoint")]
    tiny_run(tmp_path / "run", *never, "every.checkpoint_minutes=1e-9")
    assert not metrics_of(tmp_path / "run")
    assert not (tmp_path / "run" / "samples").exists()
    assert checkpoints_of(tmp_path / "run") == [96]
    assert "training 96/96" in capsys.readouterr().out


def test_checkpoints_by_the_clock_change_nothing_of_the_training(tmp_path: Path) -> None:
    """Not even where training returns to a checkpoint: that is one by samples."""
    words = ["training.max_skips=2", "keep=1"]
    with poison(5, 6), patch.object(Checkpoints, "save", autospec=True, side_effect=Checkpoints.save) as save:
        often = tiny_run(tmp_path / "often", *words, "every.checkpoint_minutes=1e-9")
    saved = [(call.args[1].samples, call.args[1].by_clock) for call in save.call_args_list[:4]]
    assert saved == [(16, True), (32, True), (48, False), (64, True)]
    with poison(5, 6):
        seldom = tiny_run(tmp_path / "seldom", *words, "every.checkpoint_minutes=0")
    assert_same(often, seldom)
    assert seldom.record["rollbacks"] == 1
    assert metrics_of(tmp_path / "often") == metrics_of(tmp_path / "seldom")
    assert checkpoints_of(tmp_path / "often") == [96]


def test_train_continues_exactly_from_checkpoints_by_the_clock_and_before_damaged_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, words = tmp_path / "run", ["every.checkpoint=96", "every.checkpoint_minutes=1e-9", "keep=9"]
    whole = tiny_run(run_dir, *words)
    metrics = metrics_of(run_dir)
    for samples in (64, 80):
        shutil.rmtree(run_dir / "checkpoints" / f"{samples:012d}")
    newest = run_dir / "checkpoints" / "000000000096" / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    assert_same(whole, tiny_run(run_dir, *words))
    assert "falling back" in caplog.text
    assert metrics_of(run_dir) == metrics


@pytest.mark.parametrize("fate", ["moved", "removed", "replaced"])
def test_train_ends_when_its_folder_vanishes(tmp_path: Path, fate: str) -> None:
    run_dir = tmp_path / "run"

    def vanish() -> None:
        run_dir.rename(tmp_path / "elsewhere")
        if fate == "removed":
            shutil.rmtree(tmp_path / "elsewhere")
        if fate == "replaced":
            with lock_run(run_dir):
                (run_dir / "config.yaml").write_text("seed: 1\n")

    with after_step(32, vanish), pytest.raises(VanishedError, match=f"{run_dir} has vanished while this command was"):
        tiny_run(run_dir, "every.samples=32")
    assert {path.name for path in run_dir.glob("*")} == ({".lock", "config.yaml"} if fate == "replaced" else set())
    assert run_dir.exists() == (fate == "replaced")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_train_skips_and_counts_steps_that_are_not_finite(tmp_path: Path, value: float) -> None:
    with poison(3, value=value):
        state = tiny_run(tmp_path / "run", "every.checkpoint=16", "keep=9")
    assert (state.samples, state.record["skipped"], state.record["rollbacks"]) == (96, 1, 0)
    assert all_finite(state)
    assert [entry.get("skipped_steps") for entry in read_metrics(tmp_path / "run", "train")] == [None, 1, 1]
    # Nothing was learned from the step, and training never returns to a checkpoint right after it.
    assert checkpoints_of(tmp_path / "run") == [16, 32, 64, 80, 96]
    steps = [tensor for name, tensor in state.tensors["optimizer"].items() if name.endswith("/step")]
    assert {float(step) for step in steps} == {5.0}


def test_train_returns_to_the_last_checkpoint_after_several_such_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["training.max_skips=2", "every.log=16"]
    with poison(4, 5):
        state = tiny_run(tmp_path / "run", *words)
    assert "returning to the checkpoint after 48 samples, with other random numbers" in capsys.readouterr().out
    assert (state.samples, state.record["skipped"], state.record["rollbacks"]) == (96, 2, 1)
    assert [entry["samples"] for entry in read_metrics(tmp_path / "run", "train")] == [16, 32, 48, 64, 80, 96]
    # From there on it is another training, and one that continues exactly.
    assert not same_network(state, tiny_run(tmp_path / "plain", *words))
    with poison(4, 5):
        tiny_run(tmp_path / "split", *words, "training.samples=80")
    assert same_network(state, tiny_run(tmp_path / "split", *words))


def test_train_gives_up_with_advice_when_divergence_returns(tmp_path: Path) -> None:
    message = r"2 consecutive steps.*after 3 returns to the last checkpoint.*learning_rate"
    with poison(*range(4, 100)), pytest.raises(RecipeError, match=message):
        tiny_run(tmp_path / "run", "training.max_skips=2")
    assert last_state(tmp_path / "run").samples == 48
    assert all_finite(last_state(tmp_path / "run"))
    with poison(1, 2), pytest.raises(RecipeError, match="there is no checkpoint to return to"):
        tiny_run(tmp_path / "early", "training.max_skips=2")


def test_train_refuses_data_that_are_not_finite(tmp_path: Path) -> None:
    infinite = torch.full((100, 1, 8, 8), math.inf)
    with (
        patch.object(Pixels, "batch", lambda _, indices, *seeds: Batch(infinite[: len(indices)])),
        pytest.raises(RecipeError, match=r"measuring the data: example [0-9]+ of the data contains NaN or infinity"),
    ):
        tiny_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_train_refuses_an_invalid_process_before_it_measures_the_data(tmp_path: Path) -> None:
    for words, message in (
        (["spectrum=power_law", "spectrum.exponent=foo"], "^spectrum.exponent: expected a number, got 'foo'"),
        (["spectrum=power_law", "spectrum.corner=-1"], "^spectrum: "),
        (["schedule.log_snr_range=[5,1]"], "^schedule"),
        (["padding={height:-1}"], "^padding: "),
        (["process._target_=multisagd.Proces"], "^process._target_"),
    ):
        unmeasured = patch("recipes.training.setup.measure", side_effect=AssertionError("that may have taken minutes"))
        with unmeasured, pytest.raises(RecipeError, match=message):
            tiny_run(tmp_path / "run", *words)
        assert not (tmp_path / "run").exists()


def test_train_refuses_what_cannot_work_before_it_starts(tmp_path: Path) -> None:
    files = [*grey_files(tmp_path / "files", 3), "validation.holdout=1"]
    for words, message in (
        (["network.heads=3"], "heads must divide"),
        (["sampling.spacing=time", "sampling.ends=[-4,4]"], r"sampling: ends=.*: set spacing=log_snr"),
        (["process=blur", "process.modulation.length=2", "sampling.ends=[-4,4]"], r"sampling: ends=.*: set spacing="),
        (
            ["process=blur", "process.modulation.length=2", "sampler=heun"],
            "sampler=heun needs equal coefficients.*sampler=ddim",
        ),
        (
            ["guidance.scale=2", "training.conditional=false"],
            "needs classes, captions or a dense condition, but this run has none",
        ),
        (["guidance.scale=2", "training.condition_dropout=0"], r"set training\.condition_dropout=0\.1"),
        (["engine.device=warp"], "unknown kind of device"),
        (["loss=spectral", "loss.penalty.kind=wavelet", "loss.penalty.wavelet=wavy"], "unknown wavelet"),
        ([*files, "training.conditional=true"], "the data have no classes"),
    ):
        with pytest.raises(RecipeError, match=message):
            tiny_run(tmp_path / "run", *words)
        assert not (tmp_path / "run").exists()


def test_train_notes_pictures_that_fail_and_loses_nothing_when_a_validation_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tiny_run(tmp_path / "whole", *REPORTS)
    with patch("recipes.training.validation.generate", side_effect=ValueError("samples are not finite")):
        assert_same(tiny_run(tmp_path / "plain", *REPORTS), whole)
    broken = patch("recipes.training.loop.validate", side_effect=RecipeError("too many files"))
    with broken, pytest.raises(RecipeError, match="too many files"):
        tiny_run(tmp_path / "run", *REPORTS)
    printed = capsys.readouterr().out
    assert all(f"no samples after {seen} samples seen: samples are not finite" in printed for seen in (48, 96))
    assert last_state(tmp_path / "run").samples == 48
    assert_same(tiny_run(tmp_path / "run", *REPORTS), whole)
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert (tmp_path / "run" / "samples" / "000000000048.png").exists()


def test_train_says_what_it_costs_and_how_it_fits_into_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["training.averages.snapshots=3", "every.checkpoint_minutes=0", "keep_every=48"]
    timed = {"TIMED_STEPS": 1, "TIMED_SECONDS": 0.0}
    with patch.multiple("recipes.runtime.performance", **timed):
        tiny_run(tmp_path / "run", *words)
    printed = capsys.readouterr().out
    size, limit, snapshots = sizes_in(r"take (S) each, at most (S) \(and snapshots of averages (S)\)", printed)
    for folder, expected in (("checkpoints/000000000096", size), ("averages", snapshots)):
        files = sum(path.stat().st_size for path in (tmp_path / "run" / folder).rglob("*.safetensors"))
        assert expected == pytest.approx(files, rel=0.15)
    # The last two, the multiples of 48, the best, and one being written.
    assert limit == pytest.approx(6 * size, rel=0.02)
    assert len(re.findall(r"about .+ for the remaining 32 samples, at .+ samples/s, not counting", printed)) == 1

    each = sizes_in(r"activations (S) for 16 samples", printed)[0] / 16
    state = 3 * sum(tensor.nbytes for tensor in last_state(tmp_path / "run").tensors["network"].values())
    notes = {17: "", 8: "accumulation=2 needs less", 3: "accumulation=8 needs less", 0: "engine.recompute=true"}
    for room, note in notes.items():
        monkeypatch.setattr("recipes.training.cost.available_memory", lambda _, room=room: state + (room + 0.5) * each)
        tiny_run(tmp_path / f"{room}", "training.samples=16")
        printed = capsys.readouterr().out
        assert note in printed
        assert ("of memory that is free" in printed) == bool(note)


def test_train_reports_unreadable_files_in_one_message(tmp_path: Path) -> None:
    words = [*grey_files(tmp_path / "photos"), "engine.workers=1"]
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    tiny_run(tmp_path / "run", *words)
    report = json.loads((tmp_path / "run" / "unreadable.json").read_text())
    assert [entry["path"] for entry in report["unreadable"]] == ["broken.png"]
    with pytest.raises(RecipeError, match=r"broken.png.*max_unreadable"):
        tiny_run(tmp_path / "strict", *words, "data.max_unreadable=0")


def test_train_continues_only_on_the_same_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = grey_files(tmp_path / "photos")
    tiny_run(tmp_path / "run", *words)
    moved = (tmp_path / "photos").rename(tmp_path / "moved")
    words = [*words, f"data.root={moved}"]
    tiny_run(tmp_path / "run", *words, "training.samples=112")
    assert "note" not in capsys.readouterr().out
    PILImage.new("L", (8, 8), 99).save(moved / "3.png")
    tiny_run(tmp_path / "run", *words, "training.samples=112")
    assert f"note: 1 of 12 files have changed since this run began: {moved}/3.png." in capsys.readouterr().out
    (moved / "3.png").rename(moved / "other.png")
    with pytest.raises(RecipeError, match=r"the data of .* have changed; fingerprint"):
        tiny_run(tmp_path / "run", *words)
    (moved / "other.png").unlink()
    with pytest.raises(RecipeError, match="examples: 12 -> 11"):
        tiny_run(tmp_path / "run", *words)


def test_train_learns_a_single_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image(size=8).save(torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8), tmp_path / "photos" / "only.png")
    words = ["data=folder", f"data.root={tmp_path / 'photos'}", "modality.channels=3", "every.validation=32"]
    for holdout in ("0", "0.05"):
        tiny_run(tmp_path / holdout, *words, f"validation.holdout={holdout}")
        assert "1 examples (none held out" in capsys.readouterr().out
        assert read_metrics(tmp_path / holdout, "train")
        assert not read_metrics(tmp_path / holdout, "validation")
        assert json.loads((tmp_path / holdout / "run.json").read_text())["held_out"] == 0


class Learning:
    """A learner in float64 on a batch, without files."""

    def __init__(self, accumulation: int = 1) -> None:
        config = tiny_config(Path("unused"), f"training.accumulation={accumulation}")
        settings = Builder().settings(TrainSettings, config, "")
        grid = Image(size=8, channels=1).grid()
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), grid).double())
        torch.manual_seed(0)
        network = ms.networks.UNet(1, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, classes=10).double()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        runtime = Runtime(torch.device("cpu"), EngineSettings(precision="float64"))
        denoiser = ms.Denoiser(network, process)
        self.learner = Learner(denoiser, network, network, PowerEMA(network), settings, runtime, null_label=10)
        self.x0, self.labels = torch.randn(BATCH, 1, 8, 8, dtype=torch.float64), torch.arange(BATCH) % 10
        self.accumulation = accumulation

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            chunks = zip(self.x0.chunk(self.accumulation), self.labels.chunk(self.accumulation), strict=True)
            self.learner.step([Batch(x, c) for x, c in chunks])


def test_learner_accumulates_the_gradients_of_the_whole_batch() -> None:
    whole, parts = Learning(), Learning(accumulation=4)
    whole.step(3)
    parts.step(3)
    assert whole.learner.averages() == pytest.approx(parts.learner.averages(), rel=1e-6)
    for one, other in zip(whole.learner.network.parameters(), parts.learner.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_learner_sums_pending_losses_exactly_and_detects_divergence_later() -> None:
    prompt, patient = Learning(), Learning()
    patient.learner._patience = 1000
    prompt.step(3)
    patient.step(3)
    assert len(patient.learner._pending) == 3
    assert patient.learner.averages() == prompt.learner.averages()
    patient.step()
    patient.x0[0] = math.nan
    before = [parameter.clone() for parameter in patient.learner.network.parameters()]
    patient.step(10)
    assert all(map(torch.equal, before, patient.learner.network.parameters()))
    with pytest.raises(DivergedError, match=r"10 consecutive steps.*first 224 samples"):
        patient.learner.state(0)


def test_learner_drops_a_share_of_the_labels() -> None:
    learner = Learning().learner
    labels = torch.zeros(2000, dtype=torch.int64)
    condition = learner._condition(Batch(torch.zeros(2000), labels), 3, range(2000))
    share = (condition == 10).double().mean()
    assert abs(float(share) - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5
    part = learner._condition(Batch(torch.zeros(10), labels[:10]), 3, range(100, 110))
    assert torch.equal(part, condition[100:110])
    texts = torch.ones(2000, 3, 4)
    embeddings = learner._condition(Batch(torch.zeros(2000), labels, embeddings=texts), 3, range(2000))
    assert torch.equal(embeddings.any(-1), (condition != 10)[:, None].expand(2000, 3))


def test_run_keeps_the_place_of_latents_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"modality": {"_target_": "m", "statistics": "latents/photos"}}
    Run(tmp_path).write(config, ms.DataStatistics.measure([torch.randn(3, 1, 4)], ms.Grid.of(x=4)))
    written = read_configuration(tmp_path / "config.yaml")
    assert written["modality"]["statistics"] == str(tmp_path / "latents" / "photos")
    assert config["modality"]["statistics"] == "latents/photos"


def test_train_in_bfloat16_keeps_a_state_in_float32(tmp_path: Path) -> None:
    state = tiny_run(tmp_path / "bfloat16", "engine.precision=bfloat16")
    assert all(tensor.dtype != torch.bfloat16 for part in state.tensors.values() for tensor in part.values())
    assert all(math.isfinite(entry["loss"]) for entry in read_metrics(tmp_path / "bfloat16", "train"))


def test_train_adds_a_penalty_on_the_spectrum(tmp_path: Path) -> None:
    plain = tiny_run(tmp_path / "plain")
    for kind in ("amplitude", "amplitude_phase", "wavelet"):
        assert not same_network(tiny_run(tmp_path / kind, "loss=spectral", f"loss.penalty.kind={kind}"), plain), kind


def stepped(width: int = 4) -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    network = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, width)).sum().backward()
    optimizer.step()
    return network, optimizer


def test_optimizer_tensors_are_named_and_restored() -> None:
    network, optimizer = stepped()
    tensors = optimizer_tensors(network, optimizer)
    assert set(tensors) == {f"{p}/{e}" for p in ("weight", "bias") for e in ("step", "exp_avg", "exp_avg_sq")}
    other = torch.optim.AdamW(network.parameters(), lr=0.5)
    load_optimizer(network, other, tensors)
    restored = optimizer_tensors(network, other)
    assert all(torch.equal(restored[name], tensor) for name, tensor in tensors.items())
    assert other.param_groups[0]["lr"] == 0.5
    optimizer.state[network.weight]["note"] = "x"
    with pytest.raises(TypeError, match="keeps note as str"):
        optimizer_tensors(network, optimizer)


def test_load_optimizer_and_load_module_refuse_the_state_of_another_network() -> None:
    tensors = optimizer_tensors(*stepped(5))
    with pytest.raises(RecipeError, match="optimiser state weight/exp_avg does not fit"):
        load_optimizer(*stepped(4), tensors)
    with pytest.raises(RecipeError, match=r"optimiser state .* does not fit"):
        load_optimizer(*stepped(4), {"strange/step": torch.tensor(1.0)})
    with pytest.raises(RecipeError, match=r"the checkpoint's network does not match.*size mismatch"):
        load_module(stepped(4)[0], stepped(5)[0].state_dict(), "network")
