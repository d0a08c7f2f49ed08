"""The configuration of what was explored: the spectrum as a file of its group, and the command that trains with it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from modalities.audio import Audio
from modalities.image import Image
from modalities.representation import Stft, Waveform
from modalities.video import Video
from recipes.exploring.designing import Designed
from recipes.exploring.settings import Settings
from recipes.exploring.subjects import Subject

FOLDER = "explored"
"""Name of the folder that is downloaded, which `--config-dir` then names."""
OWN = {"image": "photos", "sound": "recordings", "video": "clips"}
"""Stands for the folder of one's own data in the command."""


def spectrum_yaml(group: Mapping[str, Any]) -> str:
    """Return the spectrum as a file of the group `spectrum`, found as `spectrum=explored` with `--config-dir`."""
    heading = f"# A spectrum chosen in `multisagd explore`. Example: --config-dir={FOLDER} spectrum=explored\n"
    return heading + yaml.safe_dump(dict(group), sort_keys=False, allow_unicode=True)


def words(settings: Settings, subject: Subject) -> list[str]:
    """Return what follows `multisagd train`: the medium, data, spectrum, schedule and folders."""
    modality = subject.modality
    chosen: dict[str, Any]
    if isinstance(modality, Image):
        chosen = {"modality": "image", "modality.size": modality.sides[0], "modality.channels": modality.channels}
    elif isinstance(modality, Video):
        chosen = {
            "modality": "video", "modality.frames": modality.frames, "modality.fps": f"{modality.fps:g}",
            "modality.size": modality.image.sides[0], "modality.channels": modality.channels,
        }  # fmt: skip
    else:
        assert isinstance(modality, Audio)
        representation = modality.representation
        assert isinstance(representation, Stft | Waveform)
        chosen = {
            "modality": "audio" if isinstance(representation, Stft) else "audio_waveform",
            "modality.rate": modality.rate, "modality.seconds": f"{modality.seconds:g}",
            "modality.loudness": modality.loudness, "modality.short": modality.short,
            "modality.representation.scale": f"{representation.scale:g}",
        }  # fmt: skip
    data = {"data": subject.data} if subject.data else {"data": "folder", "data.root": OWN[subject.medium]}
    chosen |= data | {"spectrum": "explored", "schedule": settings.schedule}
    if settings.shift != 1:
        chosen["schedule.shift"] = f"{settings.shift:g}"
    if settings.schedule == "karras":
        chosen["denoiser"] = "karras"
    chosen["run_dir"] = f"runs/{FOLDER}"
    return [f"--config-dir={FOLDER}", *(f"{key}={value}" for key, value in chosen.items())]


def command(settings: Settings, subject: Subject) -> str:
    """Return the whole command line, one line of a shell broken where it is long."""
    lines, line = [], "multisagd train"
    for word in words(settings, subject):
        if len(line) + len(word) > 88:
            lines.append(f"{line} \\\n ")
            line = ""
        line += f" {word}"
    return "".join([*lines, line])


def archive(settings: Settings, subject: Subject, group: Mapping[str, Any], designed: Designed | None) -> bytes:
    """Return a ZIP file of the folder: the spectrum, the command, and the designed steps if there are any."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr(f"{FOLDER}/spectrum/explored.yaml", spectrum_yaml(group))
        zipped.writestr(f"{FOLDER}/train.sh", f"{command(settings, subject)}\n")
        if designed is not None:
            with TemporaryDirectory() as folder:
                designed.steps.save(path := Path(folder) / "steps.json")
                zipped.write(path, f"{FOLDER}/steps.json")
    return file.getvalue()
