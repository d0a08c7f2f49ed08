"""`multisagd sample calibration=N` gives samples the power of the data, and refuses where that is not theirs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from multisagd import DataStatistics
from multisagd.analysis.profiles import radial_profile
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.export import export
from recipes.runs.model import open_model
from recipes.sample import sample
from recipes.sharing.pipeline import Pipeline
from tests.helpers.tiny import tiny_run

CALIBRATION = "calibration=64"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "digits"
    tiny_run(run_dir, "every.validation=0", "every.samples=0", "spectrum=power_law")
    return run_dir


@pytest.fixture(scope="module")
def coarse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "coarse"
    tiny_run(run_dir, "every.validation=0", "every.samples=0", "condition=coarse", "condition.factor=2")
    return run_dir


def drawn(run_dir: Path, *more: str) -> Tensor:
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", "steps=4", "engine.device=cpu", *more]))
    return load_file(out / "samples.safetensors")["x0"]


def decibels(x0: Tensor, run_dir: Path) -> float:
    """The root mean square over rings of the power about the mean, relative to that of the data."""
    statistics = open_model(run_dir, Builder()).statistics
    about = DataStatistics.measure([x0 - statistics.mean.float()], statistics.grid)
    ours, theirs = (radial_profile(each.power.mean(0), statistics.grid).power for each in (about, statistics))
    return float((10 * (ours / theirs).log10()).square().mean().sqrt())


def test_calibrated_samples_have_the_power_of_the_data(trained: Path):
    plain, calibrated = (drawn(trained, "count=150", *more) for more in ((), (CALIBRATION,)))
    assert decibels(plain, trained) > 2
    # 64 and 150 samples of the few frequencies of a ring: about 5 % each.
    assert decibels(calibrated, trained) < 0.7
    few = drawn(trained, "count=3", CALIBRATION)
    torch.testing.assert_close(calibrated[:3], few, rtol=0, atol=1e-5)


def test_pipeline_draws_the_same(trained: Path, tmp_path: Path):
    export(configuration.load("export", [f"run_dir={trained}", f"out={tmp_path / 'model'}"]))
    options = {"count": 3, "steps": 4, "progress": False, "calibration": 64}
    ours = Pipeline.from_pretrained(tmp_path / "model", device="cpu")(**options).samples
    torch.testing.assert_close(ours, drawn(trained, "count=3", CALIBRATION), rtol=0, atol=0)


def test_dense_conditions_of_a_calibration_are_those_of_held_out_examples(coarse: Path, tmp_path: Path):
    requested = ("condition=held_out", "count=4")
    plain, calibrated = (drawn(coarse, *requested, *more) for more in ((), (CALIBRATION,)))
    assert not torch.allclose(plain, calibrated, atol=1e-3)
    export(configuration.load("export", [f"run_dir={coarse}", f"out={tmp_path / 'model'}"]))
    pipeline = Pipeline.from_pretrained(tmp_path / "model", device="cpu")
    with pytest.raises(RecipeError, match="an exported model has no data"):
        pipeline(count=2, steps=4, progress=False, calibration=64, condition=torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["calibration=8"], "calibration must be at least 16"),
        ([CALIBRATION, "guidance.scale=2"], "set guidance.scale=1"),
        ([CALIBRATION, "initial=held_out"], "remove initial"),
        ([CALIBRATION, "size=16"], "remove the size"),
        ([CALIBRATION, "overlap=0.5"], "remove overlap and rollout"),
    ],
)
def test_samples_with_another_power_are_refused(trained: Path, words: list[str], reason: str):
    with pytest.raises(RecipeError, match=reason):
        drawn(trained, "count=2", *words)
