"""Help texts, made from the comments of the configuration files: what is explained there is explained once.

Nothing heavy is imported here, so that help appears at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml

import configs
from recipes.engine.printing import columns, fold

CONFIGS = Path(configs.__file__).resolve().parent
"""The project's own configuration groups."""

PAGES = {
    "adopt": "docs/tutorials/fine-tuning.md",
    "analyze": "docs/tutorials/schedule-design.md",
    "compare": "docs/audio-and-video.md",
    "demo": "docs/start.md",
    "design": "docs/tutorials/schedule-design.md",
    "encode": "docs/tutorials/latents.md",
    "evaluate": "docs/evaluation.md",
    "explore": "docs/explore.md",
    "export": "docs/sharing-models.md",
    "fidelity": "docs/evaluation.md",
    "inspect": "docs/tutorials/your-own-modality.md",
    "launch": "docs/clusters.md",
    "pack": "docs/tutorials/data-at-scale.md",
    "report": "docs/reports.md",
    "sample": "docs/first-model.md",
    "train": "docs/first-model.md",
}
"""Where to read more about a command, beside the page about all of them."""
COMMAND_LINE = "docs/command-line.md"


def command_help(name: str, words: Sequence[str] = ()) -> str:
    """Return the help of a command that is configured by `configs/<name>.yaml`, as wide as the terminal.

    Of the choices among its `words`, every setting is explained; of `launch`, those of the launched command too.
    """
    from recipes.engine.chosen_help import chosen_sections  # it reads the same files by what is here

    about, entries, keys = _command(name)
    listed, wanted = groups(), _wanted(name, about, entries, keys)
    required = "".join(f" {key}=…" for key in re.findall(r"^(\w+): \?\?\?", keys, re.MULTILINE))
    shown = "what would be run or submitted" if name == "launch" else "the resolved configuration"
    options = [
        ("--help", "this text"), ("--show", f"print {shown} and stop"),
        ("--config-dir DIR", "also look for groups' choices in DIR, laid out like the project's configs"),
    ]  # fmt: skip
    sections = [_group(group, default, note, listed.get(group, [])) for group, default, note in entries]
    explained = chosen_sections(name, words)
    if name == "launch" and (CONFIGS / f"{(launched := _launched(words))}.yaml").exists():
        explained += chosen_sections(launched, words)
    parts = [
        f"usage: multisagd {name}{required}{' [group=choice ...]' if entries else ''} [key=value ...]",
        _paragraphs(about),
        fold(f"read more: {', '.join(dict.fromkeys([PAGES.get(name, COMMAND_LINE), COMMAND_LINE]))}"),
        "\n".join(["most wanted:", *columns(wanted)]) if wanted else "",
        "\n".join(["options:", *columns(options)]),
        *explained,
        fold(
            "groups, each with its choices (the default is marked *); with a choice, as in "
            f"`multisagd {name} {entries[0][0]}={entries[0][1]} --help`, this text lists its settings too:"
        )
        if sections
        else "",
        *sections,
        f"keys, with their defaults:\n{_folded(keys)}",
    ]
    return "\n\n".join(filter(None, parts))


def _wanted(name: str, heading: str, entries: list[tuple[str, str, str]], keys: str) -> list[tuple[str, str]]:
    """Return keys that the command cannot do without, then those of the examples, each with what is said of it."""
    said = {group: note.split("Example:")[0] for group, _, note in entries} | comments(keys)
    examples = " ".join(re.findall(rf"^ +multisagd {name} (.*)$", heading, re.MULTILINE))
    written = re.findall(r"(?:^|[\s'])([a-z_][\w.]*)=", examples)
    required = re.findall(r"^(\w+): \?\?\?", keys, re.MULTILINE)
    found: dict[str, str] = {}
    for key in (*required, *written):
        # Of a setting of a group, what the group is for, unless that is said already.
        about = re.sub(r"^as in `multisagd \w+`: ", "", said.get(key) or said.get(key.split(".")[0], ""))
        if about and about not in found.values():
            found[key] = about
    return [(f"{key}=…", about.strip().rstrip(".")) for key, about in found.items()]


def comments(keys: str, indent: str = "") -> dict[str, str]:
    """Return what the comment above each key says, nested ones by their dotted names."""
    found: dict[str, str] = {}
    for key, entry in _entries(keys, indent):
        above, inner = re.split(rf"^{indent}{key}:", entry, maxsplit=1, flags=re.MULTILINE)
        found[key] = " ".join(line.strip().lstrip("# ") for line in above.splitlines() if line.strip())
        found |= {f"{key}.{name}": said for name, said in comments(inner, f"{indent}  ").items()}
    return found


def _paragraphs(text: str) -> str:
    """Fold paragraphs; lines that are indented stay as they are."""
    parts = re.split(r"\n\n", text)
    return "\n\n".join(part if part.startswith("  ") else fold(part) for part in parts)


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


def _command(name: str) -> tuple[str, list[tuple[str, str, str]], str]:
    """Return heading, groups and keys of a command's file, with those of the files that it builds on."""
    about, defaults, keys = split_file((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    entries = _defaults(defaults)
    for base in re.findall(r"^ *- (\w+)$", defaults, re.MULTILINE):
        if base != "_self_":
            _, inherited, more = _command(base)
            entries, keys = [*entries, *inherited], f"{keys}\n\n# as in `multisagd {base}`:\n\n{_without(more, keys)}"
    return about, entries, keys


def _launched(words: Sequence[str]) -> str:
    """Return the command that the words of `launch` name."""
    return next((word.partition("=")[2] for word in words if word.startswith("command=")), "train")


def offered(name: str) -> list[str]:
    """Return the groups that a command chooses from."""
    return [group for group, _, _ in _command(name)[1]]


def choices_made(name: str) -> list[tuple[str, str]]:
    """Return the groups that a command chooses from, each with its default choice."""
    return [(group, choice) for group, choice, _ in _command(name)[1]]


def opened(name: str) -> tuple[str, ...]:
    """Return the keys of a command that take any key below them: those that its file leaves empty, as `data: {}`."""
    return tuple(key for key, value in (yaml.safe_load(_command(name)[2]) or {}).items() if value == {})


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


def own_folder(words: Sequence[str]) -> Path | None:
    """Return the folder that `--config-dir` names among words, None without one that is there."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--config-dir"):
            named = Path(word.partition("=")[2] or after).expanduser()
            return named if named.is_dir() else None
    return None


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
    about, _, _ = split_file(next(file for file in files if file.exists()).read_text(encoding="utf-8"))
    return " ".join(re.split(r"\s*(?:Example:|\n *\n)", about, maxsplit=1)[0].split())


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
    """Return a group with what it is for, an example that may be copied, and its choices."""
    about, mark, example = note.partition("Example: ")
    rows = [(f"{'*' if choice == default else ' '} {choice}", summary(group, choice)) for choice in choices]
    lines = [fold(about, f"  {group}: ", "    "), *([f"    {mark}{example.strip()}"] if example else [])]
    return "\n".join([*lines, *columns(rows, "    ")])
