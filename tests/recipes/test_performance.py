"""Rates, waiting times and profiles measured while training are those of training alone."""

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from recipes.runtime.device import EngineSettings, Runtime
from recipes.runtime.performance import Monitor, StepProfiler, covered, peak_memory

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
