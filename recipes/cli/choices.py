"""Everything that can be chosen, each with a line about it and the words that choose it: for lists and completion."""

from pathlib import Path

from recipes.base.commands import COMMANDS
from recipes.base.errors import RecipeError, nearest
from recipes.config.groups import groups, summary
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


def listed(kind: str, folder: str | Path | None = None) -> list[dict[str, str]]:
    """Return what can be chosen of one kind: `choice`, the `override` that chooses it, and `about`, a line."""
    if kind == "commands":
        rows = [(name, f"multisagd {name}", command.summary) for name, command in COMMANDS.items()]
    elif kind == "metrics":
        rows = [(name, f"metrics=[{name}]", metric.about) for name, metric in METRICS.items()]
    else:
        choices = groups(folder).get(kind, [])
        rows = [(choice, f"{kind}={choice}", summary(kind, choice, folder)) for choice in choices]
    return [{"choice": choice, "override": override, "about": about} for choice, override, about in rows]


def kinds(folder: str | Path | None = None) -> dict[str, tuple[str, str]]:
    """Return every kind with its plural and what is chosen by it; also groups that only a user's folder has."""
    own = {group: (group, "of your own folder") for group in groups(folder) if group not in NAMES}
    ours = {
        "commands": ("commands", "what `multisagd` can be asked to do"),
        "metrics": ("metrics", "what `multisagd evaluate` computes"),
    }
    return {**NAMES, **own, **ours}


def find(word: str, folder: str | Path | None = None) -> str:
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
