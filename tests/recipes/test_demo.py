"""`multisagd demo` trains two models whose first losses are golden, and replaces no files of others."""

from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image as PILImage

from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.demo import demo
from tests.helpers.tiny import read_metrics

# First losses of both models, one step each: any change that is not meant to be numerical must leave them alone.
GOLDEN = {
    "white": [0.5096748471260071, 0.4857420325279236, 0.5031464695930481, 0.4915463626384735],
    "shaped": [0.5034016966819763, 0.4755510091781616, 0.5216836333274841, 0.511094331741333],
}


def test_demo_draws_pictures_and_first_losses_are_golden(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    demo(configuration.load("demo", [f"run_dir={tmp_path}", "samples=256", "log=64", "threads=1"]))
    for name in ("forward", "loss", "samples_white", "samples_shaped"):
        with PILImage.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 100
    assert f"multisagd sample run_dir={tmp_path / 'shaped'}" in capsys.readouterr().out
    losses = {name: [entry["loss"] for entry in read_metrics(tmp_path / name, "train")] for name in GOLDEN}
    assert losses == {name: pytest.approx(values, rel=1e-4) for name, values in GOLDEN.items()}


def test_demo_replaces_no_files_of_others_and_takes_folders_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "loss.png").write_text("mine")
    with pytest.raises(RecipeError, match=r"was not written by .*demo"):
        demo(configuration.load("demo", [f"run_dir={tmp_path}"]))
    # With an apostrophe, and what would be a reference to a key of the training.
    out = tmp_path / "it's ${seed}"
    with patch("recipes.demo.train", side_effect=InterruptedError) as train, pytest.raises(InterruptedError):
        demo({**configuration.load("demo", []), "run_dir": str(out)})
    assert train.call_args.args[0]["run_dir"] == str(out / "white")
