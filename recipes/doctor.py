"""Tell whether multisagd works on this machine, and what is missing for what: `multisagd doctor`.

Everything is tried in a process of its own, with nothing but the standard library around it, so that it also tells what
is wrong where PyTorch cannot be imported. The exit status is 0 if training works here (and the run folder, if one is
named, is sound), and else 1.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from recipes.engine.printing import show
from recipes.health.findings import Check, Finding, State, Wishes
from recipes.health.isolation import examine

MARKS: dict[State, str] = {"ok": "✓ ok", "absent": "– absent", "warning": "! look", "broken": "✗ broken"}
PLAIN: dict[State, str] = {"ok": "  ok", "absent": "- absent", "warning": "! look", "broken": "X broken"}
"""The same for output that knows no more than ASCII."""
COLOURS: dict[State, str] = {"ok": "green", "absent": "dim", "warning": "yellow", "broken": "bold red"}
HELP = """examples:
  multisagd doctor                      this machine, in some 15 seconds
  multisagd doctor --deep               also compile something, which may take minutes
  multisagd doctor run_dir=runs/mnist   a run's folder too: its record, its checkpoint, its lock, the space left
  multisagd doctor --json > report.json

exit status: 0 if training works here, 1 if something is broken that it needs, 2 for a mistake in the command
read more: docs/command-line.md"""


def doctor(wishes: Wishes, as_json: bool) -> int:
    """Examine, print, and return the exit status."""
    found = list(examine("recipes.health.all", wishes))
    sound = not any(check.essential and each.state == "broken" for check, findings in found for each in findings)
    if as_json:
        rows = [
            {"area": check.area, **asdict(each), "essential": check.essential}
            for check, findings in found for each in findings
        ]  # fmt: skip
        show(json.dumps({"sound": sound, "findings": rows}, indent=1))
    else:
        show("\n".join([*report(found), "", verdict(sound, wishes)]))
    return 0 if sound else 1


def verdict(sound: bool, wishes: Wishes) -> str:
    """Say in one line what it comes to."""
    if not sound:
        return "Something is broken that training needs: see the lines that say so."
    return f"Training works on this machine{'' if wishes.run_dir is None else f', and {wishes.run_dir} is sound'}."


def report(found: Iterable[tuple[Check, list[Finding]]]) -> Iterator[str]:
    """Return what was found, area by area, and then what can be done, each command on a line of its own."""
    rows = [(check.area, each) for check, findings in found for each in findings]
    marks = MARKS if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else PLAIN
    width = max(len(each.name) for _, each in rows)
    for area, members in itertools.groupby(rows, key=lambda row: row[0]):
        yield f"\n{area}"
        yield table([each for _, each in members], marks, width)
    for state, heading in (("broken", "To mend"), ("warning", "To look at"), ("absent", "To add, if wanted")):
        if remedies := [each for _, each in rows if each.state == state and each.remedy]:
            yield f"\n{heading}"
            yield from (f"  {each.name}: {each.remedy}" for each in remedies)


def table(findings: Sequence[Finding], marks: Mapping[State, str], width: int) -> str:
    """Return findings as a table: rich's, or a plain one if it is rich that is broken."""
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return "\n".join(f"  {marks[each.state]:<9} {each.name:<{width}}  {each.told}" for each in findings)
    laid = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    laid.add_column(no_wrap=True, min_width=9)
    laid.add_column(no_wrap=True, min_width=width)
    laid.add_column(overflow="fold")
    for each in findings:
        laid.add_row(Text(marks[each.state], COLOURS[each.state]), Text(each.name), Text(each.told))
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(laid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = argparse.ArgumentParser(
        "multisagd doctor", description="Tells whether multisagd works on this machine, and what is missing for what.",
        epilog=HELP, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("run_dir", nargs="?", metavar="run_dir=FOLDER", help="also judge the folder of a run")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--deep", action="store_true", help="also try what takes minutes: compiling")
    words = parser.parse_args(arguments)
    key, _, value = (words.run_dir or "run_dir=").partition("=")
    if key != "run_dir" or (words.run_dir and not value):
        parser.error(f"cannot read {words.run_dir!r}: a run's folder is written run_dir=FOLDER")
    try:
        return doctor(Wishes(Path(value) if value else None, words.deep), words.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
