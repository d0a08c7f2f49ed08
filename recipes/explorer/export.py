"""The configuration of what was explored: the spectrum as a file of its group, and the command that trains with it."""

from __future__ import annotations

import io
import textwrap
import zipfile
from collections.abc import Mapping
from typing import Any

import yaml

from recipes.explorer.design import Designed
from recipes.explorer.examples import Example
from recipes.explorer.process import Settings
from recipes.plotting.media import written

FOLDER = "explored"
"""Name of the folder that is downloaded, which `--config-dir` then names."""


def spectrum_yaml(group: Mapping[str, Any]) -> str:
    """Return the spectrum as a file of the group `spectrum`, found as `spectrum=explored` with `--config-dir`."""
    heading = f"# A spectrum chosen in `multisagd explore`. Example: --config-dir={FOLDER} spectrum=explored\n"
    return heading + yaml.safe_dump(dict(group), sort_keys=False, allow_unicode=True)


def words(settings: Settings, example: Example) -> list[str]:
    """Return what follows `multisagd train`: the medium, data, spectrum, schedule and folders."""
    modality, data = example.choices
    chosen: dict[str, Any] = {"modality": modality}
    chosen |= {f"modality.{key}": value for key, value in example.medium.keys(example.modality).items()}
    chosen |= {"data": data} if data else {"data": "folder", "data.root": example.medium.folder}
    chosen |= {"spectrum": "explored", "schedule": settings.schedule}
    if settings.shift != 1:
        chosen["schedule.shift"] = float(settings.shift)
    if settings.schedule == "karras":
        chosen["denoiser"] = "karras"
    chosen["run_dir"] = f"runs/{FOLDER}"
    told = {key: f"{value:g}" if isinstance(value, float) else value for key, value in chosen.items()}
    return [f"--config-dir={FOLDER}", *(f"{key}={value}" for key, value in told.items())]


def command(settings: Settings, example: Example) -> str:
    """Return the whole command line, one line of a shell broken where it is long."""
    line = " ".join(["multisagd train", *words(settings, example)])
    return " \\\n  ".join(textwrap.wrap(line, 88, break_long_words=False, break_on_hyphens=False))


def archive(settings: Settings, example: Example, group: Mapping[str, Any], designed: Designed) -> bytes:
    """Return a ZIP file of the folder: the spectrum, the command, and the designed steps."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(f"{FOLDER}/spectrum/explored.yaml", spectrum_yaml(group))
        zipped.writestr(f"{FOLDER}/train.sh", f"{command(settings, example)}\n")
        zipped.writestr(f"{FOLDER}/steps.json", written("steps.json", designed.steps.save))
    return file.getvalue()
