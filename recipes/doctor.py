"""Check whether multisagd works on this machine, and which optional packages are missing: `multisagd doctor`.

The exit status is 0 if training works here and the run folder is intact, and 1 otherwise. See docs/command-line.md.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from recipes.base.console import fold, show
from recipes.diagnosis.check import Check, Finding, State, run_isolated
from recipes.diagnosis.environment import EXTRAS, LIBRARIES

PACKAGES, DEVICE, DATA, OPTIONAL, RUN = "Python and packages", "Device", "Data and files", "Optional packages", "Run"
CHECKS = (
    Check(PACKAGES, "packages", "recipes.diagnosis.environment:packages", essential=True),
    Check(PACKAGES, "modalities", "recipes.diagnosis.environment:foreign_package", essential=True),
    Check(PACKAGES, "multisagd", "recipes.diagnosis.environment:console_command"),
    Check(PACKAGES, "torch", "recipes.diagnosis.environment:pytorch", essential=True),
    *(
        Check(PACKAGES, each.split(".")[0], "recipes.diagnosis.environment:library", (each,), True)
        for each in LIBRARIES
    ),
    Check(DEVICE, "training", "recipes.diagnosis.device:training_step", essential=True),
    Check(DEVICE, "CPU", "recipes.diagnosis.device:cpu"),
    Check(DEVICE, "GPU", "recipes.diagnosis.device:gpus"),
    Check(DEVICE, "sdpa", "recipes.diagnosis.device:attention", ("sdpa",), essential=True),
    Check(DEVICE, "xformers", "recipes.diagnosis.device:attention", ("xformers",)),
    Check(DATA, "MULTISAGD_DATA", "recipes.diagnosis.environment:data_folder"),
    Check(DATA, "working folder", "recipes.diagnosis.environment:writable", (".",), essential=True),
    Check(DATA, "memory", "recipes.diagnosis.environment:memory"),
    Check(DATA, "encoding", "recipes.diagnosis.environment:encoding"),
    *(Check(OPTIONAL, name, "recipes.diagnosis.environment:packages", (name,)) for name in EXTRAS),
)
COLOURS: dict[State, int] = {"ok": 32, "absent": 2, "warning": 33, "broken": 31}
HEADINGS: dict[State, str] = {"broken": "To repair", "warning": "To check", "absent": "To add (optional)"}


def doctor(run_dir: str, deep: bool, as_json: bool) -> int:
    """Run the checks, print the findings, and return the exit status. `deep` also checks compilation."""
    compiler = [Check("Compiler", "torch.compile", "recipes.diagnosis.device:compiler")] if deep else []
    run = [Check(RUN, "run", "recipes.diagnosis.run_folder:run_folder", (run_dir,), True)] if run_dir else []
    findings = list(run_isolated([*CHECKS, *compiler, *run], 600.0 if deep else 120.0))
    works = all(finding.state in ("ok", "warning") for check, finding in findings if check.essential)
    if as_json:
        rows = [{"area": check.area, "name": check.name, **asdict(finding)} for check, finding in findings]
        show(json.dumps({"works": works, "findings": rows}, indent=1))
    else:
        verdict = "Training works on this machine." if works else "Training does not work on this machine: see above."
        show("\n".join([*report(findings), "", verdict]))
    return 0 if works else 1


def report(findings: Sequence[tuple[Check, Finding]]) -> Iterator[str]:
    """Yield lines with the findings by area, and then one line for each remedy."""
    colourful = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for area, members in itertools.groupby(findings, key=lambda each: each[0].area):
        yield f"\n{area}"
        for check, finding in members:
            line = fold(finding.message, f"  {finding.state:<7}  {check.name:<14}  ", " " * 27)
            yield f"\033[{COLOURS[finding.state]}m{line[:9]}\033[0m{line[9:]}" if colourful else line
    for state, heading in HEADINGS.items():
        remedies = [(check.name, each.remedy) for check, each in findings if each.state == state and each.remedy]
        yield from (f"\n{heading}" for _ in remedies[:1])
        yield from (f"  {name}: {remedy}" for name, remedy in remedies)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser("multisagd doctor", description=__doc__)
    parser.add_argument("run_dir", nargs="?", metavar="run_dir=FOLDER", help="also check the folder of a run")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--deep", action="store_true", help="also check compilation, which takes minutes")
    words = parser.parse_args(arguments)
    key, _, run_dir = (words.run_dir or "run_dir=").partition("=")
    if key != "run_dir" or (words.run_dir and not run_dir):
        parser.error(f"cannot read {words.run_dir!r}: write the folder of a run as run_dir=FOLDER")
    try:
        return doctor(run_dir, words.deep, words.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
