"""Compose a command's configuration from its groups and the command line.

Only Hydra's composition is used, not its application layer, which changes the working folder, creates folders and puts
times into paths. The result is a plain, resolved dictionary, which is also saved with a run.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from recipes.base.errors import RecipeError, nearest
from recipes.base.files import write_text
from recipes.config import suggestions as advice
from recipes.config.conditions import complete_condition_modalities
from recipes.config.groups import CONFIGS, KeyTable, flatten, groups, offered, opened, plain_keys, prefixes
from recipes.config.sources import SOURCES, complete_sources

Config = dict[str, Any]


def load(name: str, arguments: Sequence[str], folder: str | Path | None = None) -> Config:
    """Compose `configs/<name>.yaml` with `group=choice` and `key=value` arguments.

    `folder` contains the user's additional groups.

    Raises:
        RecipeError: If a key, group or choice does not exist (the message names the nearest one), an argument cannot be
            read, a key has no value, or `folder` is not a folder.
    """
    if folder is not None and not Path(folder).is_dir():
        raise RecipeError(f"--config-dir: {Path(folder).absolute()} is not a folder")
    overrides = parse(arguments)
    known_groups = groups(folder)
    # Hydra takes the key of one command for a choice if another command has a group of that name.
    values = {
        each.key_or_group: each.value() for each in overrides
        if each.key_or_group in known_groups.keys() & plain_keys(name) and each.type == OverrideType.CHANGE
    }  # fmt: skip
    arguments = [word for word, each in zip(arguments, overrides, strict=True) if each.key_or_group not in values]
    overrides = [each for each in overrides if each.key_or_group not in values]
    for override in overrides:
        _check_choice(override, known_groups)
    # Hydra adds a missing key only with a leading +.
    below = _open_keys(name)
    arguments = [f"++{argument}" if argument.startswith(below) else argument for argument in arguments]
    if folder is not None:
        arguments = [f"hydra.searchpath=[file://{Path(folder).resolve()}]", *arguments]
    try:
        composed = _compose(name, arguments)
        for key, value in values.items():
            OmegaConf.update(composed, key, value, merge=False)
        complete_sources(composed, folder)
        complete_condition_modalities(composed, folder)
        plain = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or ""
        raise RecipeError(f"{key} has no value: add {key}=… to the command") from error
    except OmegaConfBaseException as error:
        raise RecipeError(f"{error.full_key}: {str(error).splitlines()[0]}") from error
    except HydraException as error:
        raise RecipeError(_refusal(error, name, overrides, folder)) from error
    assert isinstance(plain, dict)
    # It is needed before anything is built, so it is checked here and not with the other settings.
    if not isinstance(allowed := plain.get("allow_targets", []), list):
        raise RecipeError(f"allow_targets: expected a list of packages such as [my_package], or [], got {allowed!r}")
    if "environment" in plain:
        plain["environment"] = from_environment(OmegaConf.to_container(composed))
    return {str(key): value for key, value in plain.items()}


def from_environment(node: Any) -> list[str]:
    """Return the keys whose values refer to environment variables, `${oc.env:NAME}`, directly or through other keys."""
    strings = {key: value if isinstance(value, str) else str(value) for key, value in flatten(node).items()}
    names: set[str] = set()
    while more := {
        key for key, text in strings.items()
        if "oc.env:" in text or any(part in names for part in re.findall(r"\$\{([\w.]+)\}", text))
    } - names:  # fmt: skip
        names |= more
    return sorted(names)


def parse(arguments: Sequence[str]) -> list[Override]:
    """Read `key=value` and `group=choice` arguments in Hydra's grammar. Raises RecipeError if one cannot be read."""
    for index in range(len(arguments)):
        if problem := advice.word(arguments, index):
            raise RecipeError(problem)
    overrides: list[Override] = []
    for argument in arguments:
        try:
            overrides += OverridesParser.create().parse_overrides([argument])
        except HydraException as error:
            raise RecipeError(advice.unreadable(argument, str(error).splitlines()[0])) from error
    return overrides


def write(config: Config, path: Path) -> None:
    """Save a configuration as YAML."""
    write_text(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _compose(name: str, arguments: Sequence[str]) -> Any:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(name, overrides=list(arguments))


def _open_keys(name: str) -> tuple[str, ...]:
    """Return the beginnings of the keys that may be added to a command's configuration."""
    return tuple(f"{key}." for key in (*opened(name), *([SOURCES] if "data" in offered(name) else [])))


def _check_choice(override: Override, known: Mapping[str, Sequence[str]]) -> None:
    """Raise RecipeError if an override names a choice that its group does not have."""
    options, choice = known.get(override.key_or_group), override.value()
    if options is not None and choice not in (None, *options) and not override.is_delete():
        raise RecipeError(f"{override.key_or_group}={choice}: there is no such choice{nearest(str(choice), options)}")


def _refusal(error: HydraException, name: str, overrides: Sequence[Override], folder: str | Path | None) -> str:
    """Return the message for a Hydra composition error, such as a key that does not exist."""
    choices = {each.key_or_group: str(each.value()) for each in overrides if each.key_or_group in groups(folder)}
    known = flatten(KeyTable(choices, folder).keys(name))
    # The choices of a group may be merged into the root, and leave no key with the group's name.
    valid, below = {*prefixes(known), *offered(name)}, _open_keys(name)
    for each in overrides:
        if each.key_or_group not in valid and not each.key_or_group.startswith(below) and not each.is_add():
            return advice.unknown(name, each, known, folder)
    return advice.refused(error, overrides)
