"""Keys that a saved configuration lacks count as their defaults, and unknown keys are errors that name the file."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from recipes.base.errors import RecipeError
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.groups import filled, flatten, of_choice
from recipes.runs.model import check_parts, run_settings
from recipes.runs.run import Run
from recipes.runs.settings import TrainSettings


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
    unknown = ("denoiser.prediction", "process.modulation")
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
    for key in ("network.dropout", "validation.levels", "loss.weighting", "modality.channels"):
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
