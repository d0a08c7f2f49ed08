"""An exported model draws the samples of its run, is refused once damaged, and its card states the run's records."""

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image as PILImage
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import multisagd as ms
from modalities.audio import Audio
from modalities.base import Modality
from modalities.image import Image
from recipes import evaluate, export
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.cli.main import main
from recipes.config import compose as configuration
from recipes.export import load_denoiser
from recipes.report import ReportSettings, write_report
from recipes.sample import sample
from recipes.sharing.card import fields_of_the_hub, in_words, last_samples
from tests.helpers.hostile_files import edited, updated
from tests.helpers.tiny import tiny_run

HEADINGS = [
    "How to use it", "Training data", "Noise and schedule", "Network and training", "Evaluation", "Limits", "Licence",
]  # fmt: skip
Card = tuple[Path, dict[str, Any], str]
"""The folder of a model, and the fields and the text of its card."""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an evaluation of its last weights."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    noise = ["spectrum=data_power", "spectrum.exponent=0.5"]
    tiny_run(folder, "training.samples=32", "engine.distribution=ddp", "seed=7", *noise)
    words = ["samples=20", "steps=2", "splits=2", "metrics=[components,sliced]"]
    words += ["engine.threads=1", "engine.device=cpu"]
    evaluate.evaluate(configuration.load("evaluate", [f"run_dir={folder}", *words]))
    return folder


def exported(source: Path, out: Path, *words: str) -> tuple[dict[str, Any], str]:
    """Export a model, and return the fields and the text of its card."""
    assert export.main([f"run_dir={source}", f"out={out}", *words]) == 0
    head, text = (out / "README.md").read_text(encoding="utf-8").removeprefix("---\n").split("\n---\n", 1)
    return yaml.safe_load(head), text


def section(text: str, heading: str) -> str:
    return text.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[.*?\]\((.*?)\)", text)


@pytest.fixture(scope="module")
def card(run_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Card:
    """A model exported from the run."""
    folder = tmp_path_factory.mktemp("models") / "digits"
    return folder, *exported(run_dir, folder, "license=Apache-2.0")


@pytest.fixture(scope="module")
def digits(card: Card) -> Path:
    return card[0]


def drawn(run_dir: Path, out: Path, *words: str) -> dict[str, torch.Tensor]:
    words = (f"run_dir={run_dir}", f"out={out}", "count=3", "steps=2", "engine.threads=1", "engine.device=cpu", *words)
    return load_file(sample(configuration.load("sample", words)) / "samples.safetensors")


def test_export_gives_samples_and_denoiser_of_the_run(run_dir: Path, digits: Path, tmp_path: Path) -> None:
    names = ["README.md", "evaluate.json", "model.json", "model.safetensors", "samples.png", "spectrum.png"]
    assert sorted(path.name for path in digits.iterdir()) == names
    ours, theirs = drawn(digits, tmp_path / "ours"), drawn(run_dir, tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    (denoiser, modality), (expected, _) = load_denoiser(digits), load_denoiser(run_dir)
    assert isinstance(modality, Image)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.7])
    assert torch.equal(denoiser(x, t), expected(x, t))


def test_export_of_the_last_weights_differs_from_their_average(run_dir: Path, digits: Path, tmp_path: Path) -> None:
    exported(run_dir, tmp_path / "last", "weights=network")
    with pytest.raises(RecipeError, match=r"contains only the weights 'network', but ema was requested"):
        drawn(tmp_path / "last", tmp_path / "one")
    ours = drawn(tmp_path / "last", tmp_path / "one", "weights=network")
    assert not torch.equal(ours["x0"], drawn(digits, tmp_path / "two")["x0"])


