"""Cost of coloured noise relative to `torch.randn` and to the papers' method (complex fftn, weight, ifftn, real part).

Run on an idle machine: `python -m benchmarks.noise [--threads 2] [--repeats 40]`. Ratios are medians of paired repeats
with their quartiles. Ours draws from one seed per item; `torch.randn` draws the whole batch from the global generator.
"""

from __future__ import annotations

import argparse

import torch

import multisagd as ms
from benchmarks.timing import interleave, machine, milliseconds, ratio

EXPONENT = -0.5
SHAPES = {
    "audio": (16, 1, 65536),
    "small images": (64, 3, 32, 32),
    "images": (16, 3, 256, 256),
    "spectrograms": (16, 2, 257, 256),
    "video": (2, 3, 16, 128, 128),
}


def measure(shape: tuple[int, ...], repeats: int) -> dict[str, list[float]]:
    """Time four methods for one shape `(batch, channels, *grid)`."""
    batch, channels, *sizes = shape
    grid = ms.Grid.of(**{f"axis{place}": size for place, size in enumerate(sizes)})
    coloured, white = (
        ms.SpectralCovariance(spectrum, grid) for spectrum in (ms.PowerLaw(exponent=EXPONENT), ms.Flat())
    )
    dims = tuple(range(-len(sizes), 0))
    # The papers weight the full complex spectrum; computed from an impulse, it has the same colour as ours.
    impulse = torch.zeros(tuple(sizes))
    impulse[(0,) * len(sizes)] = 1.0
    weight = torch.fft.fftn(coloured.color(impulse)).real
    seeds = range(batch)
    ours, theirs = coloured.color(white.sample(seeds, channels)), white.sample(seeds, channels)
    theirs = torch.fft.ifftn(torch.fft.fftn(theirs, dim=dims) * weight, dim=dims).real
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)  # both compute the same

    return interleave(
        {
            "randn": lambda: torch.randn(shape),
            "ours": lambda: coloured.sample(seeds, channels),
            "white": lambda: white.sample(seeds, channels),
            "papers": lambda: torch.fft.ifftn(torch.fft.fftn(torch.randn(shape), dim=dims) * weight, dim=dims).real,
        },
        repeats,
    )


def main() -> None:
    """Print one row per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    parser.add_argument("--repeats", type=int, default=40, help="paired repeats per shape")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine())
    print(f"power law, exponent {EXPONENT}, float32; {options.repeats} interleaved repeats\n")
    row = "{:<13} {:<20} {:>9} {:>9} {:>10}  {:<22} {:<22} {:<22}"
    heads = ("randn ms", "ours ms", "papers ms", "ours / randn", "ours / papers", "our white / randn")
    print(row.format("", "shape", *heads))
    for name, shape in SHAPES.items():
        times = measure(shape, options.repeats)
        spent = [f"{milliseconds(times, way):.2f}" for way in ("randn", "ours", "papers")]
        pairs = (("ours", "randn"), ("ours", "papers"), ("white", "randn"))
        ratios = [str(ratio(times, above, below)) for above, below in pairs]
        print(row.format(name, str(shape), *spent, *ratios), flush=True)


if __name__ == "__main__":
    main()
