"""List what can be chosen, one line each, with the words that choose it: `multisagd list`, `multisagd list spectra`.

What is listed are the configuration files of the project, and those of your own that `--config-dir` names; their first
comment is the line. Nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from recipes.base.commands import COMMANDS
from recipes.config.groups import groups, summary
from recipes.engine.errors import USAGE_STATUS, RecipeError, nearest
from recipes.engine.printing import columns, fold, show
from recipes.evaluation.metric_table import METRICS

NAMES = {
    "modality": ("modalities", "what a datum is and how it becomes a tensor on a grid"),
    "data": ("datasets", "where the examples come from"),
    "corruption": ("corruptions", "what the data are made to suffer from in a part of their spectrum"),
    "spectrum": ("spectra", "how much noise each frequency gets"),
    "schedule": ("schedules", "how signal and noise trade over time"),
    "process": ("processes", "whether that is the same at every frequency"),
    "denoiser": ("denoisers", "what the network predicts, and its preconditioning"),
    "network": ("networks", "the network"),
    "text": ("texts", "whether captions are learned in place of classes"),
    "loss": ("losses", "metric, weighting and the times that are drawn"),
    "sampler": ("samplers", "how samples are drawn"),
    "refine": ("refinements", "whether samples are drawn again from noise that agrees over time"),
    "engine": ("engines", "device, precision, compilation, loading"),
    "tracking": ("trackers", "who hears of the metrics"),
    "cluster": ("clusters", "where `multisagd launch` runs commands"),
    "experiment": ("experiments", "a whole set of choices for one task"),
}
"""Every group of configurations, in the order of training, with its plural and what is chosen by it."""
HELP = """examples:
  multisagd list                        the kinds of things that can be chosen
  multisagd list spectra                one kind; the name of its group (spectrum) does too
  multisagd list everything
  multisagd list spectra --config-dir=mine   your own choices too
  multisagd list experiments --json

read more: docs/command-line.md"""


def listed(kind: str, folder: Path | None = None) -> list[dict[str, str]]:
    """Return what can be chosen of one kind: `choice`, the `override` that chooses it, and `about`, a line."""
    if kind == "commands":
        return [_row(name, f"multisagd {name}", command.summary) for name, command in COMMANDS.items()]
    if kind == "metrics":
        return [_row(name, f"metrics=[{name}]", metric.about) for name, metric in METRICS.items()]
    return [_row(choice, f"{kind}={choice}", summary(kind, choice, folder)) for choice in groups(folder).get(kind, [])]


def _row(choice: str, override: str, about: str) -> dict[str, str]:
    return {"choice": choice, "override": override, "about": about}


def kinds(folder: Path | None = None) -> dict[str, tuple[str, str]]:
    """Return every kind with its plural and what is chosen by it; also groups that only a user's folder has."""
    own = {group: (group, "of your own folder") for group in groups(folder) if group not in NAMES}
    ours = {
        "commands": ("commands", "what `multisagd` can be asked to do"),
        "metrics": ("metrics", "what `multisagd evaluate` computes"),
    }
    return {**NAMES, **own, **ours}


def find(word: str, folder: Path | None = None) -> str:
    """Return the kind that a word names: a group, its plural, in any case.

    Raises:
        RecipeError: if there is none, naming the nearest.
    """
    plain = word.lower().rstrip("=").replace("-", "_")
    known = kinds(folder)
    for kind, (plural, _) in known.items():
        if plain in (kind, plural, f"{kind}s", plural.removesuffix("s")):
            return kind
    raise RecipeError(f"there is no list of {word!r}{nearest(plain, [plural for plural, _ in known.values()])}")


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
