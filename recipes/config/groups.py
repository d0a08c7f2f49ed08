"""The groups of configuration files: their choices, and the keys, defaults and comments in their files.

The files are read without Hydra, because importing Hydra takes too long for help and completion. Values are as
written in the files: interpolations are not resolved. A test compares the keys with those that Hydra composes.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

import configs

CONFIGS = Path(configs.__file__).resolve().parent
"""The project's own configuration groups."""
ENTRY = re.compile(r"(?P<override>override )?/?(?P<group>[\w/]*)(?:@(?P<package>[\w.]+))?")
"""A key in a defaults list, as in `- override /network: unet`."""
ABSENT = "-"
ALWAYS = ("modality", "data", "spectrum", "schedule", "denoiser", "network", "loss")
"""Groups that every run has; a configuration without one of them is damaged."""
NAMES = {
    "modality": ("modalities", "the kind of data, and its representation as a tensor on a grid"),
    "data": ("datasets", "the source of the examples"),
    "corruption": ("corruptions", "synthetic corruption of a frequency band"),
    "spectrum": ("spectra", "the noise power at each frequency"),
    "covariance": ("covariances", "whether the noise of each example follows its dense condition"),
    "schedule": ("schedules", "the signal-to-noise ratio as a function of time"),
    "process": ("processes", "whether signal and noise coefficients depend on frequency"),
    "denoiser": ("denoisers", "what the network predicts, and its preconditioning"),
    "network": ("networks", "the network"),
    "text": ("texts", "whether to train on captions instead of classes"),
    "condition": ("conditions", "whether to train on a condition that is derived from each example"),
    "loss": ("losses", "metric, weighting and distribution of training times"),
    "sampler": ("samplers", "how samples are drawn"),
    "refine": ("refinements", "whether samples are refined from temporally consistent noise"),
    "engine": ("engines", "device, precision, compilation, data loading"),
    "tracking": ("trackers", "where metrics are logged"),
    "cluster": ("clusters", "where `multisagd launch` runs commands"),
    "experiment": ("experiments", "a complete set of choices for one task"),
}
"""Plural and description of each configuration group, in the order of training."""


class Entry(NamedTuple):
    """A group in a command's defaults: its name, its default choice, and the comment above it."""

    group: str
    default: str
    note: str


@dataclass(frozen=True)
class CommandFile:
    """The content of `configs/<command>.yaml` and its base files: heading, groups, and the YAML of the keys."""

    heading: str
    entries: tuple[Entry, ...]
    keys: str


def groups(folder: str | Path | None = None) -> dict[str, list[str]]:
    """Return every group with the sorted names of its choices; `folder` contains the user's additional choices."""
    choices: dict[str, set[str]] = {}
    for root in roots(folder):
        for file in root.rglob("*.yaml"):
            if file.parent != root:
                choices.setdefault(file.parent.relative_to(root).as_posix(), set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(choices.items())}


def choice_kinds(folder: str | Path | None = None) -> dict[str, tuple[str, str]]:
    """Return the plural and the description of all that `multisagd list` shows, including a user's own groups."""
    own = {group: (group, "from your own folder") for group in groups(folder) if group not in NAMES}
    commands = ("commands", "the commands of `multisagd`")
    return {**NAMES, **own, "commands": commands, "metrics": ("metrics", "what `multisagd evaluate` computes")}


def roots(folder: str | Path | None = None) -> tuple[Path, ...]:
    """Return the folders to search for groups: the project's, and the user's `folder` if given."""
    return (CONFIGS, *([] if folder is None else [Path(folder)]))


def choice_file(group: str, choice: str, folder: str | Path | None = None) -> Path | None:
    """Return the file of a choice, or None if it does not exist; the project's files take precedence over `folder`."""
    return next((path for root in roots(folder) if (path := root / group / f"{choice}.yaml").is_file()), None)


def summary(group: str, choice: str, folder: str | Path | None = None) -> str:
    """Return the first paragraph of the heading in a choice's file, up to an example; `folder` is as for `groups`."""
    path = choice_file(group, choice, folder)
    assert path is not None
    description, _, _ = split_file(path.read_text(encoding="utf-8"))
    return " ".join(re.split(r"\s*(?:Example:|\n *\n)", description, maxsplit=1)[0].split())


