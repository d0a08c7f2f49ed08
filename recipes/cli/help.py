"""Help, generated from the comments of the configuration files."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from recipes.base.commands import COMMAND_LINE, COMMANDS, CONFIGURED, typed
from recipes.base.console import columns, fold
from recipes.base.errors import nearest
from recipes.config.groups import KeyTable, chosen_words, command_file, comments, flatten, groups, own_folder, summary


def command_help(name: str, words: Sequence[str] = ()) -> str:
    """Return the help of a command that is configured by `configs/<name>.yaml`, wrapped to the terminal's width.

    It explains every setting of the choices in `words`; for `launch`, also the settings of the launched command.
    """
    file = command_file(name)
    required = re.findall(r"^(\w+): \?\?\?", file.keys, re.MULTILINE)
    listed, common = groups(), _common_keys(name, required)
    shown = "what would be run or submitted" if name == "launch" else "the resolved configuration"
    options = [
        ("--help", "show this help"), ("--show", f"print {shown} and stop"),
        ("--config-dir DIR", "also search for choices in DIR, a folder with the structure of the project's configs"),
    ]  # fmt: skip
    sections = [_group(*entry, listed.get(entry.group, [])) for entry in file.entries]
    explained = chosen_sections(name, words)
    if name == "launch" and (launched := chosen_words(words, {"command"}).get("command", "train")) in CONFIGURED:
        explained += chosen_sections(launched, words)
    parts = [
        f"usage: multisagd {name}{''.join(f' {key}=…' for key in required)}"
        f"{' [group=choice ...]' if file.entries else ''} [key=value ...]",
        *(part if part.startswith("  ") else fold(part) for part in file.heading.split("\n\n")),
        fold(f"read more: {', '.join(dict.fromkeys([COMMANDS[name].page, COMMAND_LINE]))}"),
        "\n".join(["common keys:", *columns(common)]) if common else "",
        "\n".join(["options:", *columns(options)]),
        *explained,
        fold(
            "groups, each with its choices (the default is marked *); with a choice, as in "
            f"`multisagd {name} {'='.join(file.entries[0][:2])} --help`, the settings of that choice are listed too:"
        )
        if sections
        else "",
        *sections,
        f"keys, with their defaults:\n{_folded(file.keys)}",
    ]
    return "\n\n".join(filter(None, parts))


def chosen_sections(command: str, words: Sequence[str]) -> list[str]:
    """Return a help section for each choice in the words of a command, and for each choice of a selected experiment."""
    folder = own_folder(words)
    known, mine = groups(folder), [entry.group for entry in command_file(command).entries]
    choices = chosen_words(words, known.keys() & mine)
    wrong = {group: choices.pop(group) for group in [*choices] if choices[group] not in known[group]}
    sections = [
        f"{group}={choice}: there is no such choice{nearest(choice, known[group])}" for group, choice in wrong.items()
    ]
    key_table = KeyTable(choices, folder)
    made = dict(key_table.overrides(command))
    keys = key_table.keys(command)
    if (name := choices.pop("experiment", None)) is not None:
        sections.append(_experiment(key_table, name, {group: made[group] for group in made if group in mine}))
        choices = {group: choice for group, choice in made.items() if group in mine and group in known} | choices
    return sections + [_settings(key_table, group, choice, keys.get(group)) for group, choice in choices.items()]


def _common_keys(name: str, required: Sequence[str]) -> list[tuple[str, str]]:
    """Return the required keys, then the keys of the examples, each with its description."""
    file = command_file(name)
    notes = {entry.group: entry.note.split("Example:")[0] for entry in file.entries} | comments(file.keys)
    examples = " ".join(re.findall(rf"^ +multisagd {name} (.*)$", file.heading, re.MULTILINE))
    written = re.findall(r"(?:^|[\s'])([a-z_][\w.]*)=", examples)
    descriptions: dict[str, str] = {}
    for key in (*required, *written):
        # A setting of a group gets the description of the group, unless it has its own.
        description = re.sub(r"^as in `multisagd \w+`: ", "", notes.get(key) or notes.get(key.split(".")[0], ""))
        if description and description not in descriptions.values():
            descriptions[key] = description
    return [(f"{key}=…", description.strip().rstrip(".")) for key, description in descriptions.items()]


def _group(group: str, default: str, note: str, choices: list[str]) -> str:
    """Return lines with a group's description, an example to copy, and its choices."""
    description, mark, example = note.partition("Example: ")
    rows = [(f"{'*' if choice == default else ' '} {choice}", summary(group, choice)) for choice in choices]
    lines = [fold(description, f"  {group}: ", "    "), *([f"    {mark}{example.strip()}"] if example else [])]
    return "\n".join([*lines, *columns(rows, "    ")])


def _folded(keys: str) -> str:
    """Indent keys and fold the comments between them."""
    lines: list[str] = []
    comment = ""
    for line in (*keys.splitlines(), ""):
        match = re.match(r"( *)# ?(.*)", line)
        if match and not match[2].startswith("  "):
            comment, indent = f"{comment} {match[2]}", match[1]
            continue
        if comment:
            lines.append(fold(comment, f"  {indent}# "))
            comment = ""
        lines.append(f"  {line}" if line else "")
    return "\n".join(lines).rstrip()


def _settings(key_table: KeyTable, group: str, choice: str, values: Any) -> str:
    """Return lines with all keys of a choice, and their defaults and descriptions."""
    descriptions = key_table.comments(choice, group, f"{group}.")
    rows = []
    for key, value in flatten(values, group).items() if values else ():
        if value == "???":
            rows.append((f"{key}=…", " ".join(["required.", descriptions.get(key, "")]).strip()))
        elif not key.rpartition(".")[2].startswith("_"):
            rows.append((f"{key}={typed(value)}", descriptions.get(key, "").rstrip(".")))
    if not rows:
        return f"{group}={choice} has no settings"
    return "\n".join([f"settings of {group}={choice}, with their defaults:", *columns(rows)])


def _experiment(key_table: KeyTable, name: str, made: Mapping[str, str]) -> str:
    """Return the choices and settings that an experiment stands for."""
    content = {key: value for key, value in key_table.file(name, "experiment").items() if key != "defaults"}
    words = [f"{group}={choice}" for group, choice in made.items()]
    words += [f"{key}={typed(value)}" for key, value in (flatten(content) if content else {}).items()]
    return "\n".join([f"experiment={name} stands for:", fold(" ".join(words), "  ")])
