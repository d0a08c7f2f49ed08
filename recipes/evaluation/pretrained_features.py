"""Kinds of metrics on the features of networks trained by others, where their weights are at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.image import Image
from modalities.latent import Latent
from modalities.video import Video
from recipes.base.progress import Display
from recipes.evaluation.distances import feature_rows
from recipes.evaluation.pretrained import inception, r3d, vggish
from recipes.evaluation.pretrained.weights import Published
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import EvaluateSettings, Task

BATCH = 32
PUBLISHED: dict[str, tuple[Published, type[Modality], str]] = {
    "inception": (inception.PUBLISHED, Image, "images"),
    "vggish": (vggish.PUBLISHED, Audio, "sounds"),
    "r3d": (r3d.PUBLISHED, Video, "videos"),
}


def medium(modality: Modality) -> Modality:
    """Return the modality of the media themselves: of latents, what they are latents of."""
    return modality.modality if isinstance(modality, Latent) else modality


def lacks(name: str, train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why a network cannot be used here, None if it can."""
    published, kind, media = PUBLISHED[name]
    if not isinstance(medium(train.modality), kind):
        return f"it is a network for {media}"
    if settings.download or published.found(settings.network(name)) is not None:
        return None
    return f"its weights are not at {published.kept()}: give networks.{name}=FILE, or download=true"


lacks_inception, lacks_vggish, lacks_r3d = (partial(lacks, name) for name in PUBLISHED)


def inception_features(task: Task) -> Result:
    """Compare features of FID's Inception network, the last ones and those of an earlier block."""
    network = inception.load(_weights(task, "inception")).to(task.runtime.device)

    def read(media: list[Any]) -> Tensor:
        images = torch.stack(media).to(task.runtime.device)
        return torch.cat(inception.features(network, images), dim=1)

    made, real = _read(task, read, "inception")
    rows: list[Row] = []
    start = 0
    for block in inception.BLOCKS:
        end = start + int(block)
        ours, theirs = made[:, start:end], real[:, start:end]
        rows += feature_rows(
            ours, theirs, task.sets, task.settings.splits, task.settings.bootstrap, prefix=f"{block}: "
        )
        start = end
    return Result(tuple(rows))


def r3d_features(task: Task) -> Result:
    """Compare features of the video network R3D-18."""
    network = r3d.load(_weights(task, "r3d")).to(task.runtime.device)
    made, real = _read(task, lambda media: r3d.features(network, torch.stack(media).to(task.runtime.device)), "r3d")
    note = "r3d: distances on R3D-18 are not the FVD of the literature, which is on an I3D network"
    return Result(feature_rows(made, real, task.sets, task.settings.splits, task.settings.bootstrap), notes=(note,))


def vggish_features(task: Task) -> Result:
    """Compare features of VGGish, a mean for each sound."""
    network = vggish.load(_weights(task, "vggish")).to(task.runtime.device)
    modality = medium(task.modality)
    assert isinstance(modality, Audio)
    made, real = _read(
        task, lambda media: torch.stack([vggish.features(network, each, modality.rate) for each in media]), "vggish"
    )
    note = "vggish: one mean for each sound, where the FAD of the literature takes all pieces of 0.96 s"
    return Result(feature_rows(made, real, task.sets, task.settings.splits, task.settings.bootstrap), notes=(note,))


def _weights(task: Task, name: str) -> Path:
    published = PUBLISHED[name][0]
    return published.found(task.settings.network(name)) or published.fetch()


def _read(task: Task, read: Callable[[list[Any]], Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return features of the samples and of the real examples, decoded to media."""
    sets, found = task.sets, []
    with Display(f"{name} features", len(sets.samples) + len(sets.real)) as display:
        for part in (*sets.samples.split(BATCH), *sets.real.split(BATCH)):
            found.append(read([task.modality.decode(each) for each in part]))
            display.update(sum(map(len, found)))
    features = torch.cat(found)
    return features[: sets.count], features[sets.count :]
