"""`multisagd evaluate` on samples whose quality is known, and on the smallest run of each medium."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.video import r3d_18

from modalities.image import Image
from modalities.image_sets import Digits
from multisagd.metrics.vggish import VGGish
from recipes import evaluate as recipe
from recipes.base.errors import RecipeError
from recipes.cli import main as cli
from recipes.config import compose as configuration
from recipes.evaluation.metric_table import METRICS
from recipes.train import train
from tests.helpers.every_modality import MODALITIES, NETWORKS
from tests.helpers.tiny import TINY, tiny_run

QUICK = [
    "classifier.samples=3200", "classifier.batch=64", "classifier.widths=[16,32]", "classifier.shift=1",
    "directions=32", "bootstrap=8", "splits=3", "neighbours.items=200", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip
COUNT = 400
Found = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a configuration, a cache beside it, and no checkpoint: samples are handed over."""
    folder = tmp_path_factory.mktemp("evaluate")
    run = folder / "run"
    run.mkdir()
    arguments = ["experiment=image_digits", "modality.size=16", f"run_dir={run}", "validation.holdout=0.3"]
    configuration.write(configuration.load("train", arguments), run / "config.yaml")
    return folder


def report(folder: Path, x0: Tensor, labels: Tensor | None = None, *more: str) -> dict[str, Any]:
    save_file({"x0": x0.contiguous(), **({} if labels is None else {"labels": labels})}, folder / "samples.safetensors")
    arguments = [f"run_dir={folder / 'run'}", f"samples_from={folder}", f"cache={folder / 'cache'}", *QUICK, *more]
    return recipe.evaluate(configuration.load("evaluate", arguments))


def rows(folder: Path, x0: Tensor, labels: Tensor | None = None, *more: str) -> Found:
    """Return the rows by `kind/name`."""
    results = report(folder, x0, labels, *more)["results"]
    return {f"{kind}/{row['name']}": row for kind, result in results.items() for row in result["rows"]}


def digits() -> tuple[Tensor, Tensor]:
    """Return the examples that the run holds out, which no metric compares samples with."""
    from recipes.config.build import Builder
    from recipes.data.dataset import hold_out
    from recipes.runs.settings import TrainSettings

    arguments = ["experiment=image_digits", "modality.size=16", "run_dir=unused", "validation.holdout=0.3"]
    settings = Builder().settings(TrainSettings, configuration.load("train", arguments), "")
    _, held_out = hold_out(Digits(Image(size=16, channels=1)), settings)
    x0, labels = held_out.batch(range(COUNT))[:2]
    assert labels is not None
    return x0, labels


@pytest.fixture(scope="module")
def real(folder: Path) -> Found:
    return rows(folder, *digits())


def noise(seed: int = 0) -> Tensor:
    return torch.randn(COUNT, 1, 16, 16, generator=torch.Generator().manual_seed(seed))


DISTANCES = (
    "classifier/Fréchet distance", "classifier/KID", "components/Fréchet distance", "components/KID",
    "sliced/Wasserstein distance", "spectrum/rms, radially averaged", "spectrum/rms along height",
    "spectrum/rms along width",
)  # fmt: skip


def test_new_real_data_score_the_noise_floor_in_everything(real: Found) -> None:
    for name in DISTANCES:
        row = real[name]
        assert row["value"] == pytest.approx(row["floor"], abs=5 * row["floor_error"] + 0.5 * abs(row["floor"]) + 0.01)
        assert row["error"] > 0
    for kind in ("classifier", "components"):
        for name in ("precision", "recall", "density", "coverage"):
            row = real[f"{kind}/{name}"]
            assert row["value"] == pytest.approx(row["floor"], abs=0.12), f"{kind}/{name}"
    for name, row in real.items():
        if name.startswith("bands/"):
            assert row["value"] == pytest.approx(50, abs=12)
        if name.startswith("spectrum/band"):
            assert abs(row["value"]) < 5 * (row["error"] ** 2 + row["floor_error"] ** 2) ** 0.5 + 0.1
    assert real["classes/recognised as requested"]["value"] > 90
    assert real["classes/fraction in other classes"]["value"] < 8
    assert real["neighbours/data: repetitions"]["value"] == 0
    assert real["neighbours/data: nearer than new"]["value"] == pytest.approx(50, abs=12)


