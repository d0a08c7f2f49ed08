"""`multisagd evaluate` measures samples of known quality correctly, and evaluates runs of every medium."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models.video import r3d_18

from modalities.base import Dataset
from modalities.image import Image
from modalities.image_sets import Digits
from multisagd.metrics.vggish import VGGish
from recipes import evaluate as recipe
from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.data.parts import hold_out
from recipes.evaluation.metric_table import METRICS
from recipes.evaluation.metrics import choose_metrics
from recipes.evaluation.sets import load_samples, real_data
from recipes.evaluation.task import EvaluateSettings
from recipes.runs.settings import TrainSettings
from recipes.train import train
from tests.helpers.every_modality import MODALITIES, NETWORKS
from tests.helpers.tiny import TINY, tiny_run

QUICK = [
    "classifier.samples=3200", "classifier.batch=64", "classifier.widths=[16,32]", "classifier.shift=1",
    "directions=32", "bootstrap=8", "splits=3", "neighbours.items=200", "engine.threads=1", "engine.device=cpu",
]  # fmt: skip
COUNT = 400
HELD_OUT = ["experiment=image_digits", "modality.size=16", "validation.holdout=0.3"]
Rows = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with a configuration but no checkpoint, and a cache next to it; tests provide the samples."""
    folder = tmp_path_factory.mktemp("evaluate")
    configured(folder / "run", *HELD_OUT)
    return folder


def configured(run_dir: Path, *words: str) -> dict[str, Any]:
    """Make a run of a configuration alone."""
    run_dir.mkdir(parents=True)
    config = configuration.load("train", [*words, f"run_dir={run_dir}"])
    configuration.write(config, run_dir / "config.yaml")
    return config


def report(folder: Path, x0: Tensor, labels: Tensor | None = None, *more: str) -> dict[str, Any]:
    save_file({"x0": x0.contiguous(), **({} if labels is None else {"labels": labels})}, folder / "samples.safetensors")
    arguments = [f"run_dir={folder / 'run'}", f"samples_from={folder}", f"cache={folder / 'cache'}", *QUICK, *more]
    return recipe.evaluate(configuration.load("evaluate", arguments))


def by_name(report: dict[str, Any]) -> Rows:
    """Return the rows of a report by `kind/name`."""
    return {f"{kind}/{row['name']}": row for kind, result in report["results"].items() for row in result["rows"]}


def rows(folder: Path, x0: Tensor, labels: Tensor | None = None, *more: str) -> Rows:
    return by_name(report(folder, x0, labels, *more))


def digits() -> tuple[Tensor, Tensor]:
    """Return the examples that the run holds out, which no metric compares samples with."""
    settings = Builder().settings(TrainSettings, configuration.load("train", [*HELD_OUT, "run_dir=unused"]), "")
    held_out = hold_out(Digits(Image(size=16, channels=1)), settings, Builder()).held_out
    x0, labels = held_out.batch(range(COUNT))[:2]
    assert labels is not None
    return x0, labels


@pytest.fixture(scope="module")
def real(folder: Path) -> Rows:
    return rows(folder, *digits())


DISTANCES = (
    "classifier/Fréchet distance", "classifier/KID", "components/Fréchet distance", "components/KID",
    "sliced/Wasserstein distance", "spectrum/rms, radially averaged", "spectrum/rms along height",
    "spectrum/rms along width",
)  # fmt: skip


def test_evaluate_gives_new_real_data_the_noise_floor_in_every_metric(real: Rows) -> None:
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
        if name.startswith("axes/"):
            assert (row["ideal"], row["floor"]) == (1.0, pytest.approx(1, abs=0.3))
    highest = [name for name in real if name.startswith("axes/width: power at")][-1]
    assert real[highest]["value"] == pytest.approx(1, abs=5 * real[highest]["error"])
    assert real["classes/recognised as requested"]["value"] > 90
    assert real["classes/fraction in other classes"]["value"] < 8
    assert real["neighbours/data: repetitions"]["value"] == 0
    assert real["neighbours/data: nearer than new"]["value"] == pytest.approx(50, abs=12)