def test_export_repeats_over_itself_and_leaves_foreign_folders_alone(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        exported(digits, tmp_path / "copy")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == (digits / "model.safetensors").read_bytes()
    (tmp_path / "thesis.txt").write_text("years of work")
    assert export.main([f"run_dir={digits}", f"out={tmp_path}"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_evaluate_refuses_an_exported_model(digits: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", f"run_dir={digits}", "engine.device=cpu", "engine.threads=1"]) == 2
    assert "is an exported model, which does not name its training data: specify the run" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["changed", "truncated", "other shapes", "no notes", "version"])
def test_sample_refuses_damaged_models(digits: Path, tmp_path: Path, damage: str) -> None:
    """Foreign targets and pickles: test_malicious_models."""
    copy = shutil.copytree(digits, tmp_path / "model")
    tensors, notes = copy / "model.safetensors", copy / "model.json"
    content = tensors.read_bytes()
    if damage == "changed":
        tensors.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncated":
        tensors.write_bytes(content[: len(content) // 2])
    elif damage == "other shapes":
        with safe_open(tensors, framework="pt") as file:
            metadata = file.metadata()
        weights = load_file(tensors)
        name = next(name for name in weights if name.startswith("network."))
        save_file({**weights, name: torch.zeros(3, 3, 3)}, tensors, metadata)
    elif damage == "no notes":
        notes.write_text("{}")
    else:
        updated("model.json", format_version=99)(copy)
    with pytest.raises(RecipeError, match=r"export it again|does not match"):
        drawn(copy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_card_has_fields_that_the_hub_reads_and_pictures(run_dir: Path, card: Card) -> None:
    folder, fields, text = card
    assert fields["library_name"] == "multisagd"
    assert fields["license"] == "apache-2.0"
    assert re.findall("^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert pictures(text) == ["samples.png", "spectrum.png"]
    for name in pictures(text):
        with PILImage.open(folder / name) as picture:
            picture.load()
    assert (folder / "samples.png").read_bytes() == (run_dir / "samples" / "000000000032.png").read_bytes()
    hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    assert hub.ModelCard.load(folder / "README.md").data.model_name == "digits"


def test_fields_of_the_hub_name_a_task_that_the_model_does() -> None:
    image, audio = Image(size=8), Audio()
    cases: list[tuple[Modality, dict[str, str] | None, str | None]] = [
        (image, {}, "unconditional-image-generation"),
        (image, {"name": "encoder"}, "text-to-image"),
        (audio, None, None),
        (audio, {"name": "encoder"}, "text-to-audio"),
    ]
    rows = {"sliced": {"rows": [{"name": "distance", "value": 1.0}]}}
    for modality, text, task in cases:
        model: Any = SimpleNamespace(metadata={"text": text})
        subject: Any = SimpleNamespace(model=model, assembly=SimpleNamespace(modality=modality), license=None)
        fields = fields_of_the_hub(subject, "name", {"data": "Own", "results": rows})
        assert fields.get("pipeline_tag") == task
        assert fields["model-index"][0]["results"][0]["task"] == {"type": task or "other"}


def test_card_states_the_numbers_of_the_records(run_dir: Path, card: Card) -> None:
    _, fields, text = card
    facts = json.loads((run_dir / "run.json").read_text())
    training = section(text, "Network and training")
    assert f"parameters: {facts['parameters']:,}" in training
    assert "samples seen: 32\n" in training
    assert "seed: 7\n" in training
    assert f"torch {facts['starts'][0]['versions']['torch'].split('+')[0]}" in training
    assert "DataPower (exponent=0.5)" in section(text, "Noise and schedule")
    data = section(text, "Training data")
    assert f"{facts['data']['examples']} examples, read as Digits" in data
    assert "1 × height 8 (1 pixel) × width 8 (1 pixel)" in data
    (path,) = run_dir.glob("sampled/*/evaluate.json")
    results = json.loads(path.read_text())["results"]
    expected = {f"{kind}: {row['name']}": row for kind, result in results.items() for row in result["rows"]}
    table = section(text, "Evaluation")
    assert re.search(r"samples \(sampler dpmsolver, steps 2, guidance 1.0, seed 0\) against the same number", table)
    for name, row in expected.items():
        assert f"| {name} | {row['value']:.4g}" in table
        assert f"{row['floor']:.4g}" in table
    values = {metric["name"]: metric["value"] for metric in fields["model-index"][0]["results"][0]["metrics"]}
    assert values == {name: row["value"] for name, row in expected.items()}
    assert "sliced: Wasserstein distance" in values
    assert str(run_dir) not in text


def test_card_states_a_lack_of_licence_and_evaluation(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path / "run", "training.samples=16", "training.conditional=false")
    fields, text = exported(tmp_path / "run", tmp_path / "model")
    assert "license=apache-2.0" in capsys.readouterr().out
    assert "license" not in fields
    assert "model-index" not in fields
    assert section(text, "Licence").startswith("\nNo licence was chosen")
    assert "the quality of samples is unknown" in section(text, "Evaluation")
    assert "Condition: none." in text
    assert export.main([f"run_dir={run_dir}", f"out={tmp_path / 'x'}", "license=mine/ours"]) == 2
    assert "is not an SPDX identifier" in capsys.readouterr().err


def test_card_keeps_the_evaluation_of_the_same_weights_alone(run_dir: Path, card: Card, tmp_path: Path) -> None:
    """A copy keeps it; an export of other weights has none, even where a model with an evaluation lay before."""
    run, (model, fields, text) = shutil.copytree(run_dir, tmp_path / "run"), card
    again, repeated = exported(model, tmp_path / "copy" / "digits")
    assert again["model-index"] == fields["model-index"]
    for heading in ("Evaluation", "Noise and schedule"):
        assert section(repeated, heading) == section(text, heading)
    other, text = exported(run, tmp_path / "copy" / "digits", "weights=network")
    assert "No evaluation was recorded" in section(text, "Evaluation")
    assert "model-index" not in other
    assert pictures(text) == ["spectrum.png"]
    files = {path.name for path in (tmp_path / "copy" / "digits").glob("*.*")}
    assert files == {"README.md", "model.json", "model.safetensors", "spectrum.png"}
    updated(next(run.glob("sampled/*/sample.json")), samples_seen=16)(run)
    assert "No evaluation was recorded" in exported(run, tmp_path / "model")[1]


def test_card_states_the_corruption_of_the_exported_run_alone(run_dir: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path / "run", "training.samples=16", "corruption=band", "spectrum=omitting")
    data = section(exported(tmp_path / "run", tmp_path / "model")[1], "Training data")
    assert "**The training data were corrupted in a frequency band**" in data
    assert "The model omits this band" in data
    exported(run_dir, tmp_path / "model")
    assert not (tmp_path / "model" / "corruption.safetensors").exists()
    assert "corrupted" not in exported(tmp_path / "model", tmp_path / "copy")[1]


SECRETS = ("SIGNATURE77", "PASSWORD77", "TOKEN77", "FRAGMENT77", "ann77", "PLACE77")
PRIVATE: list[dict[str, Any]] = [
    {"urls": "https://bucket.example/0.tar?X-Amz-Signature=SIGNATURE77#FRAGMENT77"},
    {"urls": ["https://someone:PASSWORD77@bucket.example/{000..004}.tar", "s3://TOKEN77@b/PLACE77.tar"]},
    {"urls": "simplecache::https://h/user:TOKEN77@place/0.tar", "index": "/home/ann77/index"},
    {"root": "/home/ann77/photos", "manifest": r"C:\Users\ann77\PLACE77.csv", "match": "PLACE77"},
    {"root": "PLACE77"},
]


@pytest.mark.parametrize("data", PRIVATE, ids=["signature", "password", "chain", "home", "environment"])
def test_export_contains_nothing_private(run_dir: Path, tmp_path: Path, data: dict[str, Any]) -> None:
    """Neither addresses with all that is in them, nor folders; a report keeps of them what is no secret."""
    run = shutil.copytree(run_dir, tmp_path / "run")
    config = read_configuration(run / "config.yaml")
    config["data"] = {"_target_": "modalities.tars.TarShards", "window": 16, **data}
    config["tracking"] |= {"project": "https://me:TOKEN77@w.example/x?key=SIGNATURE77"}
    config["training"]["initial"] = "/home/ann77/weights.safetensors"
    command = ["multisagd", "train", *(f"data.{key}={value}" for key, value in data.items())]
    if data == PRIVATE[-1]:  # a plain word
        config["environment"], command[2:] = ["data.root"], ["data.root=${oc.env:PLACE}"]
    configuration.write(config, run / "config.yaml")
    updated("run.json", initial={"from": "/home/ann77/x", "sha256": "0"})(run)
    edited("run.json", lambda facts: facts["starts"][0].update(command=command))(run)
    exported(run, tmp_path / "model")
    exported(tmp_path / "model", tmp_path / "again")
    for folder in (tmp_path / "model", tmp_path / "again"):
        for path in folder.iterdir():
            content = path.read_bytes().decode("latin-1")
            assert [secret for secret in SECRETS if secret in content] == [], path
    notes = json.loads((tmp_path / "model" / "model.json").read_text())
    assert not {"data", "tracking", "run_dir", "engine", "every"} & notes["config"].keys()
    assert notes["metadata"].keys() == {"classes", "untrained", "scalars", "text"}
    page, _ = write_report(ReportSettings(run))
    shown_page = page.read_text()
    assert [secret for secret in SECRETS[:-1] if secret in shown_page] == []
    assert ("PLACE77" in shown_page) == (data in (PRIVATE[1], PRIVATE[3]))


HOSTILE = (
    "\x1b[31m</h1><script>alert(1)</script> [x](javascript:y) `rm` | **b**\n---\nlicense: mit\n# head ![p](q) $$1$$"
)
LONG = "x" * 300


def test_card_shows_hostile_names_as_text(digits: Path, tmp_path: Path) -> None:
    """Classes, data and rows of an evaluation that would be markup, fields of the head, or a table's cells."""
    model = shutil.copytree(digits, tmp_path / "first")

    def spoil_notes(notes: dict[str, Any]) -> None:
        notes["metadata"]["classes"] = [HOSTILE, *notes["metadata"]["classes"][1:]]
        notes["metadata"]["data"] = {"examples": HOSTILE, "classes": LONG, "fingerprint": HOSTILE}
        notes["config"]["data"] = {"_target_": f"modalities.{HOSTILE}", HOSTILE: HOSTILE}

    def spoil_report(report: dict[str, Any]) -> None:
        row = {"name": HOSTILE, "value": 1.5, "error": "<b>", "floor": HOSTILE, "ideal": None, "unit": HOSTILE}
        report["results"][HOSTILE] = {"rows": [row, {"name": "infinite", "value": math.inf}], "notes": [HOSTILE, 3]}
        report["results"][LONG] = {"rows": [{"name": "a_b", "value": 2}], "notes": [LONG]}
        report["drawn"] = {"sampler": HOSTILE, "steps": [HOSTILE], HOSTILE: 1}

    edited("model.json", spoil_notes)(model)
    edited("evaluate.json", spoil_report)(model)
    fields, text = exported(model, tmp_path / "second")
    assert "license" not in fields
    assert re.findall("^#+ (.*)$", text, re.MULTILINE) == ["second", *HEADINGS]
    assert re.findall(r"(?<!\\)<\w", text) == []
    assert re.findall(r"(?<!\\)\]\(([^)]*)\)", text) == ["samples.png", "spectrum.png"]
    rows = [line for line in section(text, "Evaluation").splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {5}
    assert not any(each in text for each in ("infinite", "\x1b", "x" * 200, "a_b"))
    assert "…" in text
    assert any(metric["value"] == 1.5 for metric in fields["model-index"][0]["results"][0]["metrics"])


def test_last_samples_takes_pictures_of_the_model_alone(digits: Path, tmp_path: Path) -> None:
    """But it takes those in the cache of the hub, which keeps files in blobs and links to them."""
    model = shutil.copytree(digits, tmp_path / "model")
    picture = (model / "samples.png").rename(tmp_path / "secret.png")
    (model / "samples.png").symlink_to(picture)
    assert last_samples(model, 32, "ema") is None
    (model / "samples.png").unlink()
    (model / "samples.png").write_text("#!/bin/sh")
    assert last_samples(model, 32, "ema") is None

    blobs = shutil.copytree(digits, tmp_path / "models--me--digits" / "blobs")
    snapshot = tmp_path / "models--me--digits" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    _, text = exported(snapshot, tmp_path / "copy")
    assert (tmp_path / "copy" / "samples.png").read_bytes() == (blobs / "samples.png").read_bytes()
    assert "(samples.png)" in text


def test_in_words_states_the_power_of_noise_by_frequency() -> None:
    grid = ms.Grid.of(height=16, width=16)

    def words(spectrum: ms.Spectrum) -> str:
        return in_words(ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, grid)))

    assert words(ms.Flat()).count("+0.0 dB") == 4
    # Three quarters of a decibel: the only power is that of 10^0.6 = 4 times as much in a quarter of the bins.
    step = ms.Table(torch.where(grid.radius() <= 0.2357, 4.0, 1.0).double(), grid)
    powers = ms.SpectralCovariance(step, grid).power()
    mean = float(grid.mean(powers))
    assert f"in the lowest third of frequencies {10 * math.log10(float(powers.max()) / mean):+.1f} dB" in words(step)
    assert f"in the highest third of frequencies {10 * math.log10(float(powers.min()) / mean):+.1f} dB" in words(step)
    assert "in the lowest third of frequencies no noise at all" in words(ms.Band(0.3, 0.9))
