"""List the choices of configuration groups, each with its description and the argument that selects it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.base.commands import COMMANDS
from recipes.base.console import columns, fold, show
from recipes.base.errors import USAGE_STATUS, RecipeError, nearest
from recipes.config.groups import choice_kinds, groups, summary
from recipes.evaluation.metric_table import METRICS

HELP = """examples:
  multisagd list                        the kinds of choices
  multisagd list spectra                one kind of choices; the name of the group, spectrum, also works
  multisagd list everything
  multisagd list spectra --config-dir=mine   includes your own choices
  multisagd list experiments --json

read more: docs/command-line.md"""


def listed(kind: str, folder: str | Path | None = None) -> list[dict[str, str]]:
    """Return the choices of one kind, each with `choice`, the `override` that selects it, and a `description`."""
    if kind == "commands":
        rows = [(name, f"multisagd {name}", command.summary) for name, command in COMMANDS.items()]
    elif kind == "metrics":
        rows = [(name, f"metrics=[{name}]", metric.description) for name, metric in METRICS.items()]
    else:
        choices = groups(folder).get(kind, [])
        rows = [(choice, f"{kind}={choice}", summary(kind, choice, folder)) for choice in choices]
    return [
        {"choice": choice, "override": override, "description": description} for choice, override, description in rows
    ]


def find(word: str, folder: str | Path | None = None) -> str:
    """Return the kind of choices that a word names: a group or its plural, in upper or lower case.

    Raises a RecipeError that names the nearest kind if there is no such kind.
    """
    plain = word.lower().rstrip("=").replace("-", "_")
    known = choice_kinds(folder)
    for kind, (plural, _) in known.items():
        if plain in (kind, plural, f"{kind}s", plural.removesuffix("s")):
            return kind
    raise RecipeError(f"there is no list of {word!r}{nearest(plain, [plural for plural, _ in known.values()])}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        "multisagd list", description="Lists choices, with the argument that selects each.",
        epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="?", help="a kind of choices, such as spectra, or everything")
    parser.add_argument("--json", action="store_true", help="print the choices as JSON")
    own = "also list your own choices, in a folder with the structure of the project's configs"
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help=own)
    words = parser.parse_args(arguments)
    folder, every = words.config_dir, words.what in (None, "everything", "all")
    try:
        if folder is not None and not folder.is_dir():
            raise RecipeError(f"--config-dir: {folder.absolute()} is not a folder")
        kinds = choice_kinds(folder) if every else [find(words.what, folder)]
        choices = {kind: listed(kind, folder) for kind in kinds}
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_STATUS
    if words.json:
        show(json.dumps(choices if every else next(iter(choices.values())), indent=1))
        return 0
    headed = [(*choice_kinds(folder)[kind], rows) for kind, rows in choices.items()]
    if words.what is None:
        counts = columns([(plural, f"{description} ({len(rows)})") for plural, description, rows in headed])
        ending = fold("`multisagd list spectra` lists one kind, with the argument that selects each choice.")
        show("\n".join(["kinds of choices, and the number of each:", "", *counts, "", ending]))
        return 0
    for number, (plural, description, rows) in enumerate(headed):
        table = columns([(row["override"], row["description"]) for row in rows])
        show("\n".join([*([""] if number else []), fold(f"{plural}: {description}"), *table]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
