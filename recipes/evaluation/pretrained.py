"""Metrics that compare features of published networks, whose weights are read without executing code.

TorchScript files, such as the published I3D network of FVD, are programs and are not read.
"""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modalities.audio import Audio
from modalities.base import Dataset, Modality
from modalities.image import Image
from modalities.latent import Latent
from modalities.video import Video
from multisagd.files import check_file, digest
from multisagd.libraries import importing
from multisagd.metrics.vggish import VGGish, vggish_features
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.base.progress import Display
from recipes.base.untrusted import read_tensors
from recipes.evaluation.features import feature_rows
from recipes.evaluation.task import EvaluateSettings, Result, Row, Task


@dataclass(frozen=True)
class Published:
    """Published weights, in a file whose name may end in the first digits of its SHA-256."""

    url: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def stated_hash(self) -> str | None:
        """First digits of the file's SHA-256 in its name, or None."""
        match = re.search(r"-([0-9a-f]{8,64})\.\w+$", self.name)
        return None if match is None else match[1]

    def cached_path(self) -> Path:
        """Return the path at which torch.hub stores the downloaded file."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def local_path(self, given: Path | None) -> Path | None:
        """Return `given` unless it is None, else the file in torch.hub's folder if it exists, else None."""
        if given is not None:
            return given
        return self.cached_path() if self.cached_path().is_file() else None

    def fetch(self) -> Path:
        """Download the file to torch.hub's folder and return its path.

        Raises RecipeError if that fails or the hash differs.
        """
        path = self.cached_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        remedy = f"save it as {path} yourself, or remove the metric"
        with as_recipe_error((OSError, RuntimeError), f"cannot fetch {self.url} (", f"): {remedy}"):
            torch.hub.download_url_to_file(self.url, str(path), hash_prefix=self.stated_hash)
        return path


INCEPTION = Published(
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)
R3D = Published("https://download.pytorch.org/models/r3d_18-b3b3357e.pth")
VGGISH = Published("https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth")

BLOCKS = (2048, 768)
"""Numbers of features of the Inception network: from its last block, and averaged from an earlier block.

The features of the earlier block require fewer items.
"""


def read_weights(path: Path, published: Published | None = None) -> dict[str, Tensor]:
    """Return a state dict from a .safetensors file, or from a torch file that contains only tensors.

    A file with the name of the `published` file must have the hash that the name states. Raises RecipeError if the file
    is missing, unreadable, invalid or altered.
    """
    try:
        check_file(path)
        stated = published.stated_hash if published is not None and path.name == published.name else None
        if stated is not None and not digest(path).startswith(stated):
            raise ValueError(
                f"its SHA-256 does not begin with {stated}, although its name states this: download the file again"
            )
        if path.suffix == ".safetensors":
            return read_tensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or not all(isinstance(each, Tensor) for each in loaded.values()):
            raise ValueError("it is not a dictionary of named tensors")
        return {str(name): tensor for name, tensor in loaded.items()}
    except Exception as error:  # the readers of torch and safetensors raise many errors on invalid bytes
        reason = (str(error).splitlines() or [""])[0] or "it is truncated or not a weight file"
        raise RecipeError(
            f"cannot read weights from {path} ({reason}): use a state dict, as .safetensors or saved by torch.save. "
            "TorchScript and other files that can run code are refused"
        ) from error