def offered(command: str) -> list[str]:
    """Return the groups in a command's defaults."""
    return [entry.group for entry in command_file(command).entries]


def opened(command: str) -> tuple[str, ...]:
    """Return the keys of a command that accept any subkey: the keys that are empty in its file, such as `data: {}`."""
    return tuple(key for key, value in (yaml.safe_load(command_file(command).keys) or {}).items() if value == {})


def plain_keys(command: str) -> set[str]:
    """Return the keys of a command at the top level whose values are not groups of keys."""
    keys = yaml.safe_load(command_file(command).keys) or {}
    return {key for key, value in keys.items() if not isinstance(value, dict)}


@cache
def command_file(command: str) -> CommandFile:
    """Return the content of a command's file, merged with its base files."""
    heading, defaults, keys = split_file((CONFIGS / f"{command}.yaml").read_text(encoding="utf-8"))
    entries = _entries(defaults)
    for base in re.findall(r"^ *- (\w+)$", defaults, re.MULTILINE):
        if base != "_self_":
            below = command_file(base)
            entries = (*entries, *below.entries)
            keys = f"{keys}\n\n# as in `multisagd {base}`:\n\n{_without(below.keys, keys)}"
    return CommandFile(heading, entries, keys)


def own_folder(words: Sequence[str]) -> Path | None:
    """Return the folder given by `--config-dir` in `words`, or None if it is not given or does not exist."""
    for word, after in zip(words, [*words, ""][1:], strict=True):
        if word.startswith("--config-dir"):
            named = Path(word.partition("=")[2] or after).expanduser()
            return named if named.is_dir() else None
    return None


def chosen_words(words: Sequence[str], known: Collection[str]) -> dict[str, str]:
    """Return the choices in words such as `group=choice`, for the groups in `known`."""
    pairs = (word.lstrip("+").partition("=") for word in words)
    return {group: choice for group, _, choice in pairs if group in known}


def split_file(text: str) -> tuple[str, str, str]:
    """Split a configuration file into its heading comment, its defaults list and the rest."""
    lines = text.splitlines()
    heading = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    comment = [line.removeprefix("#").removeprefix(" ").rstrip() for line in lines[:heading] if "@package" not in line]
    description, body = "\n".join(comment).strip(), "\n".join(lines[heading:])
    match = re.search(r"^defaults:\n((?:[ ].*\n|\n(?=[ ]))*)", body + "\n", re.MULTILINE)
    if match is None:
        return description, "", body.strip("\n")
    return description, match[1], (body[: match.start()] + body[match.end() :]).strip("\n")


def comments(keys: str, indent: str = "") -> dict[str, str]:
    """Return the comment above each key, by key; nested keys have dotted names."""
    strings: dict[str, str] = {}
    for key, entry in _split_keys(keys, indent):
        above, inner = re.split(rf"^{indent}{key}:", entry, maxsplit=1, flags=re.MULTILINE)
        strings[key] = " ".join(line.strip().lstrip("# ") for line in above.splitlines() if line.strip())
        strings |= {f"{key}.{name}": text for name, text in comments(inner, f"{indent}  ").items()}
    return strings


def _entries(text: str) -> tuple[Entry, ...]:
    """Return the groups of a defaults list, each with the comment above it."""
    entries, note = [], []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("#"):
            note.append(line.removeprefix("#").strip())
            continue
        if match := re.fullmatch(r"- (?:override )?/?([\w/]+): *(\S+)", line):
            entries.append(Entry(match[1], match[2], "\n".join(note)))
        note = []
    return tuple(entries)


def _without(more: str, keys: str) -> str:
    """Return the keys of `more` that `keys` does not set, with their comments; a group keeps its remaining subkeys."""
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
    """Split keys at one level of indentation into pairs of key and text, including comments above and subkeys below."""
    parts: list[tuple[str, str]] = []
    above = ""
    for line in text.splitlines(keepends=True):
        if match := re.match(rf"{indent}(\w+):", line):
            parts.append((match[1], above + line))
            above = ""
        elif line.startswith(f"{indent}#") or not line.strip() or not parts:
            above += line
        else:
            key, entry = parts.pop()
            parts.append((key, entry + above + line))
            above = ""
    return parts


