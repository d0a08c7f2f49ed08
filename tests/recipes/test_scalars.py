"""Scalars, such as the crop of a picture, are learned with classes, kept by the run, and chosen when sampling."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file
from torch import Tensor

from modalities.base import Example, collate
from modalities.files import Folder
from modalities.image import Image
from modalities.mixture import Mixture
from modalities.scalars import Scalar, standardised
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.runs.run import check_metadata
from recipes.sample import sample
from recipes.sharing.pipeline import Pipeline
from tests.helpers.tiny import assert_same, tiny_run

SCALARS = "training.scalars=[crop_left,width]"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of two classes and several widths, black in the left half."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(60):
        picture = Pillow.new("L", (8 + number % 5 * 4, 8), 200)
        picture.paste(0, (0, 0, picture.width // 2, 8))
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    return folder


def words(photos: Path) -> list[str]:
    return ["modality=image", "data=folder", f"data.root={photos}", "validation.holdout=12", SCALARS]


def drawn(run_dir: Path, *more: str) -> Tensor:
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", "count=3", "steps=2", "guidance.scale=2", *more]))
    return load_file(out / "samples.safetensors")["x0"]


def test_run_with_scalars_continues_exactly_and_samples_with_chosen_values(photos, tmp_path):
    whole = tiny_run(tmp_path / "whole", *words(photos))
    tiny_run(tmp_path / "parts", *words(photos), "training.samples=48")
    assert_same(tiny_run(tmp_path / "parts", *words(photos)), whole)
    without = tiny_run(tmp_path / "without", *words(photos), "training.scalars=[]")
    assert len(without.tensors["network"]) < len(whole.tensors["network"])

    left, width = json.loads((tmp_path / "whole" / "run.json").read_text())["scalars"]
    assert (left["name"], left["unit"], width["name"]) == ("crop_left", "pixel", "width")
    assert 12 < width["mean"] < 20
    assert width["std"] == pytest.approx(math.sqrt(32), rel=0.2)
    plain, other = drawn(tmp_path / "whole"), drawn(tmp_path / "whole", "scalars={crop_left:16}")
    means = f"scalars={{crop_left:{left['mean']},width:{width['mean']}}}"
    assert torch.equal(drawn(tmp_path / "whole", means), plain)
    assert not torch.equal(other, plain)
    pipeline = Pipeline.from_pretrained(tmp_path / "whole")
    assert torch.equal(pipeline(3, 2, guidance=2.0, scalars={"crop_left": 16.0}).samples, other)
    for command, message in (
        ("scalars={crop:1}", r"no scalar 'crop'; did you mean 'crop_left'\?; it takes crop_left, width"),
        ("scalars={width:inf}", "finite"),
        ("scalars={width:1e300}", "more than 1e\\+06 standard deviations"),
    ):
        with pytest.raises(RecipeError, match=message):
            drawn(tmp_path / "whole", command)
    with pytest.raises(RecipeError, match="trained without scalars"):
        drawn(tmp_path / "without", "scalars={width:1}")


def test_scores_and_likelihood_use_the_scalars_of_held_out_examples(photos, tmp_path):
    for score in ("distance", "likelihood"):
        run_dir = tmp_path / score
        more = [f"validation.score={score}", "validation.samples=8", "validation.items=4", "every.validation=48"]
        tiny_run(run_dir, *words(photos), *more)
        entries = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        assert all(math.isfinite(entry["score"]) for entry in entries if entry["kind"] == "validation")


def test_training_refuses_scalars_that_the_data_or_the_network_do_not_have(photos, tmp_path):
    for more, message in (
        (["training.scalars=[widht]"], r"no scalar 'widht'; did you mean 'width'\?; the data have height, width"),
        (["training.scalars=[width,width]"], "width is repeated"),
        (["training.scalars=[height]"], "height is 8 for all 48 examples"),
        (["network=diffusers"], "does not accept scalars"),
    ):
        with pytest.raises(RecipeError, match=message):
            tiny_run(tmp_path / "run", *words(photos), *more)
    with pytest.raises(RecipeError, match="the data have none"):
        tiny_run(tmp_path / "run", "data=digits", SCALARS)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_training_refuses_scalars_that_cannot_be_learned(photos, tmp_path):
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    lines = [f"{file},{file[0]},{n}e200,{n if n == 7 else ''}" for n, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,huge,rare", *lines]) + "\n")
    table = f"data.manifest={tmp_path / 'list.csv'}"
    for chosen, message in (
        ("huge", r"huge has values up to .*e\+201, whose deviation is too large"),
        ("rare", "rare is (known for one only of|unknown for all) 48"),
        (",".join(f"s{n}" for n in range(65)), "names 65 scalars, more than 64"),
    ):
        with pytest.raises(RecipeError, match=message):
            tiny_run(tmp_path / "run", *words(photos), table, f"training.scalars=[{chosen}]")


def test_initial_weights_are_for_the_same_scalars_in_the_same_order(photos, tmp_path):
    tiny_run(tmp_path / "first", *words(photos), "training.samples=16")
    initial = f"training.initial={tmp_path / 'first'}"
    with pytest.raises(RecipeError, match=r"trained with training.scalars=\[crop_left,width\], but this run has"):
        tiny_run(tmp_path / "second", *words(photos), initial, "training.scalars=[width,crop_left]")


def test_scalars_of_a_strangers_run_are_checked():
    valid = {"name": "start", "unit": "s", "mean": 1.0, "std": 2.0}
    check_metadata({"classes": None, "scalars": [valid]})
    for wrong in ({**valid, "std": 0.0}, {**valid, "mean": math.nan}, {**valid, "name": 3}, {"name": "start"}, 3):
        with pytest.raises(ValueError, match="scalars"):
            check_metadata({"classes": None, "scalars": [wrong]})
    with pytest.raises(ValueError, match="scalars"):
        check_metadata({"classes": None, "scalars": [valid] * 65})


def test_standardised_scalars_are_nan_where_unknown():
    scalars = [Scalar("start", "s", 2.0, 4.0), Scalar("fps", "1/s", 25.0, 5.0)]
    x0 = torch.zeros(1, 4)
    batch = collate(
        [Example(x0, scalars={"start": 6.0}), Example(x0, scalars={"fps": 20.0, "other": 1.0}), Example(x0)]
    )
    values = standardised(scalars, batch.scalars, 3)
    nan = math.nan
    assert torch.equal(values.nan_to_num(9), torch.tensor([[1.0, nan], [nan, -1.0], [nan, nan]]).nan_to_num(9))
    assert batch.condition() is None
    condition = batch._replace(standardised=values, labels=torch.tensor([0, 1, 2])).condition()
    assert torch.equal(condition.labels, torch.tensor([0, 1, 2]))
    assert condition.scalars is values
    with pytest.raises(ValueError, match="deviation"):
        Scalar("start", "s", 0.0, 0.0)


def test_columns_of_numbers_in_a_manifest_are_scalars(photos, tmp_path):
    files = sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    lines = [f"{file},{file[0]},{'' if n == 3 else n / 2},{n if n else 'old'}" for n, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["file,label,age,note", *lines]) + "\n")
    dataset = Folder(Image(8, 1), photos, manifest=tmp_path / "list.csv")
    assert dataset.scalars["age"] == ""
    assert "note" not in dataset.scalars  # not only numbers
    part = dataset.subset([4, 3])
    assert part.example(0).scalars["age"] == 2.0
    assert math.isnan(part.example(1).scalars["age"])
    assert part.example(0).scalars["height"] == 8
    mixed = Mixture(dataset.modality, {"a": dataset, "b": Folder(dataset.modality, photos)})
    ages = mixed.batch([4, 3, 64]).scalars["age"]
    assert ages[0] == 2.0
    assert ages[1:].isnan().all()
    plain = Folder(Image(8, 1), photos, manifest=tmp_path / "list.csv", match=".").fingerprint
    assert plain == dataset.fingerprint
    (tmp_path / "list.csv").write_text("\n".join(["file,label,age,note", *lines[:-1], lines[-1].replace("29.5", "30")]))
    assert Folder(Image(8, 1), photos, manifest=tmp_path / "list.csv").fingerprint != plain
    run_dir = tmp_path / "run"
    tiny_run(run_dir, *words(photos), f"data.manifest={tmp_path / 'list.csv'}", "training.scalars=[age]")
    assert json.loads((run_dir / "run.json").read_text())["scalars"][0]["mean"] == pytest.approx(15, abs=2)
