"""Draw figures of the docs: noise of the spectra in `configs/spectrum`, and the losses of runs.

python docs/make_pictures.py                          # docs/images/video_noise.png and audio_noise.png
python docs/make_pictures.py runs/clips clips_loss    # the losses of a run, docs/images/clips_loss.png
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modalities.audio import Audio
from modalities.video import Video
from multisagd import Grid, SpectralCovariance, Spectrum
from recipes.config import compose as configuration
from recipes.config.build import Builder

IMAGES = Path(__file__).parent / "images"
VIDEO = ["white", "separable", "joint", "velocity", "progressive", "mixed"]
AUDIO = ["white", "pink", "brown", "hum_free"]
FRAMES = (0, 1, 2, 4, 8)


def spectrum(name: str, *settings: str) -> Spectrum:
    """Build a choice of the group `spectrum`."""
    config = configuration.load("train", [f"spectrum={name}", "run_dir=unused", *settings])
    return Builder().build(config["spectrum"], Spectrum, "spectrum")


def video_noise(path: Path) -> None:
    """Draw, for each spectrum: some frames, one row of pixels over time, and the power over two frequencies."""
    grid = Video(frames=16, fps=8, size=32).grid()
    figure = Figure(figsize=(12, 1.75 * len(VIDEO)), layout="constrained")
    plots = figure.subplots(len(VIDEO), len(FRAMES) + 2, width_ratios=[1.0] * len(FRAMES) + [1.0, 1.3])
    for row, name in zip(plots, VIDEO, strict=True):
        covariance = SpectralCovariance(spectrum(name), grid)
        noise = covariance.sample([0])[0, 0]
        for plot, frame in zip(row, FRAMES, strict=False):
            plot.imshow(noise[frame].numpy(), cmap="gray", vmin=-3, vmax=3)
            plot.set(xticks=[], yticks=[], title=f"{frame / 8:g} s" if name == VIDEO[0] else "")
        row[0].set_ylabel(name)
        row[-2].imshow(noise[:, 16].numpy(), cmap="gray", vmin=-3, vmax=3, aspect="auto", extent=(0, 32, 2, 0))
        row[-2].set(title="one row over time" if name == VIDEO[0] else "", ylabel="s")
        draw_power(row[-1], covariance, grid)
        if name == VIDEO[0]:
            row[-1].set_title("power (dB)")
    plots[-1][-1].set_xlabel("horizontal (cycles per pixel)")
    plots[-1][-2].set_xlabel("pixel")
    figure.savefig(path, dpi=100)


def draw_power(plot: Axes, covariance: SpectralCovariance, grid: Grid) -> None:
    """Draw the power over temporal and horizontal frequency, where the vertical one is zero."""
    power = torch.fft.fftshift(grid.full(covariance.power())[:, 0])
    decibels = 10 * power.clamp(min=1e-6).log10()
    shown = plot.imshow(
        decibels.numpy(),
        origin="lower",
        aspect="auto",
        extent=(-0.516, 0.484, -4.25, 3.75),
        vmin=-20,
        vmax=20,
        cmap="coolwarm",
    )
    plot.set_ylabel("Hz")
    plot.figure.colorbar(shown, ax=plot)


def audio_noise(path: Path) -> None:
    """Draw waveform noise of each spectrum: a tenth of a second, and the power over frequency."""
    from modalities.representation import Waveform

    grid = Audio(rate=8000, seconds=1.0, representation=Waveform()).grid()
    figure = Figure(figsize=(9, 1.6 * len(AUDIO)), layout="constrained")
    plots = figure.subplots(len(AUDIO), 2, sharex="col")
    for (left, right), name in zip(plots, AUDIO, strict=True):
        covariance = SpectralCovariance(spectrum(name), grid)
        noise = covariance.sample([0])[0, 0]
        left.plot([sample / 8 for sample in range(800)], noise[:800].numpy(), linewidth=0.6)
        left.set(ylabel=name, ylim=(-3.5, 3.5))
        frequency = grid.frequencies("time")[1:]
        right.semilogx(frequency.numpy(), 10 * covariance.power()[1:].clamp(min=1e-4).log10().numpy(), linewidth=0.8)
        right.set(ylabel="dB")
    plots[-1][0].set_xlabel("milliseconds")
    plots[-1][1].set_xlabel("Hz")
    figure.savefig(path, dpi=100)


def losses(run_dir: Path, path: Path) -> None:
    """Draw the training and validation losses of a run, and the last validation by noise level."""
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for kind, style in (("train", {"lw": 0.8}), ("validation", {"marker": "o", "ls": "--"})):
        chosen = [entry for entry in entries if entry["kind"] == kind]
        left.semilogy([e["samples"] for e in chosen], [e["loss"] for e in chosen], label=kind, **style)
    left.set(xlabel="samples seen", ylabel="loss")
    left.legend()
    last = [entry for entry in entries if entry["kind"] == "validation"][-1]
    for level, bands in last["band"].items():
        right.semilogy(list(bands), list(bands.values()), marker=".", label=level)
    right.set(xlabel="band (cycles per sample)", ylabel="error of x0 / power of the data")
    right.tick_params(axis="x", rotation=30, labelsize="x-small")
    right.legend(fontsize="x-small", ncols=2)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    if len(sys.argv) == 3:
        losses(Path(sys.argv[1]), IMAGES / f"{sys.argv[2]}.png")
    else:
        video_noise(IMAGES / "video_noise.png")
        audio_noise(IMAGES / "audio_noise.png")
