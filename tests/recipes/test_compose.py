"""Every choice composes and builds, mistakes name the remedy, and values are checked before any work begins."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

import multisagd as ms
from modalities.base import Dataset, Modality
from multisagd.samplers import Sampler
from recipes.base.commands import CONFIGURED
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.cli.main import main
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import groups
from recipes.runs.assembly import build_corruption
from recipes.runs.settings import SampleSettings, TrainSettings

NEEDED = {
    ("data", "folder"): ["data.root=photos"],
    ("data", "webdataset"): ["data.urls=shards"],
    ("text", "encoder"): ["text.name=model"],
    ("experiment", "image_folder"): ["data.root=photos"],
    ("experiment", "video_clips"): ["data.root=clips"],
    ("modality", "own"): ["modality._target_=modalities.image.Image"],
    ("spectrum", "autoregressive"): ["spectrum.axis=width"],
    **{("spectrum", name): ["modality=audio_waveform"] for name in ("brown", "hum_free", "pink")},
    **{("spectrum", name): ["modality=video"] for name in ("joint", "mixed", "progressive", "separable", "velocity")},
    ("corruption", "measured"): ["corruption.path=found"],
    ("corruption", "hum"): ["modality=audio_waveform"],
    ("corruption", "flicker"): ["modality=video"],
    ("spectrum", "rings"): ["spectrum.levels=[4,2,1]"],
    **{(group, name): ["corruption=band"] for group, name in (("spectrum", "omitting"), ("process", "floored"))},
    ("denoiser", "restoring"): ["corruption=band", "spectrum=omitting"],
    ("schedule", "tabulated"): ["schedule.log_snrs=[5,0,-5]"],
}
"""What a choice requires the user to add."""


def load(*arguments: str, name: str = "train") -> dict[str, Any]:
    return configuration.load(name, ["run_dir=r", *arguments])


def build_all(group: str, choice: str, tmp_path: Path) -> None:
    """Build every part of a training with this choice."""
    builder = Builder()
    settings = builder.settings(TrainSettings, load(f"{group}={choice}", *NEEDED.get((group, choice), [])), "")
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    x0 = ms.SpectralCovariance(ms.Flat(), modality.grid()).sample([1, 2], modality.channels)
    statistics = ms.DataStatistics.measure([x0], modality.grid())
    parts: dict[str, Any] = {"statistics": statistics}
    if choice == "measured":
        ms.Corruption(ms.Band(0.1, 0.2), modality.grid()).save(tmp_path / "found")
        settings.corruption["path"] = str(tmp_path / "found")  # type: ignore[index]
    if (corruption := build_corruption(settings.corruption, modality, builder)) is not None:
        parts["corruption"] = corruption
    spectrum = builder.build(settings.spectrum, ms.Spectrum, "spectrum", **parts)
    schedule = builder.build(settings.schedule, ms.Schedule, "schedule")
    parts |= {"schedule": schedule, "covariance": ms.SpectralCovariance(spectrum, modality.grid())}
    process = builder.build(settings.process, ms.Process, "process", **parts)
    builder.build(settings.denoiser, ms.Denoiser, "denoiser", network=nn.Identity(), process=process, **parts)
    builder.build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]
    if group in ("network", "experiment"):
        builder.build(settings.network, nn.Module, "network", channels=1, dimensions=2, classes=None)
    if group in ("data", "experiment") and "root" in settings.data:
        node = {**settings.data, "root": str(tmp_path / "nothing")}
        with pytest.raises(RecipeError, match=r"^data: .* is not "):
            builder.build(node, Dataset, "data", modality=modality)  # type: ignore[type-abstract]


@pytest.mark.parametrize("group", sorted(groups().keys() - {"refine", "cluster"}))
def test_every_choice_composes_and_builds(group: str, tmp_path: Path) -> None:
    """Except those of sampling and launching, and latents, which need an autoencoder or an encoded folder."""
    choices = [choice for choice in groups()[group] if not choice.startswith("latent") and "cached" not in choice]
    assert choices
    for choice in choices:
        build_all(group, choice, tmp_path)


def test_sample_composes_with_every_refinement_and_sampler() -> None:
    grid = ms.Grid.of(width=4)
    statistics = ms.DataStatistics.measure([ms.SpectralCovariance(ms.Flat(), grid).sample([1, 2])], grid)
    for choice in groups()["refine"]:
        settings = Builder().settings(SampleSettings, load(f"refine={choice}", name="sample"), "")
        refinement = Builder().build(settings.refine, ms.Refinement, "refine")
        assert refinement.iterations == (choice != "none"), choice
    for choice in groups()["sampler"]:
        settings = Builder().settings(SampleSettings, load(f"sampler={choice}", name="sample"), "")
        Builder().build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("traning.samples=3", "unknown key 'traning.samples'; did you mean 'training.samples'"),
        ("network.widht=3", "did you mean 'network.width'"),
        ("sed=3", "unknown key 'sed'; did you mean 'seed'"),
        ("experiment=image_mnst", "did you mean 'image_mnist'"),
        ("spectrum=[a", "cannot read the command"),
        ("spectrum=[white,band]", "there is no such choice"),
        ("seed=1,2", "Ambiguous value"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("data=folder", "data.root has no value: add data.root=… to the command"),
        ("allow_targets=null", "allow_targets: expected a list of packages such as [my_package], or [], got None"),
        ("allow_targets=mine", "expected a list of packages"),
        # a key that the experiment does not have, but its modality
        ("experiment=image_digits modality.sise=32", "unknown key 'modality.sise'; did you mean 'modality.size'"),
    ],
)
def test_load_names_the_nearest_key_of_a_mistake(words: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(*words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("+training.sampels=3", "training.sampels.*did you mean 'samples'"),
        ("+sead=3", "unknown key sead.*did you mean 'seed'"),
        ("training.batch=0", "training: batch must be above 0"),
        ("training.accumulation=3", "cannot be split"),
        ("training.samples=many", "training.samples: expected a whole number, got 'many'"),
        ("engine.precision=float8", "engine.precision: expected one of float32, bfloat16, float64, got 'float8'"),
        ("~training.samples", "training: Training needs samples"),
        ("loss.metric=l1", "loss.metric: expected one of euclidean, mahalanobis"),
        ("loss.times._target_=os.system", "loss.times._target_: os.system is not under an allowed package"),
        ("keep=0", "keep must be a number of checkpoints"),
        ("training.ema=0.3", "training: ema.* below 0.28, got 0.3"),
        ("training.betas=[0.9,1]", "training: betas must be .* below 1"),
        ("guidance.interval=[5,1]", r"guidance: interval must be .* increasing, got \[5.0, 1.0\]"),
        ("guidance.scale=nan", "guidance.scale: expected a number, got nan"),
    ],
)
def test_train_settings_refuse_invalid_values(argument: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Builder().settings(TrainSettings, load(argument), "")


def test_train_settings_refuse_numbers_below_their_minimum() -> None:
    for minimum, keys in (
        (0, "every.log engine.workers training.weight_decay training.warmup"),
        (1, "validation.items validation.levels validation.bands sampling.steps sampling.count engine.threads"),
    ):
        for group, name in (key.split(".") for key in keys.split()):
            with pytest.raises(RecipeError, match=f"{group}: {name} must be at least {minimum}, got {minimum - 1}"):
                Builder().settings(TrainSettings, load(f"{group}.{name}={minimum - 1}"), "")


def test_load_finds_choices_in_a_folder_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "spectrum").mkdir()
    (tmp_path / "spectrum" / "mine.yaml").write_text("_target_: multisagd.Flat\nlevel: 2.0\n")
    config = configuration.load("train", ["run_dir=r", "spectrum=mine"], tmp_path)
    assert config["spectrum"] == {"_target_": "multisagd.Flat", "level": 2.0}
    with pytest.raises(RecipeError, match=r"--config-dir: .*nothing is not a folder"):
        configuration.load("train", ["run_dir=r", "spectrum=mine"], tmp_path / "nothing")


@pytest.mark.parametrize("name", CONFIGURED)
def test_help_describes_every_group_choice_and_key(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    config = (Path(configuration.CONFIGS) / f"{name}.yaml").read_text()
    for group in re.findall(r"^  - (\w+):", config, re.MULTILINE):
        section = text.split(f"  {group}: ")[1].split("\n\n")[0]
        assert f"Example: {group}=" in section
        for choice in groups()[group]:
            lines = [line for line in section.splitlines() if line[6:].startswith(f"{choice} ")]
            assert lines, f"{group}={choice} is not listed"
            assert len(lines[0].split(maxsplit=2)) == 3, f"{group}={choice} has no description"
    for key in (yaml.safe_load(config) or {}).keys() - {"defaults"}:
        assert f"\n  {key}:" in text


def test_cli_exits_with_two_without_a_traceback_after_a_mistake(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.cli", "train", "sed=1", "run_dir=r"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_experiments_state_their_duration_and_command() -> None:
    for choice in set(groups()["experiment"]) - {"none"}:
        heading = (configuration.CONFIGS / "experiment" / f"{choice}.yaml").read_text().split("defaults:")[0]
        for words in (f"experiment={choice}", "CPU", "GPU"):
            assert words in heading, choice


def test_read_configuration_refuses_absurd_numbers(tmp_path: Path) -> None:
    """Python refuses to print such numbers, and some notations take long to read."""
    for value in ("0x" + "f" * 5000, ":".join(["1"] * 100_000), "9" * 301, "0b" + "1" * 1100):
        (tmp_path / "config.yaml").write_text(f"seed: {value}")
        with pytest.raises(RecipeError, match="a number with too many digits"):
            read_configuration(tmp_path / "config.yaml")


def test_load_records_keys_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "photos")
    words = ["run_dir=r", "data=folder", "data.root=/x/${oc.env:SECRET}", "tracking.name=of ${data.root}"]
    config = configuration.load("train", words)
    assert config["data"]["root"] == "/x/photos"
    assert config["environment"] == ["data.root", "tracking.name"]
    assert configuration.load("train", ["run_dir=r"])["environment"] == []
