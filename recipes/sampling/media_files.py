"""The media that samples are drawn with: the files, the names that samples have after them, and encoded media."""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from modalities.base import Modality, stack_masks
from modalities.endings import ending_of
from modalities.file_walk import find_files
from modalities.reading import UnreadableFilesError
from modalities.remarks import collecting
from recipes.base.errors import RecipeError, as_recipe_error
from recipes.runtime.distribution import is_first

COUNT = 64
"""Number of samples, unless it is given or there is one for each file."""
LONGEST_NAME = 200
"""Maximum number of bytes of the name of a sample, of which the last ones are kept."""

log = logging.getLogger("multisagd")


@dataclass(frozen=True)
class NamedFiles:
    """Files of media, by names for the samples that are drawn with them."""

    named: Mapping[str, Path]

    @property
    def paths(self) -> list[Path]:
        """The files in order."""
        return list(self.named.values())

    def first(self, count: int) -> Self:
        """Return the first `count` files, or all if there are fewer."""
        return type(self)(dict(itertools.islice(self.named.items(), count)))

    def names(self, count: int) -> list[str]:
        """Return the names of `count` samples, which have the files in turn."""
        rounds = -(-count // len(self.named))
        pairs = itertools.product(range(rounds), self.named)
        return [name if rounds == 1 else f"{name}_{turn}" for turn, name in itertools.islice(pairs, count)]


@dataclass(frozen=True, eq=False)
class Media:
    """Encoded media x0 (rows, channels, *grid), which samples have in turn.

    `present` is bool (rows, 1 or channels, *grid), False where a medium has no values, as at the end of a sound that is
    too short; None: all have. `files` are those of the rows, or None.
    """

    x0: Tensor
    present: Tensor | None = None
    files: NamedFiles | None = None


def read_media(files: NamedFiles, modality: Modality, key: str) -> Media:
    """Return the media in files, read from their middle without augmentation; `key` is the setting, for messages.

    Raises:
        RecipeError: If a file cannot be read, or has values that are not finite; the message names it.
    """
    encoded, masks = [], []
    for path in files.paths:
        # Decoders raise many kinds of errors, and a user's modality may raise any.
        with as_recipe_error((Exception, UnreadableFilesError), f"{key}: {path}: "), told_remarks(key, path):
            media = modality.load(path, None)
            x0, mask = modality.encode(media), modality.mask(media)
            if not bool(x0.isfinite().all()):
                raise ValueError("it contains NaN or infinity")
        encoded.append(x0)
        masks.append(mask)
    return Media(torch.stack(encoded), stack_masks(masks, encoded[0].shape), files)


@contextmanager
def told_remarks(key: str, path: Path) -> Iterator[None]:
    """Log what readers remark about a file of media, such as another unit; `key` is the setting."""
    with collecting() as found:
        yield
    for text in sorted(found) if is_first() else ():
        log.warning("%s: %s: %s", key, path, text)


def media_of_tensor(values: Tensor, modality: Modality, key: str) -> Media:
    """Return the media in a tensor (rows, channels, *grid), dimensionless, NaN where a medium has no values.

    Raises:
        RecipeError: If it has another shape, no rows, or infinite values.
    """
    if not len(values) or tuple(values.shape[1:]) != modality.tensor_shape or bool(values.isinf().any()):
        raise RecipeError(
            f"{key}: expected a tensor of finite numbers (or NaN: no value) of shape (1 or more, "
            f"{', '.join(map(str, modality.tensor_shape))}), got {tuple(values.shape)}"
        )
    present = ~values.isnan()
    return Media(values.nan_to_num(0.0).float(), None if bool(present.all()) else present)


def named_files(path: Path, suffixes: tuple[str, ...], key: str) -> NamedFiles:
    """Return the file at a path, or those with these endings under a folder, with a name for each.

    The name is the path under the folder without its ending, with _ for /. `key` is the setting, for messages.

    Raises:
        RecipeError: If there is no such file, or two have one name.
    """
    with as_recipe_error(OSError, f"{key}: "):
        if path.is_dir():
            root, files = path, find_files(path, suffixes).media
        elif ending_of(path.name, suffixes) and path.is_file():
            root, files = path.parent, [path.name]
        else:
            problem = "is not a file that is read" if path.exists() else "does not exist"
            known = ", ".join(suffixes)
            raise RecipeError(f"{key}={path} {problem}: choose a folder, or a file that ends in {known}")
    named: dict[str, Path] = {}
    for file in files:
        stem = file[: len(file) - len(ending_of(file, suffixes))].replace("/", "_")
        name = stem.encode("utf-8", "surrogateescape")[-LONGEST_NAME:].decode("utf-8", "ignore")
        if name in named:
            raise RecipeError(f"{key}: {named[name]} and {root / file} would give samples of one name: rename one")
        named[name] = root / file
    return NamedFiles(named)


def paired(initial: NamedFiles | None, condition: NamedFiles | None) -> NamedFiles | None:
    """Return the files after which samples are named, if they start from some and have conditions from others.

    Raises:
        RecipeError: If both are several files, but not with the same names: it is unknown which belong together.
    """
    if initial is None or condition is None:
        return initial or condition
    if min(len(initial.named), len(condition.named)) > 1 and initial.named.keys() != condition.named.keys():
        other = sorted(initial.named.keys() ^ condition.named.keys())
        raise RecipeError(
            f"the files of initial and condition belong together by their names, but only one of both has "
            f"{listed(other)}: add the missing files, or choose one file for all"
        )
    return initial if len(initial.named) >= len(condition.named) else condition


def listed(names: Sequence[str], shown: int = 3) -> str:
    """Return the first names as text for messages."""
    return f"{', '.join(names[:shown])}{', …' * (len(names) > shown)}"