def test_evaluate_shows_blur_in_high_bands_and_along_its_axis_alone(folder: Path, real: Rows) -> None:
    x0, labels = digits()
    along_width = (x0 + x0.roll(1, -1)) / 2
    measured = rows(folder, along_width, labels, "metrics=[axes]")
    highest = [name for name in measured if name.startswith("axes/width: power at")][-1]
    assert measured[highest]["value"] < 0.4
    assert measured[highest.replace("width", "height")]["value"] > measured[highest]["value"] + 0.2
    nearer = measured["axes/width: difference of neighbours"]
    assert nearer["value"] < 1 - 5 * nearer["error"]
    measured = rows(folder, (along_width + along_width.roll(1, -2)) / 2, labels, "metrics=[spectrum,bands,sliced]")
    errors = [row["value"] for name, row in measured.items() if name.startswith("spectrum/band 0.")]
    # Rounding to pixels again leaves a little noise in the highest corner.
    assert errors[0] > errors[1] > errors[2]
    assert errors[-2] < -3
    bands = [row["value"] for name, row in measured.items() if name.startswith("bands/band 0.")]
    assert max(bands[2:]) > 90 > bands[0]
    assert measured["sliced/Wasserstein distance"]["value"] > real["sliced/Wasserstein distance"]["value"]


def test_evaluate_lowers_recall_for_missing_classes_and_accuracy_for_wrong_labels(folder: Path, real: Rows) -> None:
    x0, labels = digits()
    kept = x0[labels < 5]
    # As if drawn without classes: half of them never come.
    missing = rows(folder, torch.cat([kept, kept.roll(1, -1)])[:COUNT], None, "metrics=[classifier,classes]")
    assert missing["classes/fraction in other classes"]["value"] == pytest.approx(50, abs=8)
    assert "classes/recognised as requested" not in missing
    assert missing["classifier/recall"]["value"] < real["classifier/recall"]["value"] - 0.2
    assert missing["classifier/coverage"]["value"] < real["classifier/coverage"]["value"] - 0.3
    assert missing["classifier/precision"]["value"] > missing["classifier/recall"]["value"] + 0.1
    wrong = rows(folder, x0, (labels + 1) % 10, "metrics=[classifier,classes]")
    assert wrong["classes/recognised as requested"]["value"] < 5
    # The proportions of the classes are the only difference.
    right = real["classifier/Fréchet distance"]
    assert wrong["classifier/Fréchet distance"]["value"] < right["value"] + 5 * right["floor"]


def test_evaluate_finds_copies_of_training_examples_by_neighbours_alone(folder: Path, real: Rows) -> None:
    train_set, _ = real_data(folder / "run", Builder())
    x0, labels = train_set.batch(range(COUNT))[:2]
    measured = rows(folder, x0, labels, "metrics=[classifier,neighbours]")
    assert measured["classifier/Fréchet distance"]["value"] < 2 * real["classifier/Fréchet distance"]["floor"]
    for space in ("data", "features"):
        assert measured[f"neighbours/{space}: repetitions"]["value"] == 100
        assert measured[f"neighbours/{space}: nearer than new"]["value"] == 100
        assert measured[f"neighbours/{space}: distance"]["value"] < 1e-3
    assert measured["neighbours/data: repetitions"]["floor"] == 0


def test_evaluate_limits_neighbours_of_a_class_to_its_held_out_examples(folder: Path) -> None:
    x0, labels = digits()
    chosen = torch.cat([torch.nonzero(labels == 3)[:, 0].repeat(4), torch.nonzero(labels == 5)[:, 0]])
    result = report(folder, x0[chosen], labels[chosen], "metrics=[neighbours]")["results"]["neighbours"]
    assert result["counts"]["samples"] == result["counts"]["held_out"] < 200
    assert any("in each class, at most as many as there are held-out examples" in note for note in result["notes"])