def test_noise_is_further_away_the_louder_it_is(folder: Path, real: Found) -> None:
    x0, labels = digits()
    kinds = "metrics=[classifier,components,sliced,spectrum,bands]"
    mild, loud = (rows(folder, x0 + level * noise(), labels, kinds) for level in (0.3, 1.0))
    for name in DISTANCES:
        assert real[name]["value"] < mild[name]["value"] < loud[name]["value"], name
    for name in ("classifier/precision", "classifier/density", "components/density"):
        assert loud[name]["value"] < real[name]["value"] - 0.2, name
    highest = max(name for name in real if name.startswith("bands/band 0."))
    assert real[highest]["value"] + 20 < mild[highest]["value"] <= loud[highest]["value"]


def test_blur_shows_in_high_bands(folder: Path, real: Found) -> None:
    x0, labels = digits()
    blurred = (x0 + x0.roll(1, -1) + x0.roll(1, -2) + x0.roll((1, 1), (-2, -1))) / 4
    found = rows(folder, blurred, labels, "metrics=[spectrum,bands,sliced]")
    errors = [row["value"] for name, row in found.items() if name.startswith("spectrum/band 0.")]
    # What is rounded to pixels again has a little noise in the highest corner.
    assert errors[0] > errors[1] > errors[2]
    assert errors[-2] < -3
    told = [row["value"] for name, row in found.items() if name.startswith("bands/band 0.")]
    assert max(told[2:]) > 90 > told[0]
    assert found["sliced/Wasserstein distance"]["value"] > real["sliced/Wasserstein distance"]["value"]


def test_noise_in_one_band_shows_in_that_band(folder: Path) -> None:
    x0, labels = digits()
    grid = Image(size=16, channels=1).grid()
    low, high, weight = grid.bands(6)[3]
    loud = torch.fft.irfftn(torch.fft.rfftn(noise(), dim=(-2, -1)) * (weight > 0), s=(16, 16), dim=(-2, -1))
    found = rows(folder, 0.8 * x0 + 0.25 * loud, labels, "metrics=[bands]")
    told = {name: row["value"] for name, row in found.items()}
    assert max(told, key=lambda name: told[name]) == f"bands/band {low:.2f}-{high:.2f}"
    assert max(told.values()) > 65


def test_fewer_classes_cost_variety_and_balance(folder: Path, real: Found) -> None:
    x0, labels = digits()
    kept = labels < 5
    # As if drawn without classes: half of them never come.
    found = rows(folder, torch.cat([x0[kept], x0[kept].roll(1, -1)])[:COUNT], None, "metrics=[classifier,classes]")
    assert found["classes/fraction in other classes"]["value"] == pytest.approx(50, abs=8)
    assert "classes/recognised as requested" not in found
    assert found["classifier/recall"]["value"] < real["classifier/recall"]["value"] - 0.2
    assert found["classifier/coverage"]["value"] < real["classifier/coverage"]["value"] - 0.3
    assert found["classifier/precision"]["value"] > found["classifier/recall"]["value"] + 0.1


def test_wrong_labels_cost_the_accuracy_and_not_the_distance(folder: Path, real: Found) -> None:
    x0, labels = digits()
    wrong = rows(folder, x0, (labels + 1) % 10, "metrics=[classifier,classes]")
    assert wrong["classes/recognised as requested"]["value"] < 5
    # The proportions of the classes are the only difference.
    right = real["classifier/Fréchet distance"]
    assert wrong["classifier/Fréchet distance"]["value"] < right["value"] + 5 * right["floor"]


def test_copies_of_training_examples_are_found_by_neighbours_alone(folder: Path, real: Found) -> None:
    from recipes.config.build import Builder
    from recipes.evaluation.sets import real_data

    train_set, _ = real_data(folder / "run", Builder())
    x0, labels = train_set.batch(range(COUNT))[:2]
    found = rows(folder, x0, labels, "metrics=[classifier,neighbours]")
    assert found["classifier/Fréchet distance"]["value"] < 2 * real["classifier/Fréchet distance"]["floor"]
    for space in ("data", "features"):
        assert found[f"neighbours/{space}: repetitions"]["value"] == 100
        assert found[f"neighbours/{space}: nearer than new"]["value"] == 100
        assert found[f"neighbours/{space}: distance"]["value"] < 1e-3
    assert found["neighbours/data: repetitions"]["floor"] == 0


