"""Pairs of files: the condition of every example is a file of the same name in another folder."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modalities.base import Modality, UnusableFileError
from modalities.endings import ending_of, listed
from modalities.file_walk import find_files
from modalities.reading import UnreadableFilesError
from modalities.scalars import POSITIONS, positions, recording

log = logging.getLogger("multisagd")
SHOWN = 3
"""Number of files without a condition that a message names."""


def matching(
    root: Path, files: Sequence[str], suffixes: tuple[str, ...], other: Path, other_suffixes: tuple[str, ...]
) -> list[str]:
    """Return for each of the `files` under `root` the file under `other` with the same path up to the ending.

    `suffixes` are the endings of the files, and `other_suffixes` those that are searched for. A warning counts files
    under `other` that are not used.

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
    files_there = find_files(other, other_suffixes)
    for path in sorted(files_there.media):
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
    unused, others = len(found) - len({*partners}), files_there.others
    if unused or others:
        log.warning(
            "condition_root=%s: %d of %d conditions belong to no example that is used, and %d files are passed over, "
            "because they do not end in %s: %s",
            other, unused, len(found), others.total(), ", ".join(other_suffixes), listed(others),
        )  # fmt: skip
    return [partner for partner in partners if partner is not None]


def check_sizes(modality: Modality, conditions: Modality) -> None:
    """Check that the conditions that one modality encodes fit the data of another.

    Raises:
        ValueError: If they have other axes, a size that does not divide that of the data, or one size for data of
            several.
    """
    if conditions is modality:
        return
    if len(modality.in_buckets()) > 1:
        raise ValueError(
            "condition_modality and modality.buckets exclude each other, because all conditions would have one size: "
            "remove one of the two"
        )
    ours, theirs = modality.grid().shape, conditions.grid().shape
    if len(ours) != len(theirs) or any(own % other for own, other in zip(ours, theirs, strict=True)):
        raise ValueError(
            f"condition_modality: conditions have the grid {theirs}, but the data have {ours}: use the same grid, or "
            "one that has a whole factor fewer samples along some axes"
        )


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
        known = "" if kind is UnusableFileError else f"{type(error).__name__}: "
        raise kind(f"the condition {path}: {known}{error}") from error
    for name, here in positions(scalars or {}).items():
        there = own.get(name, here)
        if not math.isclose(here, there, rel_tol=0, abs_tol=POSITIONS.get(name, 0.0)):
            raise ValueError(
                f"the condition {path} was read at another place ({name} {there:g}, not {here:g}), because the files "
                "differ in size or duration, or only one is silent or has no values at this place: mend the files (for "
                "sounds, silence_db=null also reads silence), or name the modality of the conditions "
                "(condition_modality), with which both are read from their middle"
            )
    return condition
