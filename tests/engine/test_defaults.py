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


def lacking(config: dict[str, Any], key: str) -> dict[str, Any]:
    """Return a configuration without a dotted key."""
    without = copy.deepcopy(config)
    *above, name = key.split(".")
    node = without
    for part in above:
        node = node[part]
    del node[name]
    return without


KEYS = [key for key in flatten(loaded()) if key != "run_dir" and not key.endswith("_target_")]


@pytest.mark.parametrize("key", [*KEYS, "process", "text", "tracking", "engine", "sampler", "guidance", "corruption"])
def test_a_key_that_a_run_lacks_counts_as_its_default(key: str) -> None:
    config = composed()
    # By these, choices of one class differ: a guess would be another choice. The class itself has a default, or none.
    if key in ("denoiser.prediction", "process.modulation"):
        assert filled(lacking(config, key)) == lacking(config, key)
        return
    assert filled(lacking(config, key)) == config


@pytest.mark.parametrize("words", [["network=transformer"], ["spectrum=power_law"], ["modality=audio"], ["engine=gpu"]])
def test_what_is_there_stays(words: list[str]) -> None:
    config = composed(*words)
    assert filled(config) == config


def test_a_choice_has_the_values_of_the_choice_of_another_group_that_it_builds_on() -> None:
    assert of_choice("modality", "latent")["modality"] == of_choice("modality", "image")


@pytest.mark.parametrize("key", ["spectrum", "network", "modality", "data", "loss"])
def test_a_group_that_every_run_has_is_not_made_up(key: str) -> None:
    with pytest.raises(RecipeError, match=key):
        Builder().settings(TrainSettings, filled(lacking(composed(), key)), "")


@pytest.mark.parametrize("key", ["network.dropout", "validation.levels", "loss.weighting", "modality.channels"])
def test_an_older_run_is_continued_with_the_defaults_and_refused_with_others(tmp_path: Path, key: str) -> None:
    config = composed()
    before = flatten(config)[key]
    configuration.write(lacking(config, key), tmp_path / "config.yaml")
    Run(tmp_path).check_config(config, begun=True)
    if key != "validation.levels":  # which may change
        group, name = key.split(".")
        other = {**config, group: {**config[group], name: "another"}}
        with pytest.raises(RecipeError, match=rf"{key}: {before!r} -> 'another'"):
            Run(tmp_path).check_config(other, begun=True)


def test_what_this_version_does_not_know_is_told_with_the_file(tmp_path: Path) -> None:
    config, path = composed(), tmp_path / "config.yaml"
    config["training"] = {**config["training"], "momentum": 0.9}
    with pytest.raises(
        RecipeError, match=r"config.yaml: unknown key training.momentum: .*another version of multisagd"
    ):
        run_settings(config, path, Builder())
    configuration.write({**composed(), "old": 1}, path)
    with pytest.raises(RecipeError, match="old: 1 -> missing"):
        Run(tmp_path).check_config(composed(), begun=True)
    for part in ({"_target_": "multisagd.networks.Gone"}, {**composed()["network"], "gone": 1}):
        with pytest.raises(RecipeError, match=r"config.yaml: .*another version of multisagd"):
            check_parts({**composed(), "network": part}, path, Builder())
