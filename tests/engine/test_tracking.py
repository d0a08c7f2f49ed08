import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from multisagd.libraries import BrokenLibraryError
from recipes.base.errors import RecipeError
from recipes.runs.lock import lock_run
from recipes.runs.run import Run
from recipes.runs.settings import TrackingSettings
from recipes.training.tracking import Tracker

VALUES = {"loss": 0.5, "level": {"t=0.5": {"loss": 0.25}}, "note": "x"}


def entries(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_metrics_are_written_at_once_and_in_order(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingSettings(), {})
    tracker.metrics(64, "train", VALUES)
    tracker.metrics(128, "validation", {"loss": 0.1})
    assert [entry["samples"] for entry in entries(tmp_path)] == [64, 128]
    assert Run(tmp_path).metrics().of("train") == [{"samples": 64, "kind": "train", **VALUES}]
    tracker.close()


def test_resuming_cuts_back_to_the_checkpoint(tmp_path: Path) -> None:
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
    assert [(entry["samples"], entry["loss"]) for entry in entries(tmp_path)] == [(64, 1.0), (128, 3.0)]
    assert len((tmp_path / "timing.jsonl").read_text().splitlines()) == 1, "times are of what happened, twice or not"


def test_a_fresh_start_begins_with_empty_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("old\n")
    Tracker(tmp_path, TrackingSettings(), {}).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(tmp_path, TrackingSettings(tensorboard=True), {})
    tracker.metrics(64, "validation", VALUES)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["validation/loss", "validation/level/t=0.5/loss"]
    assert events.Scalars("validation/loss")[0].step == 64


def records(file: Path) -> Iterator[Any]:
    """The records in a file of wandb: each follows on a checksum, its length and its kind, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place = file.read_bytes(), 7
    assert len(content) < 1 << 15, "one block"
    while place < len(content):
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        yield Record.FromString(content[place + 7 : place + 7 + length])
        place += 7 + length


@pytest.fixture
def wandb_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The real one, which keeps what it has in a folder of this test, and knows nobody."""
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "NETRC"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads the environment once
    yield
    wandb.teardown()


def test_wandb_continues_the_same_run(wandb_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process leaves a record, and all of them are of one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    for samples in (64, 128):
        with lock_run(run_dir):  # it does not trip over the links that the first record holds
            tracker = Tracker(run_dir, TrackingSettings(wandb=True), {"seed": 1})
            tracker.metrics(samples, "train", {"loss": 0.5})
            tracker.close()
    assert any(path.is_symlink() for path in run_dir.rglob("*"))
    wandb.teardown()  # its own process may still be writing
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2
    for file, samples in zip(files, (64, 128), strict=True):
        found = list(records(file))
        run = next(each.run for each in found if each.HasField("run"))
        assert run.run_id == (run_dir / "wandb_id").read_text()
        assert (run.project, run.display_name) == ("multisagd", "run")
        assert ("seed", "1") in {(each.key, each.value_json) for each in run.config.update}
        logged = [item for each in found if each.HasField("history") for item in each.history.item]
        values = {each.key or "/".join(each.nested_key): json.loads(each.value_json) for each in logged}
        assert values.items() >= {"samples": samples, "train/loss": 0.5}.items()


def test_wandb_that_nobody_is_logged_in_to_says_what_to_do(
    wandb_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(RecipeError, match=r"wandb login.*WANDB_MODE=offline"):
        Tracker(tmp_path, TrackingSettings(wandb=True), {})


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_missing_service_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, service, None)
    with pytest.raises(
        BrokenLibraryError, match=rf"tracking\.{service}: {service} is not installed.*pip install .*{service}"
    ):
        Tracker(tmp_path, TrackingSettings(**{service: True}), {})


def test_a_service_that_fails_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As TensorBoard does on a disk that is full, when it writes and when it is closed."""
    tracker = Tracker(tmp_path, TrackingSettings(tensorboard=True), {})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    tracker._board.add_scalar = tracker._board.close = full
    for samples in (64, 128):
        tracker.metrics(samples, "train", VALUES)
    tracker.close()
    assert [entry["samples"] for entry in entries(tmp_path)] == [64, 128]
    assert caplog.text.count("TensorBoard failed ([Errno 28] No space left on device)") == 1


def test_metrics_hold_json_only(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingSettings(), {})
    tracker.metrics(1, "train", {"loss": 0.1 + 0.2})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.1 + 0.2
