"""Command-line completion: a shell script that calls `multisagd __complete SHELL …` for candidates.

It runs whenever the Tab key is pressed, so only the standard library and YAML are imported. Completion libraries are
unsuitable: they complete a parser's options, whereas these words are `key=value` and the keys depend on earlier words.
"""

import os
import re
import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from recipes.base.commands import COMMANDS, CONFIGURED, TOOLS, typed
from recipes.base.console import show
from recipes.config.groups import (
    KeyTable,
    choice_kinds,
    chosen_words,
    groups,
    offered,
    opened,
    own_folder,
    plain_keys,
    summary,
)
from recipes.evaluation.metric_table import METRICS

HELP = """examples:
  eval "$(multisagd completion bash)"         for this shell, in bash or zsh
  multisagd completion fish | source          in fish

The first lines of the script explain how to install it permanently.
read more: docs/command-line.md"""
Candidate = tuple[str, str]
"""A candidate for the word, and its description."""
SHELLS = ("bash", "zsh", "fish")
OPTIONS = {
    "--help": "explain every setting",
    "--show": "print the configuration",
    "--config-dir=": "folder with your own choices",
}
"""Options of all configured commands."""
TOOL_OPTIONS = {"doctor": ("--json", "--deep"), "list": ("--json", "--config-dir=")}


def complete(words: Sequence[str]) -> list[Candidate]:
    """Return candidates for the last of the `words` after `multisagd`."""
    *before, word = words or [""]
    return [(each, description) for each, description in _candidates(before, word) if each.startswith(word)]


def _candidates(before: Sequence[str], word: str) -> Iterable[Candidate]:
    """Return everything that may follow the earlier words; some candidates may not begin with `word`."""
    descriptions = {name: command.summary for name, command in COMMANDS.items()}
    if not before:
        return {**descriptions, "help": "list the commands", "--help": "", "--version": ""}.items()
    command, *settings = before
    if command == "help":
        return descriptions.items()
    if command in TOOLS:
        return _tool(command, word, settings)
    return _configured(command, word, settings) if command in CONFIGURED else ()


def _tool(command: str, word: str, settings: Sequence[str]) -> Iterable[Candidate]:
    if word.startswith("-"):
        return [(option, "") for option in (*TOOL_OPTIONS.get(command, ()), "--help")]
    if command == "doctor":
        return _files(word) if word.startswith("run_dir=") else [("run_dir=", "folder of a run")]
    if settings:
        return ()
    return [*choice_kinds().values(), ("everything", "")] if command == "list" else [(shell, "") for shell in SHELLS]


def _configured(command: str, word: str, settings: Sequence[str]) -> Iterable[Candidate]:
    """Return candidates for a setting of a command."""
    if word.startswith("--config-dir="):
        return _files(word)
    if word.startswith("-"):
        return OPTIONS.items()
    bare, folder = word.lstrip("+~"), own_folder(settings)
    sign = word.removesuffix(bare)
    commands = [command]
    if command == "launch":  # and the words of the launched command
        commands.append(chosen_words(settings, {"command"}).get("command", "train"))
    key_table = KeyTable(chosen_words(settings, groups(folder)), folder)
    keys = [key_table.keys(each) for each in commands]
    candidates = _values(bare, commands, keys, key_table) if "=" in bare else _keys(bare, commands, keys, folder)
    return [(f"{sign}{each}", description) for each, description in candidates]


def _keys(
    word: str, commands: Sequence[str], key_trees: Sequence[Mapping[str, Any]], folder: str | Path | None
) -> Iterator[Candidate]:
    """Yield the groups and keys at the level of the dotted key that is being typed."""
    head, dot, _ = word.rpartition(".")
    known = groups(folder).keys() - {key for command in commands for key in plain_keys(command)}
    descriptions = {group: description for group, (_, description) in choice_kinds(folder).items()}
    for tree in key_trees:
        level = _below(tree, head)
        for key, value in level.items() if isinstance(level, Mapping) else ():
            full = f"{head}{dot}{key}"
            if full in known and not head:
                yield f"{full}=", descriptions[full]
            if isinstance(value, Mapping) and value:
                yield f"{full}.", "its settings"
            elif full not in known and key != "_target_":
                yield f"{full}=", "" if value == "???" else f"now {typed(value)}"
    for each in {each for command in commands for each in opened(command)}:
        if word.startswith(f"{each}."):
            yield from ((f"{each}.{name}=", "current location of the run's data") for name in ("root", "urls"))
        else:
            yield f"{each}.", "keys of the run's data"
    if not head:
        # Groups whose default choice has no keys, such as experiments.
        left = [group for group in known if "/" not in group and not any(group in tree for tree in key_trees)]
        own = {group for command in commands for group in offered(command)}
        yield from ((f"{group}=", descriptions[group]) for group in left if group in own)


