"""Files of pretrained weights: where they are, and how they are read without running anything that they hold.

TorchScript files (the I3D network of FVD is published as one) are programs and are not read at all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multisagd.files import check_file, digest
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_tensors


@dataclass(frozen=True)
class Published:
    """Weights as their authors publish them: the file's name ends in the first digits of its SHA-256."""

    url: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]

    def kept(self) -> Path:
        """Return where torch.hub keeps the file once it has been fetched."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def found(self, given: Path | None) -> Path | None:
        """Return the file given, or else the one that torch.hub keeps, None if there is neither."""
        if given is not None:
            return given
        return self.kept() if self.kept().is_file() else None

    def fetch(self) -> Path:
        """Download the file to where torch.hub keeps it.

        Raises:
            RecipeError: if it cannot be, or is not what it should be.
        """
        self.kept().parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(self.url, str(self.kept()), hash_prefix=_stated_hash(self.name))
        except (OSError, RuntimeError) as error:
            raise RecipeError(
                f"cannot fetch {self.url} ({error}): put it at {self.kept()} yourself, or leave the metric out"
            ) from error
        return self.kept()


def read_weights(path: Path, published: Published | None = None) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a file of torch that holds tensors and nothing else.

    A file that has the name of the `published` one must have the hash which that states.

    Raises:
        RecipeError: if it is missing, unreadable, something else or altered.
    """
    try:
        check_file(path)
        stated = _stated_hash(path.name) if published is not None and path.name == published.name else None
        if stated is not None and not digest(path).startswith(stated):
            raise ValueError(f"its SHA-256 does not begin with {stated}, as its name says: fetch it again")
        if path.suffix == ".safetensors":
            return read_tensors(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(loaded, dict) or not all(isinstance(each, Tensor) for each in loaded.values()):
            raise ValueError("it holds something else than named tensors")
        return {str(name): tensor for name, tensor in loaded.items()}
    except Exception as error:  # whatever the readers of torch and safetensors make of bytes that mean nothing
        reason = (str(error).splitlines() or [""])[0] or "it is cut off or no file of weights"
        raise RecipeError(
            f"cannot read weights from {path} ({reason}): give a state dict, as .safetensors or saved by torch.save. "
            "TorchScript and other files that can run code are not read"
        ) from error


def fill(network: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load weights into a network, for use without training.

    Raises:
        RecipeError: if they are not this network's.
    """
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"the weights in {path} are not those of {type(network).__name__}: {reason:.300}") from error
    network.eval().requires_grad_(False)


def _stated_hash(name: str) -> str | None:
    match = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
    return None if match is None else match[1]
