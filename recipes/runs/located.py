"""Where the files are that a run's configuration names: found from any folder, or where the command line says.

A configuration keeps paths as they were typed. One that is relative counts from the folder in which training was
started, which `run.json` records; or, where run and data were moved together, from the same place beside the run; or
else from the present folder. `data.root=…`, and any other key of the data, replaces what the configuration says.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modalities.base import Dataset
from recipes.config.build import Builder
from recipes.config.compose import Config
from recipes.runs.settings import Group

PATHS = (
    "data.root", "data.urls", "data.index", "corruption.path", "modality.statistics", "modality.autoencoder.name",
    "text.name", "text.cache",
)  # fmt: skip
"""Keys of a run that name files or folders after training; a name on a hub is none, unless such a folder is there."""


def located(config: Config, facts: Mapping[str, Any], folder: Path, given: Group, builder: Builder) -> Config:
    """Return a run's configuration with the keys of its data that the command line gives, and its paths found.

    `facts` are the content of `run.json` in its `folder`, and `given` the keys below `data` of the command line.

    Raises:
        RecipeError: for a key that the run's data do not have.
    """
    data = config.get("data")
    if given and isinstance(data, Mapping):
        builder.check_keys(data, Dataset, "data", given)
    homes = starting_folders(facts, folder)
    found: Config = config
    for key in PATHS:
        found = _replaced(found, key.split("."), homes)
    if not given:
        return found
    found = {**found, "data": {**found.get("data", {}), **given}}
    modality = found["modality"]
    if "root" in given and isinstance(modality, Mapping) and modality.get("statistics") is not None:
        # Latents are scaled by the statistics in their own folder.
        found["modality"] = {**modality, "statistics": given["root"]}
    return found


def starting_folders(facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Return where the relative paths of a run in `folder` may count from, the likeliest first."""
    starts = facts.get("starts") or [{}]
    last = starts[-1] if isinstance(starts[-1], Mapping) else {}
    home, run_dir = last.get("folder"), last.get("run_dir")
    if not isinstance(home, str) or not isinstance(run_dir, str) or not home or not run_dir:
        return []  # an exported model has no starts, and a record may have been changed
    return [Path(home), Path(os.path.normpath(folder.absolute() / os.path.relpath(home, run_dir)))]


def _replaced(node: Config, parts: Sequence[str], homes: Sequence[Path]) -> Config:
    """Return nested values with the one at a dotted place found; the original is left as it is."""
    name, *deeper = parts
    value = node.get(name)
    if deeper:
        return {**node, name: _replaced(dict(value), deeper, homes)} if isinstance(value, Mapping) else node
    if isinstance(value, list | tuple):
        return {**node, name: [_found(each, homes) for each in value]}
    return {**node, name: _found(value, homes)} if isinstance(value, str) else node


def _found(value: Any, homes: Sequence[Path]) -> Any:
    """Return a relative path below the first of the folders in which it exists, and everything else as it is."""
    if not isinstance(value, str) or "://" in value or "::" in value or os.path.isabs(value):  # noqa: PTH117
        return value
    fixed = re.split(r"[*?\[{]", value)[0]  # what stands before a pattern or a range
    if fixed != value:
        fixed = os.path.dirname(fixed)  # noqa: PTH120
    return next((str(home / value) for home in homes if os.path.exists(home / fixed)), value)  # noqa: PTH110 - no error
