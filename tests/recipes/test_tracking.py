"""What a training measures, writes and shows: metrics, rates, profiles, progress, and exact errors of validation."""

import errno
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest
import torch
import wandb
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from wandb.proto.wandb_internal_pb2 import Record

import multisagd as ms
from modalities.base import Batch
from modalities.image import Image
from modalities.image_sets import Digits
from modalities.reading import UnreadableFilesError
from recipes.base import progress
from recipes.base.errors import RecipeError
from recipes.base.progress import Display
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.runs.lock import lock_run
from recipes.runs.run import Run
from recipes.runs.settings import Loss, TrackingSettings, TrainSettings, Validation
from recipes.runtime.device import EngineSettings, Runtime
from recipes.runtime.performance import Monitor, StepProfiler, covered, peak_memory
from recipes.training.tracking import Tracker
from recipes.training.validation import band_members, validate
from tests.helpers.networks import Affine
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


CPU = Runtime(torch.device("cpu"), EngineSettings())


def test_monitor_separates_waiting_for_data_from_working() -> None:
    monitor = Monitor(CPU, nn.Identity(), flops=1000, peak=1e6)

    def slow() -> object:
        for number in range(4):
            time.sleep(0.05)
            yield number

    for _ in monitor.steps(slow()):
        time.sleep(0.05)
    values = monitor.window(batch=8)
    assert values["data_wait"]["mean"] == pytest.approx(0.5, abs=0.2)
    assert values["samples_per_second"] == pytest.approx(8 / values["seconds_per_step"]["mean"])
    assert values["model_flops_utilisation"] == pytest.approx(values["samples_per_second"] * 1000 / 1e6)
    assert values["memory_gib"]["max"] * 2**30 == pytest.approx(peak_memory(CPU.device), rel=0.1)
    assert values["data_wait"]["max_rank"] == 0
    json.dumps(values)


def test_monitor_does_not_count_reports_as_training() -> None:
    monitor = Monitor(CPU, nn.Identity())
    for _ in monitor.steps(range(2)):
        time.sleep(0.01)
        with monitor.paused():
            time.sleep(0.3)
    assert monitor.window(batch=8)["seconds_per_step"]["max"] < 0.2


def test_monitor_estimates_the_speed_once_without_the_first_steps_and_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    for seconds, steps in ((0.1, 103), (5.0, 23)):  # 10 s, or 20 steps if those take longer, after the first 3
        monitor, rates = Monitor(CPU, nn.Identity()), []
        for step in range(200):
            now += 1000.0 if step < 3 else seconds
            rates.append(monitor.first_rate(batch=8))
            with monitor.paused():
                now += 50.0
        assert [place + 1 for place, rate in enumerate(rates) if rate] == [steps]
        assert rates[steps - 1] == pytest.approx(8 / seconds)


def test_covered_joins_overlapping_spans() -> None:
    assert covered([(3, 4), (0, 2), (1, 2.5), (1, 1.5)]) == 3.5
    assert covered([]) == 0


def test_step_profiler_writes_a_profile_after_its_steps_or_at_the_end(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 3, torch.device("cpu"), 2)
    written = []
    for _ in range(8):
        torch.ones(20, 20) @ torch.ones(20, 20)
        written.append(profiler.step())
    assert [place for place, path in enumerate(written) if path] == [4]
    names = {event.get("name") for event in json.loads((tmp_path / "rank3.json").read_text())["traceEvents"]}
    assert "aten::mm" in names
    assert "communication: 0.000000 s in 2 steps" in (tmp_path / "rank3.txt").read_text()
    assert StepProfiler(tmp_path, 0, torch.device("cpu"), 0).step() is None
    longer = StepProfiler(tmp_path, 0, torch.device("cpu"), 50)
    assert not any(longer.step() for _ in range(5))
    assert longer.finish() == tmp_path / "rank0.json"
    assert longer.finish() is None


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, highlight=False)
    with Display("training", 1000, console=console) as display:
        display.say("a line [that] stays")
        for done in (100, 500, 1000):
            display.update(done, f"loss {done}")
    return out.getvalue()


def test_display_shows_a_bar_on_a_terminal_and_plain_lines_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ("a line [that] stays", "1,000/1,000", "loss 1000"):
        assert words in shown(terminal=True)
    lines = ["a line [that] stays", "training 100/1,000  loss 100", "training 1,000/1,000  loss 1000"]
    assert shown(terminal=False).splitlines() == lines
    monkeypatch.setattr(progress, "PLAIN_INTERVAL", 0.0)
    assert "training 500/1,000  loss 500" in shown(terminal=False)


def test_display_prints_lines_at_growing_intervals_with_the_time_left() -> None:
    """Lines come soon, then every ten seconds, then every minute, and a note stays until there is another."""
    clock, out = [0.0], io.StringIO()
    console = Console(file=out, width=100, highlight=False, get_time=lambda: clock[0])
    with Display("training", 10**6, console=console) as display:
        for second in range(1800):
            clock[0] = float(second)
            display.update(10 * (second + 1), "loss 1" if second == 5 else None)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training 10/1,000,000"
    assert lines[1] == "training 30/1,000,000  1 day, 3:46:37 left"
    assert lines[2] == "training 130/1,000,000  loss 1  1 day, 3:46:27 left"
    assert len(lines) == 2 + 60 + 19


