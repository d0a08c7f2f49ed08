"""An example of every public spectrum, on the grid of a clip; the harmonics are those of a waveform."""

import torch

import multisagd as ms

GRID = ms.Grid.of(frame=(4, 1 / 25, "s"), height=6, width=5)
WAVEFORM = ms.Grid.of(time=(800, 1 / 8000, "s"))

EXAMPLES = {
    "Autoregressive": ms.Autoregressive(time_constant=0.4, axis="frame"),
    "Band": ms.Band(0.1, 0.4, unit="nyquist", axes=("height", "width")),
    "Exponential": ms.Exponential(2.0, axes=("height", "width"), factors={"height": 0.5}),
    "Flat": ms.Flat(2.0),
    "Gaussian": ms.Gaussian(1.5).on("width"),
    "HarmonicStop": ms.HarmonicStop(50.0, width=20.0, axis="time", harmonics=3),
    "LowPass": ms.LowPass(0.2, order=3, axes=("width",)),
    "Offset": ms.Offset(0.3, axes=("frame",)),
    "Outside": ms.Outside(ms.Band(0.2, 0.3, axes=("height", "width"))),
    "PowerLaw": ms.PowerLaw(-0.5, axes=("frame", "height", "width"), factors={"frame": 0.05}),
    "Rings": ms.Rings((8.0, 4.0, 0.1)),
    "Spots": ms.Spots({"height": 0.2, "width": 0.1}, radius=0.2, harmonics=2),
    "Streaks": ms.Streaks(30.0, width=40.0),
    "Table": ms.Table(torch.rand(GRID.half_shape, generator=torch.Generator().manual_seed(0)), GRID),
    "TwoBand": ms.TwoBand((0.0, 0.2), (0.3, 0.4), (0.7, 0.1), unit="cycles", axes=("height", "width")),
    "VelocityTuned": ms.VelocityTuned({"width": 8.0}, time_constant=0.5),
}
