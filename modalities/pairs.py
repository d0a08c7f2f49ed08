"""Pairs of files: the condition of every example is a file of the same name in another folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Modality, UnusableFileError
from modalities.endings import ending_of
from modalities.file_walk import find_files
from modalities.reading import UnreadableFilesError
from modalities.scalars import POSITIONS, recording

SHOWN = 3
"""Number of files without a condition that a message names."""


def matching(
    root: Path, files: Sequence[str], suffixes: tuple[str, ...], other: Path, other_suffixes: tuple[str, ...]
) -> list[str]:
    """Return for each of the `files` under `root` the file under `other` with the same path up to the ending.

    `suffixes` are the endings of the files, and `other_suffixes` those that are searched for.

    Raises:
        FileNotFoundError: If `other` is not a folder, or a file has no partner; the message names the first ones.
        ValueError: If a file has two partners, or one of the folders contains the other.
    """
    ours, theirs = root.resolve(), other.resolve()
    if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
        raise ValueError(
            f"condition_root={other} and root={root} are the same folder, or one contains the other, so examples and "
            "their conditions could not be told apart: move one of them"
        )
    if not other.is_dir():
        raise FileNotFoundError(f"condition_root={other.absolute()} is not a folder")
    found: dict[str, str] = {}
    for path in sorted(find_files(other, other_suffixes).media):
        stem = _stem(path, other_suffixes)
        if stem in found:
            raise ValueError(
                f"condition_root={other} has two conditions of one name, {found[stem]} and {path}: remove one"
            )
        found[stem] = path
    partners = [found.get(_stem(file, suffixes)) for file in files]
    if None in partners:
        missing = [file for file, partner in zip(files, partners, strict=True) if partner is None]
        some = ", ".join(f"{_stem(file, suffixes)}{other_suffixes[0]}" for file in missing[:SHOWN])
        raise FileNotFoundError(
            f"condition_root={other.absolute()} has no condition for {len(missing)} of {len(files)} files: it must "
            f"contain {some}{', …' * (len(missing) > SHOWN)} (or another ending that is read: "
            f"{', '.join(other_suffixes)}). Add the files, or select files that have one with match"
        )
    return [partner for partner in partners if partner is not None]


def _stem(file: str, suffixes: tuple[str, ...]) -> str:
    return file[: len(file) - len(ending_of(file, suffixes))]


def read_condition(
    path: Path, modality: Modality, seed: int | None, scalars: Mapping[str, float] | None = None
) -> Tensor:
    """Return the condition in a file, encoded by its modality: (channels, *grid), NaN where values are masked.

    `scalars` are the numbers recorded while the example itself was read with this seed, by the same modality: both must
    have been cropped at the same place.

    Raises:
        UnusableFileError: If the file cannot be used, whatever the seed; the message names it.
        UnreadableFilesError: If the storage fails.
        ValueError: If it cannot be read, or was cropped at another place; the message names it.
    """
    try:
        with recording() as own:
            media = modality.load(path, seed)
        mask = modality.mask(media)
        encoded = modality.encode(media)
        condition = encoded if mask is None else encoded.masked_fill(~mask, torch.nan)
        if bool(condition.isinf().any()) or (mask is None and bool(condition.isnan().any())):
            raise ValueError("it contains NaN or infinity")
    except UnreadableFilesError:
        raise
    except Exception as error:  # decoders raise many kinds of errors, and users' modalities may raise any
        kind = UnusableFileError if isinstance(error, UnusableFileError) else ValueError
        raise kind(f"its condition {path}: {type(error).__name__}: {error}") from error
    for name, tolerance in POSITIONS.items():
        if scalars is not None and name in scalars and name in own:
            here, there = scalars[name], own[name]
            if not math.isclose(here, there, rel_tol=0, abs_tol=tolerance):
                raise ValueError(
                    f"its condition {path} was read at another place ({name} {there:g}, not {here:g}): give both files "
                    "the same size or duration, or name the modality of the conditions (condition_modality), with "
                    "which both are read from their middle"
                )
    return condition
