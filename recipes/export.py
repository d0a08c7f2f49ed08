"""Export a trained model as a safetensors file and a JSON file, with a card: `multisagd export run_dir=… out=…`.

The exported folder contains everything that sampling needs and nothing else: `multisagd sample run_dir=OUT` draws the
same samples as from the run, and `load_denoiser` loads the model in a script. The files cannot execute code; a class
that the configuration names is built only if it is in an allowed package. README.md is the model card, for people and
for the Hugging Face Hub (`recipes.sharing.card`).

Errors, each reported in one message: a missing run or checkpoint, an output folder with other contents.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modalities.base import Modality
from multisagd import Denoiser
from recipes.base.commands import setting
from recipes.base.errors import as_recipe_error
from recipes.base.files import check_replaceable
from recipes.cli.command import command
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.model import NOTES, WEIGHTS, Chosen, open_model, trained_denoiser
from recipes.runs.settings import Which, Width, chosen_weights, weights_in_words
from recipes.runtime.device import EngineSettings, Runtime
from recipes.sharing.card import CARD, check_license, write_exported


@dataclass(frozen=True)
class ExportSettings:
    """All keys of `configs/export.yaml`."""

    run_dir: Path
    out: Path
    weights: Which
    ema: Width | None
    checkpoint: int | str | None
    license: str | None
    allow_targets: tuple[str, ...]

    def __post_init__(self) -> None:
        check_license(self.license)
        chosen_weights(self.weights, self.ema)


def export(config: Config) -> Path:
    """Export the configured run, and return the output folder.

    Raises:
        RecipeError: If one of the errors listed at the top of this file occurs.
    """
    builder = Builder(tuple(config["allow_targets"]))
    settings = builder.settings(ExportSettings, config, "")
    check_replaceable(settings.out, NOTES, "multisagd export", key="out")
    model = open_model(settings.run_dir, builder, checkpoint=settings.checkpoint)
    which = chosen_weights(settings.weights, settings.ema)
    weights = write_exported(model, builder, which, settings.out, settings.license)
    size = (settings.out / WEIGHTS).stat().st_size
    named = weights_in_words(weights.which)
    print(f"{named} weights after {weights.samples:,} samples, {size / 2**20:,.1f} MiB, in {settings.out}")
    if settings.license is None:
        print(f"The model card {settings.out / CARD} states no licence: choose one, such as license=apache-2.0")
    condition = "" if model.dense is None else " condition=FOLDER"
    print(f"To draw samples: multisagd sample {setting('run_dir', settings.out)}{condition}")
    return settings.out


def load_denoiser(
    folder: str | Path, device: str = "cpu", weights: Which = "ema", allow_targets: Sequence[str] = (),
    checkpoint: Chosen = None, ema: Width | None = None,
) -> tuple[Denoiser, Modality]:  # fmt: skip
    """Return the denoiser and the modality of an exported model or a run, for use in scripts.

    For a run, `checkpoint` is the number of samples seen, or "best" for the lowest score; None loads the last one.
    `ema` is the width of an average other than the run's own, for runs with `training.averages`. `allow_targets`
    contains additional packages whose classes the configuration may name.

    Raises:
        RecipeError: If the model cannot be read or built.
    """
    builder = Builder(tuple(allow_targets))
    model = open_model(Path(folder), builder, checkpoint=checkpoint)
    assembly = model.assembly(builder)
    with as_recipe_error(ValueError):
        which = chosen_weights(weights, ema)
    trained = model.weights(which, assembly.check_weight_shapes)
    return trained_denoiser(assembly, trained, Runtime.start(EngineSettings(device=device))), assembly.modality


main = command("export", export)

if __name__ == "__main__":
    sys.exit(main())