@dataclass(frozen=True)
class Default:
    """An entry of a file's defaults list: a choice of `group` ("" is the file's own), with its keys at `package`."""

    choice: str
    group: str = ""
    package: str = ""
    override: bool = False


@dataclass(frozen=True)
class KeyTable:
    """The keys of configuration files, with their defaults, for the given choices and the user's `folder` of groups."""

    choices: Mapping[str, str]
    folder: str | Path | None = None

    def keys(self, name: str, group: str = "") -> dict[str, Any]:
        """Return the nested keys of the command `name`, or of the choice `name` of a group, with their defaults."""
        merged: dict[str, Any] = {}
        choices = dict(self.overrides(name, group)) | dict(self.choices)
        for package, content in self._parts(name, group, "", choices):
            for part in reversed(package.split(".") if package else ()):
                content = {part: content}
            merged = over(merged, content)
        return merged

    def overrides(self, name: str, group: str = "") -> Iterator[tuple[str, str]]:
        """Yield (group, choice) for choices that files make for other groups; the last choice takes precedence."""
        for entry in self.defaults(name, group):
            if entry.override:
                yield entry.group, entry.choice
            elif not entry.package and entry.choice != "_self_":
                inner = entry.group or group
                yield from self.overrides(self.choices.get(inner, entry.choice) if entry.group else entry.choice, inner)

    def _parts(
        self, name: str, group: str, package: str, choices: Mapping[str, str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the content of a file and of its base files, in order, each with the package of its keys."""
        for entry in self.defaults(name, group):
            choice, inner, inner_package = entry.choice, entry.group or group, package
            if choice == "_self_":
                yield package, {key: value for key, value in self.file(name, group).items() if key != "defaults"}
            elif not entry.override:
                if entry.package:
                    inner_package = f"{package}.{entry.package}".lstrip(".")
                elif entry.group:
                    choice = choices.get(inner, choice)
                    path = choice_file(inner, choice, self.folder)
                    inner_package = "" if is_global(path) else inner.replace("/", ".")
                yield from self._parts(choice, inner, inner_package, choices)

    def defaults(self, name: str, group: str) -> Iterator[Default]:
        """Yield the entries of a file's defaults list; the file itself, `_self_`, is last if the list omits it."""
        lines = self.file(name, group).get("defaults") or []
        for line in lines if "_self_" in lines else [*lines, "_self_"]:
            # An entry of the same group is `- auto` or `- image@modality`; of another, `- override /network: unet`.
            if not isinstance(line, dict):
                choice, _, package = str(line).partition("@")
                yield Default(choice, package=package)
                continue
            key, value = next(iter(line.items()))
            if match := ENTRY.fullmatch(key):
                yield Default(str(value), match["group"], match["package"] or "", bool(match["override"]))

    def comments(self, choice: str, group: str, prefix: str) -> dict[str, str]:
        """Return the comments on the keys of a choice and of its base files, by dotted keys after `prefix`."""
        strings: dict[str, str] = {}
        for entry in self.defaults(choice, group):
            if entry.choice != "_self_" and not entry.override:
                below = f"{prefix}{entry.package}." if entry.package else prefix
                strings |= self.comments(entry.choice, entry.group or group, below)
        if (path := choice_file(group, choice, self.folder)) is None:
            return strings
        prefix = "" if is_global(path) else prefix
        own = comments(split_file(path.read_text(encoding="utf-8"))[2])
        return strings | {f"{prefix}{key}": description for key, description in own.items() if description}

    def comment(self, command: str, key: str) -> str:
        """Return the comment on a key of a command, or an empty string."""
        file, group = command_file(command), key.partition(".")[0]
        default = next((entry.default for entry in file.entries if entry.group == group), None)
        if default is None:
            return comments(file.keys).get(key, "")
        return self.comments(self.choices.get(group, default), group, f"{group}.").get(key, "")

    def file(self, name: str, group: str) -> dict[str, Any]:
        """Return the content of a choice's file, or an empty dictionary if it does not exist or cannot be read."""
        return read_file(path) if (path := choice_file(group, name, self.folder)) else {}


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested configuration as one dictionary with dotted keys; lists and empty groups are values."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    parts = [flatten(value, f"{prefix}.{key}".removeprefix(".")) for key, value in node.items()]
    return {key: value for part in parts for key, value in part.items()}


def under(key: str, names: Iterable[str]) -> bool:
    """Whether a dotted name is one of `names` or below one of them."""
    return any(key == name or key.startswith(f"{name}.") for name in names)


def prefixes(keys: Mapping[str, Any]) -> set[str]:
    """Return the dotted keys and all their parent groups."""
    return {key.rsplit(".", depth)[0] for key in keys for depth in range(key.count(".") + 1)}


@cache
def read_file(path: Path) -> dict[str, Any]:
    """Return the content of a group's file, or an empty one if it cannot be read; composing reports the error."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def is_global(path: Path | None) -> bool:
    """Whether a choice's file sets keys of the whole configuration."""
    return path is not None and path.read_text(encoding="utf-8").startswith("# @package _global_")


def over(below: Mapping[str, Any], above: Mapping[str, Any], by_class: bool = False) -> dict[str, Any]:
    """Merge nested mappings, where values in `above` take precedence over those in `below`.

    With `by_class`, two groups with different classes (`_target_`) are not merged: the one in `above` is used alone.
    """
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            here, there = value.get("_target_"), under.get("_target_")
            replaced = by_class and None not in (here, there) and here != there
            value = value if replaced else over(under, value, by_class)
        result[key] = value
    return result


def filled(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a training run with missing keys set to their defaults."""
    own = _known(train_defaults())
    for group, default, _ in command_file("train").entries:
        if group == "experiment":  # choices for other groups, and no keys of its own
            continue
        if isinstance(node := config.get(group), Mapping):
            own[group] = _shared_defaults(group, node)
            if isinstance(sources := node.get("sources"), Mapping):
                each = {name: source for name, source in sources.items() if isinstance(source, Mapping)}
                own[group]["sources"] = {name: _shared_defaults(group, source) for name, source in each.items()}
        elif group not in config and group not in ALWAYS:
            own[group] = _known(of_choice(group, default))
    return over(own, config, by_class=True)


def train_defaults() -> dict[str, Any]:
    """Return the keys of `configs/train.yaml` that are not in a group."""
    return {key: value for key, value in read_file(CONFIGS / "train.yaml").items() if key != "defaults"}


def nearest_choice(group: str, node: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the choice of the same class as `node` that differs in the fewest values, or None, and its values.

    The choices of a group differ by class, or, as for engines, only by their values.
    """
    here = flatten(node)
    best: tuple[int, str | None, dict[str, Any]] = (len(here) + 1, None, {})
    for choice, values in _of_class(group, node).items():
        there = flatten(values)
        different = sum(here.get(key, ABSENT) != there.get(key, ABSENT) for key in here.keys() | there.keys())
        best = min(best, (different, choice, values), key=lambda each: each[0])
    return best[1], best[2]


@cache
def of_choice(group: str, choice: str) -> dict[str, Any]:
    """Return the values of a choice, merged with the choice that it builds on."""
    return KeyTable({}).keys(choice, group)


def _shared_defaults(group: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return defaults for missing keys of a group: the values that all choices of its class share.

    For other keys, either the class has a default or the value is required. A group without a class uses the nearest
    choice.
    """
    if node.get("_target_") is None:
        return _known(nearest_choice(group, node)[1])
    first, *others = _of_class(group, node).values() or [{}]
    shared = [key for key, value in first.items() if all(each.get(key, ABSENT) == value for each in others)]
    return _known({key: first[key] for key in shared})


def _of_class(group: str, node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the choices of a group with the same class as `node`, with their values."""
    every = {choice: of_choice(group, choice) for choice in groups()[group]}
    return {choice: values for choice, values in every.items() if values.get("_target_") == node.get("_target_")}


def _known(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values, omitting those that are required (`???`) or interpolated."""
    inner = {key: _known(value) if isinstance(value, Mapping) else value for key, value in node.items()}
    return {key: each for key, each in inner.items() if not (isinstance(each, str) and (each == "???" or "${" in each))}
