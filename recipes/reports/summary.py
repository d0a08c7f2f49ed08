"""What a run is, in a few lines: what was trained on what, how far it is, its last losses, and where it ran."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any

from multisagd.addresses import for_others
from recipes.base.quoting import setting
from recipes.plotting.curves import told
from recipes.reports.blocks import Block, Facts, Note, Table
from recipes.reports.defaults import settings
from recipes.reports.losses import loss
from recipes.reports.run import Run
from recipes.runs.metrics import inner, number

MOST_STARTS = 50
"""Starts of a run that are listed, the last ones."""

GROUPS = ("modality", "data", "spectrum", "schedule", "denoiser", "network")
"""Groups of the configuration that say most about a run."""


def summary_blocks(run: Run) -> list[Block]:
    """Return what was trained, on what, and how far it is."""
    target = "" if run.target is None else f" of {run.target:,}"
    rows = [("state", told_state(run)), ("samples seen", f"{run.seen:,}{target}")]
    if run.train:
        rows.append(("training loss", f"{told(loss(run.train[-1]))} (last entry)"))
    if run.validation:
        rows.append(("validation loss", f"{told(loss(run.validation[-1]))} (last entry)"))
    seconds = training_seconds(run)
    if seconds:
        rows.append(("time in training steps", f"about {_duration(seconds)}"))
    data = inner(run.facts, "data")
    if data:
        classes = run.facts.get("classes")
        count = f" in {len(classes)} classes" if isinstance(classes, list) and classes else ""
        rows.append(("examples", f"{told(number(data.get('examples')))}{count}"))
    if (parameters := number(run.facts.get("parameters"))) > 0:
        rows.append(("parameters of the network", told(parameters)))
    if run.statistics is not None:
        axes = ", ".join(f"{a.name} {a.size} × {a.spacing:.4g} {a.unit}" for a in run.statistics.grid.axes)
        rows.append(("a datum", f"{run.statistics.mean.shape[0]} × ({axes})"))
        rows.append(("standard deviation of the data", f"{run.statistics.sigma_data:.3g} about their mean"))
    rows += _choices(run)
    blocks: list[Block] = [Facts(rows), *run.missing]
    if run.state == "interrupted":
        blocks.append(Note(_goes_on(run)))
    if run.state == "not begun":
        blocks.append(Note("Nothing has been trained here yet.", f"multisagd train … {setting('run_dir', run.folder)}"))
    return blocks


def told_state(run: Run) -> str:
    """Return the state of a run in words."""
    words = {
        "finished": "finished",
        "in progress": "in progress: a process holds the folder",
        "interrupted": "interrupted: no process on this machine holds the folder",
        "not begun": "not begun",
    }
    return words[run.state]


def training_seconds(run: Run) -> float:
    """Return how long training steps took in all, from the speed between entries; what was done twice counts twice."""
    entries, total = run.timing.of("timing"), 0.0
    first = [{"samples": 0}] if entries else []
    for before, now in pairwise([*first, *entries]):
        rate, more = number(now.get("samples_per_second")), number(now.get("samples")) - number(before.get("samples"))
        total += more / rate if rate > 0 and more > 0 else 0.0
    return total


def environment_blocks(run: Run) -> list[Block]:
    """Return where and with what the run was started, and with which versions."""
    starts = run.starts[-MOST_STARTS:]
    if not starts:
        return [Note("run.json names no start of this run.")]
    rows = [
        (str(start.get("at")), told(number(start.get("samples"))), str(start.get("device")), str(start.get("revision")),
         _command(start.get("command")))
        for start in starts
    ]  # fmt: skip
    blocks: list[Block] = [
        Table("Starts", ("at", "samples seen", "device", "revision of the source", "command, as it was noted"), rows)
    ]
    versions, before = inner(starts[-1], "versions"), inner(starts[0], "versions")
    changed = {name for name in versions if before.get(name) not in (None, versions[name])}
    blocks.append(
        Table(
            "Versions at the last start", ("package", "version", "at the first start"),
            [(str(name), str(value), str(before[name]) if name in changed else "") for name, value in versions.items()],
        )
    )  # fmt: skip
    return blocks


def _choices(run: Run) -> list[tuple[str, str]]:
    """Return the choices of the groups that say most."""
    if run.config is None:
        return []
    chosen = dict(settings(run.config).choices)
    return [(name, chosen[name]) for name in GROUPS if name in chosen]


def _goes_on(run: Run) -> str:
    why = "Why it ended is not noted here: its last message says so, and what to change if it ended by itself."
    if not run.checkpoints:
        return f"It ended before its first checkpoint: the command that started it, given again, begins anew. {why}"
    saved = f"Its last checkpoint is after {int(run.checkpoints[-1].name):,} samples"
    return f"{saved}: the command that started it, given again, continues from there. {why}"


def _command(words: Any) -> str:
    return for_others(shlex.join(map(str, words))) if isinstance(words, list) else "-"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