def test_display_prints_nothing_of_short_work() -> None:
    out = io.StringIO()
    with Display("measuring", 2, console=Console(file=out), after=2.0) as display:
        display.update(1)
        display.update(2)
    assert not out.getvalue()


# The thread that draws a bar ends, and the work does not.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("terminal", [False, True])
def test_display_lets_work_continue_when_output_fails(terminal: bool) -> None:
    """Like a full disk or a closed terminal."""
    out = io.StringIO()
    with Display("training", 1000, console=Console(file=out, force_terminal=terminal)) as display:
        display.say("before")
        out.write = Mock(side_effect=OSError(errno.EIO, os.strerror(errno.EIO)))  # type: ignore[method-assign]
        display.say("after")
        display.update(1000, "done")
    assert "before" in out.getvalue()
    assert "after" not in out.getvalue()


ITEMS = 40
TRAINING = Builder().settings(TrainSettings, configuration.load("train", ["run_dir=unused"]), "")


def statistics_of(dataset: Digits) -> ms.DataStatistics:
    batch = dataset.batch(range(len(dataset)))
    data = batch.x0 if batch.mask is None else (batch.x0, batch.mask)
    return ms.DataStatistics.measure([data], dataset.modality.grid())


def measure(
    dataset: Digits, value: float = 0.0, *, levels: int = 3, bands: int = 4, batch: int = 16, **options: Any
) -> dict[str, Any]:
    """Validate a network whose output is constant: centred on the data, 0 is the mean of the data."""
    settings = replace(
        TRAINING,
        training=replace(TRAINING.training, batch=batch),
        loss=Loss("euclidean", ms.UniformWeighting(), ms.UniformTimes()),
        validation=Validation(0.1, len(dataset), levels, bands),
    )
    statistics = options.pop("statistics", None) or statistics_of(dataset)
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.PowerLaw(-0.5), dataset.modality.grid()))
    denoiser = ms.Denoiser(Affine(offset=value), process, **{"prediction": "x0", "statistics": statistics, **options})
    return validate(denoiser, dataset, statistics, settings, CPU, False)


def digits(items: int = ITEMS, kind: type[Digits] = Digits, **options: Any) -> Digits:
    return kind(Image(**{"size": 8, "channels": 1, **options})).subset(range(items))  # type: ignore[return-value]


@pytest.mark.parametrize("dimensions", [(16,), (9,), (8, 9), (4, 6, 5)])
def test_band_members_share_out_the_whole_spectrum(dimensions: tuple[int, ...]) -> None:
    grid = ms.Grid.of(**{f"axis{i}": (size, 0.1 * (i + 1), f"unit{i}") for i, size in enumerate(dimensions)})
    members, names = band_members(grid, 5)
    assert len(members) == len(names)
    assert torch.equal(members.sum(0), grid.multiplicity.double())
    assert float(members[0].sum()) == 1


def test_validate_scores_the_mean_of_the_data_one_in_every_band_and_offsets_at_zero_frequency() -> None:
    data = digits(size=(8, 9))
    values, moved = measure(data), measure(data, 0.5)
    for key, bands in values["band"].items():
        for name, value in bands.items():
            assert value == pytest.approx((ITEMS - 1) / ITEMS, rel=1e-5), name
            if name == "0":
                assert moved["band"][key][name] > value + 0.1
            else:
                assert moved["band"][key][name] == pytest.approx(value, rel=1e-4)
    for level in values["level"].values():
        assert level["error"] == pytest.approx(statistics_of(data).sigma_data ** 2 * (ITEMS - 1) / ITEMS, rel=1e-5)


def test_validate_does_not_depend_on_the_batch() -> None:
    one, other = (measure(digits(size=(8, 9)), 0.1, batch=batch, prediction="v") for batch in (7, 40))
    for kind in ("level", "band"):
        for key in one[kind]:
            assert one[kind][key] == pytest.approx(other[kind][key], rel=1e-5)
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-6)


def test_validate_reports_unreadable_files_in_one_message() -> None:
    data = digits()
    statistics = statistics_of(data)
    unreadable = patch.object(Digits, "batch", side_effect=UnreadableFilesError("9 of 10 files could not be read"))
    with unreadable, pytest.raises(RecipeError, match="9 of 10 files"):
        measure(data, statistics=statistics)


class Land(Digits):
    """Two channels of the same digits: the first cut at random lengths, the second with a hole; large values there."""

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        x0 = super().batch(indices, seeds).x0.repeat(1, 2, 1, 1)
        mask = torch.ones_like(x0, dtype=torch.bool)
        for row, index in enumerate(indices):
            mask[row, 0, :, 4 + index % 5 :] = False
        mask[:, 1, 3:5, 2:4] = False
        return Batch(x0.masked_fill(~mask, 100.0), None, mask)


def test_validate_takes_means_over_valid_values() -> None:
    """By brute force; a mask may differ among channels, and the mean of the data then scores one in every band."""
    dataset = digits(300, Land)
    values, data = measure(dataset, levels=2), dataset.batch(range(300))
    assert data.mask is not None
    rest = (data.x0.double() - statistics_of(dataset).mean).square()
    expected = float(torch.stack([each[valid].mean() for each, valid in zip(rest, data.mask, strict=True)]).mean())
    for level in values["level"].values():
        assert level["error"] == pytest.approx(expected, rel=1e-4)
        assert level["loss"] == pytest.approx(expected, rel=1e-4)
    for bands in values["band"].values():
        for name, value in bands.items():
            assert value == pytest.approx(1, abs=0.15), name
