import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from recipes.engine.errors import RecipeError
from recipes.engine.tracking import Tracker, TrackingSettings, read_metrics

VALUES = {"loss": 0.5, "level": {"t=0.5": {"loss": 0.25}}, "note": "x"}


def test_metrics_are_written_at_once_and_in_order(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingSettings(), {})
    tracker.metrics(64, "train", VALUES)
    tracker.metrics(128, "validation", {"loss": 0.1})
    assert [entry["samples"] for entry in read_metrics(tmp_path)] == [64, 128]
    assert read_metrics(tmp_path, "train") == [{"samples": 64, "kind": "train", **VALUES}]
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
    assert [(entry["samples"], entry["loss"]) for entry in read_metrics(tmp_path)] == [(64, 1.0), (128, 3.0)]
    assert len((tmp_path / "timing.jsonl").read_text().splitlines()) == 1, "times are of what happened, twice or not"


def test_a_fresh_start_begins_with_empty_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("old\n")
    Tracker(tmp_path, TrackingSettings(), {}).close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracker = Tracker(tmp_path, TrackingSettings(tensorboard=True), {})
    tracker.metrics(64, "validation", VALUES)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["validation/loss", "validation/level/t=0.5/loss"]
    assert events.Scalars("validation/loss")[0].step == 64


class FakeRun:
    def __init__(self) -> None:
        self.logged: list[Any] = []

    def define_metric(self, *arguments: Any, **keywords: Any) -> None:
        pass

    def log(self, values: Any) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        pass


def test_wandb_continues_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, starts = [], []

    def init(**keywords: Any) -> FakeRun:
        starts.append(keywords)
        runs.append(FakeRun())
        return runs[-1]

    fake = types.SimpleNamespace(init=init, util=types.SimpleNamespace(generate_id=lambda: f"id{len(starts)}"))
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    for samples in (64, 128):
        tracker = Tracker(tmp_path, TrackingSettings(wandb=True), {"seed": 1})
        tracker.metrics(samples, "train", {"loss": 0.5})
        tracker.close()
    assert [start["id"] for start in starts] == ["id0", "id0"]
    assert starts[0]["config"] == {"seed": 1}
    assert runs[1].logged == [{"samples": 128, "train/loss": 0.5}]


@pytest.mark.parametrize("service", ["tensorboard", "wandb"])
def test_a_missing_service_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: str) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if service == "tensorboard" else "wandb", None)
    with pytest.raises(RecipeError, match=f"pip install {service}"):
        Tracker(tmp_path, TrackingSettings(**{service: True}), {})


def test_metrics_hold_json_only(tmp_path: Path) -> None:
    tracker = Tracker(tmp_path, TrackingSettings(), {})
    tracker.metrics(1, "train", {"loss": 0.1 + 0.2})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 0.1 + 0.2
