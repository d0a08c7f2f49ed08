"""What to tell a person whose command cannot be read, or names a key that is not there: the remedy, not the grammar."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from recipes.base.commands import CONFIGURED
from recipes.base.errors import nearest
from recipes.base.quoting import setting
from recipes.config.groups import groups, offered, opened
from recipes.config.key_table import Outline
from recipes.config.synonyms import SYNONYMS

PLACE = "data.root"
"""The key that says where the data of a run are, unless they are shards."""

AMBIGUOUS = (
    "a list is written {key}=[{value}], a text with commas '{key}=\"{value}\"', and a number without commas; "
    "several values, a run of each, are for `multisagd launch`"
)


def word(arguments: Sequence[str], place: int) -> str | None:
    """Return what is wrong with a word that is no setting; None for one that may be."""
    argument = arguments[place]
    before = arguments[place - 1] if place else ""
    dashes = re.match(r"[-–—]+", argument)
    if dashes and not argument[len(dashes[0]) :][:1].isdigit():
        key, _, value = argument[len(dashes[0]) :].replace("-", "_").partition("=")
        after = arguments[place + 1] if place + 1 < len(arguments) and not value else value
        return f"unknown option {argument}; settings are written key=value without dashes: {_typed(key, after)}"
    if before.count("[") > before.count("]") or before.count("{") > before.count("}"):
        return f"a blank ended {before!r}: quote a value with blanks, as in '{before} {argument}'"
    if argument == "" or argument.isspace():
        return f"a word is empty{f' after {before!r}' if before else ''}: is a variable of the shell not set?"
    if "=" in argument.strip("=") or argument.startswith("~"):
        return None
    bare = argument.strip("=")
    if argument.endswith("=") and bare:
        after = arguments[place + 1] if place + 1 < len(arguments) else ""
        if after and "=" not in after:
            return f"a blank ended {argument!r}: write {_typed(bare, after)}, without one"
        return f"{argument} has no value: write {bare}=null for none, or '{bare}=\"\"' for an empty text"
    after = arguments[place + 1] if place + 1 < len(arguments) else ""
    if bare and re.fullmatch(r"[\w.]+", bare) and after == "=":
        return f"no blanks around the equals sign: {_typed(bare, ''.join(arguments[place + 2 : place + 3]))}"
    if bare and (Path(bare).exists() or "/" in bare or "\\" in bare):
        either = " or ".join(setting(key, bare) for key in ("run_dir", "data.root"))
        return f"cannot read {argument!r}: settings are written key=value; is it {either}?"
    if bare in CONFIGURED:
        return f"cannot read {argument!r}: the command comes first, or for `multisagd launch` as command={bare}"
    key, _, value = bare.partition(":")
    value = value or (after if "=" not in after else "")
    hint = f", as in {_typed(key, value)}" if re.fullmatch(r"[\w.]+", key) else ""
    return f"cannot read {argument!r}: settings are written key=value or group=choice{hint}"


def unreadable(argument: str, reason: str) -> str:
    """Return what to do about a word that is a setting, but not in Hydra's grammar."""
    key, _, value = argument.partition("=")
    told = f"cannot read the command: {argument!r}"
    if re.search("[“”‘’„«»]", argument):
        return f"{told} has quotation marks of a text program: use ' and \""
    if value.startswith("="):
        return f"{told}: one equals sign is enough"
    if value.startswith("~"):
        return f"{told}: ~ is not understood here; write {key}=$HOME{value[1:]}"
    if re.fullmatch(r"\(.*\)", value):
        return f"{told}: a list is written {key}=[{value[1:-1]}]"
    for opening, closing in ("[]", "{}"):
        if value.count(opening) != value.count(closing):
            return f"{told}: {opening} and {closing} do not match"
    quoted = shlex.quote(f'{key}="{value}"')
    return f"{told} ({reason}). Quote the value, and the whole once more for the shell: {quoted}"


def unknown(command: str, key: str, value: str, known: Iterable[str], folder: Path | None) -> str:
    """Return what is said of a key that a command does not have: the nearest that it has."""
    have, mine, chosen = set(known), groups(folder), set(offered(command))
    if key in mine and key not in chosen:
        choices = f"its groups are {', '.join(sorted(chosen))}" if chosen else "it has none"
        kept = "What a run was trained with, it keeps"
        moved = f"; where its data are now is said by {PLACE}=…" if key in opened(command) else ""
        return f"`multisagd {command}` does not choose {key}: {choices}. {kept}{moved}"
    below = {f"{each}.{name}" for each in opened(command) for name in ("root", "urls")}
    last = key.rpartition(".")[2].lower().replace("-", "_")
    # A slip in a group's name says what is meant better than what other programs call the key.
    for other in get_close_matches(key, have, cutoff=0.85) if "." in key else ():
        if other.rpartition(".")[2] == key.rpartition(".")[2]:
            return f"unknown key {key!r}; did you mean {other!r}?"
    meant = [other for other in SYNONYMS.get(last, ()) if other in have | chosen | below and other != key]
    same = sorted(each for each in have if each.rpartition(".")[2] == key) if "." not in key else []
    if meant or same:
        # Keys of that very name come last where the word means something else elsewhere, as steps do.
        first = meant[0] if meant else same[0]
        return (
            f"unknown key {key!r}; did you mean {_listed([*dict.fromkeys([*meant[:2], *same])])}?{_remark(last, first)}"
        )
    for other in (key, *SYNONYMS.get(last, ())):
        group, _, name = other.rpartition(".")
        if other == key and group:
            continue
        if having := _having(name, [group] if group else chosen, mine, folder):
            group = having[0].partition("=")[0]
            if group in chosen:
                return f"unknown key {key!r}; it is {group}.{name}={value} with {', '.join(having[:5])}"
    near = nearest(key, [*have, *chosen])
    return f"unknown key {key!r}{near or f'; `multisagd {command} --help` names those that there are'}"


def _having(key: str, chosen: Iterable[str], mine: Mapping[str, Sequence[str]], folder: Path | None) -> list[str]:
    """Return the choices of the first group of which any has a setting of that name."""
    for group in sorted(chosen):
        found = [choice for choice in mine.get(group, ()) if key in Outline({}, folder).file(choice, group)]
        if found:
            return [f"{group}={choice}" for choice in found]
    return []


def _typed(key: str, value: str) -> str:
    """Return a setting as it is typed into a shell; its value is the person's, in whatever grammar it is."""
    return shlex.quote(f"{key}={value}") if value else f"{key}=…"


def _listed(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names[:3]))


def _remark(word: str, other: str) -> str:
    if other == "training.samples":
        return " Training is counted in samples seen: examples × epochs, or steps × batch"
    if other == "engine.device" and word in ("gpus", "num_gpus", "n_gpus", "ngpu", "devices"):
        return " Several GPUs are for `multisagd launch cluster.gpus=…`"
    return " The same command on the same run_dir continues" if word.startswith("resume") else ""
