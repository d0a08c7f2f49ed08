"""An average of any width is made after training from stored averages, and widths that cannot be made are refused."""

import shutil
from pathlib import Path

import pytest
import torch

from recipes import export
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.export import load_denoiser
from recipes.runs.averages import FOLDER, averaged_weights
from recipes.runs.checkpoint import State
from recipes.runs.model import open_model
from recipes.runs.settings import Averages
from recipes.sample import sample
from recipes.sharing.pipeline import Pipeline
from tests.helpers.hostile_files import updated
from tests.helpers.tiny import assert_same, last_state, tiny_run

STORED = [
    "training.averages.snapshots=16", "training.batch=4", "training.samples=320", "training.ema=0.1",
    "training.warmup=32", "training.learning_rate_schedule=linear", "every.checkpoint=160",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("averages") / "run"
    tiny_run(run_dir, *STORED)
    return run_dir


def weights(run_dir: Path, which: str | float, checkpoint: int | None = None) -> torch.Tensor:
    model = open_model(run_dir, Builder(), checkpoint=checkpoint)
    tensors = model.weights(which, lambda shapes: None).tensors  # type: ignore[arg-type]
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("checkpoint", [None, 160])
def test_averaged_weights_are_those_of_a_run_with_this_width(run_dir: Path, checkpoint: int | None) -> None:
    made, exact, last = (weights(run_dir, which, checkpoint) for which in (0.1, "ema", "network"))
    assert (made - exact).norm() < 0.02 * (exact - last).norm()
    wider = weights(run_dir, 0.15, checkpoint)
    assert (wider - exact).norm() > 0.1 * (exact - last).norm()


def test_sample_draws_with_an_average_of_another_width(run_dir: Path, tmp_path: Path) -> None:
    words = [f"run_dir={run_dir}", "count=2", "steps=2", "engine.device=cpu"]
    drawn = [sample(configuration.load("sample", [*words, f"ema={ema}"])) for ema in ("null", "0.15")]
    assert drawn[0] != drawn[1]
    assert (drawn[0] / "samples.safetensors").read_bytes() != (drawn[1] / "samples.safetensors").read_bytes()


def test_export_writes_an_average_of_another_width_and_says_so(run_dir: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert export.main([f"run_dir={run_dir}", f"out={one}", "ema=0.15"]) == 0
    assert export.main([f"run_dir={one}", f"out={two}"]) == 0
    Pipeline.from_pretrained(run_dir, device="cpu", ema=0.15).save_pretrained(tmp_path / "three")
    for model in (one, two, tmp_path / "three"):
        assert torch.equal(weights(model, "ema"), weights(run_dir, 0.15))
        assert torch.equal(weights(model, 0.15), weights(run_dir, 0.15))
        assert "average over training, with the relative width 0.15\n" in (model / "README.md").read_text()
        assert not (model / "samples.png").exists()  # those of the run are drawn with another average
    with pytest.raises(RecipeError, match=r"contains only the weights 'ema=0\.15', but ema=0\.1 was requested"):
        load_denoiser(one, ema=0.1)
    x, t = torch.ones(1, 1, 8, 8), torch.tensor([0.5])
    assert torch.equal(load_denoiser(run_dir, ema=0.15)[0](x, t), load_denoiser(one)[0](x, t))
    with pytest.raises(RecipeError, match="remove one"):
        load_denoiser(run_dir, weights="network", ema=0.1)
    updated("model.json", ema=0.5)(two)
    with pytest.raises(RecipeError, match="not the width of an average"):
        load_denoiser(two)


def test_snapshots_continue_bit_for_bit(run_dir: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    tiny_run(parts, *STORED, "training.samples=320", "every.checkpoint=96")
    shutil.rmtree(parts / "checkpoints" / "000000000320")
    for folder in sorted((parts / FOLDER).iterdir())[-2:]:
        (folder / "average_050.safetensors").write_bytes(b"damaged")
    assert_same(tiny_run(parts, *STORED, "every.checkpoint=96"), last_state(run_dir))
    assert torch.equal(weights(parts, 0.07), weights(run_dir, 0.07))


def test_widths_that_cannot_be_made_are_refused(run_dir: Path, tmp_path: Path) -> None:
    for width in (0.04, 0.16):
        with pytest.raises(RecipeError, match=r"widths from 0\.05 to 0\.15"):
            weights(run_dir, width)
    tiny_run(tmp_path / "plain", "training.samples=32")
    with pytest.raises(RecipeError, match=r"averages\.snapshots=16"):
        weights(tmp_path / "plain", 0.1)
    with pytest.raises(RecipeError, match="remove one"):
        sample(configuration.load("sample", [f"run_dir={run_dir}", "ema=0.1", "weights=network"]))
    assert export.main([f"run_dir={run_dir}", f"out={tmp_path / 'out'}", "ema=0.1", "weights=network"]) == 2
    for wrong in (
        "training.averages.widths=[0.1]",
        "training.averages.widths=[0.1,0.3]",
        "training.averages.snapshots=-1",
    ):
        with pytest.raises(RecipeError, match="averages"):
            tiny_run(tmp_path / "wrong", wrong)


def test_averaged_weights_need_every_part_and_an_update(tmp_path: Path) -> None:
    def checkpoint(updates: int, *parts: str) -> State:
        tensors = {"module.w": torch.ones(2), "module.n": torch.tensor(3), "_extra_state": torch.tensor(updates)}
        return State(32, dict.fromkeys(parts, tensors))

    def average(state: State) -> dict[str, torch.Tensor]:
        return averaged_weights(tmp_path, state, Averages(4), 0.1, lambda shapes: None)

    both = ("average_050", "average_150")
    assert torch.equal(average(checkpoint(2, *both))["n"], torch.tensor(3))
    torch.testing.assert_close(average(checkpoint(2, *both))["w"], torch.ones(2))
    with pytest.raises(RecipeError, match="average_150 is missing"):
        average(checkpoint(2, "average_050"))
    with pytest.raises(RecipeError, match="has 0 updates"):
        average(checkpoint(0, *both))