def test_as_many_samples_of_a_class_are_looked_up_as_there_are_held_out(folder: Path) -> None:
    x0, labels = digits()
    threes = x0[labels == 3].repeat(4, 1, 1, 1)
    found = report(folder, torch.cat([threes, x0[labels == 5]]),
                   torch.tensor([3] * len(threes) + [5] * int((labels == 5).sum())),
                   "metrics=[neighbours]")["results"]["neighbours"]  # fmt: skip
    assert found["counts"]["samples"] == found["counts"]["held_out"] < 200
    assert any("at most as many per class as held-out" in note for note in found["notes"])


def test_leaves_a_table_a_report_and_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(folder, *digits())
    printed = capsys.readouterr().out
    for text in ("Fréchet distance", "real against real", "Bias:", "not computed: inception", "[1/8] classifier"):
        assert text in printed
    written = json.loads((folder / "evaluate.json").read_text())
    assert written["results"] == found["results"]
    assert written["counts"] == {
        "asked": COUNT,
        "compared": found["counts"]["compared"],
        "reference": found["counts"]["compared"],
        "real": 2 * found["counts"]["compared"],
    }
    assert found["unavailable"].keys() == {"inception", "vggish", "r3d", "likelihood"}
    assert len(found["figures"]) == 4
    for name in found["figures"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def test_scores_are_the_numbers_that_say_most(folder: Path, real: Found) -> None:
    x0, labels = digits()
    found = report(folder, x0, labels)
    rows_by_name = {name: real[name] for name in ("classifier/Fréchet distance", "spectrum/rms, radially averaged")}
    assert found["scores"] == {
        "frechet_distance": rows_by_name["classifier/Fréchet distance"]["value"],
        "frechet_distance_floor": rows_by_name["classifier/Fréchet distance"]["floor"],
        "recognised": real["classes/recognised as requested"]["value"] / 100,
        "spectrum_error_db": rows_by_name["spectrum/rms, radially averaged"]["value"],
        "count": found["counts"]["compared"], "reference_count": found["counts"]["reference"],
    }  # fmt: skip
    assert json.loads((folder / "evaluate.json").read_text())["scores"] == found["scores"]
    asked = report(folder, x0, labels, "metrics=[axes]")["scores"]
    assert asked.keys() == {"count", "reference_count"}


def test_reference_says_how_many_and_which_real_examples(folder: Path) -> None:
    x0, labels = digits()
    few = ["metrics=[classifier,components,sliced,spectrum,axes,bands,classes]", "reference=600"]
    found = report(folder, x0[:200], labels[:200], *few)
    assert (found["scores"]["count"], found["scores"]["reference_count"]) == (200, pytest.approx(600, abs=10))
    held_out = report(folder, x0[:100], labels[:100], "metrics=[classifier]", "reference_split=test")
    assert held_out["scores"]["reference_count"] == 100
    assert "held_out" not in held_out["results"]["classifier"]
    assert held_out["scores"]["frechet_distance"] < 3 * held_out["scores"]["frechet_distance_floor"]
    with pytest.raises(RecipeError, match="reference must be null or a number of real examples of at least 4"):
        report(folder, x0, labels, "reference=2")


def test_held_out_examples_are_missed_before_samples_are_drawn(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    # Without a checkpoint, drawing would fail: what is told is that it would have been of no use.
    arguments = ["experiment=image_digits", "modality.size=16", f"run_dir={run}", "validation.holdout=0"]
    configuration.write(configuration.load("train", arguments), run / "config.yaml")
    given = [f"run_dir={run}", "metrics=[sliced]", "reference_split=test"]
    with pytest.raises(RecipeError, match="reference_split=test: "):
        recipe.evaluate(configuration.load("evaluate", given))


def test_held_out_examples_score_the_floor_too(folder: Path) -> None:
    x0, labels = digits()
    found = report(folder, x0[:200], labels[:200], "metrics=[classifier]", "reference=600")
    floor = found["scores"]["frechet_distance_floor"]
    assert 0.5 * floor < found["results"]["classifier"]["held_out"] < 2 * floor


def test_a_change_shows_along_its_axis_alone(folder: Path, real: Found) -> None:
    x0, labels = digits()
    highest = [name for name in real if name.startswith("axes/width: power at")][-1]
    assert real[highest]["value"] == pytest.approx(1, abs=5 * real[highest]["error"])
    blurred = rows(folder, (x0 + x0.roll(1, -1)) / 2, labels, "metrics=[axes]")
    assert blurred[highest]["value"] < 0.4
    nearer = blurred["axes/width: difference of neighbours"]
    assert nearer["value"] < 1 - 5 * nearer["error"]
    assert blurred[highest.replace("width", "height")]["value"] > blurred[highest]["value"] + 0.2
    for name, row in real.items():
        if name.startswith("axes/"):
            assert (row["ideal"], row["floor"]) == (1.0, pytest.approx(1, abs=0.3))


def test_samples_are_judged_as_they_are_saved(folder: Path) -> None:
    """Values beyond the range of pixels are clipped, as in the file that a person would look at."""
    x0, labels = digits()
    loud = torch.where(x0 > 0.999, 1e6, x0)
    words = "metrics=[sliced,axes]"
    assert rows(folder, loud, labels, words) == rows(folder, x0, labels, words)


def test_one_class_is_compared_with_that_class(folder: Path) -> None:
    x0, labels = digits()
    threes = labels == 3
    found = report(folder, x0[threes], labels[threes], "metrics=[classifier]")["scores"]
    assert found["frechet_distance"] < 3 * found["frechet_distance_floor"]
    among_all = report(folder, x0[threes], None, "metrics=[classifier]")["scores"]
    assert among_all["frechet_distance"] > 10 * found["frechet_distance"]


def test_is_the_same_again(folder: Path) -> None:
    x0, labels = digits()
    words = "metrics=[components,sliced,bands,spectrum]"
    assert rows(folder, x0, labels, words) == rows(folder, x0, labels, words)


def test_too_few_real_examples_shrink_all_sets_and_say_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x0, labels = digits()
    threes = labels == 3
    many = x0[threes].repeat(6, 1, 1, 1)
    found = report(folder, many, torch.full((len(many),), 3), "metrics=[sliced]")
    assert found["counts"]["compared"] < found["counts"]["asked"] == len(many)
    assert f"of {len(many)} samples were compared" in capsys.readouterr().out
    classes = report(folder, many, torch.full((len(many),), 3), "metrics=[classes]")["results"]["classes"]["classes"]
    assert [each["name"] for each in classes if each["recognised"] is not None] == ["3"]


def test_refusals_name_what_is_wrong(folder: Path) -> None:
    x0, labels = digits()
    with pytest.raises(RecipeError, match="no 'spectra'; did you mean 'spectrum'"):
        report(folder, x0, labels, "metrics=[spectra]")
    with pytest.raises(RecipeError, match="vggish cannot be computed: it is a network for sounds"):
        report(folder, x0, labels, "metrics=[vggish]")
    with pytest.raises(RecipeError, match=r"inception cannot be computed.*networks.inception=FILE"):
        report(folder, x0, labels, "metrics=[inception]")
    with pytest.raises(RecipeError, match="metrics is empty"):
        report(folder, x0, labels, "metrics=[]")
    with pytest.raises(RecipeError, match="splits >= 1"):
        report(folder, x0, labels, "splits=0")
    with pytest.raises(RecipeError, match="at least 4"):
        report(folder, x0[:3], labels[:3])
    with pytest.raises(RecipeError, match=r"shape \(1, 8, 16\)"):
        report(folder, x0[:, :, :8], labels)
    with pytest.raises(RecipeError, match="no run or exported model is in"):
        report(folder, x0, labels, f"run_dir={folder / 'nowhere'}")
    broken = x0.clone()
    broken[2, 0, 0, 0] = torch.inf
    with pytest.raises(RecipeError, match="1 of 400 samples"):
        report(folder, broken)
    with pytest.raises(RecipeError, match="10 classes"):
        report(folder, x0, labels + 1)
    for nothing in (x0[:0], x0.to(torch.complex64), x0.to(torch.int64)):
        with pytest.raises(RecipeError, match="it has no x0 of the right type"):
            report(folder, nothing)
    (folder / "empty").mkdir()
    with pytest.raises(RecipeError, match="multisagd sample"):
        report(folder, x0, None, f"samples_from={folder / 'empty'}")
    run = folder / "linked" / "run"
    run.mkdir(parents=True)
    (run / "config.yaml").write_bytes((folder / "run" / "config.yaml").read_bytes())
    (run / "evaluate.json").symlink_to(folder / "precious")
    save_file({"x0": x0}, run / "samples.safetensors")
    with pytest.raises(RecipeError, match=r"evaluate\.json is a link to"):
        report(folder, x0, labels, f"run_dir={run}", f"samples_from={run}")
    # What is asked for is judged before anything is drawn: this run has no checkpoint.
    with pytest.raises(RecipeError, match="likelihood cannot be computed"):
        recipe.evaluate(configuration.load("evaluate", [f"run_dir={folder / 'run'}", "metrics=[likelihood]"]))


def test_one_kind_that_fails_costs_the_others_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(task: Any) -> Any:
        task.figure_path("never.png")
        raise ValueError("it does not like these data")

    metrics = {name: METRICS[name] for name in ("spectrum", "sliced")}
    monkeypatch.setattr("recipes.evaluation.metrics.METRICS", metrics)
    monkeypatch.setattr("recipes.evaluation.spectra.spectrum", fails)
    found = report(folder, *digits())
    assert found["unavailable"] == {"spectrum": "it does not like these data"}
    assert found["results"].keys() == {"sliced"}
    assert found["figures"] == []
    with pytest.raises(RecipeError, match="spectrum: it does not like these data"):
        report(folder, *digits(), "metrics=[sliced,spectrum]")


def test_unknown_key_is_refused_and_help_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert recipe.main(["run_dir=x", "sample_from=y"]) == 2
    assert "did you mean 'samples_from'" in capsys.readouterr().err
    assert cli.main(["evaluate", "--help"]) == 0
    text = capsys.readouterr().out
    assert "usage: multisagd evaluate run_dir=…" in text
    assert text.count("\n  count:") == text.count("\n  samples:") == 1
    keys = yaml.safe_load(text.split("keys, with their defaults:")[1].split("# as in `multisagd")[0])
    assert {"samples", "metrics", "neighbours", "likelihood", "networks"} <= keys.keys()


def test_draws_once_and_finds_the_samples_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "run")
    arguments = [f"run_dir={tmp_path / 'run'}", "samples=24", "steps=2", f"cache={tmp_path / 'cache'}", *QUICK]
    arguments += ["likelihood.items=3", "likelihood.steps=2"]
    first = recipe.evaluate(configuration.load("evaluate", arguments))
    assert "24 samples in" in capsys.readouterr().out
    assert first["counts"] == {"asked": 24, "compared": 24, "reference": 24, "real": 48}
    assert first["results"].keys() >= {"classifier", "classes", "neighbours", "likelihood", "spectrum"}
    bits = first["results"]["likelihood"]
    assert len(bits["bits"]) == 3
    assert 0 < bits["rows"][0]["value"] < 30
    again = recipe.evaluate(configuration.load("evaluate", arguments))
    assert "samples in" not in capsys.readouterr().out.split("reading samples")[0]
    assert again["results"] == first["results"]
    # Other settings are other samples.
    recipe.evaluate(configuration.load("evaluate", [*arguments, "seed=1", "metrics=[sliced]"]))
    assert "24 samples in" in capsys.readouterr().out


@pytest.mark.parametrize("medium", ["spectrogram", pytest.param("waveform", marks=pytest.mark.slow), "video"])
def test_every_medium_is_evaluated(tmp_path: Path, medium: str) -> None:
    words = [*MODALITIES[medium], *NETWORKS["unet"], "data.count=40", "training.samples=32", "training.batch=8"]
    kept = [
        word for word in TINY if not word.startswith(("modality.", "network.", "training.samples", "training.batch"))
    ]
    train(configuration.load("train", [*kept, *words, "validation.holdout=8", f"run_dir={tmp_path / 'run'}"]))
    arguments = [f"run_dir={tmp_path / 'run'}", "samples=8", "steps=2", "bands=3", *QUICK]
    found = recipe.evaluate(configuration.load("evaluate", [*arguments, f"cache={tmp_path / 'cache'}"]))
    assert found["counts"]["compared"] >= 4
    wanted = {"components", "sliced", "spectrum", "bands", "neighbours"}
    assert found["results"].keys() >= wanted
    axes = {row["name"] for row in found["results"]["spectrum"]["rows"]}
    assert "rms along " + ("frame" if medium == "video" else "time") in axes
    picture = Path(found["samples"]).with_name("evaluate_neighbours.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("medium", "network", "names"),
    [
        ("image", "inception", {"2048: Fréchet distance", "768: KID"}),
        ("spectrogram", "vggish", {"Fréchet distance", "KID"}),
        ("video", "r3d", {"Fréchet distance", "KID"}),
    ],
)
def test_pretrained_networks_are_used_where_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, medium: str, network: str, names: set[str]
) -> None:
    words = [*MODALITIES[medium], *NETWORKS["unet"], "training.samples=32", "training.batch=8"]
    kept = [
        word for word in TINY if not word.startswith(("modality.", "network.", "training.samples", "training.batch"))
    ]
    data = [] if medium == "image" else ["data.count=40", "validation.holdout=8"]
    train(configuration.load("train", [*kept, *words, *data, f"run_dir={tmp_path / 'run'}"]))
    torch.manual_seed(0)
    if network == "inception":
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        torch.save({}, tmp_path / "empty.pth")
        with monkeypatch.context() as patch:
            patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
            random: torch.nn.Module = FeatureExtractorInceptionV3("random", ["2048"], str(tmp_path / "empty.pth"))
    elif network == "vggish":
        random = VGGish()
    else:
        random = r3d_18()
    torch.save(random.state_dict(), tmp_path / "random.pth")
    arguments = [f"run_dir={tmp_path / 'run'}", "samples=8", "steps=2", "labels=null", f"metrics=[{network}]", *QUICK]
    found = recipe.evaluate(
        configuration.load("evaluate", [*arguments, f"networks.{network}={tmp_path / 'random.pth'}"])
    )
    assert found["counts"]["compared"] == 8
    results = {row["name"]: row for row in found["results"][network]["rows"]}
    assert results.keys() >= names
    assert all(row["value"] == row["value"] and row["floor"] is not None for row in results.values())


