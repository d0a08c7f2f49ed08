"""The part of a help text that is about the choices on the command line: every setting of each, as it is written.

Values and comments come from the configuration files, as those of a command's own keys do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recipes.engine.errors import nearest
from recipes.engine.help import comments, groups, offered, own_folder, split_file
from recipes.engine.outline import Outline, is_global
from recipes.engine.printing import columns, fold

NEEDED = "???"
EXPERIMENT = "experiment"


def chosen_sections(command: str, words: Sequence[str]) -> list[str]:
    """Return a section for each choice among the words of a command, and for those that a chosen experiment makes."""
    folder = own_folder(words)
    known, mine = groups(folder), offered(command)
    pairs = [word.lstrip("+").partition("=")[::2] for word in words]
    chosen = {group: choice for group, choice in pairs if group in known and group in mine}
    sections = [
        f"{group}={choice}: there is no such choice{nearest(choice, known[group])}"
        for group, choice in chosen.items()
        if choice not in known[group]
    ]
    chosen = {group: choice for group, choice in chosen.items() if choice in known[group]}
    outline = Outline(chosen, folder)
    made = dict(outline.overrides(command))
    keys = outline.keys(command)
    if (name := chosen.pop(EXPERIMENT, None)) is not None:
        sections.append(_experiment(outline, name, {group: made[group] for group in made if group in mine}))
        chosen = {group: choice for group, choice in made.items() if group in mine and group in known} | chosen
    return sections + [_settings(outline, group, choice, keys.get(group)) for group, choice in chosen.items()]


def _settings(outline: Outline, group: str, choice: str, values: Any) -> str:
    """Return all keys of a choice, with their defaults and what is said of them."""
    said = _said(outline, choice, group, f"{group}.")
    rows = []
    for key, value in _flat(values, group).items() if values else ():
        if value == NEEDED:
            rows.append((f"{key}=…", " ".join(["needed.", said.get(key, "")]).strip()))
        elif not key.rpartition(".")[2].startswith("_"):
            rows.append((f"{key}={_typed(value)}", said.get(key, "").rstrip(".")))
    if not rows:
        return f"{group}={choice} has no settings"
    return "\n".join([f"settings of {group}={choice}, with their defaults:", *columns(rows)])


def _experiment(outline: Outline, name: str, made: Mapping[str, str]) -> str:
    """Return what an experiment chooses and sets."""
    content = {key: value for key, value in outline.file(name, EXPERIMENT).items() if key != "defaults"}
    words = [f"{group}={choice}" for group, choice in made.items()]
    words += [f"{key}={_typed(value)}" for key, value in _flat(content).items()]
    return "\n".join([f"{EXPERIMENT}={name} stands for:", fold(" ".join(words), "  ")])


def _said(outline: Outline, choice: str, group: str, place: str) -> dict[str, str]:
    """Return what comments say of the keys of a choice and of those that it builds on, by dotted names."""
    found: dict[str, str] = {}
    for entry, base in outline.defaults(choice, group):
        if base != "_self_" and not entry["override"]:
            inner = entry["group"].lstrip("/") or group
            found |= _said(outline, base, inner, f"{place}{entry['package']}." if entry["package"] else place)
    if (path := outline.path(choice, group)) is None:
        return found
    place = "" if is_global(path) else place
    own = comments(split_file(path.read_text(encoding="utf-8"))[2])
    return found | {f"{place}{key}": about for key, about in own.items() if about}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested keys as dotted ones."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node} if prefix else {}
    parts = [_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in node.items()]
    return {key: value for part in parts for key, value in part.items()}


def _typed(value: Any) -> str:
    """Write a value as it is typed."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value).replace(" ", "")
