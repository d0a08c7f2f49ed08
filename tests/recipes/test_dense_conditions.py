"""Runs learn dense conditions with classes, keep what is needed to sample with them, and refuse what does not fit."""

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file
from torch import Tensor

import multisagd as ms
from modalities.audio import Audio
from modalities.base import Dataset, Example
from modalities.image import Image
from modalities.mel_condition import MelSpectrogram
from modalities.representation import Waveform
from multisagd import Condition
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import groups
from recipes.data.whitened import noise_notes
from recipes.evaluate import evaluate
from recipes.export import export
from recipes.inspect import inspect
from recipes.report import report
from recipes.runs.run import check_metadata
from recipes.sample import sample
from recipes.sampling.sample_files import recorded_names
from recipes.sharing.pipeline import Pipeline
from recipes.training.learner import dropped_parts
from tests.helpers import dense
from tests.helpers.tiny import TRANSFORMER, assert_same, read_metrics, tiny_run, tiny_words

BANDS = ["condition=coarse", "condition.factor=2", "covariance=band_spectrum"]
FREE_INIT = [
    "refine=free_init",
    "refine.low_pass.axes=[height,width]",
    "refine.low_pass.factors={height:1.0,width:1.0}",
]
SMALL = "data.condition_modality={modality:image,size:4,channels:1}"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Pictures of two classes and their coarse versions in another folder; the words of a training on them."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(60):
        picture = Picture.new("L", (8, 8), 4 * number)
        picture.paste(255, (0, 0, 4, 4 + number % 5))
        for folder, size in (("fine", 8), ("coarse", 4)):
            path = root / folder / "ab"[number % 2] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.resize((size, size), Picture.Resampling.BOX).save(path)
    return ["data=folder", f"data.root={root / 'fine'}", f"data.condition_root={root / 'coarse'}", SMALL,
            "modality.channels=1", "validation.holdout=12"]  # fmt: skip


