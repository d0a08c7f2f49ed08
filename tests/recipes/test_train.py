import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.checkpoint import Checkpoints, State
from recipes.runs.lock import VanishedError, held
from recipes.runs.run import Run
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.train import train
from recipes.training.learner import DivergedError, Learner
from tests.helpers.tiny import BATCH, TINY, TRANSFORMER, assert_same, last_state, read_metrics, tiny_config, tiny_run

CASES = {
    "plain": [],
    "shaped, accumulated, threads": ["spectrum=power_law", "training.accumulation=4", "engine.workers=2"],
    "reports at the half": ["every.validation=48", "every.samples=48"],
    "karras, transformer": ["denoiser=karras", "loss=karras", *TRANSFORMER, "network.dropout=0.1"],
}  # fmt: skip


@pytest.mark.parametrize("words", CASES.values(), ids=CASES)
def test_half_and_half_is_the_whole_bit_for_bit(tmp_path: Path, words: list[str]) -> None:
    def run(name: str, *more: str) -> None:
        tiny_run(tmp_path / name, *words, *more)

    run("whole")
    # The half lies within a window of the log, so that sums are carried over too.
    run("halves", "training.samples=48")
    assert last_state(tmp_path / "halves").samples == 48
    run("halves")
    assert_same(last_state(tmp_path / "whole"), last_state(tmp_path / "halves"))
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "halves")]
    assert metrics[0] == metrics[1]
    pictures = [(tmp_path / name / "samples" / "000000000096.png").read_bytes() for name in ("whole", "halves")]
    assert pictures[0] == pictures[1]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    first = tiny_run(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert_same(first, tiny_run(tmp_path / "run"))
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_the_order_of_files_does_not_matter_but_the_seed_does(tmp_path: Path) -> None:
    runs = [tiny_run(tmp_path / str(seed), f"seed={seed}") for seed in (0, 1)]
    weights = [run.tensors["network"]["stem.weight"] for run in runs]
    assert not torch.equal(*weights)


def test_the_run_folder_is_the_record(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = tiny_config(run_dir, "every.validation=96", "spectrum=power_law")
    train(config)
    assert read_configuration(run_dir / "config.yaml") == config
    facts = json.loads((run_dir / "run.json").read_text())
    assert facts["seed"] == 0
    assert facts["classes"] == [str(digit) for digit in range(10)]
    assert facts["starts"][0]["versions"]["torch"] == torch.__version__
    statistics = ms.DataStatistics.load(run_dir / "statistics.safetensors")
    assert statistics.count == 100
    with PILImage.open(run_dir / "samples" / "000000000096.png") as picture:
        assert picture.size == (2 * (8 * 8 + 2) + 2, 2 * (8 * 8 + 2 + 14) + 2)  # a line for the class under each
    logged = read_metrics(run_dir, "train")
    assert [entry["samples"] for entry in logged] == [32, 64, 96]
    (validation,) = read_metrics(run_dir, "validation")
    assert list(validation["level"]) == ["t=0.250", "t=0.750"]
    assert all(set(levels) == {"log_snr", "loss", "error"} for levels in validation["level"].values())
    assert list(validation["band"]["t=0.250"]) == ["0", "0.00-0.24", "0.24-0.47", "0.47-0.71"]
    assert not [path.name for path in run_dir.iterdir() if path.name.startswith(".hydra") or "output" in path.name]


def test_another_configuration_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run")
    with pytest.raises(RecipeError) as caught:
        tiny_run(tmp_path / "run", "training.learning_rate=0.5", "spectrum=power_law", "every.log=16")
    message = str(caught.value)
    assert "training.learning_rate: 0.001 -> 0.5" in message
    assert "spectrum.exponent: not there -> -0.06" in message
    assert "every.log" not in message
    assert "another run_dir" in message


def test_the_folder_is_held_before_its_state_is_read(tmp_path: Path, monkeypatch: Any) -> None:
    def reading(*_: Any) -> None:
        with pytest.raises(RecipeError, match="another process is using"), held(tmp_path / "run"):
            pass
        raise RecipeError("read")

    monkeypatch.setattr("recipes.train.Checkpoints.latest", reading)
    with pytest.raises(RecipeError, match="read"):
        tiny_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_never_began_may_change(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="heads must divide"):
        tiny_run(tmp_path / "run", "network.heads=3")
    assert not (tmp_path / "run").exists()
    tiny_run(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    tiny_run(tmp_path / "run", "training.learning_rate=0.002")
    assert read_configuration(tmp_path / "run" / "config.yaml")["training"]["learning_rate"] == 0.002


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RecipeError, match="not empty and does not hold a run"):
        tiny_run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]  # no lock either


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tiny_run(run_dir)
    with held(run_dir), pytest.raises(RecipeError, match="another process is using"):
        tiny_run(run_dir, "training.samples=128")
    assert tiny_run(run_dir, "training.samples=128").samples == 128


def test_a_signal_saves_and_the_same_command_continues(tmp_path: Path) -> None:
    """Ctrl-C has its own tests, and SIGUSR2 those on Slurm."""
    number, run_dir = signal.SIGTERM, tmp_path / "run"
    words = [*TINY, f"run_dir={run_dir}", "training.samples=1000000", "every.checkpoint=0", "every.log=16"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.train", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, env=environment, cwd=tmp_path,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").stat().st_size:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "stopped; saved in" in errors
    assert "Traceback" not in errors
    stopped = last_state(run_dir).samples
    assert stopped > 0
    resumed = tiny_run(run_dir, f"training.samples={stopped + 32}", "every.checkpoint=0", "every.log=16")
    assert_same(resumed, tiny_run(tmp_path / "whole", f"training.samples={stopped + 32}", "every.log=16"))


@pytest.mark.parametrize("number", handled_signals())
def test_the_first_signal_counts_and_a_later_ctrl_c_ends_at_once(number: signal.Signals) -> None:
    with StopRequest() as stop:
        signal.raise_signal(number)
        for later in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR2):  # schedulers repeat themselves
            signal.raise_signal(later)
        assert stop.signal_number == number
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_interrupt_has_the_exit_status_of_its_signal() -> None:
    assert Interrupted("", signal.SIGTERM).status == 143


