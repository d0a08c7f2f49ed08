"""Audio using only the core: plucked strings as one-dimensional waveforms, with noise specified in hertz.

    python examples/audio_from_scratch.py                # about five minutes on one CPU core
    python examples/audio_from_scratch.py --exponent 0   # white noise

The grid states that neighbouring samples are 1/4000 s apart. So the power law is flat below 60 Hz and pink above it,
regardless of the length and the sample rate of the clips.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import soundfile
import torch
from torch import Tensor

import multisagd as ms

RATE, LENGTH = 4000, 1024
GRID = ms.Grid((ms.Axis("time", LENGTH, 1 / RATE, "s", corner=60.0),))


def strings(count: int) -> Tensor:
    """Return decaying tones of random pitch with some overtones, (count, 1, LENGTH), in [-1, 1]."""
    draw = torch.Generator().manual_seed(0)
    time = torch.arange(LENGTH) / RATE
    pitch = 110 * 2 ** (torch.randint(0, 24, (count, 1), generator=draw) / 12)
    decay = 4 + 12 * torch.rand(count, 1, generator=draw)
    waveforms = torch.zeros(count, LENGTH)
    for overtone in range(1, 5):
        phase = 2 * math.pi * torch.rand(count, 1, generator=draw)
        wave = torch.sin(2 * math.pi * overtone * pitch * time + phase)
        waveforms += wave * torch.exp(-decay * overtone * time) / overtone
    return (0.9 * waveforms / waveforms.abs().amax(1, keepdim=True)).unsqueeze(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the strings, and write several samples to one audio file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exponent", type=float, default=-0.5, help="exponent of the amplitude of the noise spectrum")
    parser.add_argument("--out", type=Path, default=Path("strings.wav"), help="the audio file to write")
    parser.add_argument("--small", action="store_true", help="only a few steps, as a quick test")
    options = parser.parse_args(arguments)
    steps, batch, count = (3, 4, 2) if options.small else (1500, 16, 12)

    data = strings(64 if options.small else 4000)
    process = ms.Process(ms.CosineSchedule(shift=2), ms.SpectralCovariance(ms.PowerLaw(options.exponent), GRID))
    statistics = ms.DataStatistics.measure([data], GRID)
    torch.manual_seed(0)  # for the initial weights
    network = ms.networks.UNet(channels=1, dimensions=1, width=24, multipliers=(1, 2, 2, 4, 4), blocks=1)
    denoiser = ms.Denoiser(network, process, preconditioning="karras", statistics=statistics)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(steps):
        start = step * batch % len(data)
        x0 = data[start : start + batch]
        seeds = [ms.seeds.derive(0, "noise", step, slot) for slot in range(len(x0))]
        loss = denoiser.loss(x0, ms.stratified_uniform(0, step, len(x0)), seeds).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    samples = ms.sample(denoiser.eval(), ms.DPMSolver(), (count, 1, LENGTH), steps=20, seeds=range(count))
    soundfile.write(options.out, samples.clamp(-1, 1).flatten().numpy(), RATE)
    print(f"{count} audio clips of {LENGTH / RATE:.2f} s: {options.out}")


if __name__ == "__main__":
    main()
