import itertools
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
from recipes.cli.help import command_help
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import groups
from recipes.runs.assembly import build_corruption
from recipes.runs.settings import SampleSettings, TrainSettings

# Refinement belongs to sampling, clusters to launching; latents need an autoencoder, or a folder that was encoded.
CHOICES = [
    (group, choice)
    for group, choices in groups().items()
    for choice in choices
    if group not in ("refine", "cluster") and not choice.startswith("latent") and "cached" not in choice
]
# What a choice leaves for the user to say.
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


def load(*arguments: str, name: str = "train") -> dict[str, Any]:
    return configuration.load(name, ["run_dir=r", *arguments])


@pytest.mark.parametrize("choice", groups()["refine"])
def test_sample_composes_with_every_refinement(choice: str) -> None:
    settings = Builder().settings(SampleSettings, load(f"refine={choice}", name="sample"), "")
    assert Builder().build(settings.refine, ms.Refinement, "refine").iterations == (choice != "none")


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=map("/".join, CHOICES))
def test_every_choice_composes_and_builds(group: str, choice: str, tmp_path: Path) -> None:
    builder = Builder()
    settings = builder.settings(TrainSettings, load(f"{group}={choice}", *NEEDED.get((group, choice), [])), "")
    modality = builder.build(settings.modality, Modality, "modality")  # type: ignore[type-abstract]
    x0 = list(itertools.repeat(ms.SpectralCovariance(ms.Flat(), modality.grid()).sample([1, 2], modality.channels), 1))
    statistics = ms.DataStatistics.measure(x0, modality.grid())
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


@pytest.mark.parametrize("sampler", groups()["sampler"])
def test_sample_composes_with_every_sampler(sampler: str) -> None:
    settings = Builder().settings(SampleSettings, load(f"sampler={sampler}", name="sample"), "")
    grid = ms.Grid.of(width=4)
    statistics = ms.DataStatistics.measure([ms.SpectralCovariance(ms.Flat(), grid).sample([1, 2])], grid)
    Builder().build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]


def test_choices_and_keys_override() -> None:
    config = load("spectrum=power_law", "spectrum.exponent=-0.06", "network=transformer", "training.learning_rate=1e-4")
    assert config["spectrum"]["exponent"] == -0.06
    assert config["network"]["_target_"] == "multisagd.networks.Transformer"
    assert config["training"]["learning_rate"] == 1e-4


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("traning.samples=3", "unknown key 'traning.samples'; did you mean 'training.samples'"),
        ("training.sample=3", "did you mean 'training.samples'"),
        ("network.widht=3", "did you mean 'network.width'"),
        ("sed=3", "unknown key 'sed'; did you mean 'seed'"),
        ("spectrum=powerlaw", "spectrum=powerlaw: there is no such choice; did you mean 'power_law'"),
        ("spectrm=white", "did you mean 'spectrum'"),
        ("experiment=image_mnst", "did you mean 'image_mnist'"),
        ("spectrum.exponent=1", "it is a key of spectrum=brown, spectrum=data_power"),
        ("--spectrum=white", "unknown option --spectrum=white; settings are written key=value"),
        ("spectrum", "cannot read 'spectrum': settings are written key=value"),
        ("spectrum=[a", "cannot read the command"),
        ("spectrum=[white,band]", "there is no such choice"),
        ("seed=1,2", "Ambiguous value"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("data=folder", "data.root has no value: add data.root=… to the command"),
        ("allow_targets=null", "allow_targets: expected a list of packages such as [my_package], or [], got None"),
        ("allow_targets=mine", "expected a list of packages"),
    ],
)
def test_mistakes_are_told_with_the_nearest_key(argument: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(argument)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_is_told_beside_an_experiment_which_leaves_no_key_of_its_name() -> None:
    with pytest.raises(RecipeError, match=r"unknown key 'modality\.sise'; did you mean 'modality\.size'"):
        load("experiment=image_digits", "modality.sise=32")


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
        ("training.weight_decay=-1", "training: weight_decay must be at least 0"),
        ("training.warmup=-1", "training: warmup must be at least 0"),
        ("every.log=-1", "every: log must be at least 0, got -1"),
        ("validation.items=0", "validation: items must be at least 1"),
        ("validation.levels=0", "validation: levels must be at least 1"),
        ("validation.bands=0", "validation: bands must be at least 1"),
        ("sampling.steps=0", "sampling: steps must be at least 1"),
        ("sampling.count=0", "sampling: count must be at least 1"),
        ("guidance.interval=[5,1]", r"guidance: interval must be .* increasing, got \[5.0, 1.0\]"),
        ("guidance.scale=nan", "guidance.scale: expected a number, got nan"),
        ("engine.threads=0", "engine: threads must be at least 1, got 0"),
        ("engine.workers=-1", "engine: workers must be at least 0, got -1"),
    ],
)
def test_values_are_checked_before_work_begins(argument: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Builder().settings(TrainSettings, load(argument), "")


def test_a_folder_of_the_users_own_choices(tmp_path: Path) -> None:
    (tmp_path / "spectrum").mkdir()
    (tmp_path / "spectrum" / "mine.yaml").write_text("_target_: multisagd.Flat\nlevel: 2.0\n")
    config = configuration.load("train", ["run_dir=r", "spectrum=mine"], tmp_path)
    assert config["spectrum"] == {"_target_": "multisagd.Flat", "level": 2.0}
    with pytest.raises(RecipeError, match=r"--config-dir: .*nothing is not a folder"):
        configuration.load("train", ["run_dir=r", "spectrum=mine"], tmp_path / "nothing")


def test_saved_configurations_read_back(tmp_path: Path) -> None:
    config = load("experiment=image_mnist", "sampler=euler")
    configuration.write(config, tmp_path / "config.yaml")
    assert read_configuration(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("name", CONFIGURED)
def test_help_explains_every_group_with_an_example(name: str) -> None:
    text = command_help(name)
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


@pytest.mark.parametrize("arguments", [[], ["--help"], *([name, "--help"] for name in CONFIGURED)])
def test_help_exits_with_zero(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "recipes.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0
    assert "usage: multisagd" in done.stdout


@pytest.mark.parametrize("arguments", [["trian"], ["train", "sed=1", "run_dir=r"]])
def test_mistakes_exit_with_two_and_without_a_traceback(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.cli", *arguments]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path, env={"PYTHONPATH": str(root)}
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_experiments_say_how_long_and_how_to_start() -> None:
    for choice in groups()["experiment"]:
        if choice == "none":
            continue
        heading = (configuration.CONFIGS / "experiment" / f"{choice}.yaml").read_text().split("defaults:")[0]
        assert f"experiment={choice}" in heading, choice
        assert "CPU" in heading, choice
        assert "GPU" in heading, choice


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, ":".join(["1"] * 100_000), "9" * 301, "0b" + "1" * 1100])
def test_absurd_numbers_of_a_saved_configuration_are_refused(value: str, tmp_path: Path) -> None:
    """Python refuses to print such numbers, and some notations take long to read."""
    (tmp_path / "config.yaml").write_text(f"seed: {value}")
    with pytest.raises(RecipeError, match="a number with too many digits"):
        read_configuration(tmp_path / "config.yaml")


def test_keys_from_the_environment_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "photos")
    words = ["run_dir=r", "data=folder", "data.root=/x/${oc.env:SECRET}", "tracking.name=of ${data.root}"]
    config = configuration.load("train", words)
    assert config["data"]["root"] == "/x/photos"
    assert config["environment"] == ["data.root", "tracking.name"]
    assert configuration.load("train", ["run_dir=r"])["environment"] == []
