"""Print a script that lets a shell complete commands, choices, keys and files: it asks `multisagd __complete`."""

import argparse
import sys
from collections.abc import Sequence
from importlib.resources import files

from recipes.base.console import show
from recipes.cli.completion import SHELLS

HELP = """examples:
  eval "$(multisagd completion bash)"         for this shell, in bash or zsh
  multisagd completion fish | source          in fish

The head of what is printed says how to have it in every shell.
read more: docs/command-line.md"""


def script(shell: str) -> str:
    """Return the script that lets a shell complete."""
    return (files("recipes.cli") / "scripts" / f"completion.{shell}").read_text(encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        "multisagd completion", epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prints what lets a shell complete commands, choices, keys and files of multisagd.",
    )  # fmt: skip
    parser.add_argument("shell", choices=SHELLS, help="your shell")
    show(script(parser.parse_args(arguments).shell).rstrip("\n"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
