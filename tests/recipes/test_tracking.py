"""Metrics are written at once, cut back when a run resumes, and sent to TensorBoard and Weights & Biases."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto.wandb_internal_pb2 import Record

from recipes.base.errors import RecipeError
from recipes.runs.lock import lock_run
from recipes.runs.run import Run
from recipes.runs.settings import TrackingSettings
from recipes.training.tracking import Tracker
from tests.helpers.tiny import read_metrics

VALUES = {"loss": 0.1 + 0.2, "level": {"t=0.5": {"loss": 0.25}}, "note": "x"}


def test_tracker_writes_metrics_exactly_at_once_and_in_order(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("left by another run\n")
    tracker = Tracker(tmp_path, TrackingSettings(), {})
    assert (tmp_path / "metrics.jsonl").read_text() == ""
    tracker.metrics(64, "train", VALUES)
    tracker.metrics(128, "validation", {"loss": 0.1})
    assert [entry["samples"] for entry in read_metrics(tmp_path)] == [64, 128]
    assert Run(tmp_path).metrics().of("train") == [{"samples": 64, "kind": "train", **VALUES}]
    tracker.close()


def test_tracker_cuts_metrics_back_to_the_checkpoint_when_a_run_resumes(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingSettings(), {})
    tracker.metrics(64, "train", {"loss": 1.0})
    tracker.timing(64, {"samples_per_second": 3.0})
    position = tracker.position
    tracker.metrics(128, "train", {"loss": 2.0})
    tracker.close()
    # What a process leaves that dies in the middle of a line.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"samples": 19')
    resumed = Tracker(tmp_path, TrackingSettings(), {}, position, 64)
    resumed.metrics(128, "train", {"loss": 3.0})
    resumed.close()
    assert [(entry["samples"], entry["loss"]) for entry in read_metrics(tmp_path)] == [(64, 1.0), (128, 3.0)]
    assert len((tmp_path / "timing.jsonl").read_text().splitlines()) == 1, "times are of what happened, twice or not"


def test_tracker_sends_every_number_to_tensorboard(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(tmp_path, TrackingSettings(tensorboard=True), {})
    tracker.metrics(64, "validation", VALUES)
    tracker._board.flush()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["validation/loss", "validation/level/t=0.5/loss"]
    assert events.Scalars("validation/loss")[0].step == 64

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tracker._board.add_scalar = tracker._board.close = full
    for samples in (128, 192):
        tracker.metrics(samples, "train", VALUES)
    tracker.close()
    assert [entry["samples"] for entry in read_metrics(tmp_path)] == [64, 128, 192]
    assert caplog.text.count("TensorBoard failed ([Errno 28] No space left on device)") == 1


def records(file: Path) -> Iterator[Any]:
    """The records in a file of wandb: each follows on a checksum, its length and its kind, in blocks of 32 KiB."""
    content, place = file.read_bytes(), 7
    assert len(content) < 1 << 15, "one block"
    while place < len(content):
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        yield Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length


@pytest.fixture
def wandb_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real one, with its files in a folder of this test, and nobody logged in."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb_here")
def test_tracker_continues_the_same_run_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process leaves a record, and all of them are of one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    for samples in (64, 128):
        with lock_run(run_dir):  # it accepts the links in the first record
            tracker = Tracker(run_dir, TrackingSettings(wandb=True), {"seed": 1})
            tracker.metrics(samples, "train", {"loss": 0.5})
            tracker.close()
    assert any(path.is_symlink() for path in run_dir.rglob("*"))
    wandb.teardown()  # its own process may still be writing
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    for file, samples in zip(files, (64, 128), strict=True):
        written = list(records(file))
        run = next(each.run for each in written if each.HasField("run"))
        assert run.run_id == (run_dir / "wandb_id").read_text()
        assert (run.project, run.display_name) == ("multisagd", "run")
        assert ("seed", "1") in {(each.key, each.value_json) for each in run.config.update}
        logged = [item for each in written if each.HasField("history") for item in each.history.item]
        values = {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in logged}
        assert values.items() >= {"samples": samples, "train/loss": 0.5}.items()


@pytest.mark.usefixtures("wandb_here")
def test_tracker_says_how_to_log_in_to_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RecipeError, match=r"wandb login.*WANDB_MODE=offline"):
        Tracker(tmp_path, TrackingSettings(wandb=True), {})
