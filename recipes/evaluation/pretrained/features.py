"""Metrics on the features of networks trained by others, where their weights are at hand."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.image import Image
from modalities.latent import Latent
from modalities.video import Video
from multisagd.metrics.vggish import vggish_features
from recipes.base.progress import Display
from recipes.evaluation.features import feature_rows
from recipes.evaluation.pretrained import networks
from recipes.evaluation.rows import Result, Row
from recipes.evaluation.task import EvaluateSettings, Task

BATCH = 32
PUBLISHED = {
    "inception": (networks.INCEPTION, networks.load_inception, Image, "images"),
    "vggish": (networks.VGGISH, networks.load_vggish, Audio, "sounds"),
    "r3d": (networks.R3D, networks.load_r3d, Video, "videos"),
}
"""Of each network the published weights, what loads them, and the medium that it is for."""


def medium(modality: Modality) -> Modality:
    """Return the modality of the media themselves: of latents, what they are latents of."""
    return modality.modality if isinstance(modality, Latent) else modality


def lacks(name: str, train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why a network cannot be used here, None if it can."""
    published, _, kind, media = PUBLISHED[name]
    if not isinstance(medium(train.modality), kind):
        return f"it is a network for {media}"
    if settings.download or published.found(getattr(settings.networks, name)) is not None:
        return None
    return f"its weights are not at {published.kept()}: give networks.{name}=FILE, or download=true"


lacks_inception, lacks_vggish, lacks_r3d = (partial(lacks, name) for name in PUBLISHED)


def inception(task: Task) -> Result:
    """Compare features of FID's Inception network, the last ones and those of an earlier block."""
    device = task.runtime.device
    made, real = _read(
        task, "inception", lambda network, media: networks.inception_features(network, torch.stack(media).to(device))
    )
    rows: list[Row] = []
    for block, ours, theirs in zip(
        networks.BLOCKS, made.split(networks.BLOCKS, 1), real.split(networks.BLOCKS, 1), strict=True
    ):
        rows += feature_rows(task, ours, theirs, f"{block}: ")
    return Result(tuple(rows))


def r3d(task: Task) -> Result:
    """Compare features of the video network R3D-18."""
    device = task.runtime.device
    features = _read(task, "r3d", lambda network, media: networks.r3d_features(network, torch.stack(media).to(device)))
    note = "r3d: distances on R3D-18 are not the FVD of the literature, which is on an I3D network"
    return Result(feature_rows(task, *features), notes=(note,))


def vggish(task: Task) -> Result:
    """Compare features of VGGish, a mean for each sound."""
    modality = medium(task.modality)
    assert isinstance(modality, Audio)
    rate = modality.rate

    def read(network: nn.Module, media: list[Any]) -> Tensor:
        return torch.stack([vggish_features(network, each, rate) for each in media])

    note = "vggish: one mean for each sound, where the FAD of the literature takes all pieces of 0.96 s"
    return Result(feature_rows(task, *_read(task, "vggish", read)), notes=(note,))


def _read(task: Task, name: str, read: Callable[[nn.Module, list[Any]], Tensor]) -> tuple[Tensor, Tensor]:
    """Return a network's features of the samples and of the real examples, decoded to media."""
    published, load, *_ = PUBLISHED[name]
    path = published.found(getattr(task.settings.networks, name)) or published.fetch()
    network = load(path).to(task.runtime.device)
    sets, found = task.sets, []
    with Display(f"{name} features", len(sets.samples) + len(sets.real)) as display:
        for part in (*sets.samples.split(BATCH), *sets.real.split(BATCH)):
            found.append(read(network, [task.modality.decode(each) for each in part]))
            display.update(sum(map(len, found)))
    features = torch.cat(found)
    return features[: sets.count], features[sets.count :]
