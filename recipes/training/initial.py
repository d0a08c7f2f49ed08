"""Weights that a training starts from: those of another run, of an exported model, or of an adopted network.

They are read when a run begins and never again, so a run continues without them; `run.json` keeps where they came from
and the SHA-256 of what they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipes.base.errors import RecipeError
from recipes.base.untrusted import read_header, read_tensors
from recipes.config.build import Builder
from recipes.runs.checkpoint_files import Shapes
from recipes.runs.model import open_model
from recipes.runs.state import load_module, mismatch, shapes

KEY = "training.initial"


def load_initial(network: nn.Module, source: Path, builder: Builder) -> dict[str, Any]:
    """Give a network its first weights, and return where they came from, for `run.json`.

    `source` is a safetensors file with the names of the network, or the folder of a run or an exported model, whose
    averaged weights are taken (of an exported model those that it holds).

    Raises:
        RecipeError: if there are none, they cannot be read, or do not fit the network.
    """
    check = partial(_check, shapes(network.state_dict()), source)
    tensors = _folder(source, builder, check) if source.is_dir() else _file(source, check)
    load_module(network, tensors, KEY)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].detach().contiguous().cpu().numpy().tobytes())
    return {"from": str(source.absolute()), "sha256": digest.hexdigest()}


def _folder(source: Path, builder: Builder, check: Any) -> Mapping[str, Tensor]:
    try:
        model = open_model(source, builder)
        return model.weights(model.exported or "ema", check).tensors
    except RecipeError as error:
        raise error if str(error).startswith(KEY) else RecipeError(f"{KEY}={source}: {error}") from error


def _file(source: Path, check: Any) -> dict[str, Tensor]:
    try:
        check({name: each.shape for name, each in read_header(source).items()})
        return {name: tensor.float() for name, tensor in read_tensors(source).items()}
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"{KEY}={source} cannot be read ({error}): name a safetensors file, an exported model or a run"
        ) from error


def _check(wanted: Shapes, source: Path, there: Shapes) -> None:
    if different := mismatch(there, wanted):
        raise RecipeError(
            f"{KEY}={source} does not fit the configured network: {different}. Configure the network that these "
            "weights are of, with as many channels and classes (training.conditional=false learns none)"
        )