@pytest.fixture(scope="module")
def trained(pairs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    tiny_run(run_dir, *pairs)
    return run_dir


def drawn(run_dir: Path, *more: str) -> tuple[Path, dict[str, Tensor]]:
    out = sample(configuration.load("sample", [f"run_dir={run_dir}", "steps=2", "guidance.scale=2", *more]))
    return out, load_file(out / "samples.safetensors")


def assert_refused(*cases: tuple[str, Callable[[], object]]) -> None:
    for message, attempt in cases:
        with pytest.raises(RecipeError, match=message):
            attempt()


def root_of(pairs: list[str]) -> Path:
    return Path(pairs[2].partition("=")[2])


def test_run_with_pairs_continues_exactly_and_records_its_condition(pairs, trained, tmp_path):
    tiny_run(tmp_path / "parts", *pairs, "training.samples=48")
    assert_same(tiny_run(tmp_path / "parts", *pairs), tiny_run(trained, *pairs))
    condition = json.loads((trained / "run.json").read_text())["condition"]
    assert condition["channels"] == 1
    assert condition["modality"]["size"] == 4
    assert (trained / "samples" / "conditions.png").exists()
    assert all(torch.isfinite(torch.tensor(each["loss"])) for each in read_metrics(trained, "validation"))
    with pytest.raises(RecipeError, match=r"condition\._target_: None -> 'modalities"):
        tiny_run(trained, *pairs, "condition=coarse")


def test_samples_have_the_conditions_and_names_of_files_in_turn(pairs, trained, tmp_path):
    coarse = root_of(pairs)
    out, named = drawn(trained, f"condition={coarse / 'a'}", "labels=b", f"out={tmp_path / 'out'}")
    files = sorted(path.stem for path in (coarse / "a").iterdir())
    assert sorted(path.stem for path in (out / "samples").glob("*.png")) == files
    assert (out / "conditions.png").exists()
    assert named["labels"].tolist() == [1] * 30
    _, three = drawn(trained, f"condition={coarse / 'a'}", "labels=b", "count=3")
    torch.testing.assert_close(three["x0"], named["x0"][:3], rtol=0, atol=1e-5)
    # The set that replaces it, of two samples with one file, leaves none of its files.
    out, one = drawn(trained, f"condition={coarse / 'a' / '02.png'}", "labels=b", "count=2", f"out={out}")
    assert sorted(path.name for path in (out / "samples").glob("*.png")) == ["02_0.png", "02_1.png"]
    assert not torch.allclose(one["x0"][0], named["x0"][0], atol=1e-3)

    export(configuration.load("export", [f"run_dir={trained}", f"out={tmp_path / 'model'}"]))
    card = (tmp_path / "model" / "README.md").read_text()
    assert "and a dense condition, from files of its own." in card
    assert "condition=FOLDER steps=20" in card
    for folder in (trained, tmp_path / "model"):
        pipeline = Pipeline.from_pretrained(folder)
        samples = pipeline(3, 2, guidance=2.0, labels="b", condition=coarse / "a").samples
        torch.testing.assert_close(samples, three["x0"], rtol=0, atol=1e-5)
    values = torch.full((1, 1, 4, 4), torch.nan)
    unknown, none = (pipeline(2, 2, condition=each).samples for each in (values, "none"))
    torch.testing.assert_close(unknown, none)


def test_samples_with_conditions_of_held_out_examples_have_their_classes(trained):
    out, held_out = drawn(trained, "condition=held_out", "count=14")
    assert held_out["x0"].shape == (14, 1, 8, 8)
    assert held_out["labels"][:2].tolist() == held_out["labels"][12:].tolist()
    assert sorted(path.name for path in (out / "samples").glob("*.png"))[0] == "00.png"
    assert drawn(trained, "condition=none", "guidance.scale=1", "count=2")[1]["x0"].isfinite().all()


def test_sample_refuses_conditions_that_are_missing_or_that_the_run_does_not_take(pairs, trained, tmp_path):
    tiny_run(tmp_path / "plain", *pairs, "data.condition_root=null", "data.condition_modality=null")
    (tmp_path / "twice").mkdir()
    for name in ("one.png", "one.bmp"):
        Picture.new("L", (4, 4)).save(tmp_path / "twice" / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    coarse, moved = root_of(pairs) / "a", ["data.condition_root=null", "data.condition_modality=null"]
    assert_refused(
        (r"size \(16, 16\), but \(8, 8\) in training", lambda: drawn(trained, f"condition={coarse}", "size=16")),
        (r"size \(16, 16\), but \(8, 8\) in training", lambda: drawn(trained, "condition=held_out", "size=16")),
        (r"have no conditions any more", lambda: drawn(trained, "condition=held_out", *moved)),
        (r"trained with a dense condition .*condition=held_out", lambda: drawn(trained)),
        ("trained without a dense condition", lambda: drawn(tmp_path / "plain", "condition=x")),
        ("does not exist", lambda: drawn(trained, "condition=nowhere")),
        ("samples of one name", lambda: drawn(trained, f"condition={tmp_path / 'twice'}")),
        (r"^the condition .*broken\.png", lambda: drawn(trained, f"condition={tmp_path / 'broken.png'}")),
        ("requires labels, prompts or a dense", lambda: drawn(trained, "condition=none", "labels=null")),
        ("no rows", lambda: Pipeline.from_pretrained(trained)(condition=torch.zeros(0, 1, 4, 4))),
    )


@pytest.mark.parametrize(
    "words",
    [
        ["condition=first_frames", *TRANSFORMER],
        pytest.param(["condition=masked", "validation.score=likelihood", "validation.items=3"], marks=pytest.mark.slow),
    ],
    ids=["first frames transformer", "masked unet"],
)
def test_derived_condition_is_that_of_media_when_sampling(words, tmp_path):
    tiny_run(tmp_path / "run", *words)
    out, of_data = drawn(tmp_path / "run", "condition=held_out", "count=2")
    _, of_files = drawn(tmp_path / "run", f"condition={out / 'samples'}")
    assert of_data["x0"].shape == of_files["x0"].shape == (2, 1, 8, 8)
    assert not torch.equal(of_data["x0"], of_files["x0"])
    if "condition=first_frames" in words:
        for source in ("held_out", out / "samples"):
            with pytest.raises(RecipeError, match="count=1 leaves nothing to be learned"):
                drawn(tmp_path / "run", f"condition={source}", "size=[1,8]")


def test_training_refuses_conditions_that_do_not_fit(pairs, tmp_path):
    def run(*words: str) -> Any:
        return tiny_run(tmp_path / "run", *words)

    other = [word for word in pairs if word != SMALL]
    assert_refused(
        ("does not divide the 8 samples", lambda: run("condition=coarse", "condition.factor=3")),
        ("remove one of the two", lambda: run(*pairs, "condition=masked")),
        ("exclude each other", lambda: run("condition=masked", "corruption=band")),
        (r"conditions have the grid \(3, 3\)", lambda: run(*other, SMALL.replace("size:4", "size:3"))),
        ("there is no such choice; did you mean 'image'", lambda: run(*other, SMALL.replace("y:image", "y:imag"))),
        ("expected a list of entries, each one of boxes", lambda: run("condition=masked", "condition.hidden=half")),
        ("expected the settings of a modality", lambda: run(*other, "data.condition_modality=image")),
        (r"validation.root=.*which those in another folder lack", lambda: run(*pairs, f"validation.root={tmp_path}")),
        (
            "condition_dropout=0.1",
            lambda: run("condition=masked", "guidance.scale=2", "training.condition_dropout=0"),
        ),
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_training_refuses_networks_without_dense_conditions(tmp_path):
    with pytest.raises(RecipeError, match="DiffusersNetwork does not accept a dense condition"):
        tiny_run(tmp_path / "run", "condition=masked", "network=diffusers")


FOLLOWING = ["condition=coarse", "condition.factor=2", "covariance=amplitude_envelope", "covariance.floor=20",
             "sampling.ends=[-6,5]"]  # fmt: skip


@pytest.fixture(scope="module")
def following(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose noise follows conditions, half of which the network does not see."""
    run_dir = tmp_path_factory.mktemp("runs") / "following"
    tiny_run(run_dir, *FOLLOWING, "training.condition_dropout=0.5")
    return run_dir


def test_run_with_noise_that_follows_conditions_continues_exactly(following, tmp_path):
    words = [*FOLLOWING, "training.condition_dropout=0.5"]
    tiny_run(tmp_path / "parts", *words, "training.samples=48")
    assert_same(tiny_run(tmp_path / "parts", *words), tiny_run(following, *words))
    with pytest.raises(RecipeError, match=r"covariance\.floor: 20 -> 30"):
        tiny_run(following, *words, "covariance.floor=30")


def test_samples_have_the_noise_of_their_own_condition(following, tmp_path):
    """The samples of a dark and of a bright condition start from noise whose levels differ by the floor."""
    export(configuration.load("export", [f"run_dir={following}", f"out={tmp_path / 'model'}"]))
    assert "with noise that follows the condition" in (tmp_path / "model" / "README.md").read_text()
    pipeline, values = Pipeline.from_pretrained(tmp_path / "model"), torch.zeros(2, 1, 4, 4)
    values[1] = 1.0
    both = pipeline(2, 2, condition=values, guidance=2.0, batch=1, seeds=[5, 5]).samples
    torch.testing.assert_close(pipeline(2, 2, condition=values, guidance=2.0, seeds=[5, 5]).samples, both)
    process = pipeline.denoiser.process.bound(Condition(dense=values), (2, 1, 8, 8))
    levels = process.noise((2, 1, 8, 8), [5, 5]).square().mean((1, 2, 3))
    assert float(levels[1] / levels[0]) == pytest.approx(100)
    text = report(configuration.load("report", [f"run_dir={following}"])).read_text()
    assert "The noise follows the condition of each example" in text
    unknown = torch.full((1, 1, 4, 4), torch.nan)
    start, part = torch.zeros(1, 1, 8, 8), {"width": (2, 4)}
    one = values[:1]
    assert_refused(
        ("condition=none: the noise of this run follows", lambda: pipeline(1, 2, condition="none")),
        ("nothing is known of the dense condition", lambda: pipeline(1, 2, condition=unknown)),
        ("unknown: the noise of this run", lambda: pipeline(1, 2, condition=one, initial=start, unknown=part)),
        ("^sampler: GaussianIntegrator", lambda: pipeline(1, 2, condition=one, sampler="gaussian")),
        ("refine: refinement needs noise", lambda: drawn(following, "condition=held_out", *FREE_INIT)),
        ("add condition=FOLDER .*or condition=held_out for", lambda: drawn(following)),
    )


def test_training_refuses_noise_that_cannot_follow_conditions(tmp_path):
    """Before the data are measured."""

    def run(*words: str) -> Any:
        return tiny_run(tmp_path / "run", *FOLLOWING, *words)

    def under(condition: str) -> Any:
        return tiny_run(tmp_path / "run", f"condition={condition}", *FOLLOWING[2:])

    assert_refused(
        ("the examples have none: add", lambda: under("none")),
        ("some values of the dense condition are unknown", lambda: under("masked")),
        ("padding and covariance=… exclude", lambda: run("padding={height:4}")),
        ("^denoiser: spectral preconditioning needs", lambda: run("denoiser=spectral")),
        ("^process: a process with coefficients per frequency", lambda: run("process=blur")),
        ("^loss.times: .*follows the condition", lambda: run("loss=octaves")),
        ("^sampler: GaussianIntegrator", lambda: run("sampler=gaussian")),
        ("floor must be from 0 to 120 dB", lambda: run("covariance.floor=-3")),
        ("^covariance: name the axis of the frequencies", lambda: tiny_run(tmp_path / "run", *BANDS)),
    )
    assert not (tmp_path / "run" / "statistics.safetensors").exists()


def test_every_covariance_builds_its_rule():
    for choice in groups()["covariance"]:
        node = configuration.load("train", ["run_dir=.", f"covariance={choice}"])["covariance"]
        assert (choice == "shared") == (node["_target_"] is None)
        if choice != "shared":
            parts = {"condition": MelSpectrogram(bands=8), "modality": Audio(representation=Waveform())}
            rule = Builder().build(node, ms.CovarianceRule, "covariance", **parts)  # type: ignore[type-abstract]
            envelope, power = rule(torch.zeros(2, 8, 4), ms.Grid.of(time=8))
            both = choice == "mel"
            assert (envelope is not None, power is not None) == (
                both or "envelope" in choice,
                both or "spectrum" in choice,
            )


class LikeTheirNoise(Dataset):
    """Pictures of white noise, each times its own amplitudes, which are its condition."""

    classes = None

    def __init__(self) -> None:
        self.modality = Image(size=8, channels=1)

    @property
    def condition_modality(self) -> Image:
        return self.modality

    def __len__(self) -> int:
        return 128

    def example(self, index: int, seed: int | None = None) -> Example:
        white, level = dense.random(2, 1, 8, 8, seed=index).float()
        return Example(level.exp() * white, condition=level.exp())

    def subset(self, indices: Sequence[int]) -> "LikeTheirNoise":
        raise NotImplementedError


def test_noise_notes_name_the_log_snrs_between_which_noise_matters():
    """Of data like their noise, within the error of 128 examples: where the ratio of powers is 1/20, and 20."""
    examples = LikeTheirNoise()
    covariance = ms.ConditionedCovariance(ms.AmplitudeEnvelope(), examples.modality.grid())
    note, *warnings = noise_notes(ms.Process(ms.CosineSchedule(), covariance), examples, 0, lambda tensor: tensor)
    low, high = (float(each) for each in re.findall(r"(?:below a log-SNR of|invisible above) (-?[\d.]+\d)", note))
    assert low == pytest.approx(-math.log(20), abs=0.6)
    assert high == pytest.approx(math.log(20), abs=0.6)
    assert not warnings
    loud = ms.Process(ms.CosineSchedule(log_snr_range=(-1, 20)), covariance)
    assert "signal remains at t = 1" in noise_notes(loud, examples, 0, lambda tensor: tensor)[1]
    plain = ms.SpectralCovariance(ms.Flat(), covariance.grid)
    assert not noise_notes(ms.Process(ms.CosineSchedule(), plain), examples, 0, lambda tensor: tensor)


def test_inspect_shows_the_noise_of_examples(tmp_path):
    folder = inspect(configuration.load("inspect", tiny_words(tmp_path / "inspected", *FOLLOWING, "count=2")))
    noise = [np.asarray(Picture.open(folder / "noise" / f"{number}.png"), float) for number in range(2)]
    assert all(each.std() > 5 for each in noise)
    notes = json.loads((folder / "inspect.json").read_text())["notes"]
    assert any("next to their own noise, 128 examples are hidden below a log-SNR" in note for note in notes)


def test_dropped_parts_leave_each_part_alone_for_half_as_many():
    uniform = (torch.arange(1000).double() + 0.5) / 1000
    labels, dense = dropped_parts(uniform, 0.1, both=True)
    assert [int(each.sum()) for each in (labels & dense, labels & ~dense, dense & ~labels)] == [100, 50, 50]
    alone = dropped_parts(uniform, 0.1, both=False)
    assert all(torch.equal(each, uniform < 0.1) for each in alone)


def test_records_of_conditions_and_names_from_others_are_checked():
    plain: dict[str, Any] = {"classes": None}
    check_metadata({**plain, "condition": {"channels": 3, "modality": None}})
    for wrong in ({}, [], {"channels": 0, "modality": None}, {"channels": 10**9, "modality": None},
                  {"channels": True, "modality": None}, {"channels": 1, "modality": "image"}):  # fmt: skip
        with pytest.raises(ValueError, match="dense condition is invalid"):
            check_metadata({**plain, "condition": wrong})
    assert recorded_names({"count": 2, "names": ["a", "b.c"]}) == ["a", "b.c"]
    for names in (["a"], "ab", ["a", "../b"], ["a", ".."], ["a", ""], ["a", 1], ["a", "b\\c"], ["a", "b\0"]):
        assert recorded_names({"count": 2, "names": names}) is None


def test_run_of_a_stranger_cannot_ask_for_huge_conditions(pairs, trained, tmp_path):
    export(configuration.load("export", [f"run_dir={trained}", f"out={tmp_path / 'model'}"]))
    notes = json.loads((tmp_path / "model" / "model.json").read_text())
    notes["metadata"]["condition"]["modality"]["size"] = 100_000
    (tmp_path / "model" / "model.json").write_text(json.dumps(notes))
    shutil.copytree(trained, tmp_path / "run")
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "size: 4\n" in config
    (tmp_path / "run" / "config.yaml").write_text(config.replace("size: 4\n", "size: 100000\n"))
    refused = r"conditions have the grid \(100000, 100000\), but the data have \(8, 8\)"
    assert_refused(
        (refused, lambda: drawn(tmp_path / "model", f"condition={root_of(pairs) / 'a'}")),
        (refused, lambda: drawn(tmp_path / "run", "condition=held_out")),
    )


def test_configuration_takes_a_path_for_a_condition_and_completes_the_modality_of_conditions():
    for command in ("sample", "evaluate"):
        assert configuration.load(command, ["run_dir=x", "condition=a/b c"])["condition"] == "a/b c"
    assert configuration.load("train", ["run_dir=x", "condition=masked"])["condition"]["boxes"] == 3
    with pytest.raises(RecipeError, match="condition=mask: there is no such choice; did you mean 'masked'"):
        configuration.load("train", ["run_dir=x", "condition=mask"])
    source = "data.sources.photos={data:folder,root:r,condition_root:c,condition_modality:{modality:image,size:4}}"
    mixture = configuration.load("train", ["run_dir=x", "data=mixture", source])["data"]["sources"]["photos"]
    assert mixture["condition_modality"]["size"] == 4
    assert mixture["condition_modality"]["_target_"] == "modalities.image.Image"


def test_inspect_states_the_conditions_of_examples(pairs, tmp_path, capsys):
    inspect(configuration.load("inspect", [*pairs, "modality.size=8", f"run_dir={tmp_path / 'look'}", "count=2"]))
    report = json.loads((tmp_path / "look" / "inspect.json").read_text())
    assert report["conditions"] == [1, 4, 4]
    assert "conditions: 1 × 4 × 4" in capsys.readouterr().out


@pytest.mark.slow
def test_evaluate_draws_samples_with_the_conditions_of_held_out_examples(pairs, tmp_path):
    words = ["validation.holdout=24", "every.validation=0", "every.samples=0"]
    tiny_run(tmp_path / "run", *pairs, *words)
    settings = ["samples=16", "steps=1", "metrics=[spectrum,likelihood]", "likelihood.items=2", "likelihood.steps=1",
                "splits=1", "bootstrap=2", "bands=2"]  # fmt: skip
    report = evaluate(configuration.load("evaluate", [f"run_dir={tmp_path / 'run'}", *settings]))
    assert report["unavailable"] == {}
    out = Path(report["samples"]).parent
    assert json.loads((out / "sample.json").read_text())["settings"]["condition"] == "held_out"
    assert len(load_file(out / "samples.safetensors")["labels"]) == 16


@pytest.mark.slow
def test_buckets_share_a_derived_condition(tmp_path):
    for number in range(40):
        path = tmp_path / "photos" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Picture.new("L", ((8, 8), (16, 8), (8, 16))[number % 3], 5 * number).save(path)
    tiny_run(
        tmp_path / "run", "data=folder", f"data.root={tmp_path / 'photos'}", "modality.channels=1",
        "modality.buckets=[8,[4,8],[8,4]]", "condition=coarse", "condition.factor=2", "validation.holdout=9",
    )  # fmt: skip
    _, wide = drawn(tmp_path / "run", "condition=held_out", "count=2", "size=[4,8]")
    assert wide["x0"].shape == (2, 1, 4, 8)
