"""Train the same small model with white and with shaped noise, in a few minutes on a CPU: `multisagd demo`.

The data are scikit-learn's digits (8×8 pixels, enlarged to 16×16), so nothing is downloaded. Outputs in `run_dir`:

    forward.png        one image with increasing noise under both processes, and the two spectra
    loss.png           the training and validation losses of both runs
    samples_white.png, samples_shaped.png   samples of the two models
    white/, shaped/    the two runs, for `multisagd sample` and `multisagd train`

Both runs have the same seed, so they see the same images at the same times; only the spectrum of the noise differs. The
two losses are not comparable as numbers: each is the error of a prediction with its own kind of noise.
"""

import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from modalities.image import Image
from modalities.image_sets import Digits
from multisagd import CosineSchedule, Flat, PowerLaw, Process, SpectralCovariance, Spectrum
from recipes.base.commands import setting, typed, written
from recipes.base.files import check_replaceable
from recipes.cli.command import command
from recipes.config import compose as configuration
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.run import Run
from recipes.train import train

TIMES = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)


@dataclass(frozen=True)
class DemoSettings:
    """All keys of `configs/demo.yaml`."""

    run_dir: Path
    seed: int
    exponent: float
    corner: float
    samples: int
    log: int
    threads: int | None


def demo(config: Config) -> None:
    """Train both models and draw the figures. Raises the same errors as `recipes.train.train`."""
    start = time.monotonic()
    settings = Builder().settings(DemoSettings, config, "")
    out, exponent, corner = settings.run_dir, settings.exponent, settings.corner
    choices = {
        "white": ["spectrum=white"],
        "shaped": ["spectrum=power_law", f"spectrum.exponent={exponent}", f"spectrum.corner={corner}"],
    }
    check_replaceable(out, "forward.png", "multisagd demo")
    out.mkdir(parents=True, exist_ok=True)
    draw_forward({"white": Flat(), "shaped": PowerLaw(exponent=exponent, corner=corner)}, out / "forward.png")
    print(f"the two forward processes are shown in {out / 'forward.png'}")
    for name, choice in choices.items():
        print(f"\n{name} noise:", flush=True)
        numbers = {
            "seed": settings.seed, "training.samples": settings.samples, "every.log": settings.log,
            "engine.threads": settings.threads,
        }  # fmt: skip
        common = ["experiment=image_demo", *(f"{key}={typed(value)}" for key, value in numbers.items())]
        train(configuration.load("train", [*common, f"run_dir={written(str(out / name))}", *choice]))
        shutil.copyfile(max((out / name / "samples").glob("*.png")), out / f"samples_{name}.png")
    draw_losses(out)
    print(f"\n{ending(out)}\nThe demo took {(time.monotonic() - start) / 60:.1f} minutes.")


def draw_forward(spectra: Mapping[str, Spectrum], path: Path) -> None:
    """Plot one digit with increasing noise under both processes, each next to the spectrum of its noise."""
    modality = Image(size=16, channels=1)
    x0 = Digits(modality).batch([3]).x0
    figure = Figure(figsize=(1.3 * len(TIMES) + 3.6, 3.4), layout="constrained")
    layout = figure.subplots(len(spectra), len(TIMES) + 1, width_ratios=[1.0] * len(TIMES) + [2.2])
    for row, (name, spectrum) in zip(layout, spectra.items(), strict=True):
        process = Process(CosineSchedule(), SpectralCovariance(spectrum, modality.grid()))
        noise = process.noise(x0.shape, [1])
        for axes, t in zip(row[:-1], TIMES, strict=True):
            x_t = process.add_noise(x0, torch.tensor([t]), noise)
            axes.imshow(x_t[0, 0].numpy(), cmap="gray", vmin=-2, vmax=2)
            axes.set(xticks=[], yticks=[], title=f"t = {t:g}" if name == "white" else "")
        row[0].set_ylabel(f"{name} noise")
        _draw_spectrum(row[-1], process)
    layout[0][-1].set_title("power of noise (digits: grey)")
    layout[-1][-1].set_xlabel("cycles per pixel")
    figure.savefig(path, dpi=150)


def _draw_spectrum(axes: Axes, process: Process) -> None:
    """Plot the radially averaged power of the noise, and that of the digits for comparison."""
    digits = Digits(Image(size=16, channels=1)).batch(range(500)).x0[:, 0].double()
    data = torch.fft.rfft2(digits - digits.mean(0), norm="ortho").abs().square().mean(0)
    axes.loglog(*_radial(data, process), color="0.6")
    axes.loglog(*_radial(process.covariance.power(), process), color="C3")
    axes.set(ylim=(1e-3, 1e2), yticks=[1e-2, 1, 1e2])
    axes.set_xticks([0.1, 0.2, 0.4], labels=["0.1", "0.2", "0.4"])
    axes.xaxis.set_minor_locator(NullLocator())


def _radial(power: Tensor, process: Process) -> tuple[list[float], list[float]]:
    radius = process.grid.radius()
    rings = [(radius >= low / 32) & (radius < (low + 2) / 32) for low in range(1, 17, 2)]
    return [float(radius[ring].mean()) for ring in rings], [float(power[ring].mean()) for ring in rings]


def draw_losses(out: Path) -> None:
    """Plot the training and validation losses of both runs."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, color in (("white", "0.4"), ("shaped", "C3")):
        for kind, style in (("train", {"alpha": 0.5, "lw": 1}), ("validation", {"marker": "o", "ls": "--"})):
            entries = Run(out / name).metrics().of(kind)
            samples, losses = [entry["samples"] for entry in entries], [entry["loss"] for entry in entries]
            axes.semilogy(samples, losses, color=color, label=f"{name}, {kind}", **style)
    axes.set(xlabel="samples seen", ylabel="loss (squared error of v)")
    axes.legend()
    figure.savefig(out / "loss.png", dpi=150)


def ending(out: Path) -> str:
    """Return a message that lists the files, and commands to run next."""
    return f"""Done. Look at
  {out / "samples_white.png"}   samples of the model trained with white noise
  {out / "samples_shaped.png"}  samples of the model trained with shaped noise
  {out / "forward.png"}         the effect of both kinds of noise on an image
  {out / "loss.png"}            the losses
More samples of either model:
  multisagd sample {setting("run_dir", out / "shaped")} labels=7 count=16
A folder of your own images, with one subfolder per class:
  multisagd train experiment=image_folder data.root=FOLDER spectrum=power_law run_dir=runs/mine"""


main = command("demo", demo)

if __name__ == "__main__":
    sys.exit(main())
