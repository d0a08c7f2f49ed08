"""Trains every modality in both precisions, for as many processes as there are: run by test_equal_trainings.

One program for all of them, because starting processes takes longer than training these.
"""

import sys
from pathlib import Path

from every_modality import AXES, MODALITIES, NETWORKS

from recipes.engine import config as configuration
from recipes.engine.distribution import Place, leave
from recipes.train import train

BATCH, STEPS = 8, 20
PRECISIONS = {1: ("float64", "float32"), 2: ("float64", "float32"), 4: ("float64",)}
"""By the number of processes: where four agree in double precision, single precision has nothing more to show."""
CASES = {f"{name} {network}": (name, network) for name in MODALITIES for network in ("unet",)} | {
    "image transformer": ("image", "transformer")
}
WORDS = [
    "spectrum=pink", f"training.batch={BATCH}", f"training.samples={BATCH * STEPS}",
    "training.statistics=8", "training.warmup=80", "every.log=8", "every.validation=0", "every.samples=0",
    "every.checkpoint=0", "validation.holdout=2", "validation.items=2", "validation.levels=2", "validation.bands=2",
    "sampling.count=2", "sampling.steps=2", "sampler=ddim", "engine.threads=1", "engine.device=cpu", "engine.workers=0",
    "network.dropout=0",
]  # fmt: skip


def main(out: Path, clips: Path, *words: str) -> None:
    for case, (name, network) in CASES.items():
        latent = [f"data.root={clips}"] if name == "latent" else []
        for precision in PRECISIONS[Place.of_environment().world]:
            run_dir = out / precision / case.replace(" ", "_")
            settings = [
                *MODALITIES[name],
                *NETWORKS[network],
                *WORDS,
                f"spectrum.axes=[{AXES[name][1]}]",
                *latent,
                f"engine.precision={precision}",
            ]
            train(configuration.load("train", [*settings, *words, f"run_dir={run_dir}"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
    leave()
