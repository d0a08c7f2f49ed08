"""The groups of configuration files: which choices there are, and which of them a command takes.

Read from the files and their comments, without Hydra, so that help and completion answer at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

import configs

CONFIGS = Path(configs.__file__).resolve().parent
"""The project's own configuration groups."""


@dataclass(frozen=True)
class Entry:
    """A group that a command chooses from: its default choice, and what the comment above it says."""

    group: str
    default: str
    note: str


@dataclass(frozen=True)
class CommandFile:
    """What `configs/<command>.yaml` and the files that it builds on hold: heading, groups, and the text of the keys."""

    heading: str
    entries: tuple[Entry, ...]
    keys: str


def groups(folder: str | Path | None = None) -> dict[str, list[str]]:
    """Return every group with the names of its choices, sorted; `folder` holds further ones of the user's own."""
    found: dict[str, set[str]] = {}
    for root in roots(folder):
        for file in root.rglob("*.yaml"):
            if file.parent != root:
                found.setdefault(file.parent.relative_to(root).as_posix(), set()).add(file.stem)
    return {group: sorted(choices) for group, choices in sorted(found.items())}


def roots(folder: str | Path | None = None) -> tuple[Path, ...]:
    """Return the folders that groups are looked for in: the project's, and the user's own."""
    return (CONFIGS, *([] if folder is None else [Path(folder)]))


def summary(group: str, choice: str, folder: str | Path | None = None) -> str:
    """Return the first paragraph that heads a choice's file, up to its example; `folder` is as for `groups`."""
    files = [root / group / f"{choice}.yaml" for root in roots(folder)]
    about, _, _ = split_file(next(file for file in files if file.exists()).read_text(encoding="utf-8"))
    return " ".join(re.split(r"\s*(?:Example:|\n *\n)", about, maxsplit=1)[0].split())


def offered(command: str) -> list[str]:
    """Return the groups that a command chooses from."""
    return [entry.group for entry in command_file(command).entries]


def opened(command: str) -> tuple[str, ...]:
    """Return the keys of a command that take any key below them: those that its file leaves empty, as `data: {}`."""
    return tuple(key for key, value in (yaml.safe_load(command_file(command).keys) or {}).items() if value == {})


@cache
def command_file(command: str) -> CommandFile:
    """Return what a command's file holds, with those of the files that it builds on."""
    heading, defaults, keys = split_file((CONFIGS / f"{command}.yaml").read_text(encoding="utf-8"))
    entries = _entries(defaults)
    for base in re.findall(r"^ *- (\w+)$", defaults, re.MULTILINE):
        if base != "_self_":
            below = command_file(base)
            entries = (*entries, *below.entries)
            keys = f"{keys}\n\n# as in `multisagd {base}`:\n\n{_without(below.keys, keys)}"
    return CommandFile(heading, entries, keys)


def own_folder(words: Sequence[str]) -> Path | None:
    """Return the folder that `--config-dir` names among words, None without one that is there."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--config-dir"):
            named = Path(word.partition("=")[2] or after).expanduser()
            return named if named.is_dir() else None
    return None


def split_file(text: str) -> tuple[str, str, str]:
    """Split a configuration file into its heading comment, its defaults list and the rest."""
    lines = text.splitlines()
    heading = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    about = "\n".join(
        line.removeprefix("#").removeprefix(" ").rstrip() for line in lines[:heading] if "@package" not in line
    )
    body = "\n".join(lines[heading:])
    match = re.search(r"^defaults:\n((?:[ ].*\n|\n(?=[ ]))*)", body + "\n", re.MULTILINE)
    if match is None:
        return about.strip(), "", body.strip("\n")
    return about.strip(), match.group(1), (body[: match.start()] + body[match.end() :]).strip("\n")


def comments(keys: str, indent: str = "") -> dict[str, str]:
    """Return what the comment above each key says, nested ones by their dotted names."""
    found: dict[str, str] = {}
    for key, entry in _split_keys(keys, indent):
        above, inner = re.split(rf"^{indent}{key}:", entry, maxsplit=1, flags=re.MULTILINE)
        found[key] = " ".join(line.strip().lstrip("# ") for line in above.splitlines() if line.strip())
        found |= {f"{key}.{name}": said for name, said in comments(inner, f"{indent}  ").items()}
    return found


def _entries(text: str) -> tuple[Entry, ...]:
    """Return the groups of a defaults list, each with the comment above it."""
    found, note = [], []
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("#"):
            note.append(line.removeprefix("#").strip())
        elif match := re.fullmatch(r"- (?:override )?/?([\w/]+): *(\S+)", line):
            found.append(Entry(match.group(1), match.group(2), "\n".join(note)))
            note = []
        else:
            note = []
    return tuple(found)


def _without(more: str, keys: str) -> str:
    """Return the entries of `more` that `keys` does not set itself, each with its comments; of groups, what is left."""
    own, kept = yaml.safe_load(keys) or {}, []
    for key, entry in _split_keys(more, ""):
        if key not in own:
            kept.append(entry)
        elif isinstance(own[key], dict):
            head, _, inner = entry.partition(f"{key}:\n")
            left = [text for name, text in _split_keys(inner, "  ") if name not in own[key]]
            kept.append("".join([head, f"{key}:\n", *left]) if left else "")
    return "".join(kept).strip("\n")


def _split_keys(text: str, indent: str) -> list[tuple[str, str]]:
    """Split keys at one level of indentation into (key, its text with the comments above it and all below it)."""
    found: list[tuple[str, str]] = []
    above = ""
    for line in text.splitlines(keepends=True):
        if match := re.match(rf"{indent}(\w+):", line):
            found.append((match[1], above + line))
            above = ""
        elif line.startswith(f"{indent}#") or not line.strip() or not found:
            above += line
        else:
            key, entry = found.pop()
            found.append((key, entry + above + line))
            above = ""
    return found
