"""Figures of audio: spectrograms in decibels, with axes in seconds and hertz."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modalities.figures import labelled_figure, save_figure
from modalities.representation import Stft

RANGE_DB = 80.0
"""Decibels below full scale at which the colour scale ends in black."""


def plot_spectrograms(
    waveforms: Sequence[Tensor],
    rate: int,
    path: Path,
    columns: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Plot the spectrograms of waveforms (channels, samples), averaged over channels, in one PNG file.

    Windows last about 32 ms.

    Raises:
        ValueError: If there are no waveforms, or the path does not end in .png.
    """
    figure = labelled_figure(
        len(waveforms), path, "time (s)", columns, names, cell=(2.8, 2.0), margin=0.8, item="waveform"
    )
    for plot, waveform in zip(figure.axes, waveforms, strict=True):
        decibels = _decibels(waveform.detach().to("cpu", torch.float32), rate, overlap=4)
        extent = (0.0, waveform.shape[-1] / rate, 0.0, rate / 2)
        image = plot.imshow(
            decibels.numpy(), aspect="auto", origin="lower", extent=extent, cmap="magma", vmin=-RANGE_DB, vmax=0.0
        )
        plot.set_ylabel("frequency (Hz)", fontsize="x-small")
    figure.colorbar(image, ax=figure.axes, label="dB relative to full scale")
    save_figure(figure, path)


def spectrogram_pixels(waveform: Tensor, rate: int) -> np.ndarray:
    """Return the spectrogram of a waveform (channels, samples) as uint8 pixels (frequencies, times, 3).

    Colours represent decibels. Low frequencies are at the bottom; windows last about 32 ms and overlap by half.
    """
    from matplotlib import colormaps

    return colormaps["magma"](_decibels(waveform, rate, overlap=2).flip(0).numpy() / RANGE_DB + 1, bytes=True)[..., :3]


def _decibels(waveform: Tensor, rate: int, overlap: int) -> Tensor:
    """Return the power (frequencies, times) in decibels relative to full scale, averaged over channels."""
    window = max(4, 2 ** round(math.log2(0.032 * rate)))
    power = Stft(window=window, hop=window // overlap).levels(waveform).mean(dim=0)
    return 10 * power.clamp(min=10 ** (-RANGE_DB / 10)).log10()