def _values(
    word: str, commands: Sequence[str], keys: Sequence[Mapping[str, Any]], key_table: KeyTable
) -> Iterable[Candidate]:
    """Return candidate values for the key before the equals sign."""
    key, folder = word.partition("=")[0], key_table.folder
    now = next((value for each in keys if (value := _below(each, key)) is not None), None)
    values: Iterable[Candidate]
    choices = groups(folder).get(key)
    if choices and not any(key in plain_keys(each) for each in commands):
        values = [(choice, summary(key, choice, folder)) for choice in choices]
    elif key == "command":
        values = [(name, known.summary) for name, known in CONFIGURED.items() if name != "launch"]
    elif key == "metrics":
        metrics = [(f"[{name}]", metric.description) for name, metric in METRICS.items()]
        values = [("all", "every available metric"), *metrics]
    elif isinstance(now, bool):
        values = [("true", ""), ("false", "")]
    elif isinstance(now, int | float | list):
        values = [(typed(now), "current value")]
    elif now in (listed := [value for each in commands for value in listed_values(key_table.comment(each, key))]):
        values = dict.fromkeys(listed, "").items()
    else:  # any string, usually a file name
        return _files(word)
    return [(f"{key}={value}", description) for value, description in values]


def listed_values(comment: str) -> list[str]:
    """Return the values that a comment lists at its end, such as `precision: float32 (exact), bfloat16 or float64`."""
    end = re.sub(r" \([^()]*\)", "", comment.rpartition(": ")[2])
    return re.split(", | or ", end) if re.fullmatch(r"\w+(, \w+)* or \w+", end) else []


def _below(keys: Any, path: str) -> Any:
    """Return the value at a dotted path of nested keys, or None."""
    for part in filter(None, path.split(".")):
        keys = keys.get(part) if isinstance(keys, Mapping) else None
    return keys


def _files(word: str) -> Iterator[Candidate]:
    """Yield files and folders that match the text after the equals sign."""
    key, _, begun = word.partition("=")
    folder, name = os.path.split(begun)
    try:
        entries = sorted(os.scandir(Path(folder or ".").expanduser()), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        # A name with line breaks would become several candidates, and a shell could run part of it as a command.
        if re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029]", entry.name):
            continue
        if entry.name.startswith(name) and (name.startswith(".") or not entry.name.startswith(".")):
            yield f"{key}={begun.removesuffix(name)}{entry.name}{'/' if entry.is_dir() else ''}", ""


def words_of(line: str) -> list[str]:
    """Split a line as a shell does; its last word may be empty, or may lack the closing quotation mark."""
    for closing in ("", "'", '"'):
        with suppress(ValueError):
            return [word.removesuffix("\0") for word in shlex.split(f"{line}\0{closing}")]
    return []


def for_bash(line: str, breaks: str = "") -> list[str]:
    """Return candidates for bash, which starts a new word after any character in `breaks` and adds no quotes."""
    candidates = [each for each, _ in complete(words_of(line)[1:])]
    try:
        shlex.split(line)
    except ValueError:
        # Within quotation marks, bash inserts candidates unchanged, so those with special characters are omitted.
        return [each for each in candidates if not set(each) & set("'\"`$\\")]
    raw = re.split(r"(?<!\\)\s", line)[-1]
    begun = max((raw.rfind(mark) for mark in breaks if mark in "=:"), default=-1)
    return [re.sub(r"([\s'\"\\$`&|;<>()*?!#\[\]{}])", r"\\\1", each)[begun + 1 :] for each in candidates]


def answer(arguments: Sequence[str]) -> int:
    """Print candidates for a shell, but no errors, which would disturb the line being typed; return the exit status."""
    shell, *words = arguments or [""]
    with suppress(Exception):
        if shell == "bash":
            lines = for_bash(*words[:2])
        else:
            lines = [
                f"{each}\t{textwrap.shorten(description, 90, placeholder=' …')}"
                for each, description in complete(words)
            ]
        if shell in SHELLS:
            print("\n".join(lines))
            return 0
    return 1


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    return (Path(__file__).parent / "cli" / "scripts" / f"completion.{shell}").read_text(encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the completion script of a shell, and return the exit status."""
    import argparse

    parser = argparse.ArgumentParser(
        "multisagd completion", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prints a script that lets a shell complete the commands, choices, keys and files of multisagd.",
    )  # fmt: skip
    parser.add_argument("shell", choices=SHELLS, help="your shell")
    show(script(parser.parse_args(arguments).shell).rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
