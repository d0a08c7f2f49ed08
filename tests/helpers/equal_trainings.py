"""Trains every modality in both precisions, for any number of processes: run by test_distribution.

One program for all of them, because starting processes takes longer than training these.
"""

import sys
from pathlib import Path

from recipes.config import compose as configuration
from recipes.runtime.distribution import Rank, leave
from recipes.train import train
from tests.helpers.every_modality import AXES, MODALITIES, NETWORKS

BATCH, STEPS = 8, 12
IMAGES = ("image unet", "image transformer")
"""Cases that four processes train, and that are also trained in single precision; the media do not matter there."""
SINGLE = [(1, "ddp"), (2, "ddp")]
"""Numbers of processes, and ways to spread a network, with which images are trained in single precision too.

Agreement in double precision implies the rest for the others.
"""
CASES = {f"{name} unet": (name, "unet") for name in MODALITIES} | {"image transformer": ("image", "transformer")}
WORDS = [
    "spectrum=pink", f"training.batch={BATCH}", f"training.samples={BATCH * STEPS}",
    "training.statistics=8", "training.warmup=80", "every.log=8", "every.validation=0", "every.samples=0",
    "every.checkpoint=0", "validation.holdout=2", "validation.items=2", "validation.levels=2", "validation.bands=2",
    "sampling.count=2", "sampling.steps=2", "sampler=ddim", "engine.threads=1", "engine.device=cpu", "engine.workers=0",
    "network.dropout=0",
]  # fmt: skip


def precisions(case: str, count: int, distribution: str) -> list[str]:
    """Return the precisions in which a number of processes is compared with one process."""
    return ["float64", "float32"] if (count, distribution) in SINGLE and case in IMAGES else ["float64"]


def cases(count: int) -> dict[str, tuple[str, str]]:
    """Return the trainings of a number of processes by name: medium and network."""
    return CASES if count < 4 else {name: CASES[name] for name in IMAGES}


def main(out: Path, clips: Path, distribution: str) -> None:
    world = Rank.from_environment().world
    for case, (name, network) in cases(world).items():
        words = [*MODALITIES[name], *NETWORKS[network], *WORDS, f"spectrum.axes=[{AXES[name][1]}]"]
        words += [f"data.root={clips}"] if name == "latent" else []
        for precision in precisions(case, world, distribution):
            settings = [f"engine.precision={precision}", f"engine.distribution={distribution}"]
            run_dir = out / precision / case.replace(" ", "_")
            train(configuration.load("train", [*words, *settings, f"run_dir={run_dir}"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
    leave()
