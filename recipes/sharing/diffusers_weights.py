"""The weights of a saved model of diffusers: safetensors, in one file or several that an index names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from multisagd.files import read_json
from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_header, read_tensors

STEM = "diffusion_pytorch_model"
SINGLE = (f"{STEM}.safetensors", f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors")
"""Names of weights in one file, the first that is there counts."""
FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""What diffusers called the parts of attention before 2023, as models of that time still do."""


@dataclass(frozen=True)
class Stored:
    """The weights of a model, still in their files; `shapes` are what the headers of these say.

    `former` tells whether names of former days are to be understood.
    """

    files: list[Path]
    shapes: dict[str, tuple[int, ...]]
    former: bool

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by the names that diffusers has for them now, as float32.

        Raises:
            RecipeError: if they cannot be read.
        """
        tensors: dict[str, Tensor] = {}
        for path in self.files:
            with _explained(path):
                stored = read_tensors(path)
            tensors |= {_name(name, self.former): tensor.float() for name, tensor in stored.items()}
        return tensors


def stored_weights(folder: Path, former: bool) -> Stored:
    """Find a model's weights and read their shapes; `former` says whether names may be those of former days.

    Raises:
        RecipeError: if there are none, they are pickles, or no safetensors.
    """
    files = _files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        with _explained(path):
            shapes |= {_name(name, former): each.shape for name, each in read_header(path).items()}
    return Stored(files, shapes, former)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise RecipeError(f"cannot read the weights {path} ({error}): fetch the model again") from error


def _files(folder: Path) -> list[Path]:
    for name in SINGLE:
        if (folder / name).exists():
            return [folder / name]
    index = folder / f"{STEM}.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            if not all(re.fullmatch(r"[\w-][\w.-]*\.safetensors", name) for name in names):
                raise ValueError("it names files that are no safetensors of its own folder")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(f"cannot read {index} ({error}): fetch the model again") from error
        return [folder / name for name in names]
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth", "ckpt", "pkl") for path in folder.glob(f"*.{suffix}"))
    if pickles:
        raise RecipeError(
            f"{folder} has its weights as {pickles[0]}, a format that can run code when it is read: have them saved as "
            "safetensors, or convert them where you trust them (model.save_pretrained(folder))"
        )
    raise RecipeError(f"{folder} holds no weights: {SINGLE[0]} is missing")


def _name(name: str, former: bool) -> str:
    parts = name.rsplit(".", 2)
    if former and len(parts) == 3 and parts[1] in FORMER and "attentions" in name:
        return f"{parts[0]}.{FORMER[parts[1]]}.{parts[2]}"
    return name
