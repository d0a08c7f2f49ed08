"""The keys of a command and their defaults, read from the configuration files in a moment.

Hydra composes the same far more thoroughly, and takes too long for what a shell asks at every press of a key. Values
are as they stand in the files: interpolations are not resolved. A test holds the keys against Hydra's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recipes.config.groups import command_file, comments, roots, split_file

ENTRY = re.compile(r"(?P<override>override )?(?P<group>/?[\w/]*)(?:@(?P<package>[\w.]+))?")


@dataclass(frozen=True)
class Outline:
    """Composes by the choices that were made; `folder` holds groups of the user's own."""

    chosen: Mapping[str, str]
    folder: Path | None = None

    def keys(self, command: str) -> dict[str, Any]:
        """Return the nested keys of a command with their defaults."""
        found: dict[str, Any] = {}
        overrides = {**dict(self.overrides(command)), **self.chosen}
        for package, content in self._parts(command, "", "", overrides):
            _merge(found, package, content)
        return found

    def overrides(self, name: str, group: str = "") -> Iterator[tuple[str, str]]:
        """Return the choices that files make for others, as experiments do; of several the last counts."""
        for entry, choice in self.defaults(name, group):
            if entry["override"]:
                yield entry["group"].lstrip("/"), choice
            elif not entry["package"] and choice != "_self_":
                inner = entry["group"].lstrip("/") or group
                yield from self.overrides(self.chosen.get(inner, choice) if entry["group"] else choice, inner)

    def _parts(
        self, name: str, group: str, package: str, choices: Mapping[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Return the content of a file and of those it is made of, in order, each with the place of its keys."""
        content = {key: value for key, value in self.file(name, group).items() if key != "defaults"}
        own = False
        for entry, choice in self.defaults(name, group):
            if choice == "_self_":
                own = True
                yield package, content
            elif not entry["override"]:
                inner = entry["group"].lstrip("/") or group
                place = package if not entry["group"] and not entry["package"] else inner.replace("/", ".")
                if entry["package"]:
                    place = f"{package}.{entry['package']}".lstrip(".")
                elif entry["group"]:
                    choice = choices.get(inner, choice)
                    place = "" if is_global(self.path(choice, inner)) else place
                yield from self._parts(choice, inner, place, choices)
        if not own:
            yield package, content

    def defaults(self, name: str, group: str) -> Iterator[tuple[dict[str, str], str]]:
        """Return what a file's list of defaults says, as (its parts, the choice)."""
        for line in self.file(name, group).get("defaults") or []:
            # Of its own group: `- auto` or `- image@modality`; of another: `- override /network: unet`.
            key, choice = next(iter(line.items())) if isinstance(line, dict) else (None, str(line))
            if key is None:
                choice, _, package = choice.partition("@")
                yield {"override": "", "group": "", "package": package}, choice
            elif match := ENTRY.fullmatch(key):
                yield {name: found or "" for name, found in match.groupdict().items()}, str(choice)

    def comments(self, choice: str, group: str, place: str) -> dict[str, str]:
        """Return what comments say of the keys of a choice and of those that it builds on, by dotted names."""
        found: dict[str, str] = {}
        for entry, base in self.defaults(choice, group):
            if base != "_self_" and not entry["override"]:
                inner = entry["group"].lstrip("/") or group
                found |= self.comments(base, inner, f"{place}{entry['package']}." if entry["package"] else place)
        if (path := self.path(choice, group)) is None:
            return found
        place = "" if is_global(path) else place
        own = comments(split_file(path.read_text(encoding="utf-8"))[2])
        return found | {f"{place}{key}": about for key, about in own.items() if about}

    def comment(self, command: str, key: str) -> str:
        """Return what is said of a key of a command, an empty text if nothing is."""
        file, group = command_file(command), key.partition(".")[0]
        default = next((entry.default for entry in file.entries if entry.group == group), None)
        if default is None:
            return comments(file.keys).get(key, "")
        return self.comments(self.chosen.get(group, default), group, f"{group}.").get(key, "")

    def file(self, name: str, group: str) -> dict[str, Any]:
        """Return what the file of a choice holds, nothing if there is none or it cannot be read."""
        path = self.path(name, group)
        return {} if path is None else read_file(path)

    def path(self, name: str, group: str) -> Path | None:
        """Return the file of a choice, None if there is none."""
        return next((path for root in roots(self.folder) if (path := root / group / f"{name}.yaml").is_file()), None)


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as dotted keys; lists and empty groups are values."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    parts = [flatten(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
    return {key: value for part in parts for key, value in part.items()}


def prefixes(keys: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys and every group of keys above them."""
    return {key.rsplit(".", depth)[0] for key in keys for depth in range(key.count(".") + 1)}


@cache
def read_file(path: Path) -> dict[str, Any]:
    """Return what a file of a group holds, nothing if it cannot be read: composing it will say what is wrong."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def is_global(path: Path | None) -> bool:
    """Tell whether the keys of a choice's file are those of the whole configuration."""
    return path is not None and path.read_text(encoding="utf-8").startswith("# @package _global_")


def _merge(into: dict[str, Any], package: str, content: Mapping[str, Any]) -> None:
    for part in filter(None, package.split(".")):
        if not isinstance(into.get(part), dict):
            into[part] = {}
        into = into[part]
    for key, value in content.items():
        if isinstance(value, dict):
            _merge(into, str(key), value)
        else:
            into[str(key)] = value
