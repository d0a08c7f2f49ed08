"""Draw the figures of `docs/theory.md` from the package's own spectra, schedules, processes and transfer functions.

python docs/make_theory_pictures.py      # docs/images/theory_*.png, some ten seconds on one core

The photograph is scikit-learn's `china.jpg` (by danielbuechele, CC BY 2.0), grey and cut; its patches give the spectrum
of data wherever one is needed.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor

import multisagd as ms
from multisagd.analysis.profiles import radial_profile
from multisagd.analysis.transfer import transfer_function

IMAGES = Path(__file__).parent / "images"
SIZE = 64
GRID = ms.Grid.of(height=(SIZE, 1.0, "pixel"), width=(SIZE, 1.0, "pixel"))
LAW = ms.PowerLaw(-1.0, corner=1 / 32)


def photograph() -> Tensor:
    """Return the photograph in grey from -1 to 1, `(height, width)`, at half its size."""
    grey = torch.from_numpy(load_sample_image("china.jpg").copy()).double().mean(-1)
    halved = torch.nn.functional.avg_pool2d(grey[None, None], 2)[0, 0]
    return halved / 127.5 - 1


def patch() -> Tensor:
    """Return the patch for the figures, as a batch of one."""
    return photograph()[70 : 70 + SIZE, 24 : 24 + SIZE][None, None]


def patches() -> Tensor:
    """Return overlapping square patches, `(count, 1, SIZE, SIZE)`."""
    cut = photograph().unfold(0, SIZE, 16).unfold(1, SIZE, 16)
    return cut.reshape(-1, 1, SIZE, SIZE)


def statistics() -> ms.DataStatistics:
    """Return the mean and spectrum of the patches, tapered: a patch is not periodic, and its borders would leak."""
    window = torch.hann_window(SIZE, periodic=True, dtype=torch.float64)
    taper = (window[:, None] * window) / (window**2).mean()
    level = patches().mean(dim=(-2, -1), keepdim=True)
    return ms.DataStatistics.measure([(patches() - level) * taper + level], GRID)


def show(plot: Axes, image: Tensor, title: str = "", limit: float = 2.5) -> None:
    """Draw an image in grey from -limit to limit."""
    plot.imshow(image.numpy(), cmap="gray", vmin=-limit, vmax=limit)
    plot.set(xticks=[], yticks=[], title=title)


def curve(power: Tensor) -> tuple[Tensor, Tensor]:
    """Return radii and the power over them in decibels."""
    profile = radial_profile(power, GRID)
    return torch.as_tensor(profile.frequency)[1:], 10 * torch.as_tensor(profile.power)[1:].clamp(min=1e-6).log10()


def spectra(data: ms.DataStatistics) -> Figure:
    """Draw noise with several spectra above its power, all with the same total power."""
    chosen: dict[str, ms.Spectrum] = {
        "Flat()": ms.Flat(),
        "PowerLaw(-1)": LAW,
        "PowerLaw(0.5)": ms.PowerLaw(0.5),
        "Gaussian(1.5)": ms.Gaussian(1.5),
        "Band(.1, .2)": ms.Band(0.1, 0.2),
        "TwoBand(…)": ms.TwoBand((0, 0.1), (0.3, 0.5), (0.8, 0.4), unit="cycles"),
        "Flat() + Offset(.5)": ms.Flat() + ms.Offset(0.5),
        "data ** 0.5": data.spectrum() ** 0.5,
    }
    figure = Figure(figsize=(14, 4.1), layout="constrained")
    plots = figure.subplots(2, len(chosen), height_ratios=[1.3, 1])
    for (noise, power), (name, spectrum) in zip(plots.T, chosen.items(), strict=True):
        covariance = ms.SpectralCovariance(spectrum, GRID)
        show(noise, covariance.sample([1])[0, 0], name)
        power.plot(*curve(covariance.power()), color="C3")
        if "Offset" in name:
            power.plot([0], [10 * float(covariance.power()[0, 0].log10())], "o", color="C3")
        power.set(ylim=(-32, 35), xlim=(-0.03, 0.71), xticks=[0, 0.5], xlabel="cycles per pixel")
        if power is not plots[1, 0]:
            power.set(yticklabels=[])
    plots[1, 0].set_ylabel("power, dB")
    return figure


def forward(data: ms.DataStatistics) -> Figure:
    """Draw a patch over time with three colours of noise."""
    x0 = patch()
    times = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    figure = Figure(figsize=(9.5, 5), layout="constrained")
    rows = {"white": ms.Flat(), "PowerLaw(-1)": LAW, "data's own": data.spectrum()}
    for plots, (name, spectrum) in zip(figure.subplots(len(rows), len(times)), rows.items(), strict=True):
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, GRID))
        noise = process.noise(x0.shape, [2]).double()
        for plot, t in zip(plots, times, strict=True):
            title = f"t = {t:g}" if name == "white" else ""
            show(plot, process.add_noise(x0, torch.tensor([t]), noise)[0, 0], title, limit=2.0)
        plots[0].set_ylabel(name)
    return figure


def snr(data: ms.DataStatistics) -> Figure:
    """Draw the signal-to-noise ratio over frequency and time under three colours of noise."""
    times = torch.linspace(0.005, 0.995, 100, dtype=torch.float64)
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    rows = {"white": ms.Flat(), "PowerLaw(-1)": LAW, "data's own": data.spectrum()}
    plots = figure.subplots(1, len(rows), sharey=True)
    for plot, (name, spectrum) in zip(plots, rows.items(), strict=True):
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, GRID))
        radius, signal = curve(data.power[0])
        noise = curve(process.covariance.power())[1]
        ratio = (signal - noise)[None] + process.schedule.log_snr(times)[:, None] * 10 / torch.tensor(10.0).log()
        shown = plot.pcolormesh(
            radius.numpy(), times.numpy(), ratio.numpy(), cmap="RdBu_r", vmin=-40, vmax=40, shading="nearest"
        )
        plot.contour(radius.numpy(), times.numpy(), ratio.numpy(), levels=[0], colors="black")
        plot.set(title=name, xlabel="cycles per pixel")
    plots[0].set_ylabel("t")
    figure.colorbar(shown, ax=plots, label="signal to noise, dB")
    return figure


def paths() -> Figure:
    """Draw schedules: log-SNR over time, and the way from data to noise in the plane of both coefficients."""
    schedules = {
        "cosine": ms.CosineSchedule(),
        "cosine, shift=3": ms.CosineSchedule(shift=3.0),
        "linear (DDPM)": ms.LinearSchedule(),
        "Karras": ms.KarrasSchedule(),
        "flow": ms.FlowSchedule(),
    }
    times = torch.linspace(0, 1, 400, dtype=torch.float64)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, schedule in schedules.items():
        alpha, sigma = schedule.alpha_sigma(times)
        left.plot(times, schedule.log_snr(times), label=name)
        right.plot(alpha, sigma, label=name, lw=4 if name == "cosine" else 1.5)
    left.set(xlabel="t", ylabel="log-SNR λ", ylim=(-12, 16))
    left.legend(fontsize="small")
    right.set(xlabel="α", ylabel="σ", xlim=(-0.1, 1.2), ylim=(-0.1, 1.3), aspect="equal")
    right.annotate("data", (1.02, -0.06))
    right.annotate("noise", (-0.07, 1.06))
    right.annotate("exploding", (1.03, 0.75), rotation=90)
    right.annotate("preserving", (0.08, 0.86), rotation=-10)
    right.annotate("flow", (0.36, 0.56), rotation=-45)
    return figure


def transfer(data: ms.DataStatistics) -> Figure:
    """Draw generated over true power of Gaussian data: few steps, noise of the data's colour, and a wrong prior."""
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    few, own, wrong = figure.subplots(1, 3, sharey=True)
    truth = curve(data.power[0])[1]
    for plot, spectrum in ((few, ms.Flat()), (own, data.spectrum())):
        process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(spectrum, GRID))
        for steps in (5, 10, 20, 50):
            times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
            generated = transfer_function(ms.DDIM(), process, times, data).power[0]
            radius, power = curve(generated)
            plot.plot(radius, power - truth, label=f"{steps} steps")
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(LAW, GRID))
    times = torch.linspace(1, 0, 51, dtype=torch.float64)
    run = transfer_function(ms.DDIM(), process, times, data)
    for name, start in (("prior of its own colour", run.prior), ("white prior", torch.ones_like(run.prior))):
        radius, power = curve((run.noise_gain**2 * start)[0])
        wrong.plot(radius, power - truth, label=name)
    titles = ("DDIM, white noise", "DDIM, noise of the data's colour", "trained with PowerLaw(-1), 50 steps")
    for plot, title in zip((few, own, wrong), titles, strict=True):
        plot.axhline(0, color="0.7", lw=0.8)
        plot.set(title=title, xlabel="cycles per pixel", ylim=(-16, 16))
        plot.legend(fontsize="small")
    few.set_ylabel("generated over true power, dB")
    return figure


