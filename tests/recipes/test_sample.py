import json
import shutil
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image as PILImage
from safetensors.torch import load_file

from modalities.files import Folder
from modalities.image import Image
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.export import export
from recipes.runs.settings import SampleSettings
from recipes.sample import sample
from recipes.sampling.condition import chosen_labels
from recipes.sharing.pipeline import Pipeline
from tests.helpers.tiny import tiny_run

CLASSES = ["cat", "dog", "emu", "owl"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    tiny_run(folder, "spectrum=power_law")
    return folder


def draw(run_dir: Path, *overrides: str) -> Path:
    words = [f"run_dir={run_dir}", "steps=2", "count=6", "engine.threads=1", "engine.device=cpu", *overrides]
    return sample(configuration.load("sample", words))


def test_samples_are_written_in_every_form(run_dir: Path, tmp_path: Path) -> None:
    out = draw(run_dir, f"out={tmp_path}", "labels=[7,1-2]")
    files = sorted(path.name for path in out.iterdir())
    assert files == ["grid.png", "sample.json", "samples", "samples.safetensors"]
    assert sorted(path.name for path in (out / "samples").iterdir()) == [*(f"{n}.png" for n in range(6)), "samples.csv"]
    tensors = load_file(out / "samples.safetensors")
    assert tensors["x0"].shape == (6, 1, 8, 8)
    assert tensors["x0"].dtype == torch.float32
    assert tensors["labels"].tolist() == [7, 1, 2, 7, 1, 2]
    with PILImage.open(out / "samples" / "0.png") as picture:
        assert picture.size == (8, 8)
    # The folder of the samples is read back as what it is: their files, and by the table their classes.
    assert len(Folder(Image(size=8, channels=1), out / "samples")) == 6
    labelled = Folder(Image(size=8, channels=1), out / "samples", manifest="samples.csv")
    assert [labelled.classes[labelled.label(n)] for n in range(6)] == ["7", "1", "2", "7", "1", "2"]
    made = json.loads((out / "sample.json").read_text())
    assert made["samples_seen"] == 96
    assert made["settings"]["steps"] == 2


def test_files_of_ones_own_are_never_written_over(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_text("mine")
    with pytest.raises(RecipeError, match="is not empty and does not hold a set of samples"):
        draw(run_dir, f"out={tmp_path}")
    assert [path.name for path in tmp_path.iterdir()] == ["1.png"]
    out = draw(run_dir, f"out={tmp_path / 'set'}", "count=3")
    (out / "samples" / "3.png").write_text("mine")
    with pytest.raises(RecipeError, match=r"3.png would be replaced"):
        draw(run_dir, f"out={out}", "count=5")
    draw(run_dir, f"out={out}", "count=2")
    assert (out / "samples" / "3.png").read_text() == "mine"


def test_nothing_of_a_former_set_is_left(run_dir: Path, tmp_path: Path) -> None:
    out = draw(run_dir, f"out={tmp_path}", "count=12")
    (out / "evaluate.json").write_text('{"pictures": ["evaluate_a.png", "../run.png", "mine.png"]}')
    for name in ("evaluate_a.png", "mine.png"):
        (out / name).write_text("")
    draw(run_dir, f"out={tmp_path}", "count=12")  # the same, so what it was judged to be holds
    assert (out / "evaluate.json").exists()
    draw(run_dir, f"out={tmp_path}", "count=3")
    assert sorted(path.name for path in (out / "samples").iterdir()) == ["0.png", "1.png", "2.png", "samples.csv"]
    left = ["grid.png", "mine.png", "sample.json", "samples", "samples.safetensors"]
    assert sorted(path.name for path in out.iterdir()) == left


def test_the_grid_names_the_classes(run_dir: Path, tmp_path: Path) -> None:
    grids = [draw(run_dir, f"out={tmp_path / label}", f"labels={label}") / "grid.png" for label in ("all", "null")]
    with PILImage.open(grids[0]) as named, PILImage.open(grids[1]) as plain:
        assert named.width == plain.width
        assert named.height == plain.height + 2 * 14  # two rows of names


def test_a_sample_depends_on_its_number_only(run_dir: Path) -> None:
    whole = load_file(draw(run_dir) / "samples.safetensors")["x0"]
    parts = load_file(draw(run_dir, "batch=2", "count=4", "labels=0-9") / "samples.safetensors")["x0"]
    torch.testing.assert_close(whole[:4], parts, rtol=1e-4, atol=1e-4)
    other = load_file(draw(run_dir, "seed=1") / "samples.safetensors")["x0"]
    assert (whole - other).abs().mean() > 0.1


def test_the_folder_is_named_after_the_settings(run_dir: Path) -> None:
    assert draw(run_dir) == draw(run_dir)
    assert draw(run_dir).parent == run_dir / "sampled"
    assert draw(run_dir).name.startswith("000000000096_heun_2_seed0_")
    assert draw(run_dir) != draw(run_dir, "labels=1")


def test_the_last_picture_of_training_can_be_drawn_again(run_dir: Path) -> None:
    out = draw(run_dir, "count=4")
    assert (out / "grid.png").read_bytes() == (run_dir / "samples" / "000000000096.png").read_bytes()


@pytest.mark.parametrize("sampler", ["ddim", "sampler=ddim sampler.eta=1", "ancestral", "euler", "dpm_solver", "unipc"])
def test_every_sampler_samples(run_dir: Path, tmp_path: Path, sampler: str) -> None:
    words = sampler.split() if "=" in sampler else [f"sampler={sampler}"]
    x0 = load_file(draw(run_dir, *words, f"out={tmp_path}") / "samples.safetensors")["x0"]
    assert torch.isfinite(x0).all()


def test_guidance_and_weights_change_the_samples(run_dir: Path) -> None:
    plain, *others = (
        load_file(draw(run_dir, *words) / "samples.safetensors")["x0"]
        for words in ([], ["guidance.scale=5"], ["weights=network"], ["labels=null"])
    )
    for other in others:
        assert not torch.equal(plain, other)
    outside = load_file(draw(run_dir, "guidance.scale=5", "guidance.interval=[90,99]") / "samples.safetensors")["x0"]
    assert torch.equal(plain, outside)


def test_a_checkpoint_may_be_chosen(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last, early = (draw(run_dir, f"checkpoint={name}", "count=1") for name in ("last", "0000048"))
    assert last == draw(run_dir, "count=1")
    assert [path.name[:12] for path in (last, early)] == ["000000000096", "000000000048"]
    one, other = (load_file(path / "samples.safetensors")["x0"] for path in (last, early))
    assert not torch.equal(one, other)
    place = draw(run_dir, f"checkpoint={run_dir}/checkpoints/000000000048", "count=1", f"out={tmp_path / 'out'}")
    assert torch.equal(load_file(place / "samples.safetensors")["x0"], other)
    words = [f"run_dir={run_dir}", f"out={tmp_path / 'model'}", "checkpoint=48"]
    exported = export(configuration.load("export", words))
    drawn = draw(exported, "count=1", "checkpoint=48", f"out={tmp_path / 'drawn'}")
    assert torch.equal(load_file(drawn / "samples.safetensors")["x0"], other)
    with pytest.raises(RecipeError, match=r"there is no checkpoint after 64 samples in .*; there are 48, 96"):
        draw(run_dir, "checkpoint=64")
    with pytest.raises(RecipeError, match=r"checkpoint=best: expected last, or the samples seen .*: 48, 96"):
        draw(run_dir, "checkpoint=best")
    with pytest.raises(RecipeError, match="only holds the one after 48 samples"):
        draw(exported, "checkpoint=96")
    words = [f"run_dir={run_dir}", "steps=2", "samples=4", "count=1", "engine.threads=1", "engine.device=cpu"]
    monkeypatch.setattr("recipes.sample.generate", lambda *_: pytest.fail("they are there"))
    for number, drawn in ((48, early), (96, last)):  # an evaluation finds the samples of the checkpoint that it is of
        config = configuration.load("evaluate", [*words, f"checkpoint={number}"])
        assert sample({field.name: config[field.name] for field in fields(SampleSettings)}, reuse=True) == drawn


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["labels=10"], "labels: 10 is outside the classes 0 to 9"),
        (["labels=sheep"], "there is no class 'sheep'"),
        (["guidance.scale=2", "labels=null"], "guidance.scale needs labels"),
        (["count=0"], "count must be at least 1"),
        (["weights=best"], "weights: expected one of ema, network"),
    ],
)
def test_mistakes_are_told(run_dir: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        draw(run_dir, *overrides)


def test_guidance_needs_labels_left_out_in_training(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    config = read_configuration(copy / "config.yaml")
    config["training"]["condition_dropout"] = 0.0
    configuration.write(config, copy / "config.yaml")
    with pytest.raises(RecipeError, match=r"guidance.scale .* training.condition_dropout=0"):
        draw(copy, "guidance.scale=2")
    draw(copy)


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no run or exported model is in .*, which holds neither"):
        draw(tmp_path)


def test_a_run_from_elsewhere_cannot_name_what_to_run(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    config = read_configuration(copy / "config.yaml")
    config["network"] = {"_target_": "os.system", "command": f"touch {tmp_path}/owned"}
    config["allow_targets"] = ["os"]
    configuration.write(config, copy / "config.yaml")
    with pytest.raises(RecipeError, match=r"os.system is not under an allowed package"):
        draw(copy)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "statistics.safetensors", "checkpoints"])
def test_a_run_with_a_part_missing_or_broken_names_it(run_dir: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    if name == "checkpoints":
        shutil.rmtree(copy / name)
        message = "has no checkpoint yet"
    else:
        (copy / name).write_bytes(b"\xff\x00broken")
        message = f"cannot read .*{name}"
    with pytest.raises(RecipeError, match=message):
        draw(copy)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("all", [0, 1, 2, 3, 0]),
        ("dog", [1, 1, 1, 1, 1]),
        (1, [1, 1, 1, 1, 1]),
        ("2", [2, 2, 2, 2, 2]),
        ("1-3", [1, 2, 3, 1, 2]),
        (("owl", 0), [3, 0, 3, 0, 3]),
        (None, None),
    ],
)
def test_labels_by_name_number_and_range(wanted: object, expected: list[int] | None) -> None:
    assert chosen_labels(wanted, CLASSES, 5) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "wanted", "expected"),
    [
        (["1", "2", "3"], "1-2", [0, 1, 0]),
        (["1", "2", "3"], (1, 2), [0, 1, 0]),
        (["1", "2", "3"], 3, [2, 2, 2]),
        (["1", "2", "3"], ("1-2", 3), [0, 1, 2]),
        (["0", "1", "2"], "1-2", [1, 2, 1]),
        (["3", "7", "10"], "3-10", [0, 1, 2]),
        (["3", "cat", "5"], "3-5", [0, 2, 0]),
        (["005", "006", "007"], 7, [2, 2, 2]),
        (["005", "006", "007"], "006-007", [1, 2, 1]),
        (["005", "006", "007"], "5-6", [0, 1, 0]),
        (["1-2", "1", "2"], "1-2", [0, 0, 0]),
    ],
)
def test_classes_named_by_numbers_are_meant_by_name(classes: list[str], wanted: object, expected: list[int]) -> None:
    assert chosen_labels(wanted, classes, 3) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("classes", "wanted"),
    [
        (["1", "2", "3"], 0),
        (["1", "2", "3"], "0-2"),
        (["1", "2", "3"], "2-4"),
        (["3", "cat", "5"], "1"),
        (["7", "07"], "007"),
        (["cat", "dog"], "1-2"),
        (["cat", "dog"], 999999999999999999),
    ],
)
def test_numbers_that_name_no_class_are_refused(classes: list[str], wanted: object) -> None:
    with pytest.raises(RecipeError, match="is outside the classes"):
        chosen_labels(wanted, classes, 3)  # type: ignore[arg-type]