@pytest.mark.slow
@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder of real data")
def test_digits_of_mnist_score_the_noise_floor(tmp_path: Path) -> None:
    """Digits held out of the 60,000 come from the same writers as the others; those of the test set do not."""
    from modalities.base import Dataset
    from recipes.config.build import Builder
    from recipes.data.dataset import hold_out
    from recipes.runs.settings import TrainSettings

    root = Path(os.environ["MULTISAGD_DATA"]) / "images" / "mnist"
    (tmp_path / "run").mkdir()
    arguments = ["experiment=image_mnist", "modality.size=16", "modality.resize=crop", f"data.root={root}"]
    config = configuration.load("train", [*arguments, f"run_dir={tmp_path / 'run'}", "validation.holdout=2000"])
    configuration.write(config, tmp_path / "run" / "config.yaml")
    settings = Builder().settings(TrainSettings, config, "")
    modality = Image(size=16, channels=1, resize="crop")
    data = Builder().build(settings.data, Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    x0, labels = hold_out(data, settings)[1].batch(range(2000))[:2]
    kinds = "metrics=[components,sliced,spectrum,bands]"
    found = rows(tmp_path, x0, labels, kinds, "splits=6", "bootstrap=20")
    for name in (each for each in DISTANCES if each in found):
        row = found[name]
        assert row["value"] == pytest.approx(row["floor"], abs=4 * max(row["floor_error"], row["error"])), name
    for name, row in found.items():
        if name.startswith("bands/"):
            assert row["value"] == pytest.approx(50, abs=4 * row["error"]), name
