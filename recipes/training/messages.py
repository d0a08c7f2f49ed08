"""What a training says of itself at its beginning and end, and the files that it could not read."""

from __future__ import annotations

import logging
from pathlib import Path

from modalities.base import Dataset
from modalities.captions import Captioned
from recipes.base.quoting import setting
from recipes.runtime.device import Runtime

UNREADABLE = "unreadable.json"
log = logging.getLogger("multisagd")


def introduction(
    runtime: Runtime, training: Dataset, held_out: Dataset | None, parameters: int, measured: int, samples: int
) -> str:
    """Say what is about to happen."""
    again = f"continuing after {samples:,} samples; " if samples else ""
    names = training.classes
    told = "" if names is None else f" of {len(names)} classes ({', '.join(names[:10])}{', …' * (len(names) > 10)})"
    if isinstance(training, Captioned):
        told = f" with captions, read by {training.encoder.name}"
    apart = "none held out" if held_out is None else f"{len(held_out):,} more held out"
    return (
        f"{again}{len(training):,} examples{told} ({apart}, statistics of {measured:,}), "
        f"{parameters:,} parameters, on {runtime.describe()}"
    )


def ending(run_dir: Path, checkpoint: Path, dataset: Dataset) -> str:
    """Say where everything is, and how to go on."""
    lines = [
        f"done. In {run_dir}:",
        *(["  samples      samples/"] if (run_dir / "samples").is_dir() else []),
        "  metrics      metrics.jsonl",
        f"  checkpoint   {checkpoint.relative_to(run_dir)}",
        "  record       config.yaml, run.json, statistics.safetensors",
    ]
    if dataset.unreadable:
        lines.append(f"  unreadable   {len(dataset.unreadable)} files, named in {UNREADABLE}")
    return "\n".join([*lines, f"More samples: multisagd sample {setting('run_dir', run_dir)}"])


def name_unreadable(dataset: Dataset, run_dir: Path) -> None:
    """Write down which files could not be read, where there are any, and a folder and room for it."""
    try:
        if run_dir.is_dir():
            dataset.save_unreadable(run_dir / UNREADABLE)
    except OSError as error:
        log.warning("cannot write %s: %s", run_dir / UNREADABLE, error)
