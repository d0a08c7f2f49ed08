"""Which values of the media that samples are drawn with are unknown: intervals, a picture, an array, or what lacks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Modality
from modalities.unknown import MASKS, Box, check_same_place, known_in_file, known_outside
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.sampling.media_files import Media, NamedFiles, listed, named_files

MISSING = "missing"
"""Value of the setting `unknown`: what the files lack, such as the rest of a sound that is shorter than the samples."""
Unknown = str | Path | Box | Sequence[Box] | Tensor


def known_values(unknown: Unknown, modality: Modality, media: Media) -> Tensor:
    """Return which values of media are known, bool (rows, 1 or channels, *grid).

    A tensor `unknown` is bool, True for unknown values, and broadcasts against the media.

    Raises:
        RecipeError: If the unknown part cannot be read, is not of these media, or is all or nothing of them.
    """
    x0, files = media.x0, media.files
    known = torch.ones(1, 1, *x0.shape[2:], dtype=torch.bool)
    if isinstance(unknown, Tensor):
        if unknown.dtype != torch.bool:
            raise RecipeError(f"unknown: the tensor must be bool, True for what is filled in, got {unknown.dtype}")
        with as_recipe_error(RuntimeError, "unknown: "):
            known = ~unknown.expand_as(x0)
    elif isinstance(unknown, Mapping) or (isinstance(unknown, Sequence) and not isinstance(unknown, str)):
        boxes = [unknown] if isinstance(unknown, Mapping) else unknown
        with as_recipe_error(ValueError, "unknown: "):
            known = known_outside(boxes, modality)[None]
    elif unknown != MISSING:
        known = _known_in_files(Path(unknown), modality, files)
    known = known.expand(len(x0), *known.shape[1:])
    if media.present is not None:
        known = known & media.present
    if bool(known.all()):
        raise RecipeError(
            "unknown: there is nothing to fill in. In a file, white (or not 0) is unknown; unknown=missing needs media "
            "that are shorter than the samples, or lack values"
        )
    nothing = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
    if nothing:
        which = f"medium {nothing[0]}" if files is None else files.paths[nothing[0]]
        raise RecipeError(f"unknown: nothing is known of {which}: choose a smaller part, or remove initial and unknown")
    return known


def _known_in_files(path: Path, modality: Modality, files: NamedFiles | None) -> Tensor:
    """Return the known values that a file states for all media, or the files of a folder for those of their names."""
    masks = named_files(path, MASKS, "unknown")
    pairs: list[tuple[Path, Path | None]]
    if not path.is_dir():
        chosen = masks.paths
        pairs = [(chosen[0], each) for each in (files.paths if files is not None else [None])]
    elif files is None:
        raise RecipeError(f"unknown={path} is a folder, but the media are not files of the same names: choose one file")
    else:
        if lacking := [name for name in files.named if name not in masks.named]:
            raise RecipeError(f"unknown={path} has no file for {listed(lacking)}: add it")
        chosen = [masks.named[name] for name in files.named]
        pairs = list(zip(chosen, files.paths, strict=True))
    for mask, media in pairs:
        with as_recipe_error((ValueError, OSError), f"unknown: {mask}: "):
            check_same_place(mask, media, modality)
    known = []
    for mask in chosen:
        with as_recipe_error((ValueError, OSError), f"unknown: {mask}: "):
            known.append(known_in_file(mask, modality))
    channels = max(len(each) for each in known)
    return torch.stack([each.expand(channels, *each.shape[1:]) for each in known])