def test_never_is_never_and_what_is_learned_is_saved_all_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    never = [f"every.{name}=0" for name in ("log", "validation", "samples", "checkpoint")]
    tiny_run(tmp_path / "run", *never, "every.checkpoint_minutes=1e-9")
    assert not (tmp_path / "run" / "metrics.jsonl").read_bytes()
    assert not (tmp_path / "run" / "samples").exists()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["000000000096"]
    printed = capsys.readouterr().out
    assert "training 96/96" in printed
    assert "samples/" not in printed


def test_checkpoints_by_the_clock_change_nothing_of_what_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where training goes back to a checkpoint: that is one by samples."""
    words, saved = ["training.max_skips=2", "keep=1"], []
    real = Checkpoints.save

    def noted(checkpoints: Checkpoints, state: State) -> Path:
        saved.append((state.samples, state.by_clock))
        return real(checkpoints, state)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "save", noted)
        Poison(patched, 5, 6)
        often = tiny_run(tmp_path / "often", *words, "every.checkpoint_minutes=1e-9")
    assert saved[:4] == [(16, True), (32, True), (48, False), (64, True)]
    with monkeypatch.context() as patched:
        Poison(patched, 5, 6)
        seldom = tiny_run(tmp_path / "seldom", *words, "every.checkpoint_minutes=0")
    assert_same(often, seldom)
    assert seldom.record["rollbacks"] == 1
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("often", "seldom")]
    assert metrics[0] == metrics[1]
    assert [path.name for path in (tmp_path / "often" / "checkpoints").iterdir()] == ["000000000096"]


def test_a_run_continues_exactly_from_a_checkpoint_by_the_clock(tmp_path: Path) -> None:
    run_dir, words = tmp_path / "run", ["every.checkpoint=96", "every.checkpoint_minutes=1e-9", "keep=9"]
    whole = tiny_run(run_dir, *words)
    metrics = (run_dir / "metrics.jsonl").read_bytes()
    for samples in (64, 80, 96):
        shutil.rmtree(run_dir / "checkpoints" / f"{samples:012d}")
    assert_same(whole, tiny_run(run_dir, *words))
    assert (run_dir / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("fate", ["moved", "removed", "replaced"])
def test_a_folder_that_vanishes_ends_the_training_and_is_not_made_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    run_dir, real = tmp_path / "run", Learner.step

    def step(learner: Learner, parts: Any) -> None:
        real(learner, parts)
        if learner.samples == 32:
            run_dir.rename(tmp_path / "elsewhere")
            if fate == "removed":
                shutil.rmtree(tmp_path / "elsewhere")
            if fate == "replaced":
                with held(run_dir):
                    (run_dir / "config.yaml").write_text("seed: 1\n")

    monkeypatch.setattr(Learner, "step", step)
    with pytest.raises(VanishedError, match=rf"{run_dir} has vanished while this command was using it"):
        tiny_run(run_dir, "every.samples=32")
    left = {".lock", "config.yaml"} if fate == "replaced" else set()
    assert {path.name for path in run_dir.iterdir()} == left if left else not run_dir.exists()


class Poison:
    """Makes the losses of some calls infinite or NaN, counted from the first; a training step here is one call."""

    def __init__(self, monkeypatch: Any, *poisoned: int, value: float = float("nan")) -> None:
        real, self.calls = ms.Denoiser.loss, 0

        def loss(denoiser: ms.Denoiser, *words: Any, **more: Any) -> torch.Tensor:
            self.calls += 1
            found = real(denoiser, *words, **more)
            return found * value if self.calls in poisoned else found

        monkeypatch.setattr(ms.Denoiser, "loss", loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, monkeypatch: Any, value: float) -> None:
    Poison(monkeypatch, 3, value=value)
    state = tiny_run(tmp_path / "run", "every.checkpoint=16", "keep=9")
    assert state.samples == 96
    assert (state.record["skipped"], state.record["rollbacks"]) == (1, 0)
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors["network"].values())
    assert [entry.get("skipped_steps") for entry in read_metrics(tmp_path / "run", "train")] == [None, 1, 1]
    # Nothing was learned from it, and a state in trouble is no state to go back to.
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(int(path.name) for path in checkpoints.iterdir()) == [16, 32, 64, 80, 96]
    optimizer = state.tensors["optimizer"]
    assert {float(value) for name, value in optimizer.items() if name.endswith("/step")} == {5.0}


def test_several_such_steps_in_a_row_go_back_to_the_last_checkpoint(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["training.max_skips=2", "every.log=16"]
    Poison(monkeypatch, 4, 5)
    state = tiny_run(tmp_path / "run", *words)
    assert "returning to the checkpoint after 48 samples, with other random numbers" in capsys.readouterr().out
    assert (state.samples, state.record["skipped"], state.record["rollbacks"]) == (96, 2, 1)
    seen = [entry["samples"] for entry in read_metrics(tmp_path / "run", "train")]
    assert seen == [16, 32, 48, 64, 80, 96]
    # From there on it is another training, and one that continues exactly.
    monkeypatch.undo()
    plain = tiny_run(tmp_path / "plain", *words)
    ours, others = (each.tensors["network"] for each in (state, plain))
    assert not all(torch.equal(tensor, others[name]) for name, tensor in ours.items())
    Poison(monkeypatch, 4, 5)
    tiny_run(tmp_path / "split", *words, "training.samples=80")
    monkeypatch.undo()
    again = tiny_run(tmp_path / "split", *words)
    for name, tensor in state.tensors["network"].items():
        assert torch.equal(tensor, again.tensors["network"][name])


def test_divergence_that_returns_ends_with_advice_and_keeps_the_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    Poison(monkeypatch, *range(4, 100))
    with pytest.raises(RecipeError, match=r"2 steps in a row.*after 3 returns to the last checkpoint.*learning_rate"):
        tiny_run(tmp_path / "run", "training.max_skips=2")
    state = last_state(tmp_path / "run")
    assert state.samples == 48
    assert all(torch.isfinite(tensor).all() for tensor in state.tensors["network"].values())


def test_divergence_before_any_checkpoint_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    Poison(monkeypatch, 1, 2)
    with pytest.raises(RecipeError, match="there is no checkpoint to return to"):
        tiny_run(tmp_path / "run", "training.max_skips=2")


def test_data_that_are_not_finite_are_refused(tmp_path: Path, monkeypatch: Any) -> None:
    real = Pixels.batch

    def broken(self: Pixels, indices: Any, seeds: Any = None) -> Batch:
        batch = real(self, indices, seeds)
        batch.x0[0, 0, 0, 0] = float("inf")
        return batch

    monkeypatch.setattr(Pixels, "batch", broken)
    with pytest.raises(RecipeError, match=r"measuring the data: example [0-9]+ of the data contains NaN or infinity"):
        tiny_run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_sampler_that_cannot_follow_the_process_is_refused_at_the_start(tmp_path: Path) -> None:
    words = ["process=blur", "process.modulation.length=2"]
    with pytest.raises(RecipeError, match=r"sampler=heun needs coefficients.*choose sampler=ddim"):
        tiny_run(tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()
    tiny_run(tmp_path / "run", *words, "sampler=ddim")


def test_a_picture_that_fails_is_a_note_and_training_goes_on(
    tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError("samples are not finite")

    monkeypatch.setattr("recipes.training.validation.generate", failing)
    assert tiny_run(tmp_path / "run", "every.samples=32").samples == 96
    printed = capsys.readouterr().out
    assert [f"no samples after {seen} samples seen: samples are not finite" in printed for seen in (32, 64, 96)]


def test_a_report_that_fails_loses_no_training(tmp_path: Path, monkeypatch: Any) -> None:
    words = ["every.validation=48", "every.samples=48"]

    def failing(*_: Any, **__: Any) -> None:
        raise RecipeError("too many files")

    tiny_run(tmp_path / "whole", *words)
    with monkeypatch.context() as patch:
        patch.setattr("recipes.training.loop.validate", failing)
        with pytest.raises(RecipeError, match="too many files"):
            tiny_run(tmp_path / "run", *words)
    assert last_state(tmp_path / "run").samples == 48
    assert_same(tiny_run(tmp_path / "run", *words), last_state(tmp_path / "whole"))
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("run", "whole")]
    assert metrics[0] == metrics[1]
    assert (tmp_path / "run" / "samples" / "000000000048.png").exists()


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = tiny_run(tmp_path / "run")
    metrics = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    newest = tmp_path / "run" / "checkpoints" / "000000000096" / "ema.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    assert_same(whole, tiny_run(tmp_path / "run"))
    assert "falling back" in caplog.text
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == metrics


def test_too_many_unreadable_files_are_one_clear_error(tmp_path: Path) -> None:
    for number in range(12):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        PILImage.new("L", (8, 8), 10 * number).save(path)
    (tmp_path / "photos" / "broken.png").write_bytes(b"\x89PNG")
    words = ["data=folder", f"data.root={tmp_path / 'photos'}", "validation.holdout=2", "engine.workers=1"]
    tiny_run(tmp_path / "run", *words)
    report = json.loads((tmp_path / "run" / "unreadable.json").read_text())
    assert [entry["path"] for entry in report["unreadable"]] == ["broken.png"]
    with pytest.raises(RecipeError, match=r"broken.png.*max_unreadable"):
        tiny_run(tmp_path / "strict", *words, "data.max_unreadable=0")


def test_conditions_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    PILImage.new("L", (8, 8)).save(tmp_path / "a.png")
    PILImage.new("L", (8, 8)).save(tmp_path / "b.png")
    words = ["data=folder", f"data.root={tmp_path}", "validation.holdout=1"]
    with pytest.raises(RecipeError, match="the data have no classes"):
        tiny_run(tmp_path / "run", *words, "training.conditional=true")


class Learning:
    """A learner in float64 on a batch, without files."""

    def __init__(self, accumulation: int) -> None:
        config = tiny_config(Path("unused"), f"training.accumulation={accumulation}", "network.dropout=0")
        self.settings = Builder().settings(TrainSettings, config, "")
        modality = Image(size=8, channels=1)
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), modality.grid()).double())
        torch.manual_seed(0)
        network = ms.networks.UNet(1, 2, width=8, multipliers=(1, 2), blocks=1, heads=2, classes=10).double()
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        runtime = Runtime(torch.device("cpu"), EngineSettings(precision="float64"))
        self.learner = Learner(
            ms.Denoiser(network, process), network, network, PowerEMA(network), self.settings, runtime, null_label=10
        )
        generator = torch.Generator().manual_seed(1)
        self.x0 = torch.randn(BATCH, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.arange(BATCH) % 10

    def step(self) -> None:
        parts = self.settings.training.accumulation
        self.learner.step([Batch(x, c) for x, c in zip(self.x0.chunk(parts), self.labels.chunk(parts), strict=True)])


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    runs = [Learning(1), Learning(4)]
    for _ in range(3):
        for run in runs:
            run.step()
    (whole, parts), tolerance = runs, {"rtol": 1e-9, "atol": 1e-12}
    assert whole.learner.averages() == pytest.approx(parts.learner.averages(), rel=1e-6)
    for one, other in zip(whole.learner.network.parameters(), parts.learner.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_losses_left_on_the_device_add_up_the_same_and_divergence_is_found_later() -> None:
    prompt, patient = Learning(1), Learning(1)
    patient.learner._patience = 1000
    for _ in range(3):
        prompt.step()
        patient.step()
    assert len(patient.learner._pending) == 3
    assert patient.learner.averages() == prompt.learner.averages()
    patient.step()
    patient.x0[0] = float("nan")
    before = [parameter.clone() for parameter in patient.learner.network.parameters()]
    for _ in range(10):
        patient.step()
    assert all(map(torch.equal, before, patient.learner.network.parameters()))
    with pytest.raises(DivergedError, match=r"10 steps in a row.*before 224 samples"):
        patient.learner.state(0)


@pytest.mark.parametrize("words", [["validation.holdout=0"], []])
def test_one_picture_can_be_learned_by_heart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    Image(size=8).save(torch.arange(192, dtype=torch.uint8).reshape(3, 8, 8), tmp_path / "photos" / "only.png")
    folder = ["data=folder", f"data.root={tmp_path / 'photos'}", "modality.channels=3", "every.validation=32"]
    tiny_run(tmp_path / "run", *folder, "validation.holdout=0.05", *words)
    assert "1 examples (none held out" in capsys.readouterr().out
    assert read_metrics(tmp_path / "run", "train")
    assert not read_metrics(tmp_path / "run", "validation")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["held_out"] == 0


def test_other_data_do_not_continue_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "photos"
    for number in range(12):
        photos.mkdir(exist_ok=True)
        PILImage.new("L", (8, 8), 10 * number).save(photos / f"{number}.png")
    words = ["data=folder", "validation.holdout=2"]
    tiny_run(tmp_path / "run", *words, f"data.root={photos}")
    moved = photos.rename(tmp_path / "moved")
    tiny_run(tmp_path / "run", *words, f"data.root={moved}", "training.samples=112")
    assert "note" not in capsys.readouterr().out
    PILImage.new("L", (8, 8), 99).save(moved / "3.png")
    tiny_run(tmp_path / "run", *words, f"data.root={moved}", "training.samples=112")
    assert f"note: 1 of 12 files have changed since this run began: {moved}/3.png." in capsys.readouterr().out
    (moved / "3.png").rename(moved / "other.png")
    with pytest.raises(RecipeError, match=r"the data of .* have changed; fingerprint"):
        tiny_run(tmp_path / "run", *words, f"data.root={moved}")
    (moved / "other.png").unlink()
    with pytest.raises(RecipeError, match="examples: 12 -> 11"):
        tiny_run(tmp_path / "run", *words, f"data.root={moved}")


def test_guidance_that_cannot_work_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="this run has neither"):
        tiny_run(tmp_path / "run", "guidance.scale=2", "training.conditional=false")
    with pytest.raises(RecipeError, match=r"set training\.condition_dropout=0\.1"):
        tiny_run(tmp_path / "run", "guidance.scale=2", "training.condition_dropout=0")
    assert not (tmp_path / "run").exists()


def test_a_share_of_the_labels_is_left_out() -> None:
    learner = Learning(1).learner
    labels = torch.zeros(2000, dtype=torch.int64)
    condition = learner._condition(Batch(torch.zeros(2000), labels), 3, range(2000))
    assert condition is not None
    share = (condition == 10).double().mean()
    assert abs(float(share) - 0.1) < 4 * (0.1 * 0.9 / 2000) ** 0.5
    part = learner._condition(Batch(torch.zeros(10), labels[:10]), 3, range(100, 110))
    assert part is not None
    assert torch.equal(part, condition[100:110])
    texts = torch.ones(2000, 3, 4)
    embeddings = learner._condition(Batch(torch.zeros(2000), labels, embeddings=texts), 3, range(2000))
    assert embeddings is not None
    assert torch.equal(embeddings.any(-1), (condition != 10)[:, None].expand(2000, 3))


def test_bfloat16_trains(tmp_path: Path) -> None:
    state = tiny_run(tmp_path / "run", "engine.precision=bfloat16")
    assert all(tensor.dtype != torch.bfloat16 for part in state.tensors.values() for tensor in part.values())
    assert all(torch.isfinite(torch.tensor(entry["loss"])) for entry in read_metrics(tmp_path / "run", "train"))


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"engine\.device=warp: unknown kind of device; write auto"):
        tiny_run(tmp_path / "run", "engine.device=warp")


@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder of real data")
@pytest.mark.parametrize("words", [
    ["experiment=image_mnist"],
    ["experiment=image_fashion_mnist"],
    ["experiment=image_folder", "data.root=${oc.env:MULTISAGD_DATA}/images/sign_digits", "modality.size=32"],
])  # fmt: skip
def test_experiments_train_on_real_data(tmp_path: Path, words: list[str]) -> None:
    small = [word for word in TINY if not word.startswith(("modality.", "network.mult", "every.", "training.war"))]
    train(configuration.load("train", [*words, *small, "network.multipliers=[1,1]", f"run_dir={tmp_path / 'run'}"]))
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(facts["classes"]) == 10
    assert (tmp_path / "run" / "samples" / "000000000096.png").exists()


@pytest.mark.slow
def test_compiled_training_is_close_to_eager(tmp_path: Path) -> None:
    """Batches are those of each of two processes in test_distribution, so that the same is compiled, and once."""
    words = ["network.dropout=0", "network.multipliers=[1]", "training.batch=8", "training.samples=48"]
    eager, compiled = (
        tiny_run(tmp_path / name, f"engine.compile={name == 'compiled'}", *words) for name in ("eager", "compiled")
    )
    assert eager.tensors["network"].keys() == compiled.tensors["network"].keys()
    losses = [[entry["loss"] for entry in read_metrics(tmp_path / name, "train")] for name in ("eager", "compiled")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_the_place_of_latents_is_kept_as_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"modality": {"_target_": "m", "statistics": "latents/photos"}}
    Run(tmp_path).write(config, ms.DataStatistics.measure([torch.randn(3, 1, 4)], ms.Grid.of(x=4)))
    written = read_configuration(tmp_path / "config.yaml")
    assert written["modality"]["statistics"] == str(tmp_path / "latents" / "photos")
    assert config["modality"]["statistics"] == "latents/photos"


@pytest.mark.parametrize("kind", ["amplitude", "amplitude_phase", "wavelet"])
def test_a_penalty_on_the_spectrum_is_part_of_the_loss(tmp_path: Path, kind: str) -> None:
    plain = tiny_run(tmp_path / "plain")
    penalised = tiny_run(tmp_path / "penalised", "loss=spectral", f"loss.penalty.kind={kind}")
    assert any(
        not torch.equal(tensor, plain.tensors["network"][name]) for name, tensor in penalised.tensors["network"].items()
    )
    with pytest.raises(RecipeError, match=r"unknown wavelet|unknown penalty"):
        tiny_run(tmp_path / "bad", "loss=spectral", "loss.penalty.kind=wavelet", "loss.penalty.wavelet=wavy")
