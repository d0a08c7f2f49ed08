"""Every choice composes and builds, values are checked, mistakes name the remedy, and only allowed classes built."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

import multisagd as ms
from modalities.base import Dataset, Modality
from multisagd.channel_covariance import covariance_of
from multisagd.samplers import Sampler
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_configuration
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import filled, flatten, groups, of_choice
from recipes.runs.assembly import axis_notes, build_corruption
from recipes.runs.model import check_parts, run_settings
from recipes.runs.run import Run
from recipes.runs.schedules import build_schedule
from recipes.runs.settings import SampleSettings, TrainSettings

NEEDED = {
    ("data", "folder"): ["data.root=photos"],
    ("data", "arrays"): ["data.root=fields.npz"],
    ("data", "webdataset"): ["data.urls=shards"],
    ("data", "parquet"): ["data.urls=tables"],
    ("data", "hub"): ["data.name=someone/photos"],
    ("data", "mixture"): ["data.sources.photos={data:folder,root:photos}"],
    ("text", "encoder"): ["text.name=model"],
    ("experiment", "image_folder"): ["data.root=photos"],
    ("experiment", "audio_clips"): ["data.root=recordings"],
    ("experiment", "video_clips"): ["data.root=clips"],
    ("modality", "own"): ["modality._target_=modalities.image.Image"],
    ("spectrum", "autoregressive"): ["spectrum.axis=width"],
    **{("spectrum", name): ["modality=audio_waveform"] for name in ("brown", "hum_free", "pink")},
    **{("spectrum", name): ["modality=video"] for name in ("joint", "mixed", "progressive", "separable", "velocity")},
    ("corruption", "measured"): ["corruption.path=found"],
    ("corruption", "hum"): ["modality=audio_waveform"],
    ("corruption", "flicker"): ["modality=video"],
    ("spectrum", "rings"): ["spectrum.levels=[4,2,1]"],
    ("spectrum", "per_channel"): ["spectrum.spectra=[{_target_:multisagd.PowerLaw,exponent:-0.5}]"],
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
    covariance = covariance_of(spectrum, modality.grid())
    schedule = build_schedule(settings.schedule, builder, statistics, covariance)
    parts |= {"schedule": schedule, "covariance": covariance}
    process = builder.build(settings.process, ms.Process, "process", **parts)
    builder.build(settings.denoiser, ms.Denoiser, "denoiser", network=nn.Identity(), process=process, **parts)
    builder.build(settings.sampler, Sampler, "sampler", statistics=statistics)  # type: ignore[type-abstract]
    if group == "experiment":
        assert not axis_notes(spectrum, modality)
    if group in ("network", "experiment"):
        builder.build(settings.network, nn.Module, "network", channels=1, dimensions=2, classes=None)
    if group in ("data", "experiment") and "root" in settings.data:
        node = {**settings.data, "root": str(tmp_path / "nothing")}
        with pytest.raises(RecipeError, match=r"^data: .* is not "):
            builder.build(node, Dataset, "data", modality=modality)  # type: ignore[type-abstract]


@pytest.mark.parametrize("group", sorted(groups().keys() - {"refine", "cluster"}))
def test_every_choice_composes_and_builds(group: str, tmp_path: Path) -> None:
    """Except those of sampling and launching, and of modalities that need an autoencoder, latents or a file."""
    from_files = ("latent", "cached", "field", "series")
    choices = [choice for choice in groups()[group] if not any(word in choice for word in from_files)]
    assert choices
    for choice in choices:
        build_all(group, choice, tmp_path)


def test_sample_composes_with_every_refinement_and_sampler() -> None:
    for choice in groups()["refine"]:
        settings = Builder().settings(SampleSettings, load(f"refine={choice}", name="sample"), "")
        refinement = Builder().build(settings.refine, ms.Refinement, "refine")
        assert refinement.iterations == (choice != "none"), choice
    for choice in groups()["sampler"]:
        settings = Builder().settings(SampleSettings, load(f"sampler={choice}", name="sample"), "")
        assert settings.sampler == load(f"sampler={choice}")["sampler"], choice


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("traning.samples=3", "unknown key 'traning.samples'; did you mean 'training.samples'"),
        ("spectrum=[a", "cannot read the command"),
        ("spectrum=[white,band]", "there is no such choice"),
        ("seed=1,2", "Ambiguous value"),
        ("seed=${nothing}", "seed: Interpolation key 'nothing' not found"),
        ("data=folder", "data.root has no value: add data.root=… to the command"),
        ("modality=image modality.augment={name:ColorJitter}", "another kind; a list is written"),
        ("allow_targets=null", "allow_targets: expected a list of packages such as [my_package], or [], got None"),
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
        ("~training.samples", "training: Training needs samples"),
        ("loss.times._target_=os.system", "loss.times._target_: os.system is not under an allowed package"),
        ("keep=0", "keep must be a number of checkpoints"),
        ("training.ema=0.3", "training: ema.* below 0.28, got 0.3"),
        ("training.betas=[0.9,1]", "training: betas must be .* below 1"),
        ("guidance.interval=[5,1]", r"guidance: interval must be .* increasing log-SNRs, got \[5.0, 1.0\]"),
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


def test_load_refuses_a_missing_folder_of_choices(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--config-dir: .*nothing is not a folder"):
        configuration.load("train", ["run_dir=r"], tmp_path / "nothing")


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


@cache
def loaded(*words: str) -> dict[str, Any]:
    return configuration.load("train", ["run_dir=run", *words])


def composed(*words: str) -> dict[str, Any]:
    return copy.deepcopy(loaded(*words))


def lacking(key: str) -> dict[str, Any]:
    """Return the configuration without a dotted key."""
    config = node = composed()
    *above, name = key.split(".")
    for part in above:
        node = node[part]
    del node[name]
    return config


def test_filled_adds_the_default_of_any_missing_key_or_group() -> None:
    keys = [key for key in flatten(loaded()) if key != "run_dir" and not key.endswith("_target_")]
    groups = ["process", "text", "tracking", "engine", "sampler", "guidance", "corruption"]
    # In these, choices of one class differ: a guess would be another choice. The class itself has a default, or none.
    unknown = ("denoiser.prediction", "process.modulation", "sampler.sde")
    assert set(unknown) <= set(keys)
    for key in [*keys, *groups]:
        assert filled(lacking(key)) == (lacking(key) if key in unknown else loaded()), key


def test_filled_does_not_change_what_is_there() -> None:
    for words in ("network=transformer", "spectrum=power_law", "modality=audio", "engine=gpu"):
        assert filled(composed(words)) == loaded(words), words
    assert of_choice("modality", "latent")["modality"] == of_choice("modality", "image")  # which it builds on


def test_filled_does_not_invent_groups_that_every_run_has() -> None:
    for key in ("spectrum", "network", "modality", "data", "loss"):
        with pytest.raises(RecipeError, match=key):
            Builder().settings(TrainSettings, filled(lacking(key)), "")


def test_check_config_continues_older_runs_with_the_defaults_only(tmp_path: Path) -> None:
    config = composed()
    for key in ("network.dropout", "validation.levels", "loss.metric", "modality.channels"):
        configuration.write(lacking(key), tmp_path / "config.yaml")
        Run(tmp_path).check_config(config, begun=True)
        if key != "validation.levels":  # which may change
            group, name = key.split(".")
            other = {**config, group: {**config[group], name: "another"}}
            with pytest.raises(RecipeError, match=rf"{key}: {flatten(config)[key]!r} -> 'another'"):
                Run(tmp_path).check_config(other, begun=True)


def test_run_settings_and_check_parts_name_the_file_with_unknown_keys_or_classes(tmp_path: Path) -> None:
    config, path = composed(), tmp_path / "config.yaml"
    config["training"]["momentum"] = 0.9
    unknown = r"config.yaml: unknown key training.momentum: .*another version of multisagd"
    with pytest.raises(RecipeError, match=unknown):
        run_settings(config, path, Builder())
    configuration.write({**composed(), "old": 1}, path)
    with pytest.raises(RecipeError, match="old: 1 -> missing"):
        Run(tmp_path).check_config(composed(), begun=True)
    for part in ({"_target_": "multisagd.networks.Gone"}, {**composed()["network"], "gone": 1}):
        with pytest.raises(RecipeError, match=r"config.yaml: .*another version of multisagd"):
            check_parts({**composed(), "network": part}, path, Builder())


@dataclass
class Leaf:
    value: float = 1.0


@dataclass
class Settings:
    count: int = 1
    share: float = 0.5
    kind: Literal["a", "b"] = "a"
    pair: tuple[float, float] = (0.0, 1.0)
    names: tuple[str, ...] = ()
    maybe: int | None = None
    leaf: Leaf = field(default_factory=Leaf)
    anything: Any = None
    keys: Mapping[str, float] | None = None


def test_build_nests_objects_and_fills_omitted_arguments_from_the_context() -> None:
    node = {
        "_target_": "multisagd.spectrum.Product",
        "left": {"_target_": "multisagd.PowerLaw", "exponent": -1, "axes": ["height"]},
        "right": {"_target_": "multisagd.Autoregressive", "axis": "width", "coefficient": 0.5},
    }
    expected = ms.PowerLaw(-1.0, axes=("height",)) * ms.Autoregressive(0.5, axis="width")
    assert Builder().build(node, ms.Spectrum, "spectrum") == expected
    node = {"_target_": "multisagd.networks.UNet", "width": 8, "multipliers": [1], "heads": 2, "classes": None}
    network = Builder().build(node, nn.Module, "network", channels=3, dimensions=1, classes=4, unknown=1)
    assert network(torch.zeros(2, 3, 8), torch.zeros(2), torch.tensor([0, 4])).shape == (2, 3, 8)


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "builtins.exec", "subprocess.Popen", "torch.nn.Linear",
        "multisagd.networks.unet.torch.load", "modalities.files.os.system", "modalities.reading.ThreadPoolExecutor",
        "recipes.runs.run.subprocess.run", "recipes.train.train", "recipes.train.main", "multisagd.networks.unet",
        "multisagd.seeds.derive", "multisagd.Grid", "multisagd.PowerLaw.__init__", "multisagd.PowerLaw.__class__",
        "multisagd.networks.UNet.__init__.__globals__", "multisagd.networks.UNet.forward", "multisagd_evil.UNet",
        "", "os", None, 3, ["os.system"],
    ],
)  # fmt: skip
def test_build_refuses_targets_outside_the_packages_or_of_another_type(target: Any) -> None:
    for expected in (nn.Module, ms.Spectrum, Modality, Dataset, Sampler):
        with pytest.raises(RecipeError, match=r"^place"):
            Builder().build({"_target_": target}, expected, "place")


def test_build_imports_from_allowed_packages_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "boom.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RecipeError, match="allow_targets=\\[boom\\]"):
        Builder().build({"_target_": "boom.Network"}, nn.Module, "network")
    (tmp_path / "my_modules.py").write_text("import os\nfrom torch.nn import Linear\n")
    for name, real in (("Linear", "torch"), ("os.system", "which is os")):
        with pytest.raises(RecipeError, match=real):
            Builder(("my_modules",)).build({"_target_": f"my_modules.{name}"}, nn.Module, "network")


NESTED = {"_target_": "multisagd.spectrum.Sum", "left": {"_target_": "os.getcwd"}, "right": {}}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "multisagd.PowerLw"}, "spectrum._target_: multisagd.PowerLw does not exist.*'PowerLaw'"),
        ({"_target_": "multisagd.PowerLaw", "expnent": 1}, "spectrum.expnent.*did you mean 'exponent'"),
        ({"_target_": "multisagd.PowerLaw"}, "spectrum: PowerLaw needs exponent"),
        ({"_target_": "multisagd.PowerLaw", "exponent": "x"}, "spectrum.exponent: expected a number, got 'x'"),
        ({"_target_": "multisagd.PowerLaw", "exponent": True}, "spectrum.exponent: expected a number"),
        ({"_target_": "multisagd.PowerLaw", "exponent": 1, "corner": -1}, "spectrum: a power law's corner"),
        ({"exponent": 1}, "spectrum has no _target_"),
        (NESTED, r"^spectrum\.left\._target_: os.getcwd is not under an allowed package"),
        ({"_target_": "multisagd.PowerLaw", "exponent": {"_target_": "multisagd.Flat"}}, "exponent: expected a number"),
    ],
)
def test_build_names_the_key_and_the_remedy_of_a_mistake(node: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Builder().build(node, ms.Spectrum, "spectrum")


def test_settings_converts_values_to_their_types() -> None:
    node = {"count": 1e3, "share": 1, "kind": "b", "pair": [1, 2], "names": ["x"], "maybe": 3, "leaf": {"value": 2}}
    settings = Builder().settings(Settings, node, "")
    assert settings == Settings(1000, 1.0, "b", (1.0, 2.0), ("x",), 3, Leaf(2.0))
    assert isinstance(settings.count, int)
    assert isinstance(settings.share, float)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("count", 1.5, "count: expected a whole number, got 1.5"),
        ("count", True, "count: expected a whole number"),
        ("kind", "c", "kind: expected one of a, b, got 'c'"),
        ("pair", [1, 2, 3], "pair: expected a list of 2 entries: a number"),
        ("names", "x", "names: expected a list of text, got 'x'"),
        ("maybe", "x", "maybe: expected a whole number or null"),
        ("maybe", {"a": 1}, "maybe: expected a whole number or null, got a group of keys"),
        ("leaf", 3, "leaf: expected Leaf"),
        ("keys", 3, "keys: expected a group of keys such as {key: value}"),
        ("leaf", {"valu": 3}, "leaf.valu.*did you mean 'value'"),
        ("cuont", 3, "cuont.*did you mean 'count'"),
    ],
)
def test_settings_refuses_values_of_a_wrong_type(key: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Builder().settings(Settings, {key: value}, "")


@pytest.mark.parametrize("word", ["ema=0.28", "stable=1", "betas=[0.9,1]", "batch=30", "condition_dropout=2"])
def test_training_refuses_impossible_settings(word: str) -> None:
    config = configuration.load("train", ["run_dir=run", "training.accumulation=4", f"training.{word}"])
    with pytest.raises(RecipeError, match=word.partition("=")[0]):
        Builder().settings(TrainSettings, config, "")
