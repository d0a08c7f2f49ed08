"""Summary of a run: model, data, progress, settings compared with defaults, and environment."""

import shlex
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from multisagd.addresses import for_others
from recipes.base.commands import setting
from recipes.config.addresses import mapped, shareable
from recipes.config.compose import Config
from recipes.config.groups import ABSENT, flatten, groups, nearest_choice, train_defaults
from recipes.plotting.curves import number_text
from recipes.reports.losses import loss
from recipes.reports.page import Block, Facts, Note, Setting, Settings, Table
from recipes.reports.run import Overview, shown
from recipes.runs.metrics import inner, number

MAX_STARTS = 50
"""Maximum number of starts of a run in the list; earlier starts are omitted."""
GROUPS = ("modality", "data", "spectrum", "schedule", "denoiser", "network")
"""Configuration groups shown in the summary."""
WITHOUT_DEFAULT = ("run_dir",)
"""Keys without a default."""
STATES = {
    "finished": "finished",
    "ended early": "ended early: the score no longer improved (validation.patience)",
    "in progress": "in progress: a process is using the folder",
    "interrupted": "interrupted: no process on this machine is using the folder",
    "not begun": "not begun",
}
"""Descriptions of a run's states."""


def summary_blocks(run: Overview) -> list[Block]:
    """Return the blocks with model, data and progress."""
    target = "" if run.target is None else f" of {run.target:,}"
    rows = [("state", STATES[run.state]), ("samples seen", f"{run.seen:,}{target}")]
    if run.train:
        rows.append(("training loss", f"{number_text(loss(run.train[-1]))} (last entry)"))
    if run.validation:
        rows.append(("validation loss", f"{number_text(loss(run.validation[-1]))} (last entry)"))
    if seconds := training_seconds(run):
        rows.append(("time in training steps", f"about {_duration(seconds)}"))
    if data := inner(run.metadata, "data"):
        count = f" in {len(run.classes)} classes" if run.classes else ""
        rows.append(("examples", f"{number_text(number(data.get('examples')))}{count}"))
    if (parameters := number(run.metadata.get("parameters"))) > 0:
        rows.append(("parameters of the network", number_text(parameters)))
    if run.statistics is not None:
        axes = ", ".join(map(str, run.statistics.grid.axes))
        rows.append(("channels and axes of an example", f"{run.statistics.mean.shape[0]} × ({axes})"))
        rows.append(("standard deviation of the data", f"{run.statistics.sigma_data:.3g} about their mean"))
    if run.config is not None:
        choices = dict(settings(run.config).choices)
        rows += [(name, choices[name]) for name in GROUPS if name in choices]
    blocks: list[Block] = [Facts(rows), *map(Note, run.missing)]
    if run.state == "interrupted":
        blocks.append(Note(_how_to_continue(run)))
    if run.state == "not begun":
        blocks.append(
            Note("No training has been started here yet.", f"multisagd train … {setting('run_dir', run.folder)}")
        )
    return blocks


def training_seconds(run: Overview) -> float:
    """Return the total duration of training steps in seconds, from the speed between entries.

    Repeated steps count twice.
    """
    entries, total = run.timing, 0.0
    first = [{"samples": 0}] if entries else []
    for before, now in pairwise([*first, *entries]):
        rate, count = number(now.get("samples_per_second")), number(now.get("samples")) - number(before.get("samples"))
        total += count / rate if rate > 0 and count > 0 else 0.0
    return total


def configuration_blocks(run: Overview) -> list[Block]:
    """Return the configuration, or a note if it is missing or unreadable."""
    if run.config is None:
        return [Note("config.yaml is missing or unreadable.")]
    return [settings(run.config)]


def settings(config: Config) -> Settings:
    """Return all keys of a configuration with their values and defaults, and the choice of each group."""
    own = train_defaults()
    expected = flatten(own)
    choices = []
    for group in groups():
        node = config.get(group)
        if not isinstance(node, Mapping) or group in own:
            continue
        name, defaults = nearest_choice(group, node)
        choices.append((group, name or str(node.get("_target_", ABSENT))))
        expected |= flatten(defaults, group) if defaults else {}
    rows = []
    for key, value in flatten(mapped(shareable(config), for_others)).items():
        text = shown(value)
        default = shown(expected.get(key, ABSENT)).replace("???", ABSENT)
        rows.append(Setting(key, text, default if default != text and key not in WITHOUT_DEFAULT else None))
    return Settings(tuple(choices), tuple(rows))


def environment_blocks(run: Overview) -> list[Block]:
    """Return tables of the run's starts, with command and device, and of the package versions."""
    starts = run.starts[-MAX_STARTS:]
    if not starts:
        return [Note("run.json records no start of this run.")]
    header = ("time", "samples seen", "device", "source revision", "command")
    rows = [
        (str(start.get("at")), number_text(number(start.get("samples"))), str(start.get("device")),
         str(start.get("revision")), _command(start.get("command")))
        for start in starts
    ]  # fmt: skip
    versions, before = inner(starts[-1], "versions"), inner(starts[0], "versions")
    changed = {name for name in versions if before.get(name) not in (None, versions[name])}
    packages = [(str(n), str(value), str(before[n]) if n in changed else "") for n, value in versions.items()]
    return [
        Table("Starts", header, rows),
        Table("Versions at the last start", ("package", "version", "at the first start"), packages),
    ]


def _how_to_continue(run: Overview) -> str:
    """Return how an interrupted run can be continued."""
    reason = "The reason is not recorded here: see the last message of the command."
    if run.saved is None:
        return f"The run ended before its first checkpoint: the same command starts from the beginning. {reason}"
    return f"The last checkpoint is after {run.saved:,} samples: the same command continues from there. {reason}"


def _command(words: Any) -> str:
    return for_others(shlex.join(map(str, words))) if isinstance(words, list) else "-"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
