"""What a shell offers for a word half written: `multisagd __complete SHELL …`, called by the script of `completion`.

It answers at every press of a key, so nothing is imported but the standard library and YAML. Each line of the answer is
a candidate, and behind a tab what it is. No existing library serves: those known complete the options of a parser, or
of one that Hydra's application layer owns, and here words are `key=value` and the keys depend on the words before.
"""

from __future__ import annotations

import os
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.base.commands import COMMANDS, CONFIGURED, TOOLS
from recipes.cli.choices import kinds
from recipes.config.groups import groups, offered, opened, own_folder, summary
from recipes.config.key_table import Outline
from recipes.evaluation.metric_table import METRICS

Candidate = tuple[str, str]
"""A whole word, and what it is."""
SHELLS = ("bash", "zsh", "fish")
OPTIONS = {"--help": "every setting", "--show": "print the configuration", "--config-dir=": "your own groups"}
"""Options of every configured command."""


def complete(words: Sequence[str]) -> list[Candidate]:
    """Return what the last of the words after `multisagd` may become."""
    before, word = list(words[:-1]), words[-1] if words else ""
    abouts = {name: known.summary for name, known in COMMANDS.items()}
    if not before:
        options = {"help": "what the commands are", "--help": "", "--version": ""}
        return _beginning(word, {**abouts, **options}.items())
    command, *settings = before
    if command == "help":
        return _beginning(word, abouts.items())
    if command in TOOLS:
        return _tool(command, word, settings)
    return list(_configured(command, word, settings)) if command in CONFIGURED else []


def _tool(command: str, word: str, settings: Sequence[str]) -> list[Candidate]:
    if word.startswith("-"):
        options = {"doctor": ("--json", "--deep"), "list": ("--json", "--config-dir=")}.get(command, ())
        return _beginning(word, [(option, "") for option in (*options, "--help")])
    if command == "doctor":
        return (
            list(_files(word)) if word.startswith("run_dir=") else _beginning(word, [("run_dir=", "folder of a run")])
        )
    if settings:
        return []
    if command == "list":
        return _beginning(word, [*kinds().values(), ("everything", "")])
    return _beginning(word, [(shell, "") for shell in SHELLS])


def _configured(command: str, word: str, settings: Sequence[str]) -> Iterator[Candidate]:
    """Return candidates for a setting of a command."""
    if word.startswith("--config-dir="):
        yield from _files(word)
    elif word.startswith("-"):
        yield from _beginning(word, OPTIONS.items())
    else:
        bare = word.lstrip("+~")
        sign = word.removesuffix(bare)
        folder = own_folder(settings)
        commands = [command]
        if command == "launch":  # and the words of what it launches
            launched = [each.partition("=")[2] for each in settings if each.startswith("command=")]
            commands.append((launched or ["train"])[-1])
        outline = Outline(_chosen(settings, groups(folder)), folder)
        keys = [outline.keys(each) for each in commands]
        found = _values(bare, commands, keys, outline) if "=" in bare else _keys(bare, commands, keys, folder)
        yield from ((f"{sign}{each}", about) for each, about in found)


def _chosen(settings: Sequence[str], known: Mapping[str, object]) -> dict[str, str]:
    """Return the choices among the words that were written before."""
    pairs = (each.lstrip("+").partition("=") for each in settings)
    return {key: value for key, _, value in pairs if key in known}


def _keys(
    word: str, commands: Sequence[str], outlines: Sequence[Mapping[str, Any]], folder: Path | None
) -> Iterator[Candidate]:
    """Return groups and keys, one level deeper than the word is."""
    head, dot, _ = word.rpartition(".")
    known, described = groups(folder), kinds(folder)

    def about(group: str) -> str:
        return described[group][1] if group in described else ""

    for outline in outlines:
        level: Any = outline
        for part in filter(None, head.split(".")):
            level = level.get(part) if isinstance(level, Mapping) else None
        for key, value in level.items() if isinstance(level, Mapping) else ():
            full = f"{head}{dot}{key}"
            if full in known and not head:
                yield from _beginning(word, [(f"{full}=", about(full))])
            if isinstance(value, Mapping) and value:
                yield from _beginning(word, [(f"{full}.", "its settings")])
            elif full not in known and key != "_target_":
                yield from _beginning(word, [(f"{full}=", "" if value == "???" else f"now {_written(value)}")])
    for each in {each for command in commands for each in opened(command)}:
        places = ((f"{each}.{name}=", "where the run's data are now") for name in ("root", "urls"))
        yield from _beginning(word, places if word.startswith(f"{each}.") else [(f"{each}.", "keys of the run's data")])
    if not head:
        # Groups whose default choice leaves no keys behind, such as an experiment.
        left = [group for group in known if "/" not in group and not any(group in outline for outline in outlines)]
        chosen = {group for command in commands for group in offered(command)}
        yield from _beginning(word, [(f"{group}=", about(group)) for group in left if group in chosen])