def omission(data: ms.DataStatistics) -> Figure:
    """Draw a patch, the patch with a corrupted band, the patch without that band, and the spectra."""
    x0 = patch()
    band = ms.Band(0.2, 0.3)
    corrupted = ms.Corruption(band, GRID, level=0.5).corrupt(x0, [0])
    process = ms.Process(ms.CosineSchedule(), ms.SpectralCovariance(ms.Outside(band), GRID))
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    *images, plot = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.5])
    shown = (x0, corrupted, process.covariance.project(corrupted))
    titles = ("clean", "the data that there are", "what is learned of them")
    for each, image, title in zip(images, shown, titles, strict=True):
        show(each, image[0, 0], title, limit=1.3)
    damage = ms.Corruption(band, GRID, level=0.5).power()
    plot.plot(*curve(data.power[0]), color="0.5", label="clean data")
    plot.plot(*curve(data.power[0] + damage), color="C0", ls="--", label="data that there are")
    plot.plot(*curve(process.covariance.power()), color="C3", label="noise")
    plot.set(xlabel="cycles per pixel", ylabel="power, dB", ylim=(-45, 25))
    plot.legend(fontsize="small", loc="lower right")
    return figure


def main() -> None:
    """Draw all figures."""
    data = statistics()
    drawn = {
        "spectra": spectra(data),
        "forward": forward(data),
        "snr": snr(data),
        "paths": paths(),
        "transfer": transfer(data),
        "omission": omission(data),
    }
    for name, figure in drawn.items():
        drawing = BytesIO()
        figure.savefig(drawing, dpi=90)
        # Images of noise hardly compress: 256 colours, chosen so that lines keep theirs, halve them.
        picture = Image.open(drawing).convert("RGB").quantize(256, method=Image.Quantize.FASTOCTREE)
        picture.save(IMAGES / f"theory_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