def fill(network: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights into a network and prepare it for inference. Raises RecipeError if they do not fit."""
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"the weights in {path} do not fit {type(network).__name__}: {reason:.300}") from error
    network.eval().requires_grad_(False)


def load_inception(path: Path) -> nn.Module:
    """Return the Inception network of FID (1706.08500) as in torch-fidelity, which torchmetrics also uses."""
    with importing("torch_fidelity", "inception"):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    tensors = read_weights(path, INCEPTION)
    # torch-fidelity's loader unpickles its input, so it is given a file that was just written from tensors.
    with tempfile.TemporaryDirectory() as folder:
        safe = Path(folder) / "weights.pth"
        torch.save(tensors, safe)
        try:
            network: nn.Module = FeatureExtractorInceptionV3("inception", list(map(str, BLOCKS)), str(safe))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"the weights in {path} do not fit FID's Inception: {reason:.300}") from error
    return network


@torch.no_grad()
def inception_features(network: nn.Module, images: Tensor) -> Tensor:
    """Return features `(batch, 2048 + 768)` of uint8 images `(batch, 1 or 3, height, width)`: `BLOCKS` in order."""
    return torch.cat(network(images.expand(-1, 3, -1, -1)), dim=1).cpu()


def load_r3d(path: Path) -> nn.Module:
    """Return the video network R3D-18 (1711.11248), trained on Kinetics-400, without its last layer: 512 features.

    Published Fréchet video distances (1812.01717) use an I3D network, which is distributed as TorchScript and therefore
    cannot be read here. Distances with R3D-18 are comparable only with one another.
    """
    with importing("torchvision", "r3d"):
        from torchvision.models.video import r3d_18
    network: nn.Module = r3d_18()
    fill(network, read_weights(path, R3D), path)
    network.fc = nn.Identity()
    return network


@torch.no_grad()
def r3d_features(network: nn.Module, clips: Tensor) -> Tensor:
    """Return features `(batch, 512)` of uint8 clips `(batch, 1 or 3, frames, height, width)`, scaled to 112×112."""
    from torchvision.models.video import R3D_18_Weights

    # The published preprocessing scales to 128×171 and crops, which would remove a third of a square frame.
    preprocess = R3D_18_Weights.KINETICS400_V1.transforms(resize_size=(112, 112))
    features: Tensor = network(preprocess(clips.expand(-1, 3, -1, -1, -1).transpose(1, 2).contiguous()))
    return features.cpu()


def load_vggish(path: Path) -> nn.Module:
    """Return VGGish with weights from a file in the format of torchvggish."""
    network = VGGish()
    fill(network, read_weights(path, VGGISH), path)
    return network


BATCH = 32
PUBLISHED = {
    "inception": (INCEPTION, load_inception, Image, "images"),
    "vggish": (VGGISH, load_vggish, Audio, "audio"),
    "r3d": (R3D, load_r3d, Video, "videos"),
}
"""Published weights, loader and modality of each network, and the name of its media."""


def medium(modality: Modality) -> Modality:
    """Return the modality of the media: for latents, the modality that they encode."""
    return modality.modality if isinstance(modality, Latent) else modality


def network_unavailable(name: str, train: Dataset, settings: EvaluateSettings) -> str | None:
    """Return why a network cannot be used for these data, or None if it can."""
    published, _, kind, media = PUBLISHED[name]
    if not isinstance(medium(train.modality), kind):
        return f"it is a network for {media}"
    if settings.download or published.local_path(getattr(settings.networks, name)) is not None:
        return None
    return f"its weights are not at {published.cached_path()}: set networks.{name}=FILE, or download=true"


inception_unavailable, vggish_unavailable, r3d_unavailable = (partial(network_unavailable, name) for name in PUBLISHED)


def inception(task: Task) -> Result:
    """Compare features of FID's Inception network, from its last block and from an earlier block."""
    device = task.runtime.device
    rows: list[Row] = []

    def read(network: nn.Module, media: list[Any]) -> Tensor:
        return inception_features(network, torch.stack(media).to(device))

    made, real = _features(task, "inception", read)
    for block, ours, theirs in zip(BLOCKS, made.split(BLOCKS, 1), real.split(BLOCKS, 1), strict=True):
        rows += feature_rows(task, ours, theirs, f"{block}: ")
    return Result(tuple(rows))


def r3d(task: Task) -> Result:
    """Compare features of the video network R3D-18."""
    device = task.runtime.device
    features = _features(task, "r3d", lambda network, media: r3d_features(network, torch.stack(media).to(device)))
    note = "r3d: distances with R3D-18 are not the published FVD, which uses an I3D network"
    return Result(feature_rows(task, *features), notes=(note,))


def vggish(task: Task) -> Result:
    """Compare features of VGGish, averaged over each recording."""
    modality = medium(task.modality)
    assert isinstance(modality, Audio)
    rate = modality.rate

    def read(network: nn.Module, media: list[Any]) -> Tensor:
        return torch.stack([vggish_features(network, each, rate) for each in media])

    note = "vggish: features are averaged over each recording; published FADs use every 0.96 s excerpt"
    return Result(feature_rows(task, *_features(task, "vggish", read)), notes=(note,))


def _features(task: Task, name: str, read: Callable[[nn.Module, list[Any]], Tensor]) -> tuple[Tensor, Tensor]:
    """Decode the samples and the real examples to media, and return a network's features of each."""
    published, load, *_ = PUBLISHED[name]
    path = published.local_path(getattr(task.settings.networks, name)) or published.fetch()
    network = load(path).to(task.runtime.device)
    sets, batches = task.sets, []
    with Display(f"{name} features", len(sets.samples) + len(sets.real)) as display:
        for part in (*sets.samples.split(BATCH), *sets.real.split(BATCH)):
            batches.append(read(network, [task.modality.decode(each) for each in part]))
            display.update(sum(map(len, batches)))
    features = torch.cat(batches)
    return features[: sets.count], features[sets.count :]