def _values(
    word: str, commands: Sequence[str], keys: Sequence[Mapping[str, Any]], outline: Outline
) -> Iterator[Candidate]:
    """Return values of the key that stands before the equals sign."""
    (key, _, _), folder = word.partition("="), outline.folder
    now = next((value for each in keys if (value := _get(each, key)) is not None), None)
    if choices := groups(folder).get(key):
        found: list[Candidate] = [(choice, summary(key, choice, folder)) for choice in choices]
    elif key == "command":
        found = [(name, known.summary) for name, known in CONFIGURED.items() if name != "launch"]
    elif key == "metrics":
        found = [
            ("all", "every one that can be had"),
            *((f"[{name}]", metric.about) for name, metric in METRICS.items()),
        ]
    elif isinstance(now, bool):
        found = [("true", ""), ("false", "")]
    elif isinstance(now, int | float | list):
        found = [(_written(now), "as it is now")]
    elif now in (few := [value for each in commands for value in listed_values(outline.comment(each, key))]):
        found = [(value, "") for value in dict.fromkeys(few)]
    else:  # a text, and most are names of files
        yield from _files(word)
        return
    yield from _beginning(word, [(f"{key}={value}", about) for value, about in found])


def listed_values(comment: str) -> list[str]:
    """Return the values that a comment lists at its end, as `precision: float32 (exact), bfloat16 or float64`."""
    end = re.sub(r" \([^()]*\)", "", comment.rpartition(": ")[2])
    return re.split(", | or ", end) if re.fullmatch(r"\w+(, \w+)* or \w+", end) else []


def _written(value: Any) -> str:
    """Write a value as it is written on the command line."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else str(value).replace(" ", "")


def _get(outline: Mapping[str, Any], key: str) -> Any:
    level: Any = outline
    for part in key.split("."):
        level = level.get(part) if isinstance(level, Mapping) else None
    return level


def _files(word: str) -> Iterator[Candidate]:
    """Return files and folders for what is behind the equals sign."""
    key, _, begun = word.partition("=")
    folder, name = os.path.split(begun)
    try:
        entries = sorted(os.scandir(Path(folder or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        # A name of several lines would be several candidates, of which a shell runs what follows a blank or semicolon.
        if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", entry.name):
            continue
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield f"{key}={os.path.join(folder, entry.name)}{'/' if entry.is_dir() else ''}", ""  # noqa: PTH118


def _beginning(word: str, candidates: Any) -> list[Candidate]:
    return [(each, about) for each, about in candidates if each.startswith(word)]


def words_of(line: str) -> list[str]:
    """Split a line as a shell does, up to where it ends, within quotation marks maybe; the last word may be empty."""
    for closing in ("", "'", '"'):
        try:
            words = shlex.split(f"{line}{closing}" if closing else f"{line}\0")
        except ValueError:
            continue
        return [word.removesuffix("\0") for word in words]
    return []


def for_bash(line: str, breaks: str) -> list[str]:
    """Answer bash, which takes a word to begin after any of `breaks`, and inserts what it gets as it is."""
    words = words_of(line)
    found = [each for each, _ in complete(words[1:] or [""])]
    try:
        shlex.split(line)
    except ValueError:
        # Within quotation marks, bash takes all since them as one word, unless something in it ends or opens them.
        return [each for each in found if not set(each) & set("'\"`$\\")]
    raw = re.split(r"(?<!\\)\s", line)[-1]
    begun = max((raw.rfind(mark) for mark in breaks if mark in "=:"), default=-1)
    return [re.sub(r"([\s'\"\\$`&|;<>()*?!#\[\]{}])", r"\\\1", each)[begun + 1 :] for each in found]


def _described(words: Sequence[str]) -> list[str]:
    return [f"{each}\t{textwrap.shorten(about, 90, placeholder=' …')}" for each, about in complete(words)]


def main(arguments: Sequence[str]) -> int:
    """Print candidates for a shell; whatever goes wrong, the person is typing, and does not want to read of it."""
    shell, *words = arguments or [""]
    answers: dict[str, Callable[[], list[str]]] = {
        "bash": lambda: for_bash(words[0], words[1] if len(words) > 1 else ""),
        "zsh": lambda: _described(words),
        "fish": lambda: _described(words),
    }
    try:
        print("\n".join(answers[shell]()))
    except Exception:
        return 1
    return 0
