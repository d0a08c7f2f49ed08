"""What a key that a configuration does not have is worth: runs are older than some keys."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from recipes.config.compose import Config
from recipes.config.groups import CONFIGS, Outline, command_file, flatten, groups, over, read_file

ABSENT = "-"
ALWAYS = ("modality", "data", "spectrum", "schedule", "denoiser", "network", "loss")
"""Groups that every run has had from the first version on: without one, a configuration is damaged."""


def filled(config: Config) -> Config:
    """Return the configuration of a training with every key that it lacks at its default."""
    own = _known(train_defaults())
    for entry in command_file("train").entries:
        group = entry.group
        node = config.get(group)
        if group == "experiment":  # choices for other groups, and no keys of its own
            continue
        if node is None and group not in config and group not in ALWAYS:
            own[group] = _known(of_choice(group, entry.default))
        elif isinstance(node, Mapping):
            own[group] = _lacking(group, node)
    return over(own, config, by_class=True)


def train_defaults() -> Config:
    """Return the keys of `configs/train.yaml` that are in no group."""
    return {key: value for key, value in read_file(CONFIGS / "train.yaml").items() if key != "defaults"}


def nearest_choice(group: str, node: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the choice of a group whose class this is and that differs least, with its values; None if there is none.

    Choices differ by their class, or as engines do by their values alone.
    """
    here = flatten(node)
    best: tuple[int, str | None, dict[str, Any]] = (len(here) + 1, None, {})
    for choice, values in _of_class(group, node).items():
        there = flatten(values)
        apart = sum(here.get(key, ABSENT) != there.get(key, ABSENT) for key in here.keys() | there.keys())
        best = min(best, (apart, choice, values), key=lambda each: each[0])
    return best[1], best[2]


@cache
def of_choice(group: str, choice: str) -> dict[str, Any]:
    """Return the values of a choice, over those of the choice of its group that it builds on."""
    return Outline({}).keys(choice, group)


def _lacking(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for what a group may lack: those in which all choices of its class agree.

    Where they do not, the class itself has a default or needs the value. A group without a class takes the nearest.
    """
    if node.get("_target_") is None:
        return _known(nearest_choice(group, node)[1])
    first, *others = _of_class(group, node).values() or [{}]
    return _known(
        {key: value for key, value in first.items() if all(each.get(key, ABSENT) == value for each in others)}
    )


def _of_class(group: str, node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the choices of a group that have the class of this one, with their values."""
    every = {choice: of_choice(group, choice) for choice in groups()[group]}
    return {choice: values for choice, values in every.items() if values.get("_target_") == node.get("_target_")}


def _known(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values without those that only a command line or another key can give."""
    known: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            known[key] = _known(value)
        elif not isinstance(value, str) or not (value == "???" or "${" in value):
            known[key] = value
    return known
