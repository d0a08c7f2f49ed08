"""Overrides that make the commands of the docs take seconds, without any other change."""

from collections.abc import Sequence

ONE_CORE = ["engine.threads=1", "engine.device=cpu", "engine.workers=0"]
CLASSIFIER = ["classifier.samples=64", "classifier.batch=16", "classifier.widths=[8]"]
UNET = ["network.width=8", "network.heads=1", "network.multipliers=[1,1]", "network.blocks=1"]
TRANSFORMER = ["network.width=12", "network.depth=1", "network.heads=1"]
SMALL = {
    "train": [
        "training.samples=8", "training.batch=4", "training.statistics=8", "every.log=8", "every.validation=8",
        "every.samples=8", "every.checkpoint=8", "validation.holdout=4", "validation.items=2", "validation.levels=1",
        "sampling.count=2", "sampling.steps=1", "report=false", *ONE_CORE,
    ],
    "sample": ["count=4", "batch=4", *ONE_CORE],
    "evaluate": [
        "samples=40", "steps=1", "splits=2", "bootstrap=2", "bands=2", "directions=8", "neighbours.items=20",
        "neighbours.examples=200", *CLASSIFIER, *ONE_CORE,
    ],
    "inspect": ["training.statistics=8", "count=2", *ONE_CORE],
    "analyze": ["training.statistics=64", *ONE_CORE],
    "design": ["restarts=1"],
    "encode": ["passes=1", *ONE_CORE],
}  # fmt: skip
"""By command; the others are quick without."""
MEDIA = {
    "experiment=audio_notes": ["modality.seconds=0.064"],
    "modality=latent_video": ["modality.modality.size=16", "modality.modality.frames=5"],
    "modality=latent_audio": ["modality.modality.seconds=0.02"],
    "modality=cached_video": ["modality.modality.size=8", "modality.modality.frames=5"],
    "modality=audio_mel": ["modality.seconds=0.3"],
    "modality=audio_waveform": ["modality.seconds=0.1"],
    "experiment=video_moving_digits": ["modality.size=16"],
    "experiment=video_clips_cached": ["modality.modality.size=8", "modality.modality.frames=5"],
    "experiment=image_folder": ["modality.size=16"],
}
"""By option: smaller data, the same in all commands of a page."""
EVERY = ("log", "validation", "samples", "checkpoint")
TEN_CLASSES = ["training.samples=64", "training.batch=32", *(f"every.{each}=64" for each in EVERY)]
"""Enough examples to show each of the ten classes, which the commands after a training then ask for."""


def quick(command: str, words: Sequence[str]) -> list[str]:
    """Return the words to add to a command."""
    if command == "launch":
        return ["--show"]
    small = [*SMALL.get(command, []), *(word for option in MEDIA if option in words for word in MEDIA[option])]
    if command == "train":
        if {"experiment=image_digits", "experiment=video_moving_digits"} & set(words):
            small += TEN_CLASSES
        if not {"network=diffusers", "experiment=adopted"} & set(words):
            small += TRANSFORMER if "network=transformer" in words else UNET
    if command == "sample" and not any(word.startswith("steps_file=") for word in words):
        small.append("steps=2")
    return small