def test_a_class_that_was_never_trained_is_left_out_aloud_or_refused(caplog: pytest.LogCaptureFixture) -> None:
    assert chosen_labels("all", CLASSES, 4, untrained=["dog"]) == [0, 2, 3, 0]
    assert "this run has no training example of class dog" in caplog.text
    assert chosen_labels(["cat", "owl"], CLASSES, 2, untrained=["dog"]) == [0, 3]
    for wanted in ("dog", 1, "0-3", ["cat", "dog"]):
        with pytest.raises(RecipeError, match="this run has no training example of class dog"):
            chosen_labels(wanted, CLASSES, 4, untrained=["dog"])


def test_a_run_and_what_is_exported_of_it_know_the_classes_never_trained(run_dir: Path, tmp_path: Path) -> None:
    copy, exported = tmp_path / "run", tmp_path / "model"
    shutil.copytree(run_dir, copy)
    facts = json.loads((copy / "run.json").read_text())
    assert facts["untrained"] == []
    (copy / "run.json").write_text(json.dumps({**facts, "untrained": ["3"]}))
    Pipeline.from_pretrained(copy, device="cpu").save_pretrained(exported)
    for folder in (copy, exported):
        drawn = load_file(draw(folder, "count=12", f"out={tmp_path / folder.name}_drawn") / "samples.safetensors")
        assert drawn["labels"].tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9, 0, 1, 2]
        with pytest.raises(RecipeError, match="this run has no training example of class 3"):
            draw(folder, "labels=2-4")
    with pytest.raises(RecipeError, match="this run has no training example of class 3"):
        Pipeline.from_pretrained(exported, device="cpu")(labels=3)
    (copy / "run.json").write_text(json.dumps({**facts, "untrained": ["none of them"]}))
    with pytest.raises(RecipeError, match="untrained classes"):
        draw(copy)


def test_labels_that_do_not_exist_name_the_nearest() -> None:
    with pytest.raises(RecipeError, match="no class 'dgo'; did you mean 'dog'"):
        chosen_labels("dgo", CLASSES, 1)
    with pytest.raises(RecipeError, match="trained without classes"):
        chosen_labels("dog", None, 1)
    assert chosen_labels("all", None, 1) is None
