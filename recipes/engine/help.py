"""Help texts, made from the comments of the configuration files: what is explained there is explained once.

Nothing heavy is imported here, so that help appears at once.
"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

import configs

CONFIGS = Path(configs.__file__).resolve().parent
"""The project's own configuration groups."""

USAGE = """usage: multisagd {name} {settings}

{about}

options:
  --help              this text
  --show              print {shown} and stop
  --config-dir DIR    also look for groups' choices in DIR, laid out like the project's configs

{groups}keys, with their defaults:
{keys}
"""


def command_help(name: str) -> str:
    """Return the help of a command that is configured by `configs/<name>.yaml`."""
    about, entries, keys = _command(name)
    listed = groups()
    sections = [_group(group, default, note, listed.get(group, [])) for group, default, note in entries]
    heading = ["groups, each with its choices (the default is marked *):"] if sections else []
    return USAGE.format(
        name=name,
        settings="run_dir=FOLDER [group=choice ...] [key=value ...]" if "run_dir: ???" in keys else "[key=value ...]",
        shown="what would be run or submitted" if name == "launch" else "the resolved configuration",
        about=about,
        groups="".join(f"{part}\n" for part in [*heading, *sections]),
        keys=_indent(keys, 2),
    )


def _command(name: str) -> tuple[str, list[tuple[str, str, str]], str]:
    """Return heading, groups and keys of a command's file, with those of the files that it builds on."""
    about, defaults, keys = _parts((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    entries = _defaults(defaults)
    for base in re.findall(r"^ *- (\w+)$", defaults, re.MULTILINE):
        if base != "_self_":
            _, inherited, more = _command(base)
            entries, keys = [*entries, *inherited], f"{keys}\n\n# as in `multisagd {base}`:\n{_without(more, keys)}"
    return about, entries, keys


def _without(more: str, keys: str) -> str:
    """Return the entries of `more` that `keys` does not set itself, each with its comments; of groups, what is left."""
    own, kept = yaml.safe_load(keys) or {}, []
    for key, entry in _entries(more, ""):
        if key not in own:
            kept.append(entry)
        elif isinstance(own[key], dict):
            head, _, inner = entry.partition(f"{key}:\n")
            left = [text for name, text in _entries(inner, "  ") if name not in own[key]]
            kept.append("".join([head, f"{key}:\n", *left]) if left else "")
    return "".join(kept).strip("\n")


def _entries(text: str, indent: str) -> list[tuple[str, str]]:
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


def groups(folder: str | Path | None = None) -> dict[str, list[str]]:
    """Return every group with the names of its choices, sorted; `folder` holds further ones of the user's own."""
    found: dict[str, set[str]] = {}
    for root in (CONFIGS, *([] if folder is None else [Path(folder)])):
        for file in root.rglob("*.yaml"):
            if file.parent != root:
                found.setdefault(file.parent.relative_to(root).as_posix(), set()).add(file.stem)
    return {group: sorted(choices) for group, choices in sorted(found.items())}


def summary(group: str, choice: str, folder: str | Path | None = None) -> str:
    """Return the first paragraph that heads a choice's file, up to its example; `folder` is as for `groups`."""
    files = [root / group / f"{choice}.yaml" for root in (CONFIGS, *([] if folder is None else [Path(folder)]))]
    about, _, _ = _parts(next(file for file in files if file.exists()).read_text(encoding="utf-8"))
    return " ".join(re.split(r"\s*(?:Example:|\n *\n)", about, maxsplit=1)[0].split())


def _parts(text: str) -> tuple[str, str, str]:
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


def _defaults(text: str) -> list[tuple[str, str, str]]:
    """Return `(group, default choice, comment above it)` of each entry of a defaults list."""
    found, note = [], []
    for line in (line.strip() for line in text.splitlines()):
        if line.startswith("#"):
            note.append(line.removeprefix("#").strip())
        elif match := re.fullmatch(r"- (?:override )?/?([\w/]+): *(\S+)", line):
            found.append((match.group(1), match.group(2), "\n".join(note)))
            note = []
        else:
            note = []
    return found


def _group(group: str, default: str, note: str, choices: list[str]) -> str:
    width = max(map(len, choices), default=0)
    lines = [f"{'*' if choice == default else ' '} {choice:<{width}}  {summary(group, choice)}" for choice in choices]
    return "\n".join([f"  {group}: " + note.replace("\n", "\n    "), *(f"    {line}" for line in lines), ""])


def _indent(text: str, columns: int) -> str:
    return "\n".join(" " * columns + line if line else "" for line in text.splitlines())
