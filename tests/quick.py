"""The words that make a command of the docs take seconds; everything else of it stays as it is written."""

from collections.abc import Sequence

ONE_CORE = ["engine.threads=1", "engine.device=cpu", "engine.workers=0"]
TRAIN = [
    "training.samples=8", "training.batch=4", "training.statistics=8", "every.log=8", "every.validation=8",
    "every.samples=8", "every.checkpoint=8", "validation.holdout=4", "validation.items=2", "validation.levels=1",
    "sampling.count=2", "sampling.steps=1", *ONE_CORE,
]  # fmt: skip
UNET = ["network.width=8", "network.heads=1", "network.multipliers=[1,1]", "network.blocks=1"]
TRANSFORMER = ["network.width=12", "network.depth=1", "network.heads=1"]
CLASSIFIER = ["classifier.samples=64", "classifier.batch=16", "classifier.widths=[8]"]
SMALL = {
    "sample": ["count=4", "batch=4", *ONE_CORE],
    "fidelity": ["count=40", "reference=40", "steps=1", "splits=2", *CLASSIFIER, *ONE_CORE],
    "evaluate": [
        "samples=40", "steps=1", "splits=2", "bootstrap=2", "bands=2", "directions=8", "neighbours.items=20",
        "neighbours.examples=200", *CLASSIFIER, *ONE_CORE,
    ],
    "compare": ["count=4", "reference=8", "bands=2", "steps=1", *ONE_CORE],
    "inspect": ["training.statistics=8", "count=2", *ONE_CORE],
    "analyze": ["training.statistics=64", *ONE_CORE],
    "design": ["steps=3", "restarts=1"],
    "encode": ["passes=1", *ONE_CORE],
    "launch": ["--show"],
}  # fmt: skip
"""By command; the others are quick as they are."""


def quick(command: str, words: Sequence[str]) -> list[str]:
    """Return what to add to the words of a command."""
    if command == "train":
        adapted = any(word.startswith("network=diffusers") for word in words)
        network = [] if adapted else TRANSFORMER if "network=transformer" in words else UNET
        return [*TRAIN, *network]
    if command == "sample" and not any(word.startswith("steps_file=") for word in words):
        return [*SMALL["sample"], "steps=2"]
    if command == "launch" and any(word in ("cluster=kubernetes", "cluster=skypilot") for word in words):
        return []  # these only write files
    return SMALL.get(command, [])
