"""Forecasts are rolled out with the right law, from files and held-out states, and written with all their times."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from safetensors.torch import load_file
from torch import Tensor, nn

import multisagd as ms
from modalities.field import Field
from modalities.field_layout import FieldAxis
from modalities.forecasts import States
from modalities.variables import Variable
from multisagd.condition import Condition
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.resolve import resolved
from recipes.data.dataset import configured_data
from recipes.data.parts import hold_out
from recipes.evaluate import evaluate
from recipes.export import export
from recipes.runs.settings import TrainSettings
from recipes.runtime.device import EngineSettings, Runtime
from recipes.sample import sample
from recipes.sampling.generate import SamplingRequest
from recipes.sampling.rollout import Rollout, next_condition
from recipes.sharing.pipeline import Pipeline
from recipes.train import train
from tests.helpers.dense import radius, stationary
from tests.helpers.tiny import TINY, assert_same, last_state, tiny_run

SOLVER = ["data.trajectories=8", "data.snapshots=6", "data.spin_up=0.5", "data.validation=0.25", "data.test=0.25"]
FORECAST = [
    "experiment=field_forecast",
    "modality.axes={y:16,x:16}",
    "training.learning_rate_schedule=constant",
    *(w for w in TINY if not w.startswith("modality")),
]


class AutoregressiveDenoiser(nn.Module):
    """E[x0 | x_t, known] of states that follow x = a x_before + b x_two_before + e, with e of the given power."""

    def __init__(self, process: ms.Process, grid: ms.Grid, power: np.ndarray, a: float, b: float) -> None:
        super().__init__()
        self.process, self.a, self.b = process, a, b
        self.innovation = ms.GaussianDenoiser(process, stationary(power, grid))

    def bound(self, condition: Condition, shape: tuple[int, ...]) -> "AutoregressiveDenoiser":
        return self

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition) -> Tensor:
        mean = self.b * condition.dense[:, :1] + self.a * condition.dense[:, 1:]
        return mean + self.innovation(x_t - self.process.coefficients(t, x_t).a * mean, t)


def test_rollout_of_an_autoregressive_model_has_its_law():
    """Over three steps, the mean is that of the recursion, and the power that of its moving average."""
    grid, a, b, steps, count = ms.Grid.of(y=6, x=8), 0.7, -0.2, 3, 3000
    power = 0.3 / (1 + 10 * radius(grid) ** 2)
    process = ms.Process(ms.CosineSchedule(log_snr_range=(-14, 14)), ms.SpectralCovariance(ms.Flat(), grid))
    denoiser = AutoregressiveDenoiser(process, grid, power, a, b)
    request = SamplingRequest(ms.DDIM(), times=ms.sampling.time_steps(process.schedule, 60, "log_snr"), batch=count)
    known = torch.randn(1, 2, *grid.shape, generator=torch.Generator().manual_seed(0))
    states = States(field_of_two_axes(grid), count=steps, first=1)
    rollout = Rollout(steps, states, (1, *grid.shape))
    runtime = Runtime.start(EngineSettings(device="cpu", threads=1))
    reported: list[int] = []
    condition = Condition(dense=known.expand(count, -1, -1, -1))
    x0 = rollout.draw(denoiser, request, 5, condition, runtime, reported.append).double()
    assert x0.shape == (count, steps, *grid.shape)
    assert reported == [count, 2 * count, 3 * count]
    weights, expected = [1.0, a, a * a + b], [known[0, 0].double(), known[0, 1].double()]
    for step in range(steps):
        expected.append(a * expected[-1] + b * expected[-2])
        of_step = power * sum(weight**2 for weight in weights[: step + 1])
        error = torch.fft.fft2(x0[:, step].mean(0) - expected[-1], norm="ortho").abs().square()
        assert float((error / torch.as_tensor(of_step) * count).mean()) == pytest.approx(1, abs=0.5)
        found = torch.fft.fft2(x0[:, step] - expected[-1], norm="ortho").abs().square().mean(0)
        torch.testing.assert_close(found, torch.as_tensor(of_step), rtol=0.16, atol=0)
    # Members keep their own past: the innovation of a step is in the later ones.
    first, last = (torch.fft.fft2(x0[:, step] - expected[2 + step], norm="ortho") for step in (0, 2))
    shared = (first.conj() * last).real.mean() / first.abs().square().mean()
    assert float(shared) == pytest.approx(a * a + b, abs=0.03)


def field_of_two_axes(grid: ms.Grid) -> Field:
    return Field(tuple(FieldAxis(axis.name, axis.size) for axis in grid.axes), (Variable("value"),))


def test_rollout_keeps_missing_values_unknown():
    dense = torch.zeros(1, 2, 2, 2)
    dense[0, 1, 0, 0] = torch.nan
    following = next_condition(dense, torch.ones(1, 1, 2, 2))
    assert torch.equal(following[0].isnan(), torch.tensor([[[True, False], [False] * 2]] * 2))
    assert torch.equal(following[0, 1, 1], torch.ones(2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("forecast")
    train(words(root / "run", root))
    return root / "run"


def words(run_dir: Path, root: Path, *more: str) -> configuration.Config:
    given = [*FORECAST, *SOLVER, f"data.cache={root}", f"run_dir={run_dir}", "data.history=2", *more]
    return resolved(configuration.load("train", given))


def drawn(run_dir: Path, *more: str) -> tuple[Path, Tensor]:
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", "steps=2", "engine.threads=1", *more]))
    return out, load_file(out / "samples.safetensors")["x0"]


def test_run_of_forecasts_continues_exactly_and_records_its_known_states(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(words(tmp_path / "parts", trained.parent, "training.samples=48"))
    assert "a dense condition of 2 channels: 2 states, 0.5 s apart and before it" in capsys.readouterr().out
    train(words(tmp_path / "parts", trained.parent))
    assert_same(last_state(tmp_path / "parts"), last_state(trained))
    condition = json.loads((trained / "run.json").read_text())["condition"]
    known = condition["modality"]
    assert (condition["channels"], known["count"], known["lead"], known["unit"]) == (2, 2, 0.5, "s")
    assert (trained / "samples" / "conditions.png").exists()


def test_forecasts_from_a_file_are_rolled_out_to_one_file_a_member(trained: Path, tmp_path: Path) -> None:
    fields = np.random.default_rng(0).normal(size=(5, 16, 16))
    np.savez(tmp_path / "now.npz", vorticity=fields)
    now = f"condition={tmp_path / 'now.npz'}"
    out, rolled = drawn(trained, now, "count=3", "rollout=2", f"out={tmp_path / 'out'}")
    assert rolled.shape == (3, 2, 16, 16)
    _, single = drawn(trained, now, "count=3")
    torch.testing.assert_close(rolled[:, :1], single, rtol=0, atol=1e-5)
    # The condition of the second step: the present, and the first forecast.
    np.savez(tmp_path / "next.npz", vorticity=np.stack([fields[-1], 4.6 * rolled[0, 0].double().numpy()]))
    _, other = drawn(trained, f"condition={tmp_path / 'next.npz'}", "count=1", "seed=7")
    assert not torch.allclose(other[0], rolled[0, 1:], atol=1e-3)  # with noise of its own
    with np.load(out / "samples" / "now_1.npz") as file:
        np.testing.assert_allclose(file["vorticity"], 4.6 * rolled[1], rtol=1e-5, atol=1e-6)
        assert file["time"].tolist() == [0.5, 1.0]
    _, more = drawn(trained, now, "count=2", "rollout=3")
    torch.testing.assert_close(more[:, :2], rolled[:2], rtol=0, atol=1e-5)
    # What was drawn can be continued.
    _, later = drawn(trained, f"condition={out / 'samples' / 'now_0.npz'}", "count=1", "rollout=1")
    assert later.shape == (1, 1, 16, 16)
    export(configuration.load("export", [f"run_dir={trained}", f"out={tmp_path / 'model'}"]))
    assert "a dense condition, from the states before a forecast" in (tmp_path / "model" / "README.md").read_text()
    for folder in (trained, tmp_path / "model"):
        samples = Pipeline.from_pretrained(folder)(3, 2, condition=tmp_path / "now.npz").samples
        torch.testing.assert_close(samples, single, rtol=0, atol=1e-5)
    _, exported = drawn(tmp_path / "model", now, "count=3", "rollout=2")
    torch.testing.assert_close(exported, rolled, rtol=0, atol=1e-5)


def test_forecasts_from_a_file_in_another_unit_come_with_a_warning(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = np.random.default_rng(0).normal(size=(2, 16, 16))
    for unit, warnings in (("1/s", 0), ("1/hour", 1)):
        states = xarray.Dataset({"vorticity": (("time", "y", "x"), fields, {"units": unit})})
        states.to_netcdf(tmp_path / "now.nc", engine="h5netcdf")
        drawn(trained, f"condition={tmp_path / 'now.nc'}")
        assert caplog.text.count("vorticity is in 1/hour in the file, but in 1/s in modality.variables") == warnings


def test_forecasts_of_held_out_states_are_rolled_out(trained: Path) -> None:
    out, rolled = drawn(trained, "condition=held_out", "count=2", "rollout=2")
    _, single = drawn(trained, "condition=held_out", "count=2")
    torch.testing.assert_close(rolled[:, :1], single, rtol=0, atol=1e-5)
    assert (out / "conditions.png").exists()
    assert len(list((out / "samples").glob("*.npz"))) == 2


def evaluated(run_dir: Path, *more: str) -> dict[str, Any]:
    small = ["metrics=[ensemble]", "conditions=8", "members=2", "steps=1", "bootstrap=2", "engine.threads=1"]
    return evaluate(configuration.load("evaluate", [f"run_dir={run_dir}", *small, *more]))


def test_evaluate_compares_forecasts_with_persistence(trained: Path) -> None:
    values = {row["name"]: row["value"] for row in evaluated(trained)["results"]["ensemble"]["rows"]}
    settings = Builder().settings(TrainSettings, words(trained, trained.parent), "")
    held_out = hold_out(configured_data(settings, Builder()), settings, Builder()).held_out
    assert held_out is not None
    batch = held_out.batch(range(8))
    assert batch.dense is not None
    expected = 4.6 * (batch.x0 - batch.dense[:, 1:]).square().mean().sqrt()
    assert values["error of persistence"] == pytest.approx(float(expected), rel=1e-4)


def test_held_out_clips_are_continued_in_windows(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "modality=video", "modality.frames=5", "modality.channels=1", "data=moving_digits",
             "data.count=60", "condition=first_frames", "condition.count=2", "training.conditional=false")  # fmt: skip
    longer = ("condition=held_out", "count=2", "frames=11", "overlap=0.4")
    out, x0 = drawn(tmp_path / "run", *longer)
    assert x0.shape == (2, 1, 11, 8, 8)
    _, single = drawn(tmp_path / "run", "condition=held_out", "count=2")
    # Known frames are rounded to those of files, and the last ones fade into the next window.
    torch.testing.assert_close(x0[:, :, :3], single[:, :, :3], rtol=0, atol=0.15)
    assert len(list((out / "samples").glob("*.mp4"))) == 2


def test_rollout_is_refused_where_samples_cannot_be_conditions(trained: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "plain", "data=digits", "modality.channels=1")
    tiny_run(tmp_path / "coarse", "data=digits", "modality.channels=1", "condition=coarse", "condition.factor=2")
    np.savez(tmp_path / "now.npz", vorticity=np.zeros((1, 16, 16)))
    coarse = ["condition=held_out", "rollout=2"]
    for message, attempt in (
        ("rollout=2 needs the states that are known", lambda: drawn(tmp_path / "plain", "rollout=2")),
        ("samples of this run are not the conditions", lambda: drawn(tmp_path / "coarse", *coarse)),
        ("rollout must be at least 1", lambda: drawn(trained, "condition=held_out", "rollout=0")),
        ("it has 1 state, but 2 known ones", lambda: drawn(trained, f"condition={tmp_path / 'now.npz'}")),
        ("rollout=2: evaluate compares single samples", lambda: evaluated(trained, "rollout=2")),
        ("never trained without its condition", lambda: drawn(trained, "condition=none", "rollout=2")),
        ("for the conditions of held-out examples$", lambda: drawn(trained, "rollout=2")),
    ):
        with pytest.raises(RecipeError, match=message):
            attempt()
