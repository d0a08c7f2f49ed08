"""The console command: `multisagd train …` is the same as `python -m recipes.train …`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "train": ("recipes.train", "train a diffusion model, or continue an interrupted run"),
    "sample": ("recipes.sample", "draw samples from a trained run"),
    "export": ("recipes.export", "write a trained model as one safetensors file and one JSON"),
    "inspect": ("recipes.inspect", "show what a model would see: examples, round trips, spectra and noise"),
    "analyze": ("recipes.analyze", "measure a dataset's spectrum: curves, uncertainty, power law"),
    "design": ("recipes.design", "design a sampler's steps, and the noise, from the data's spectrum"),
    "compare": ("recipes.compare", "compare a run's samples with its data along every axis"),
    "encode": ("recipes.encode", "encode a dataset into latents once, to train on them"),
    "pack": ("recipes.pack", "pack a folder of files into tar shards, for storage that likes few large files"),
    "fidelity": ("recipes.fidelity", "tell how close a run's samples are to its data"),
    "evaluate": ("recipes.evaluate", "judge a run's samples by every metric: distances, spectra, variety, copies"),
    "launch": ("recipes.launch", "run a command on several GPUs or machines, or for several values"),
    "demo": ("recipes.demo", "train on small digits with white and with shaped noise, and compare (minutes)"),
}
"""Name to module and summary; a command's help comes from `configs/<name>.yaml`, without importing the module."""


def usage() -> str:
    """Return the help of the whole command."""
    lines = [f"  {name:<8} {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: multisagd COMMAND [group=choice ...] [key=value ...]",
            "",
            "Diffusion models whose forward noise is shaped in frequency.",
            "",
            "commands:",
            *lines,
            "",
            "`multisagd COMMAND --help` explains every setting of a command. For example:",
            "  multisagd demo",
            "  multisagd train experiment=image_folder data.root=photos run_dir=runs/photos",
            "  multisagd sample run_dir=runs/photos count=64 steps=20",
        ]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        from recipes.engine.help import show

        show(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        from recipes.engine.errors import USAGE_STATUS, nearest

        print(f"error: unknown command {name!r}{nearest(name, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return USAGE_STATUS
    if any(argument in ("-h", "--help") for argument in rest):
        from recipes.engine.help import command_help, show

        show(command_help(name))
        return 0
    if clash := _foreign_package():
        print(clash, file=sys.stderr)
        return 2
    status: int = importlib.import_module(COMMANDS[name][0]).main(rest)
    return status


def _foreign_package() -> str | None:
    """Return a message if `modalities` is another distribution's: one on the package index has the same name."""
    spec = importlib.util.find_spec("modalities")
    ours = Path(__file__).resolve().parents[1]
    if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parents[1] == ours:
        return None
    return (
        f"error: the package `modalities` found at {None if spec is None else spec.origin} is not multisagd's own, "
        f"which lies in {ours}. Another distribution has the same name: install multisagd in an environment of its own"
    )


if __name__ == "__main__":
    sys.exit(main())
