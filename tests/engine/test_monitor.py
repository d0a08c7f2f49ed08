"""What is measured while training: rates, waits, operations, profiles."""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from multisagd.networks import Transformer, UNet
from multisagd.networks.cost import training_flops
from recipes.runtime.device import EngineSettings, Runtime
from recipes.runtime.performance import (
    Monitor,
    StepProfiler,
    communication,
    covered,
    peak_memory,
)

CPU = Runtime(torch.device("cpu"), EngineSettings())


class Perceptron(nn.Module):
    """Two products, whose operations are counted on paper."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 20, bias=False), nn.Linear(20, 12, bias=False)

    def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: object = None) -> torch.Tensor:
        flat: torch.Tensor = self.two(self.one(x.flatten(1)))
        return flat.reshape_as(x)


def test_operations_are_those_on_paper() -> None:
    """Forward 2·in·out each; backward as much again for the weights, and for what came in but the data."""
    forward = 2 * 12 * 20 + 2 * 20 * 12
    assert training_flops(Perceptron(), (1, 3, 4)) == 3 * forward - 2 * 12 * 20


@pytest.mark.parametrize(("shape", "dimensions"), [((2, 16), 1), ((1, 9, 12), 2), ((1, 4, 6, 8), 3)])
def test_operations_of_the_networks_grow_with_the_grid(shape: tuple[int, ...], dimensions: int) -> None:
    for network in (
        UNet(shape[0], dimensions, width=8, multipliers=(1, 2), blocks=1, heads=2),
        Transformer(shape[0], dimensions, width=12, depth=1, heads=1),
    ):
        small = training_flops(network, shape)
        large = training_flops(network, (*shape[:-1], 2 * shape[-1]))
        assert small is not None
        assert large is not None
        assert 1.5 * small < large < 5 * small
        assert all(parameter.device.type == "cpu" for parameter in network.parameters())


def test_operations_that_cannot_be_counted_are_unknown() -> None:
    class Reading(Perceptron):
        def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: object = None) -> torch.Tensor:
            return super().forward(x * float(x.mean()), log_snr)

    assert training_flops(Reading(), (1, 3, 4)) is None


def test_operations_of_networks_with_an_output_of_their_own() -> None:
    """As diffusers' have, which the denoiser takes too; and one that fails in any way is no reason to stop."""

    class Output(NamedTuple):
        sample: torch.Tensor

    class Wrapped(Perceptron):
        def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: object = None) -> Any:
            return Output(super().forward(x, log_snr))

    class Broken(Perceptron):
        def forward(self, x: torch.Tensor, log_snr: torch.Tensor, condition: object = None) -> Any:
            raise KeyError("mine")

    assert training_flops(Wrapped(), (1, 3, 4)) == training_flops(Perceptron(), (1, 3, 4))
    assert training_flops(Broken(), (1, 3, 4)) is None


def test_waiting_for_data_is_told_from_working() -> None:
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


def test_reports_are_not_counted_as_training() -> None:
    monitor = Monitor(CPU, nn.Identity())
    for _ in monitor.steps(range(2)):
        time.sleep(0.01)
        with monitor.paused():
            time.sleep(0.3)
    assert monitor.window(batch=8)["seconds_per_step"]["max"] < 0.2


def test_spans_are_joined() -> None:
    assert covered([(3, 4), (0, 2), (1, 2.5), (1, 1.5)]) == 3.5
    assert covered([]) == 0


def test_a_profile_is_written_after_its_steps(tmp_path: Path) -> None:
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


def test_a_profile_of_a_short_training_is_written_at_its_end(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, 0, torch.device("cpu"), 50)
    assert not any(profiler.step() for _ in range(5))
    assert profiler.finish() == tmp_path / "rank0.json"
    assert profiler.finish() is None


def test_communication_of_nothing_is_nothing() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        torch.ones(3).sum()
    assert communication(found) == (0.0, 0.0)
