"""List what can be chosen, one line each, with the words that choose it: `multisagd list`, `multisagd list spectra`.

What is listed are the configuration files of the project, and those of your own that `--config-dir` names; their first
comment is the line. Nothing heavy is imported.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.base.console import columns, fold, show
from recipes.base.errors import USAGE_STATUS, RecipeError
from recipes.cli.choices import find, kinds, listed

HELP = """examples:
  multisagd list                        the kinds of things that can be chosen
  multisagd list spectra                one kind; the name of its group (spectrum) does too
  multisagd list everything
  multisagd list spectra --config-dir=mine   your own choices too
  multisagd list experiments --json

read more: docs/command-line.md"""


def overview(folder: Path | None = None) -> str:
    """Return the kinds, with how many choices each has."""
    rows = [(plural, f"{about} ({len(listed(kind, folder))})") for kind, (plural, about) in kinds(folder).items()]
    ending = "`multisagd list spectra` lists those of one kind, with what to write to choose each."
    return "\n".join(["what can be listed, with how many there are of it:", "", *columns(rows), "", fold(ending)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        "multisagd list", description="Lists what can be chosen, with the words that choose it.",
        epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("what", nargs="?", help="a kind of things, such as spectra, or everything")
    parser.add_argument("--json", action="store_true", help="print them as JSON")
    parser.add_argument(
        "--config-dir", type=Path, metavar="DIR", help="also your own choices, laid out like the project's"
    )
    words = parser.parse_args(arguments)
    try:
        if words.config_dir is not None and not words.config_dir.is_dir():
            raise RecipeError(f"--config-dir: {words.config_dir.absolute()} is not a folder")
        if words.what is None and not words.json:
            show(overview(words.config_dir))
            return 0
        every = words.what in (None, "everything", "all")
        chosen = list(kinds(words.config_dir)) if every else [find(words.what, words.config_dir)]
    except RecipeError as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE_STATUS
    found = {kind: listed(kind, words.config_dir) for kind in chosen}
    if words.json:
        show(json.dumps(found if every else found[chosen[0]], indent=1))
        return 0
    parts = []
    for kind, rows in found.items():
        plural, about = kinds(words.config_dir)[kind]
        parts.append(
            "\n".join([fold(f"{plural}: {about}"), *columns([(row["override"], row["about"]) for row in rows])])
        )
    show("\n\n".join(parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