def test_evaluate_prints_a_table_and_writes_a_report_with_scores_and_pictures(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x0, labels = digits()
    result = report(folder, x0, labels)
    printed = capsys.readouterr().out
    for text in ("Fréchet distance", "real against real", "Bias:", "not computed: inception", "[1/8] classifier"):
        assert text in printed
    written, measured = json.loads((folder / "evaluate.json").read_text()), by_name(result)
    assert written["results"] == result["results"]
    compared = result["counts"]["compared"]
    assert written["counts"] == {"asked": COUNT, "compared": compared, "reference": compared, "real": 2 * compared}
    of_fields = {"rings", "distribution", "increments", "coherence"}
    assert result["unavailable"].keys() == {
        "inception",
        "vggish",
        "r3d",
        "likelihood",
        "ensemble",
        "log_spectral_distance",
        *of_fields,
    }
    assert len(result["figures"]) == 4
    for name in result["figures"]:
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert written["scores"] == result["scores"] == {
        "frechet_distance": measured["classifier/Fréchet distance"]["value"],
        "frechet_distance_floor": measured["classifier/Fréchet distance"]["floor"],
        "recognised": measured["classes/recognised as requested"]["value"] / 100,
        "spectrum_error_db": measured["spectrum/rms, radially averaged"]["value"],
        "count": compared, "reference_count": compared,
    }  # fmt: skip
    assert report(folder, x0, labels, "metrics=[axes]")["scores"].keys() == {"count", "reference_count"}


def test_evaluate_takes_the_number_and_the_split_of_real_examples(folder: Path) -> None:
    x0, labels = digits()
    few = ["metrics=[classifier,components,sliced,spectrum,axes,bands,classes]", "reference=600"]
    result = report(folder, x0[:200], labels[:200], *few)
    assert (result["scores"]["count"], result["scores"]["reference_count"]) == (200, pytest.approx(600, abs=10))
    floor = result["scores"]["frechet_distance_floor"]
    assert 0.5 * floor < result["results"]["classifier"]["held_out"] < 2 * floor
    held_out = report(folder, x0[:100], labels[:100], "metrics=[classifier]", "reference_split=test")
    assert held_out["scores"]["reference_count"] == 100
    assert "held_out" not in held_out["results"]["classifier"]
    assert held_out["scores"]["frechet_distance"] < 3 * held_out["scores"]["frechet_distance_floor"]


def test_evaluate_misses_held_out_examples_before_it_draws_samples(tmp_path: Path) -> None:
    configured(tmp_path / "run", *HELD_OUT, "validation.holdout=0")  # without a checkpoint, drawing would fail
    words = [f"run_dir={tmp_path / 'run'}", "metrics=[sliced]", "reference_split=test"]
    with pytest.raises(RecipeError, match="reference_split=test: "):
        recipe.evaluate(configuration.load("evaluate", words))


def test_evaluate_repeats_exactly_and_judges_samples_as_they_are_saved(folder: Path) -> None:
    """Values beyond the range of pixels are clipped, as in the files."""
    x0, labels = digits()
    loud = torch.where(x0 > 0.999, 1e6, x0)
    words = "metrics=[components,sliced,bands,spectrum,axes]"
    assert rows(folder, loud, labels, words) == rows(folder, x0, labels, words)


def test_evaluate_reports_smaller_sets_when_real_examples_are_few(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x0, labels = digits()
    many = x0[labels == 3].repeat(6, 1, 1, 1)
    result = report(folder, many, torch.full((len(many),), 3), "metrics=[sliced,classes]")
    assert result["counts"]["compared"] < result["counts"]["asked"] == len(many)
    assert f"of {len(many)} samples were compared" in capsys.readouterr().out
    classes = result["results"]["classes"]["classes"]
    assert [each["name"] for each in classes if each["recognised"] is not None] == ["3"]


def test_evaluate_draws_no_samples_for_too_few_real_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path / "run", "experiment=image_digits", "modality.size=16", "validation.holdout=5")
    monkeypatch.setattr(recipe, "sample", lambda *words, **more: pytest.fail("samples are drawn"))
    words = [f"run_dir={tmp_path / 'run'}", "reference_split=test", "metrics=[sliced]", *QUICK]
    with pytest.raises(RecipeError, match="too few real examples: 5 in this split"):
        recipe.evaluate(configuration.load("evaluate", words))


def test_evaluate_refuses_mistakes_and_names_them(folder: Path) -> None:
    x0, labels = digits()
    (folder / "empty").mkdir()
    for words, message in (
        ("metrics=[spectra]", "no metric 'spectra'; did you mean 'spectrum'"),
        ("metrics=[vggish]", "vggish cannot be computed: it is a network for audio"),
        ("metrics=[inception]", r"inception cannot be computed.*networks.inception=FILE"),
        ("metrics=[]", "metrics is empty"),
        ("splits=0", "splits >= 1"),
        ("reference=2", "reference must be null, or at least 4 real examples"),
        (f"run_dir={folder / 'nowhere'}", "there is no run or exported model in"),
        (f"samples_from={folder / 'empty'}", "multisagd sample"),
    ):
        with pytest.raises(RecipeError, match=message):
            report(folder, x0, labels, words)
    broken = x0.clone()
    broken[2, 0, 0, 0] = torch.inf
    wrong_type = "are not of the right type"
    for samples, classes, message in (
        (x0[:3], labels[:3], "at least 4"), (x0[:, :, :8], labels, r"shape \(1, 8, 16\)"),
        (broken, None, "1 of 400 samples"), (x0, labels + 1, "10 classes"), (x0[:0], None, wrong_type),
        (x0.to(torch.complex64), None, wrong_type), (x0.to(torch.int64), None, wrong_type),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            report(folder, samples, classes)
    # Impossible metrics are refused before anything is drawn: this run has no checkpoint.
    with pytest.raises(RecipeError, match="likelihood cannot be computed"):
        recipe.evaluate(configuration.load("evaluate", [f"run_dir={folder / 'run'}", "metrics=[likelihood]"]))


def test_evaluate_writes_through_no_link(folder: Path) -> None:
    run = folder / "linked" / "run"
    configured(run, *HELD_OUT)
    (run / "evaluate.json").symlink_to(folder / "precious")
    save_file({"x0": digits()[0]}, run / "samples.safetensors")
    with pytest.raises(RecipeError, match=r"evaluate\.json is a symbolic link to"):
        report(folder, *digits(), f"run_dir={run}", f"samples_from={run}")


def test_evaluate_computes_the_other_metrics_when_one_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(task: Any) -> Any:
        task.figure_path("never.png")
        raise ValueError("it does not like these data")

    metrics = {name: METRICS[name] for name in ("spectrum", "sliced")}
    monkeypatch.setattr("recipes.evaluation.metrics.METRICS", metrics)
    monkeypatch.setattr("recipes.evaluation.spectra.spectrum", fails)
    result = report(folder, *digits())
    assert result["unavailable"] == {"spectrum": "it does not like these data"}
    assert result["results"].keys() == {"sliced"}
    assert result["figures"] == []
    with pytest.raises(RecipeError, match="spectrum: it does not like these data"):
        report(folder, *digits(), "metrics=[sliced,spectrum]")


def test_evaluate_draws_samples_once_and_reuses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_run(tmp_path / "run")
    arguments = [f"run_dir={tmp_path / 'run'}", "samples=24", "steps=2", f"cache={tmp_path / 'cache'}", *QUICK]
    arguments += ["likelihood.items=3", "likelihood.steps=2"]
    first = recipe.evaluate(configuration.load("evaluate", arguments))
    assert "24 samples are in" in capsys.readouterr().out
    assert first["counts"] == {"asked": 24, "compared": 24, "reference": 24, "real": 48}
    assert first["results"].keys() >= {"classifier", "classes", "neighbours", "likelihood", "spectrum"}
    bits = first["results"]["likelihood"]
    assert len(bits["bits"]) == 3
    assert 0 < bits["rows"][0]["value"] < 30
    again = recipe.evaluate(configuration.load("evaluate", arguments))
    assert "samples are in" not in capsys.readouterr().out.split("reading samples")[0]
    assert again["results"] == first["results"]
    # Other settings are other samples.
    recipe.evaluate(configuration.load("evaluate", [*arguments, "seed=1", "metrics=[sliced]"]))
    assert "24 samples are in" in capsys.readouterr().out


def trained(run_dir: Path, medium: str, *words: str) -> str:
    """Train the smallest network of a medium, and return the word that names the run."""
    kept = [word for word in TINY if not word.startswith(("modality.", "network.", "training.samples", "training.b"))]
    held_out = [] if medium == "image" else ["data.count=40", "validation.holdout=8"]
    small = ["training.samples=32", "training.batch=8", *held_out]
    train(configuration.load("train", [*kept, *MODALITIES[medium], *NETWORKS["unet"], *small, f"run_dir={run_dir}"]))
    return f"run_dir={run_dir}"


@pytest.mark.parametrize("medium", ["spectrogram", pytest.param("waveform", marks=pytest.mark.slow), "video"])
def test_evaluate_handles_every_medium(tmp_path: Path, medium: str) -> None:
    words = [trained(tmp_path / "run", medium), "samples=8", "steps=2", "bands=3", *QUICK, f"cache={tmp_path}/cache"]
    result = recipe.evaluate(configuration.load("evaluate", words))
    assert result["counts"]["compared"] >= 4
    assert result["results"].keys() >= {"components", "sliced", "spectrum", "bands", "neighbours"}
    axes = {row["name"] for row in result["results"]["spectrum"]["rows"]}
    assert "rms along " + ("frame" if medium == "video" else "time") in axes
    picture = Path(result["samples"]).with_name("evaluate_neighbours.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


def random_inception(tmp_path: Path) -> torch.nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.save({}, tmp_path / "empty.pth")
    with mock.patch.object(FeatureExtractorInceptionV3, "load_state_dict"):
        network: torch.nn.Module = FeatureExtractorInceptionV3("random", ["2048"], str(tmp_path / "empty.pth"))
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("medium", "network", "random", "names"),
    [
        ("image", "inception", random_inception, {"2048: Fréchet distance", "768: KID"}),
        ("spectrogram", "vggish", lambda _: VGGish(), {"Fréchet distance", "KID"}),
        ("video", "r3d", lambda _: r3d_18(), {"Fréchet distance", "KID"}),
    ],
    ids=["inception", "vggish", "r3d"],
)
def test_evaluate_uses_pretrained_networks_of_local_files(
    tmp_path: Path, medium: str, network: str, random: Callable[[Path], torch.nn.Module], names: set[str]
) -> None:
    torch.manual_seed(0)
    torch.save(random(tmp_path).state_dict(), tmp_path / "random.pth")
    words = [trained(tmp_path / "run", medium), "samples=8", "steps=2", "labels=null", f"metrics=[{network}]", *QUICK]
    words.append(f"networks.{network}={tmp_path / 'random.pth'}")
    result = recipe.evaluate(configuration.load("evaluate", words))
    assert result["counts"]["compared"] == 8
    results = {row["name"]: row for row in result["results"][network]["rows"]}
    assert results.keys() >= names
    assert all(row["value"] == row["value"] and row["floor"] is not None for row in results.values())


@pytest.mark.slow
@pytest.mark.skipif("MULTISAGD_DATA" not in os.environ, reason="MULTISAGD_DATA names no folder of real data")
def test_evaluate_gives_mnist_digits_the_noise_floor(tmp_path: Path) -> None:
    """Digits held out of the 60,000 come from the same writers as the others; those of the test set do not."""
    root = Path(os.environ["MULTISAGD_DATA"]) / "images" / "mnist"
    words = ["experiment=image_mnist", "modality.size=16", "modality.resize=crop", f"data.root={root}"]
    config = configured(tmp_path / "run", *words, "validation.holdout=2000")
    settings = Builder().settings(TrainSettings, config, "")
    modality = Image(size=16, channels=1, resize="crop")
    data = Builder().build(settings.data, Dataset, "data", modality=modality)  # type: ignore[type-abstract]
    x0, labels = hold_out(data, settings, Builder()).held_out.batch(range(2000))[:2]
    kinds = "metrics=[components,sliced,spectrum,bands]"
    for name, row in rows(tmp_path, x0, labels, kinds, "splits=6", "bootstrap=20").items():
        if name in DISTANCES:
            assert row["value"] == pytest.approx(row["floor"], abs=4 * max(row["floor_error"], row["error"])), name
        if name.startswith("bands/"):
            assert row["value"] == pytest.approx(50, abs=4 * row["error"]), name


def test_load_samples_refuses_what_does_not_fit(tmp_path: Path) -> None:
    data, x0 = Digits(Image(8, 1)), torch.zeros(4, 1, 8, 8)
    broken = x0.clone()
    broken[1, 0, 0, 0] = torch.nan
    for tensors, message in (
        ({"x0": torch.zeros(4, 1, 9, 8)}, "but the run's data have shape"),
        ({"x0": broken}, "1 of 4 samples in .* are not finite"),
        ({"x0": x0, "labels": torch.tensor([0, 1, 2, 10])}, "do not match its samples"),
        ({"x0": x0, "labels": torch.zeros(4)}, "not of the right type"),
    ):
        save_file(tensors, tmp_path / "samples.safetensors")
        with pytest.raises(RecipeError, match=message):
            load_samples(tmp_path / "samples.safetensors", data)


def evaluation(*words: str) -> EvaluateSettings:
    return Builder().settings(EvaluateSettings, configuration.load("evaluate", ["run_dir=run", *words]), "")


def test_choose_metrics_refuses_what_cannot_be_computed() -> None:
    unlabelled: Any = SimpleNamespace(classes=None, modality=Image(8, 1))
    with pytest.raises(RecipeError, match="metrics is empty"):
        choose_metrics(evaluation("metrics=[]"), unlabelled)
    with pytest.raises(RecipeError, match="classes cannot be computed"):
        choose_metrics(evaluation("metrics=[classes]"), unlabelled)
    with pytest.raises(RecipeError, match="at least 4 real examples"):
        evaluation("reference=3")
